"""Inference time and peak memory of MiniLM, dense and with replaced layers, for one sentence and for 64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ttref.release.accepting.live import Live
from ttref.surgery import edit

from .loops import load

BATCHES, LENGTH, RUNS = (1, 64), 32, 15
MODELS = (("dense", 1), ("tt", 4.4), ("whitened", 4.4), ("tt", 0.5), ("whitened", 2), ("fitted", 4.4), ("fitted", 2))


@torch.no_grad()
def measured(model: nn.Module) -> dict:
    """Milliseconds of a forward pass, the median of some, and the peak of the bytes that it takes beside the model."""
    found = {"parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters())}
    for batch in BATCHES:
        ids = torch.randint(1000, 20000, (batch, LENGTH), generator=torch.Generator().manual_seed(0))
        times = []
        for _ in range(RUNS if batch == 1 else RUNS // 3):
            start = time.perf_counter()
            model(ids)
            times.append(time.perf_counter() - start)
        with Live((ids, *model.parameters(), *model.buffers())) as live:
            model(ids)
        found |= {f"ms_{batch}": 1e3 * median(times), f"least_ms_{batch}": 1e3 * min(times), f"peak_{batch}": live.peak}
    return found


def speed(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``speed``."""
    task, shelf = load(name, folder).task, load(name, folder).shelf
    for method, size in MODELS:
        key = f"{method} {size:g}"
        if key in before:
            continue
        row = {"key": key, "candidate": method, "size": size, "tokens": LENGTH}
        if method == "dense":
            yield row | measured(task.model)
            continue
        grams = shelf.grams if shelf.needs_gram(method) else {}
        candidate = shelf.candidate(method, size)
        new = {layer: candidate.make(task.model.get_submodule(layer), grams.get(layer)) for layer in task.linears}
        with edit(task.model) as change:
            change.put(new)
        yield row | measured(task.model)
        change.undo()
