"""Operations and time beside bytes: a network with its kernels dense, rebuilt at each call, and in two stages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import nn

from ttref import TTConv2d

from .methods import Modes, rank_within

REPEATS = 9


def swapped(model: nn.Module, modes: dict[str, Modes], share: float) -> nn.Module:
    """A copy with trains of these modes, of any numbers: only sizes matter to time."""
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    for name, chosen in modes.items():
        conv = other.get_submodule(name)
        rank = rank_within(chosen, share * conv.weight.numel())
        bonds = (1, *[rank] * (len(chosen.rows) - 1), 1)
        sizes = zip(bonds[:-1], chosen.rows, chosen.cols, bonds[1:], strict=True)
        settings = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        made = TTConv2d.from_cores([torch.randn(s) / 10 for s in sizes], taps_first=chosen.taps, **settings)
        parent, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(parent), leaf, made)
    return other.eval()


def macs(model: nn.Module, names: list[str], batch: int) -> dict[str, int]:
    """Multiply-adds of the kernels: dense, all rebuilt, and as planned; and how many run in two stages."""
    total, hooks = {"dense": 0, "rebuilt": 0, "planned": 0, "staged": 0}, []

    def count(layer: TTConv2d, given: tuple) -> None:
        plan = layer.plan(given[0].shape)
        total["dense"] += plan.dense
        total["rebuilt"] += plan.rebuilt
        total["planned"] += plan.macs
        total["staged"] += plan.way == "factored"

    for name in names:
        hooks.append(model.get_submodule(name).register_forward_pre_hook(count))
    with torch.no_grad():
        model(torch.zeros(batch, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call."""
    times = []
    for _ in range(REPEATS + 1):
        start = perf_counter()
        with torch.no_grad():
            call()
        times.append(perf_counter() - start)
    return median(times[1:])


def measured(model: nn.Module, modes: dict[str, Modes], share: float) -> list[dict]:
    """For batches of 1 and 64: multiply-adds of the kernels, and milliseconds of the network in each form."""
    train, found = swapped(model, modes, share), []
    for batch in (1, 64):
        x = torch.randn(batch, 3, 32, 32)
        row = {"batch": batch, "ratio": 1 / share} | macs(train, list(modes), batch)
        row["dense_ms"] = 1e3 * seconds(lambda x=x: model(x))
        row["planned_ms"] = 1e3 * seconds(lambda x=x: train(x))
        rebuilt = copy.deepcopy(train)
        for name in modes:
            layer = rebuilt.get_submodule(name)
            layer.plan = lambda shape, layer=layer: TTConv2d.plan(layer, shape)._replace(way="rebuilt")
        row["rebuilt_ms"] = 1e3 * seconds(lambda x=x, rebuilt=rebuilt: rebuilt(x))
        found.append(row)
    return found
