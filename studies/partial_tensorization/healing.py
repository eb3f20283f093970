"""Healing: factors of MiniLM's linear layers trained to give the dense model's states, trains and SVD alike."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ttref.surgery import edit

from ..embeddings import data
from ..embeddings.healing import course
from . import tasks
from .loops import load
from .methods import ON_DISK, Shelf, made
from .networks import bert_parts

STEPS = {2: 60, 4.4: 120}
ARMS = (
    *(("dense", 1), ("fitted", 4.4), ("whitened", 4.4), ("tt", 4.4)),
    *(("int", 4), ("int", 3), ("int", 8), ("int", 2), ("gptq", 4), ("gptq", 3), ("gptq", 2)),
    *(("fitted", 2), ("whitened", 2), ("tt", 2)),
)
ROUNDED = ("int", "gptq")  # not trained
LOOKED_AT = (2, 4, 6)  # blocks whose states are the target
TOKENS = 384  # in one step
SENTENCES = 200  # of the other half of the text, for the cosine


class Judge:
    """What a MiniLM is measured by here."""

    def __init__(self, folder: Path) -> None:
        self.task = tasks.load("sst2", folder)
        self.model = self.task.model
        self.vectors = tasks.Vectors(data.prose_sentences(data.wikitext(folder)[1], SENTENCES), 64)
        self.dense = self.vectors(self.model).clone()

    def __call__(self) -> dict[str, float]:
        """Mean cosine of sentence vectors to the dense ones; share of ten neighbors that stay; SST-2's test."""
        now = self.vectors(self.model)
        cosine = (now * self.dense).sum(1).double().mean().item()
        kept = neighbors(now).unsqueeze(2) == neighbors(self.dense).unsqueeze(1)
        return {"cosine": cosine, "overlap": kept.any(2).double().mean().item(), "sst2": self.task.score("test")}


def neighbors(vectors: Tensor) -> Tensor:
    """The ten most similar others of each."""
    return (vectors @ vectors.mT).fill_diagonal_(-1).topk(10).indices


def states(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """States after some of the blocks."""
    found, x = [], ids
    for place, part in enumerate(bert_parts(model)):
        x = part(x)
        if place in LOOKED_AT:
            found.append(x)
    return found


def lessons(folder: Path, steps: int) -> list[tuple[Tensor, list[Tensor]]]:
    """Batches of unlabeled sentences of one length each, and the dense model's states, in half precision."""
    model, pool = tasks.minilm().model, tasks.wikipedia(folder)
    ids, _ = tasks.batches_of(pool, 48)
    small = [part for batch in ids for part in batch.split(max(TOKENS // batch.shape[1], 1))]
    random.Random(0).shuffle(small)
    small = [batch for batch in small if batch.numel() >= TOKENS // 2]
    small = [small[k % len(small)] for k in range(steps)]
    with torch.no_grad():
        return [(batch, [x.half() for x in states(model, batch)]) for batch in small]


def healed(model: nn.Module, layers: dict[str, nn.Module], batches: list[tuple[Tensor, list[Tensor]]]) -> dict:
    """Train the factors of these layers of the model, nothing else."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    cores = nn.ModuleList([layer.cores for layer in layers.values()]).requires_grad_(True)

    def loss_of(step: int) -> Tensor:
        ids, target = batches[step]
        pairs = [(x, y.float()) for x, y in zip(states(model, ids), target, strict=True)]
        return sum((x - y).square().mean() / y.square().mean() for x, y in pairs) / len(pairs)

    try:
        return course(cores, len(batches), loss_of)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted.get(name, True))


def arm(judge: Judge, shelf: Shelf, name: str, ratio: float, batches: list | None) -> dict:
    """Replace every linear layer, measure, heal, measure, and put the dense layers back."""
    task, start = judge.task, time.perf_counter()
    candidate = made(name, ratio)  # not one that the shelf keeps: healing changes the layers
    if name in ON_DISK:
        candidate = shelf.stored(candidate)
    grams = shelf.grams if shelf.needs_gram(name) else {}
    new = {layer: candidate.make(task.model.get_submodule(layer), grams.get(layer)).eval() for layer in task.linears}
    dense = sum(task.model.get_submodule(layer).weight.numel() for layer in task.linears)
    total = sum(p.numel() for p in task.model.parameters())
    params, nbytes = (sum(getattr(layer, key) for layer in new.values()) for key in ("params", "nbytes"))
    row = {"candidate": name, "size": ratio, "linears_ratio": dense / params, "linears_bytes": 4 * dense / nbytes}
    row |= {"model_ratio": total / (total - dense + params), "model_bytes": 4 * total / (4 * (total - dense) + nbytes)}
    row["seconds_made"] = time.perf_counter() - start
    with edit(task.model) as change:
        change.put(new)
    row["before"] = judge()
    if batches is not None:
        row |= healed(task.model, new, batches) | {"after": judge()}
    change.undo()
    return row


def healing(task: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``healing``: the dense model, integers as they are, factors before and after."""
    judge: Judge | None = None
    shelf, known = None, {}
    for name, size in ARMS:
        key = f"{name} {size:g}"
        if key in before:
            continue
        if judge is None:
            judge, shelf = Judge(folder), load(task, folder).shelf
        if name == "dense":
            row = {"candidate": "dense", "size": 1, "before": judge()}
        else:
            if name not in ROUNDED and size not in known:
                known = {size: lessons(folder, STEPS[size])}
            row = arm(judge, shelf, name, size, None if name in ROUNDED else known[size])
        after = row.get("after")
        print(key, row["before"], "->", after, f"{row.get('seconds', 0):.0f} s", flush=True)
        yield {"key": key} | row
