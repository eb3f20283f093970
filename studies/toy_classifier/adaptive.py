"""Ranks adapted during training against fixed ranks, with equal numbers and equal epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from statistics import fmean

import torch
from torch import Tensor, nn

from book.workbook.training import fit
from ttref import TTLinear, schmidt_values, tt_round, ttm_params

from .data import correct, spread, start

MODES = (4, 4, 4)
FIRST, BUDGET = 8, 384  # rank to prune from; ranks (4, 4) take just the budget
SEGMENTS = (5, 5, 5, 5, 5, 25)  # epochs; ranks may change between two segments, and Adam starts anew for every arm
RATE = 1e-2  # the tuning of training.py chooses it for most trains
FIXED = ((4, 4), (3, 5), (5, 3))


def size(ranks: tuple[int, int]) -> int:
    """Numbers in the two outer cores and the middle one."""
    return ttm_params(MODES, MODES, (1, *ranks, 1))


def flat(layer: TTLinear) -> list[Tensor]:
    """The cores as a train, row and column modes merged."""
    return [core.detach().flatten(1, 2) for core in layer.cores]


def layer_of(cores: list[Tensor], bias: Tensor) -> TTLinear:
    """A layer with the cores of a train."""
    return TTLinear.from_cores([core.unflatten(1, (m, m)) for core, m in zip(cores, MODES, strict=True)], bias)


def pruned(layer: TTLinear, budget: int) -> TTLinear:
    """Round to the ranks within the budget with the least sum of squares of the discarded Schmidt values."""
    cores = flat(layer)
    squares = [schmidt_values(cores, bond).double().square() for bond in (1, 2)]

    def left_out(ranks: tuple[int, int]) -> float:
        return sum(values[rank:].sum().item() for values, rank in zip(squares, ranks, strict=True))

    able = [ranks for ranks in product(*(range(1, len(v) + 1) for v in squares)) if size(ranks) <= budget]
    return layer_of(tt_round(cores, rank=(1, *min(able, key=left_out), 1)), layer.bias)


def grown(layer: TTLinear, budget: int, generator: torch.Generator) -> TTLinear:
    """Add directions one by one, at the bond whose Schmidt values decay least; the matrix stays the same.

    A new direction is zero in its left core and random in its right one, so the first step can change it.
    """
    cores = flat(layer)
    while True:
        values = [schmidt_values(cores, bond) for bond in (1, 2)]
        flatness = {bond: (v[-1] / v[0]).item() for bond, v in zip((1, 2), values, strict=True)}
        for bond in sorted(flatness, key=flatness.get, reverse=True):
            ranks = [cores[0].shape[-1], cores[1].shape[-1]]
            ranks[bond - 1] += 1
            if size(tuple(ranks)) <= budget:
                break
        else:
            return layer_of(cores, layer.bias)
        left, right = cores[bond - 1], cores[bond]
        new = torch.randn(1, *right.shape[1:], generator=generator) * right.square().mean().sqrt()
        cores[bond - 1] = torch.cat([left, torch.zeros(*left.shape[:-1], 1)], dim=-1)
        cores[bond] = torch.cat([right, new])


def budget(arm: str, change: int) -> int:
    """Budget of numbers after the given change of ranks, counted from 1."""
    share, most = change / (len(SEGMENTS) - 1), size((FIRST, FIRST))
    if arm == "pruned in steps":
        return round(most * (BUDGET / most) ** share)
    if arm == "pruned once":
        return BUDGET if share == 1 else most
    return round(size((1, 1)) + (BUDGET - size((1, 1))) * share)


def trained(arm: str, ranks: tuple[int, int], seed: int) -> tuple[nn.Sequential, list[float]]:
    """A new network after all segments, and its validation accuracy after each epoch."""
    parts, _ = start(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(TTLinear(MODES, MODES, (1, *ranks, 1)), nn.ReLU(), nn.Linear(64, 10))
    generator, heights = torch.Generator().manual_seed(seed), []
    change = {"grown": partial(grown, generator=generator), "pruned in steps": pruned, "pruned once": pruned}.get(arm)
    for k, epochs in enumerate(SEGMENTS):
        if k and change:
            net[0] = change(net[0], budget(arm, k))

        def look(_: int) -> None:
            heights.append(correct(net, parts.validation) / len(parts.validation[1]))

        fit(net, *parts.train, epochs=epochs, lr=RATE, seed=1000 * k + seed, after_epoch=look)
    return net, heights


def record(seeds: Iterable[int], progress: Iterator) -> dict:
    """Every arm on every seed, all with the same epochs; validation chooses the best fixed ranks."""
    seeds, rows = list(seeds), []
    arms = [("fixed", ranks) for ranks in FIXED]
    arms += [("fixed, over budget", (FIRST, FIRST))]
    arms += [("pruned in steps", (FIRST, FIRST)), ("pruned once", (FIRST, FIRST)), ("grown", (1, 1))]
    for arm, ranks in arms:
        ended, validated, tested, curves = [], [], [], []
        for seed in seeds:
            parts, _ = start(seed)
            net, curve = trained(arm, ranks, seed)
            ended.append(net[0].ranks[1:-1])
            validated.append(correct(net, parts.validation))
            tested.append(correct(net, parts.test))
            curves.append(curve)
            progress.update()
        params = [size(ranks) for ranks in ended]
        rows.append(
            {
                "arm": arm,
                "first_ranks": ranks,
                "last_ranks": ended,
                "params": fmean(params),
                "most_params": max(params),
                **spread("validation_accuracy", [count / len(parts.validation[1]) for count in validated]),
                **spread("test_accuracy", [count / len(parts.test[1]) for count in tested]),
                "test_correct": tested,
                "validation_curve": [fmean(heights) for heights in zip(*curves, strict=True)],
            }
        )
    fixed = [row for row in rows if row["arm"] == "fixed"]
    best = max(fixed, key=lambda row: row["validation_accuracy"])
    total = len(parts.test[1])
    for row in rows:
        gaps = [(a - b) / total for a, b in zip(row["test_correct"], best["test_correct"], strict=True)]
        row |= spread("test_minus_best_fixed", gaps)
    return {
        "seeds": seeds,
        "shape": "(4,4,4)x(4,4,4)",
        "budget": BUDGET,
        "segments": SEGMENTS,
        "lr": RATE,
        "test_total": total,
        "best_fixed": best["first_ranks"],
        "rows": rows,
    }
