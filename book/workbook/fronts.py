"""Fronts of accuracy against bits a weight: which method keeps most of a network at each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .figures import MARKERS, OKABE_ITO, pareto_frontier, readable

__all__ = ["accuracy_front", "convolution_front", "front_of"]

CONVOLUTIONS = {  # families of the study, and where their names stand
    "fitted train": (0.9, 0.88),
    "GPTQ-like": (1.22, 0.49),
    "rounding": (2.25, 0.16),
    "whitened SVD": (1.12, 0.16),
}
BITS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)  # where the axis has its numbers


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


def accuracy_front(
    ax: Axes, fronts: Mapping[str, Sequence[tuple[float, float]]], *, dense: float, names: Mapping[str, tuple] = ()
) -> Axes:
    """Draw fronts over a logarithmic axis of bits a weight, the dense network's accuracy as a dashed line.

    Args:
        ax: Axes to draw in.
        fronts: name of each method and its (bits a weight, accuracy), as :func:`front_of` gives them.
        dense: accuracy of the network as it was.
        names: for a method the place of its name, (bits, accuracy); left out, beside its first point.

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
    if not fronts or not all(fronts.values()):
        raise ValueError(f"every method needs at least one point, got {dict(fronts)}")
    if len(fronts) > len(OKABE_ITO):
        raise ValueError(f"{len(fronts)} methods but {len(OKABE_ITO)} colors; split the figure")
    ax.set_xscale("log", base=2)
    ax.axhline(dense, color="#777777", linestyle="--", linewidth=1.2, marker="", zorder=0.9)
    for points, color, marker in zip(fronts.values(), OKABE_ITO, MARKERS, strict=False):
        first = marker == MARKERS[0]
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, zorder=3 if first else 2)
    ax.margins(x=0.06, y=0.1)
    low, high = ax.get_xlim()
    said, above = f"dense, 32 bits: {dense:.3f}", {"xytext": (0, 7), "textcoords": "offset points"}
    ax.annotate(said, (high, dense), **above, color="#555555", ha="right", va="bottom")
    for (name, points), color in zip(fronts.items(), OKABE_ITO, strict=False):
        x, y = dict(names).get(name, points[0])
        ax.annotate(name, (x, y), (5, -3), textcoords="offset points", color=readable(color), va="top")
    ax.xaxis.set_major_locator(FixedLocator([bits for bits in BITS if low <= bits <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel="bits a weight, scales counted", ylabel="accuracy, no training")
    return ax


def convolution_front(ax: Axes, network: Mapping) -> Axes:
    """The front of one network of the study of convolutions: ``recorded("convolutions")["networks"][0]``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> rows = [{"family": family, "bits": 2, "accuracy": 0.5} for family in CONVOLUTIONS]
        >>> len(convolution_front(Figure().subplots(), {"points": rows, "dense": 0.9}).lines)
        6
    """
    fronts = front_of(network["points"], list(CONVOLUTIONS))
    return accuracy_front(ax, fronts, dense=network["dense"], names=CONVOLUTIONS)
