"""The chapter on whole models: how its recorded results are picked and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .figures import readable

__all__ = [
    "ARMS",
    "BLUE",
    "GREEN",
    "ORANGE",
    "draw_accepts",
    "draw_bars",
    "draw_gains",
    "draw_healing",
    "draw_map",
    "draw_path",
    "draw_spectra",
    "picked",
]

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#777777"
ARMS = {  # name in the records: name on the page, color, marker
    "tt": ("TT-SVD", "#56B4E9", "o"),
    "fitted": ("train, fitted", BLUE, "P"),
    "svd": ("SVD", "#E69F00", "s"),
    "whitened": ("whitened SVD", ORANGE, "X"),
    "int": ("integers", GREEN, "^"),
    "gptq": ("integers by GPTQ", "#CC79A7", "v"),
    "noise": ("Gaussian noise", GRAY, "x"),
}
KINDS = ("query", "key", "value", "out", "up", "down")

Row = Mapping[str, Any]


def picked(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that have all of these values.

    Example:
        >>> picked([{"task": "vit", "size": 4}, {"task": "sst2", "size": 4}], task="vit")
        [{'task': 'vit', 'size': 4}]
    """
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def draw_bars(
    ax: Axes,
    values: Mapping[str, float],
    colors: Mapping[str, str],
    *,
    notes: Mapping[str, str] | None = None,
    null: str | None = None,
) -> None:
    """Horizontal bars, the first on top, each with its value and a note; the null is drawn gray.

    Args:
        ax: Axes to draw in.
        values: The length of each bar.
        colors: The color of each bar but the null's.
        notes: What is said after a bar's value, such as its bits a weight.
        null: The bar of what has no structure.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_bars(ax, {"SVD": 0.6, "int4": 0.1}, {"SVD": "red", "int4": "blue"}, notes={"int4": "4.25 bits"})
        >>> [text.get_text() for text in ax.texts]
        ['0.600', '0.100, 4.25 bits']
    """
    names = list(values)
    for place, name in enumerate(names):
        ax.barh(place, values[name], color=GRAY if name == null else colors[name], height=0.62)
        said = ", ".join([f"{values[name]:.3f}", *([notes[name]] if notes and name in notes else [])])
        ax.annotate(said, (values[name], place), xytext=(5, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, (1.55 if notes else 1.15) * max(values.values()))
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1.15 * max(values.values())])


def draw_path(ax: Axes, runs: Mapping[str, Sequence[tuple[str, float, bool]]], start: float, allowed: float) -> None:
    """The metric after each decision of a search: filled marks were accepted, hollow ones put back.

    Marks of one decision stand side by side, so that none hides another.

    Args:
        ax: Axes to draw in.
        runs: For each search its decisions in order: layer, metric of the model that was judged, accepted or not.
        start: Metric of the dense model.
        allowed: The largest drop that is allowed.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_path(ax, {"forward": [("a", 0.62, True), ("b", 0.55, False)]}, 0.63, 0.05)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['forward', 'accepted', 'put back']
    """
    looks = zip((BLUE, ORANGE, GREEN, "#CC79A7"), ("o", "s", "^", "D"), strict=True)
    keys = []
    for place, ((name, steps), (color, marker)) in enumerate(zip(runs.items(), looks, strict=False)):
        xs = [k + 0.16 * (place - (len(runs) - 1) / 2) for k in range(1, len(steps) + 1)]
        ax.plot(xs, [metric for _, metric, _ in steps], color=color, linewidth=1, alpha=0.6, marker="")
        for x, (_, metric, accepted) in zip(xs, steps, strict=True):
            face = color if accepted else "white"
            ax.plot(x, metric, color=color, marker=marker, markerfacecolor=face, linestyle="")
        keys.append(Line2D([], [], color=color, marker=marker, linewidth=1, label=name))
    for height, dashes, said, side in (
        (start, "-", "dense model", 1),
        (start - allowed, ":", f"{100 * allowed:g} points below", 0),
    ):
        ax.axhline(height, color="0.3", linewidth=1.2, linestyle=dashes, marker="")
        at = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "color": "0.3"}
        ax.annotate(said, (side, height), (4 - 4 * side, 4), va="bottom", ha=("left", "right")[side], **at)
    ax.margins(y=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    hollow = [_gray("accepted"), _gray("put back", hollow=True)]
    pairs = zip_longest(keys, hollow)  # a legend is filled column by column: searches above, marks below
    rows = [key for pair in pairs for key in pair if key is not None]
    look = {"handletextpad": 0.5, "columnspacing": 1.2, "borderaxespad": 0}
    ax.legend(handles=rows, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=max(3, len(keys)), **look)


def _gray(label: str, *, hollow: bool = False) -> Line2D:
    """A mark of a legend that says what filled or hollow means, of whatever color."""
    look = {"marker": "o", "linestyle": "", "color": GRAY, "label": label}
    return Line2D([], [], markerfacecolor="white" if hollow else GRAY, **look)


def draw_map(
    figure: Figure, panels: Mapping[str, Sequence[Row]], *, value: str, label: str, scale: float = 1.0, digits: int = 1
) -> None:
    """One square for each layer, by depth and kind; two panels a row, one scale of colors with white at zero.

    Args:
        figure: An empty figure.
        panels: From a panel's title to its rows of the section ``layers``.
        value: The key that is drawn.
        label: What the colors mean, with the unit.
        scale: Factor of the numbers in the squares.
        digits: Digits after the point.

    Example:
        >>> figure, one = Figure(), {"kind": "query", "block": 0, "drop": 0.012}
        >>> draw_map(figure, {"trains": [one]}, value="drop", label="points", scale=100)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['1.2']
    """
    grids = {}
    for title, rows in panels.items():
        grids[title] = np.full((len(KINDS), 1 + max(row["block"] for row in rows)), np.nan)
        for row in rows:
            grids[title][KINDS.index(row["kind"]), row["block"]] = scale * row[value]
    most = max(np.nanmax(np.abs(grid)) for grid in grids.values()) or 1.0
    columns = min(2, len(grids))
    axes = figure.subplots(-(-len(grids) // columns), columns, squeeze=False, sharey=True)
    for ax, (title, grid) in zip(axes.flat, grids.items(), strict=False):
        image = ax.imshow(grid, cmap="PuOr_r", norm=Normalize(-most, most), aspect="auto")
        for k, x in np.argwhere(np.isfinite(grid)):
            deep = abs(grid[k, x]) > 0.65 * most
            said = f"{grid[k, x]:.{digits}f}".replace("-", "−")
            ax.text(x, k, said, ha="center", va="center", color="white" if deep else "black", size=9.5)
        ax.set_yticks(range(len(KINDS)), KINDS)
        ax.set_xticks(range(grid.shape[1]), [str(k + 1) for k in range(grid.shape[1])])
        ax.set(title=title, xlabel="block")
        ax.grid(visible=False)
    for ax in axes.flat[len(grids) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=list(axes.flat), location="bottom", shrink=0.7, aspect=30, pad=0.02, label=label)


def draw_accepts(ax: Axes, rows: Sequence[Row], *, size: int, resamplings: int, margin: float) -> None:
    """How often each gate accepts a change, against its true drop in points; right of the margin it is a mistake.

    The two marks of one change stand side by side.

    Example:
        >>> ax = Figure().subplots()
        >>> rows = [{"true_drop": 0.07, "drop_200": 6, "equivalence_200": 0}]
        >>> draw_accepts(ax, rows, size=200, resamplings=20, margin=0.05)
        >>> [line.get_xydata()[:, 1].tolist() for line in ax.lines[:2]]
        [[30.0], [0.0]]
    """
    aside = 0.007 * max(abs(100 * row["true_drop"]) for row in rows)
    for gate, name, color, marker, side in (
        ("drop", "five-point rule", ORANGE, "s", -1),
        ("equivalence", "equivalence gate", BLUE, "o", 1),
    ):
        points = [(100 * row["true_drop"] + side * aside, 100 * row[f"{gate}_{size}"] / resamplings) for row in rows]
        ax.plot(*zip(*sorted(points), strict=True), color=color, marker=marker, linestyle="", label=name)
    limit = f"limit of {100 * margin:g} points"
    ax.axvline(100 * margin, color="0.3", linewidth=1.2, linestyle=":", marker="", label=limit)
    at = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points", "color": "0.3", "va": "bottom"}
    ax.annotate("harmful →", (100 * margin, 1), (6, 4), **at)
    ax.annotate("← harmless", (100 * margin, 1), (-6, 4), ha="right", **at)
    ax.set(xlabel="true drop, points", ylabel="accepted, % of the validation sets", ylim=(-4, 104))
    ax.legend(loc="upper right")


def draw_gains(ax: Axes, rows: Sequence[Row]) -> None:
    """Gain in points against the relative error of the weights, by what changed them.

    Noise has one cross for each seed; crosses of one error are spread sideways, so that each can be seen.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_gains(ax, [{"kind": "svd", "error": 0.1, "gain": 0.01}])
        >>> ax.lines[0].get_xydata().tolist()
        [[0.1, 1.0]]
    """
    apart = 0.014 * max(row["error"] for row in rows)
    for kind in ("svd", "tt", "noise"):
        mine = picked(rows, kind=kind)
        name, color, marker = ARMS[kind]
        points = [(row["error"], 100 * row["gain"]) for row in mine]
        if kind == "noise":
            at = {error: [y for x, y in points if x == error] for error, _ in points}
            points = [(x + apart * (k - (len(ys) - 1) / 2), y) for x, ys in at.items() for k, y in enumerate(ys)]
            name += ", one cross for each seed"
        if points:
            front = 2 if kind == "noise" else 3
            ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle="", label=name, zorder=front)
    ax.axhline(0, color="0.3", linewidth=1.2, marker="")
    ax.set(xlabel="relative error of all weights", ylabel="gain, points")
    ax.legend(loc="lower left")


def draw_healing(ax: Axes, rows: Sequence[Row], *, value: str, scale: float = 1.0) -> None:
    """Before (hollow) and after healing (filled), against how many times smaller the linear layers are in bytes.

    The axis is logarithmic. What is healed stands side by side at equal sizes; an arrow leads from before to after.

    Example:
        >>> ax = Figure().subplots()
        >>> row = {"candidate": "tt", "linears_bytes": 4.4, "before": {"cosine": 0.3}, "after": {"cosine": 0.9}}
        >>> draw_healing(ax, [row], value="cosine")
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['TT-SVD', 'before healing', 'after']
    """
    ax.set_xscale("log", base=2)
    trained = list(dict.fromkeys(row["candidate"] for row in rows if "after" in row))
    keys = []
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        name, color, marker = ARMS[candidate]
        aside = 1.07 ** (trained.index(candidate) - (len(trained) - 1) / 2) if candidate in trained else 1.0
        for row in picked(rows, candidate=candidate):
            x, low = aside * row["linears_bytes"], scale * row["before"][value]
            high = scale * row.get("after", row["before"])[value]
            ax.plot(x, high, color=color, marker=marker, linestyle="")
            if "after" in row:
                ax.plot(x, low, color=color, marker=marker, markerfacecolor="white", linestyle="")
                arrow = {"arrowstyle": "->", "color": color, "shrinkA": 4, "shrinkB": 4}
                ax.annotate("", (x, high), (x, low), arrowprops=arrow)
            else:
                ax.annotate(
                    f"int{row['size']:g}", (x, high), (8, -4), textcoords="offset points", color=readable(color)
                )
        said = name if candidate in trained else f"{name}, not healed"
        keys.append(Line2D([], [], color=color, marker=marker, linestyle="", label=said))
    keys += [_gray("before healing", hollow=True), _gray("after")] if trained else []
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(FixedLocator([1, 2, 3, 4, 6, 8, 12, 16]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    look = {"handletextpad": 0.3, "columnspacing": 1, "borderaxespad": 0}
    ax.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, **look)


def draw_spectra(ax: Axes, layers: Sequence[Row], planted: Sequence[Row]) -> None:
    """Output error of a train with a shared projection over whitened SVD's, against how many directions inputs have.

    Args:
        ax: Axes to draw in.
        layers: Of the section ``spectra``: one for each layer of two models.
        planted: Gaussian weights on inputs with planted spectra, one line for each width.

    Example:
        >>> ax = Figure().subplots()
        >>> row = {"model": "ViT", "width": 128, "inputs_rank": 32.0, "whitened": 0.4, "shared": 0.3}
        >>> draw_spectra(ax, [row], [])
        >>> [[round(x, 2) for x in point] for point in ax.lines[0].get_xydata().tolist()]
        [[0.25, 0.75]]
    """
    looks = zip(dict.fromkeys(row["model"] for row in layers), ((BLUE, "o"), (ORANGE, "s")), strict=False)
    groups = [(picked(layers, model=model), model, color, marker, "") for model, (color, marker) in looks]
    for width, dashes in zip(dict.fromkeys(row["width"] for row in planted), ("-", "--", ":"), strict=False):
        groups.append((picked(planted, width=width), f"noise, planted inputs, {width} wide", GRAY, "", dashes))
    for rows, label, color, marker, dashes in groups:
        points = sorted((row["inputs_rank"] / row["width"], row["shared"] / row["whitened"]) for row in rows)
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=dashes, label=label)
    ax.axhline(1, color="0.3", linewidth=1.2, marker="")
    at = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "color": "0.3", "ha": "right"}
    ax.annotate("below: the train errs less", (1, 1), (0, -16), **at)
    ax.set(xlabel="effective rank of the inputs / width", ylabel="error of train / error of whitened SVD")
    ax.legend()
