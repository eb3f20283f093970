"""Cases: peak bytes of a TT layer, in inference and in a training step, beside ``nn.Linear`` and other libraries."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from ttref import TTLinear, scratch

from . import page
from .layers import peers
from .live import forward_peak, training_peak

RESULT, MODELS = "memory", ["Gaussian layers"]
PACKAGES = ("torch", "tensorly", "tensorly-torch", "torchTT")
LAYERS = ((768, 3072, 16), (3072, 768, 16), (1024, 1024, 16))
BATCH, ROUNDS = 2048, 5


def measure(limits: dict) -> dict:
    """Every layer with 2,048 vectors. Bytes are counted, and the same in every run; times are measured."""
    return {"batch": BATCH, "cases": [one(*layer) for layer in tqdm(LAYERS, desc="memory", disable=None)]}


def one(ins: int, outs: int, rank: int) -> dict:
    """One layer in all libraries: bytes of parameters, peak bytes beside them, and the times of both steps."""
    torch.manual_seed(0)
    layer = TTLinear(ins, outs, rank)
    again = copy.deepcopy(layer)
    again.recompute = True
    x = torch.randn(BATCH, ins)
    contenders = {"nn.Linear": layer.to_linear(), "ttref": layer, "ttref, recomputing": again} | peers(layer)
    rows = []
    for name, made in contenders.items():
        vars(scratch._KEPT).clear()
        parameters = 4 * sum(parameter.numel() for parameter in made.parameters())
        forward, training = forward_peak(made, x), training_peak(made, x)
        rows.append({"name": name, "parameters": parameters, "forward": forward, "training": training})
    for step, way in (("forward_ms", answered), ("training_ms", trained)):
        calls = {name: partial(way, made, x) for name, made in contenders.items()}
        for row, taken in zip(rows, in_turns(list(calls.values())), strict=True):
            row[step] = taken
    plans = {"plan": layer.plan(BATCH), "recomputing": again.plan(BATCH)}
    planned = {name: {"forward": plan.forward, "training": plan.training} for name, plan in plans.items()}
    return {"in_features": ins, "out_features": outs, "rank": rank, "rows": rows, "planned": planned}


def in_turns(calls: list[Callable]) -> list[float]:
    """Median milliseconds of each call, all of them in every round."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + ROUNDS):  # the first round warms up
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found[1:]) for found in times]


def answered(layer: nn.Module, x: torch.Tensor) -> None:
    """Inference."""
    with torch.no_grad():
        layer(x)


def trained(layer: nn.Module, x: torch.Tensor) -> None:
    """Forward and backward."""
    layer.zero_grad(set_to_none=True)
    layer(x.detach().requires_grad_()).sum().backward()


def markdown(record: dict) -> str:
    """A table for each layer."""
    lines = [
        f"{page.measured(record)} Bytes are counted by following every storage that torch makes: the same in every "
        f"run. Parameters count, the {record['batch']:,} vectors do not. Times are medians of {ROUNDS} rounds, as "
        "multiples of the dense layer's."
    ]
    for case in record["cases"]:
        dense = case["rows"][0]
        lines += [
            "",
            f"**{case['in_features']:,} to {case['out_features']:,}**, rank {case['rank']}",
            "",
            "| layer | MB, inference | MB, training step | time, inference | time, training step |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in case["rows"]:
            sizes = (f"{page.short((row['parameters'] + row[step]) / 1e6)}" for step in ("forward", "training"))
            times = (f"{page.short(row[step] / dense[step])}×" for step in ("forward_ms", "training_ms"))
            lines.append(f"| {row['name']} | {' | '.join((*sizes, *times))} |")
    return page.folded(record, "\n".join(lines))


def write(record: dict) -> None:
    """Rewrite the table of the performance page."""
    page.write(RESULT, markdown(record))
