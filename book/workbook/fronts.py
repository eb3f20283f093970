"""Fronts of accuracy against bits a weight: which method keeps most of a network at each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .figures import MARKERS, OKABE_ITO, pareto_frontier, readable

__all__ = ["accuracy_front", "draw_fronts", "front_of"]

BITS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)  # where the axis has its numbers
SIDES = [(x, y) for x in (1, -1, 0) for y in (0, 1, -1) if x or y]  # of a point, where its name may stand
GAP, CLEAR, FAR = 7, 4, 24  # points: from a name to its mark, to its line at least, and to other lines at best


def front_of(points: Sequence[Mapping], families: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """The best of each family: (bits, accuracy) of the points that no smaller one of it beats, by rising bits.

    Args:
        points: rows with ``family``, ``bits`` and ``accuracy``, as the study of convolutions records them.
        families: the families to draw, in this order.

    Raises:
        ValueError: a family without points.

    Example:
        >>> rows = [{"family": "a", "bits": b, "accuracy": y} for b, y in ((1, 0.5), (2, 0.4), (3, 0.9))]
        >>> front_of(rows, ["a"])
        {'a': [(1, 0.5), (3, 0.9)]}
    """
    found = {}
    for family in families:
        mine = [(row["bits"], -row["accuracy"]) for row in points if row["family"] == family]
        if not mine:
            raise ValueError(f"no points of {family!r}; there are {sorted({row['family'] for row in points})}")
        found[family] = [(bits, -lost) for bits, lost in pareto_frontier(mine)]
    return found


def accuracy_front(ax: Axes, fronts: Mapping[str, Sequence[tuple[float, float]]], *, dense: float) -> Axes:
    """Draw fronts over a logarithmic axis of bits a weight, the dense network's accuracy as a dashed line.

    Each name stands beside its line, where it covers no line and no other name.

    Args:
        ax: Axes to draw in.
        fronts: name of each method and its (bits a weight, accuracy), as :func:`front_of` gives them.
        dense: accuracy of the network as it was.

    Returns:
        The Axes.

    Raises:
        ValueError: no method, one without points, or more methods than colors.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = accuracy_front(Figure().subplots(), {"trains": [(1, 0.7), (2, 0.9)]}, dense=0.92)
        >>> ax.get_xscale(), [text.get_text() for text in ax.texts]
        ('log', ['dense, 32 bits: 0.920', 'trains'])
    """
    said = f"dense, 32 bits: {dense:.3f}"
    labels = "bits a weight, scales counted (log scale)", "accuracy, no training"
    return draw_fronts(ax, fronts, level=dense, said=said, ticks=BITS, labels=labels)


def draw_fronts(
    ax: Axes,
    fronts: Mapping[str, Sequence[tuple[float, float]]],
    *,
    level: float,
    said: str,
    ticks: Sequence[float],
    labels: tuple[str, str],
) -> Axes:
    """Draw fronts over a logarithmic axis, each name beside its line, and a dashed line at a level.

    Args:
        ax: Axes to draw in.
        fronts: name of each method and its points.
        level: where the dashed line is.
        said: what stands above it.
        ticks: numbers that the logarithmic axis may have.
        labels: of both axes.

    Returns:
        The Axes.

    Raises:
        ValueError: no method, one without points, or more methods than colors.

    Example:
        >>> from matplotlib.figure import Figure
        >>> names = {"ticks": (16, 64), "labels": ("bytes", "recall")}
        >>> ax = draw_fronts(Figure().subplots(), {"codes": [(16, 0.7), (64, 0.9)]}, level=1, said="all", **names)
        >>> [text.get_text() for text in ax.texts], [label.get_text() for label in ax.get_xticklabels()]
        (['all', 'codes'], ['16', '64'])
    """
    if not fronts or not all(fronts.values()):
        raise ValueError(f"every method needs at least one point, got {dict(fronts)}")
    if len(fronts) > len(OKABE_ITO):
        raise ValueError(f"{len(fronts)} methods but {len(OKABE_ITO)} colors; split the figure")
    ax.set_xscale("log", base=2)
    ax.axhline(level, color="#777777", linestyle="--", linewidth=1.2, marker="", zorder=0.9)
    for points, color, marker in zip(fronts.values(), OKABE_ITO, MARKERS, strict=False):
        first = marker == MARKERS[0]
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, zorder=3 if first else 2)
    ax.margins(x=0.06, y=0.1)
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel=labels[0], ylabel=labels[1])
    above = {"xytext": (0, 7), "textcoords": "offset points"}
    ax.annotate(said, (high, level), **above, color="#555555", ha="right", va="bottom")
    for (name, place), color in zip(_places(ax, fronts, level, said).items(), OKABE_ITO, strict=False):
        ax.annotate(name, place, color=readable(color), ha="center", va="center")
    return ax


def _places(ax: Axes, fronts: Mapping[str, Sequence[tuple]], dense: float, said: str) -> dict[str, np.ndarray]:
    """The middle of each name in data units: beside its line, as far as may be from all other lines."""
    ax.figure.draw_without_rendering()  # a layout may still move the Axes
    unit, size = 72 / ax.figure.dpi, mpl.rcParams["font.size"]  # pixels become points
    corners = ax.get_window_extent().get_points() * unit
    lines = {name: _along(ax.transData.transform(points) * unit) for name, points in fronts.items()}
    height = ax.transData.transform((ax.get_xlim()[1], dense))[1] * unit
    lines[said] = _along(np.array([(corners[0, 0], height), (corners[1, 0], height)]))
    half = {name: np.array([0.31 * size * len(name), 0.65 * size]) for name in lines}
    taken = {said: np.array([corners[1, 0] - half[said][0], height + GAP + half[said][1]])}
    for name in fronts:

        def clear(middle: np.ndarray, name: str = name) -> float:
            """What speaks for a place: off the own line, far from the others, off the names that stand, inside."""
            room = {
                other: np.max(np.abs(points - middle) - half[name], axis=1).min() for other, points in lines.items()
            }
            names = [np.max(np.abs(at - middle) - half[name] - half[other]) for other, at in taken.items()]
            outside = np.minimum(middle - half[name] - corners[0], corners[1] - middle - half[name]).min()
            others = min(FAR, *(gap for other, gap in room.items() if other != name), *names)
            return 3 * min(room[name], CLEAR) + others + 10 * min(outside, 0)

        near = [*(ax.transData.transform(fronts[name]) * unit), *lines[name][::8]]  # its marks, then between them
        tried = [point + np.array(side) * (half[name] + GAP) for point in near for side in SIDES]
        taken[name] = max(tried, key=clear)
    return {name: ax.transData.inverted().transform(taken[name] / unit) for name in fronts}


def _along(points: np.ndarray) -> np.ndarray:
    """Points of a polyline, about one for each two units of length."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    fine = np.linspace(0, at[-1], 2 + int(at[-1] / 2))
    return np.stack([np.interp(fine, at, points[:, axis]) for axis in (0, 1)], axis=1)
