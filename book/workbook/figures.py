"""The look of the book's figures: house style, rank curves, Pareto plots, and the diagrams of tensor networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from .diagrams import ROW, SPACING, draw_symbol, draw_tensor, draw_train, draw_train_matrix
from .orders import draw_orders

__all__ = [
    "MARKERS",
    "OKABE_ITO",
    "ROW",
    "SPACING",
    "draw_orders",
    "draw_symbol",
    "draw_tensor",
    "draw_train",
    "draw_train_matrix",
    "pareto",
    "pareto_frontier",
    "rank_curve",
    "save_png",
    "use_house_style",
]

# Okabe and Ito, "Color Universal Design", 2008; strong colors first, yellow (faint on white) last.
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_NULL = "#777777"


def use_house_style() -> None:
    """Set matplotlib's defaults for a chapter; call it once, in the first code cell.

    Okabe-Ito colors that cycle together with markers, 11 to 12 point DejaVu Sans (shipped with matplotlib, so the
    same on every machine), an opaque white ground, 150 dots per inch.

    Example:
        >>> with mpl.rc_context():
        ...     use_house_style()
        ...     mpl.rcParams["figure.facecolor"]
        'white'
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (7.2, 4.2),
            "figure.dpi": 150,
            "savefig.dpi": "figure",
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.transparent": False,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "mathtext.fontset": "dejavusans",
            "font.size": 11,
            "axes.labelsize": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "axes.prop_cycle": cycler(color=OKABE_ITO) + cycler(marker=MARKERS),
            "lines.linewidth": 1.8,
            "lines.markersize": 6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#444444",
            "axes.linewidth": 0.9,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.8,
            "image.cmap": "viridis",
        }
    )


def save_png(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, opaque and without date or version, so that equal figures are equal files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_png(Figure(figsize=(1, 1)), Path(folder, "a.png"))
        ...     Path(folder, "a.png").read_bytes()[1:4]
        b'PNG'
    """
    figure.savefig(path, format="png", facecolor="white", transparent=False, metadata={"Software": None})


def rank_curve(
    ax: Axes,
    ranks: Sequence[int],
    series: Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    null: str | None = None,
    log: bool = False,
) -> Axes:
    """Plot quantities against the rank, each line named at its right end instead of in a legend.

    Args:
        ax: Axes to draw in.
        ranks: the ranks, positive and increasing; the axis is logarithmic and shows each of them.
        series: name of each line and its values, one per rank; NaN leaves a point out.
        ylabel: what the values are, with their unit.
        null: the series measured on Gaussian noise, drawn gray and dashed.
        log: whether the vertical axis is logarithmic.

    Returns:
        The Axes.

    Raises:
        ValueError: a series of another length than `ranks`, ranks not positive and increasing, unknown `null`.

    Example:
        >>> errors = {"table": [0.9, 0.8, 0.6]}
        >>> ax = rank_curve(Figure().subplots(), [1, 2, 4], errors, ylabel="relative error")
        >>> ax.get_xlabel(), [t.get_text() for t in ax.texts]
        ('rank', ['table'])
    """
    if not series or min(ranks, default=0) < 1 or np.any(np.diff(ranks) <= 0):
        raise ValueError(f"a rank curve needs a series and positive, increasing ranks, got ranks {list(ranks)}")
    for name, values in series.items():
        if len(values) != len(ranks):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(ranks)} ranks")
    if null is not None and null not in series:
        raise ValueError(f"null {null!r} is not among the series: {', '.join(series)}")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log" if log else "linear")
    ends, styles = [], zip(OKABE_ITO, MARKERS, strict=True)
    for name, values in series.items():
        values = np.asarray(values, dtype=float)
        color, marker = (_NULL, "x") if name == null else next(styles)
        ax.plot(ranks, values, color=color, marker=marker, linestyle="--" if name == null else "-", label=name)
        if np.isfinite(values).any():
            last = np.flatnonzero(np.isfinite(values))[-1]
            ends.append((ranks[last], values[last], name, color))
    ax.xaxis.set_major_locator(FixedLocator(list(ranks)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel="rank", ylabel=ylabel)
    _label(ax, ends)
    return ax


def pareto_frontier(points: Sequence[tuple[float, float]], *, larger_x: bool = False) -> list[tuple[float, float]]:
    """Return the points that no other point beats: no worse in x and y, and better in one. Cost O(n log n).

    Args:
        points: (x, y) pairs; smaller y is better.
        larger_x: whether larger x is better (a compression ratio) instead of smaller (bytes).

    Returns:
        The undominated points, without repeats, best x first.

    Example:
        >>> pareto_frontier([(1, 5), (2, 3), (3, 4), (4, 1)])
        [(1, 5), (2, 3), (4, 1)]
    """
    frontier: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0] if larger_x else point[0], point[1])):
        if not frontier or y < frontier[-1][1]:
            frontier.append((x, y))
    return frontier


def pareto(
    ax: Axes,
    points: Mapping[str, Sequence[tuple]],
    *,
    xlabel: str,
    ylabel: str,
    larger_x: bool = False,
    null: str | None = None,
) -> Axes:
    """Scatter methods by cost and error, name each at its last point, and draw the frontier as a gray staircase.

    Args:
        ax: Axes to draw in; set its scales before the call, because the labels are placed for them.
        points: for each method its (x, y) points, or (x, y, text) where text is written beside the point.
        xlabel: the cost, with its unit.
        ylabel: the error, with its unit; smaller is better.
        larger_x: whether larger x is better (a compression ratio) instead of smaller (bytes).
        null: the method measured on Gaussian noise, drawn gray and kept out of the frontier.

    Returns:
        The Axes.

    Raises:
        ValueError: no method, a method without points, more methods than colors, or unknown `null`.

    Example:
        >>> ax = pareto(Figure().subplots(), {"SVD": [(2, 0.5), (4, 0.3)], "int8": [(3, 0.1)]},
        ...             xlabel="MB", ylabel="relative error")
        >>> sorted(text.get_text() for text in ax.texts)
        ['SVD', 'int8']
    """
    empty = [name for name, cloud in points.items() if not len(cloud)]
    if not points or empty:
        raise ValueError(f"every method needs at least one point, got none for {', '.join(empty) or 'any method'}")
    if null is not None and null not in points:
        raise ValueError(f"null {null!r} is not among the methods: {', '.join(points)}")
    if len(points) - (null is not None) > len(OKABE_ITO):
        raise ValueError(f"{len(points)} methods but {len(OKABE_ITO)} colors; split the figure")
    steps = pareto_frontier(
        [(p[0], p[1]) for name, cloud in points.items() if name != null for p in cloud], larger_x=larger_x
    )
    # Between two frontier points the cheaper one is the best that can be had.
    ax.step(*zip(*steps, strict=True), where="post", color="#BBBBBB", linewidth=1.4, marker="", zorder=0.9)
    ends, styles = [], zip(OKABE_ITO, MARKERS, strict=True)
    for name, cloud in points.items():
        color, marker = (_NULL, "x") if name == null else next(styles)
        # Later methods are hollow: a point drawn earlier at the same place shows through.
        face = color if marker == MARKERS[0] else "none"
        ax.plot(
            [p[0] for p in cloud],
            [p[1] for p in cloud],
            color=color,
            marker=marker,
            linestyle="",
            markersize=7,
            markerfacecolor=face,
            markeredgewidth=1.6,
            label=name,
            zorder=3,
        )
        for x, y, text in (p for p in cloud if len(p) == 3):
            last = (x, y) == tuple(cloud[-1][:2])  # the method's name begins on its right: stay on the left
            ax.annotate(
                str(text),
                (x, y),
                xytext=(4 if last else 0, 7),
                textcoords="offset points",
                ha="right" if last else "center",
                va="bottom",
                fontsize=10,
                color="#444444",
            )
        ends.append((cloud[-1][0], cloud[-1][1], name, color))
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _label(ax, ends)
    for text in ax.texts:
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    return ax


def readable(color: str) -> str:
    """Darken a color, hue kept, until text in it has contrast 4.5 on white (WCAG 2.1, level AA).

    Example:
        >>> readable("#0072B2"), readable("#E69F00")
        ('#0072b2', '#9d6c00')
    """
    rgb = np.array(to_rgb(color))
    while 1.05 / (luminance(rgb) + 0.05) < 4.5:
        rgb *= 0.98
    return to_hex(rgb)


def luminance(rgb: np.ndarray) -> float:
    """Relative luminance of an sRGB color with channels in [0, 1], from 0 (black) to 1 (white); WCAG 2.1.

    Example:
        >>> round(luminance(np.ones(3)), 6)
        1.0
    """
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _label(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each name right of its point; names that would overlap are pushed apart, as little as possible."""
    ax.margins(x=0.05, y=0.08)
    ax.autoscale_view()
    size = mpl.rcParams["font.size"]
    # Display units become points, so that the offsets below hold at any resolution.
    spots = ax.transData.transform([end[:2] for end in ends]) * 72 / ax.figure.dpi
    for column in _columns(spots[:, 0], [0.65 * size * len(name) for _, _, name, _ in ends]):
        column.sort(key=lambda i: spots[i, 1])
        heights = _spread(spots[column, 1], 1.35 * size)
        for i, height in zip(column, heights, strict=True):
            x, y, name, color = ends[i]
            ax.annotate(
                name,
                (x, y),
                xytext=(9, height - spots[i, 1]),
                textcoords="offset points",
                va="center",
                ha="left",
                color=readable(color),
                annotation_clip=False,
            )


def _columns(lefts: np.ndarray, widths: list[float]) -> list[list[int]]:
    """Group intervals that overlap, directly or through others."""
    columns: list[list[int]] = []
    edge = -np.inf
    for i in np.argsort(lefts, kind="stable").tolist():
        if lefts[i] > edge:
            columns.append([])
        columns[-1].append(i)
        edge = max(edge, lefts[i] + widths[i])
    return columns


def _spread(heights: np.ndarray, gap: float) -> list[float]:
    """Move sorted heights at least `gap` apart with the least squared movement (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for k, height in enumerate(heights):
        blocks.append([height - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [float(np.mean(block)) for block in blocks for _ in block]
    return [level + k * gap for k, level in enumerate(levels)]
