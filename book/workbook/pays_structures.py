"""Structured layers trained from scratch at equal compute: the record of `studies.structures`, counted and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .figures import MARKERS, OKABE_ITO

__all__ = [
    "SIZES",
    "TITLES",
    "Point",
    "against_dense",
    "against_the_better_dense",
    "around_the_best",
    "budget",
    "draw_losses",
    "points_of",
    "rates_of",
]

SIZES = ("small", "medium", "large")
TITLES = {"characters": "characters of Shakespeare", "pictures": "patches of CIFAR-10"}
ONE_RATE = ", one rate"  # the arms without the scaling of steps


class Point(NamedTuple):
    """One structure at one size: means over the seeds that are on record.

    Attributes:
        arm: The structure.
        size: One of ``SIZES``.
        seeds: How many seeds.
        loss: Mean cross entropy on the test half, nats.
        low: The smallest of them.
        high: The largest.
        right: Share of right answers.
        macs: Multiply-adds for a symbol or a patch.
        params: Numbers of the network.
        width: Of its states.
    """

    arm: str
    size: str
    seeds: int
    loss: float
    low: float
    high: float
    right: float
    macs: int
    params: int
    width: int


def rates_of(record: Mapping[str, Any], task: str) -> dict[str, list[float]]:
    """The validation losses of each structure at the rates that were tried, in their order; NaN for what is missing.

    Example:
        >>> row = {"arm": "dense", "rate": 0.002, "loss": 2.5}
        >>> rates_of({"rates": [0.002], "characters": {"tuning": [row]}}, "characters")
        {'dense': [2.5]}
    """
    rows = record.get(task, {}).get("tuning", [])
    losses = {(row["arm"], row["rate"]): row["loss"] for row in rows}
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {arm: [losses.get((arm, rate), math.nan) for rate in record["rates"]] for arm in arms}


def points_of(runs: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The structures at all sizes on record, in the order of the record, small sizes first.

    Example:
        >>> run = {"arm": "dense", "size": "small", "seed": 0, "loss": 2.0, "right": 0.4}
        >>> run |= {"macs": 9, "params": 8, "width": 4}
        >>> points_of([run, run | {"seed": 1, "loss": 3.0}])[0].loss
        2.5
    """
    found = []
    for size in SIZES:
        for arm in dict.fromkeys(run["arm"] for run in runs):
            mine = [run for run in runs if (run["arm"], run["size"]) == (arm, size)]
            if mine:
                losses = [run["loss"] for run in mine]
                right = fmean(run["right"] for run in mine)
                counts = (mine[0][key] for key in ("macs", "params", "width"))
                found.append(Point(arm, size, len(mine), fmean(losses), min(losses), max(losses), right, *counts))
    return found


def against_dense(
    runs: Sequence[Mapping[str, Any]], arm: str, size: str, dense: str = "dense"
) -> tuple[float, float | None] | None:
    """By how many nats a structure is below a dense network, seed by seed, and the standard error of that mean.

    The standard error is None for one seed; None for all if no seed has both.

    Example:
        >>> run = {"arm": "dense", "size": "small", "seed": 0, "loss": 2.0}
        >>> against_dense([run, run | {"arm": "low rank", "loss": 1.9}], "low rank", "small")[1] is None
        True
    """
    losses = {(run["arm"], run["seed"]): run["loss"] for run in runs if run["size"] == size}
    seeds = [seed for name, seed in losses if name == arm and (dense, seed) in losses]
    gains = [losses[dense, seed] - losses[arm, seed] for seed in seeds]
    if not gains:
        return None
    return fmean(gains), stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None


def against_the_better_dense(runs: Sequence[Mapping[str, Any]], arm: str) -> dict[str, tuple[float, float | None]]:
    """`against_dense` for each size, beside that of the two dense arms whose mean loss is smaller there.

    Example:
        >>> run = {"arm": "dense", "size": "small", "seed": 0, "loss": 2.0}
        >>> runs = [run, run | {"arm": "dense, one rate", "loss": 1.5}, run | {"arm": "low rank", "loss": 1.75}]
        >>> against_the_better_dense(runs, "low rank")
        {'small': (-0.25, None)}
    """
    found = {}
    for size in dict.fromkeys(run["size"] for run in runs):
        losses = {
            name: fmean(run["loss"] for run in runs if (run["arm"], run["size"]) == (name, size))
            for name in ("dense", "dense" + ONE_RATE)
        }
        found[size] = against_dense(runs, arm, size, min(losses, key=losses.get))
    return found


def budget(record: Mapping[str, Any]) -> str:
    """Steps, rates and seeds of a record in a sentence.

    Example:
        >>> part = {"tuning": [], "runs": [{"size": "small", "seed": 0}, {"size": "small", "seed": 1}]}
        >>> record = {"steps": 600, "tuning_steps": 300, "rates": [0.001, 0.002], "characters": part}
        >>> budget(record)
        '600 steps of 1,024 symbols or patches; 2 rates from 0.001 to 0.002, 300 steps each; characters, seeds: small 2'
    """
    said = [
        f"{record['steps']} steps of 1,024 symbols or patches",
        f"{len(record['rates'])} rates from {min(record['rates']):g} to {max(record['rates']):g}, "
        f"{record['tuning_steps']} steps each",
    ]
    for task in TITLES:
        runs = record.get(task, {}).get("runs", [])
        seeds = {size: len({run["seed"] for run in runs if run["size"] == size}) for size in SIZES}
        if runs:
            said.append(f"{task}, seeds: " + ", ".join(f"{size} {count}" for size, count in seeds.items() if count))
    return "; ".join(said)


def around_the_best(record: Mapping[str, Any], task: str) -> list[tuple[str, float, float, float | None, float | None]]:
    """For each structure its best rate, the loss there, and those at the rates before and behind it.

    None stands for a rate that was not tried: beside it a better one may lie.

    Example:
        >>> losses = {"dense": (2.5, 2.4, 2.6), "low rank": (2.5, 2.4, 2.3)}
        >>> rates = [0.001, 0.002, 0.004]
        >>> rows = [{"arm": arm, "rate": rate, "loss": loss} for arm, each in losses.items()
        ...         for rate, loss in zip(rates, each)]
        >>> around_the_best({"rates": rates, "characters": {"tuning": rows}}, "characters")
        [('dense', 0.002, 2.4, 2.5, 2.6), ('low rank', 0.004, 2.3, 2.4, None)]
    """
    found = []
    for arm, losses in rates_of(record, task).items():
        tried = {k: loss for k, loss in enumerate(losses) if not math.isnan(loss)}
        best = min(tried, key=tried.get)
        before, behind = tried.get(best - 1), tried.get(best + 1)
        found.append((arm, record["rates"][best], losses[best], before, behind))
    return found


def draw_losses(ax: Axes, points: Sequence[Point]) -> None:
    """Loss against multiply-adds, a line for each structure, bars from the best to the worst seed.

    Structures whose steps are not scaled are drawn hollow and dashed, in the color of the structure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax, point = Figure().subplots(), Point("dense", "small", 1, 2.0, 2.0, 2.0, 0.4, 10_000, 8, 4)
        >>> draw_losses(ax, [point])
        >>> ax.get_legend_handles_labels()[1]
        ['dense']
    """
    arms = dict.fromkeys(point.arm for point in points)
    looks = dict(zip((arm for arm in arms if ONE_RATE not in arm), zip(OKABE_ITO, MARKERS, strict=True), strict=False))
    for arm in arms:
        color, marker = looks.get(arm.removesuffix(ONE_RATE), ("#777777", "x"))
        mine = [point for point in points if point.arm == arm]
        bars = [[p.loss - p.low for p in mine], [p.high - p.loss for p in mine]]
        plain = ONE_RATE in arm
        look = {"linestyle": ":" if plain else "-", "markerfacecolor": "white" if plain else color}
        xs, ys = [p.macs for p in mine], [p.loss for p in mine]
        ax.errorbar(xs, ys, yerr=bars, color=color, marker=marker, label=arm, capsize=2, linewidth=1.3, **look)
    ax.set(xscale="log", xlabel="multiply-adds for a symbol or patch", ylabel="test loss, nats")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:,.0f}k"))
    ax.xaxis.set_minor_formatter(NullFormatter())
