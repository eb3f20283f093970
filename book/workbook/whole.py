"""The chapter on whole models: how its recorded results are picked and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

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
    "tt": ("train, weight norm", "#56B4E9", "o"),
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


def draw_bars(ax: Axes, values: Mapping[str, float], colors: Mapping[str, str], *, null: str | None = None) -> None:
    """Horizontal bars, the first on top, each with its value; the null is drawn gray.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_bars(ax, {"SVD": 0.6, "shuffled": 0.7}, {"SVD": "#D55E00"}, null="shuffled")
        >>> [text.get_text() for text in ax.texts]
        ['0.600', '0.700']
    """
    names = list(values)
    for place, name in enumerate(names):
        ax.barh(place, values[name], color=GRAY if name == null else colors[name], height=0.62)
        ax.annotate(
            f"{values[name]:.3f}", (values[name], place), xytext=(5, 0), textcoords="offset points", va="center"
        )
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 1.15 * max(values.values()))


def draw_path(ax: Axes, runs: Mapping[str, Sequence[tuple[str, float, bool]]], start: float, allowed: float) -> None:
    """The metric after each decision of a search: filled marks were accepted, hollow ones put back.

    Args:
        ax: Axes to draw in.
        runs: For each search its decisions in order: layer, metric of the model that was judged, accepted or not.
        start: Metric of the dense model.
        allowed: The largest drop that is allowed.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_path(ax, {"forward": [("a", 0.62, True), ("b", 0.55, False)]}, 0.63, 0.05)
        >>> len(ax.lines) > 2
        True
    """
    looks = zip((BLUE, ORANGE, GREEN, "#CC79A7"), ("o", "s", "^", "D"), strict=True)
    for (name, steps), (color, marker) in zip(runs.items(), looks, strict=False):
        ys = [metric for _, metric, _ in steps]
        ax.plot(range(1, len(ys) + 1), ys, color=color, linewidth=1, alpha=0.6, marker="")
        for kept, face in ((True, color), (False, "white")):
            points = [(k, y) for k, (_, y, accepted) in enumerate(steps, 1) if accepted == kept]
            if points:
                label = {"label": name} if kept or not any(accepted for *_, accepted in steps) else {}
                ax.plot(
                    *zip(*points, strict=True), color=color, marker=marker, markerfacecolor=face, linestyle="", **label
                )
    ax.axhline(start, color="0.3", linewidth=1.2, marker="")
    ax.axhline(start - allowed, color="0.3", linewidth=1.2, linestyle=":", marker="")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.3, columnspacing=1)


def draw_map(figure: Figure, panels: Mapping[str, Sequence[Row]], *, value: str, scale: float = 1.0) -> None:
    """One square for each layer, by depth and kind, one panel for each way of compressing, all in one scale of colors.

    Args:
        figure: An empty figure.
        panels: From a panel's title to its rows of the section ``layers``.
        value: The key that is drawn.
        scale: Factor of the numbers in the squares.

    Example:
        >>> figure, one = Figure(), {"kind": "query", "block": 0, "drop": 0.012}
        >>> draw_map(figure, {"trains": [one]}, value="drop", scale=100)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['1.2']
    """
    grids = {}
    for title, rows in panels.items():
        grids[title] = np.full((len(KINDS), 1 + max(row["block"] for row in rows)), np.nan)
        for row in rows:
            grids[title][KINDS.index(row["kind"]), row["block"]] = scale * row[value]
    least, most = (pick([pick(grid) for grid in grids.values()]) for pick in (np.nanmin, np.nanmax))
    norm = Normalize(min(least, 0.0), max(most, 1e-12))
    axes = figure.subplots(len(grids), 1, squeeze=False)[:, 0]
    for ax, (title, grid) in zip(axes, grids.items(), strict=True):
        ax.imshow(grid, cmap="viridis", norm=norm, aspect="auto")
        for k, x in np.argwhere(np.isfinite(grid)):
            bright = norm(grid[k, x]) > 0.6
            ax.text(x, k, f"{grid[k, x]:.1f}", ha="center", va="center", color="black" if bright else "white", size=10)
        ax.set_yticks(range(len(KINDS)), KINDS)
        ax.set_xticks(range(grid.shape[1]), [str(k + 1) for k in range(grid.shape[1])])
        ax.set(title=title, xlabel="block")
        ax.grid(visible=False)


def draw_accepts(ax: Axes, rows: Sequence[Row], *, size: int, resamplings: int, margin: float) -> None:
    """How often each gate accepts a change, against its true drop in points; right of the margin it is a mistake.

    Example:
        >>> ax = Figure().subplots()
        >>> rows = [{"true_drop": 0.07, "drop_200": 6, "equivalence_200": 0}]
        >>> draw_accepts(ax, rows, size=200, resamplings=20, margin=0.05)
        >>> [line.get_xydata().tolist() for line in ax.lines][:2]
        [[[7.000000000000001, 30.0]], [[7.000000000000001, 0.0]]]
    """
    for gate, name, color, marker in (
        ("drop", "five-point rule", ORANGE, "s"),
        ("equivalence", "equivalence gate", BLUE, "o"),
    ):
        points = [(100 * row["true_drop"], 100 * row[f"{gate}_{size}"] / resamplings) for row in rows]
        ax.plot(*zip(*sorted(points), strict=True), color=color, marker=marker, linestyle="", label=name)
    ax.axvline(100 * margin, color="0.3", linewidth=1.2, linestyle=":", marker="")
    ax.set(xlabel="true drop, points", ylabel="accepted, % of the validation sets", ylim=(-4, 104))
    ax.legend(loc="upper right")


def draw_gains(ax: Axes, rows: Sequence[Row]) -> None:
    """Gain in points against the relative error of the weights, by what changed them; noise once for each seed.

    Example:
        >>> ax = Figure().subplots()
        >>> draw_gains(ax, [{"kind": "svd", "error": 0.1, "gain": 0.01}])
        >>> ax.lines[0].get_xydata().tolist()
        [[0.1, 1.0]]
    """
    for kind in ("svd", "tt", "noise"):
        mine = picked(rows, kind=kind)
        name, color, marker = ARMS[kind]
        if mine:
            points = sorted((row["error"], 100 * row["gain"]) for row in mine)
            line = "" if kind == "noise" else "-"
            ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=line, label=name)
    ax.axhline(0, color="0.3", linewidth=1.2, marker="")
    ax.set(xlabel="relative error of all weights", ylabel="gain, points")
    ax.legend(loc="lower left")


def draw_healing(ax: Axes, rows: Sequence[Row], *, value: str, scale: float = 1.0) -> None:
    """Before and after healing, against how many times smaller the linear layers are in bytes; an arrow leads up.

    Example:
        >>> ax = Figure().subplots()
        >>> row = {"candidate": "tt", "linears_bytes": 4.4, "before": {"cosine": 0.3}, "after": {"cosine": 0.9}}
        >>> draw_healing(ax, [row], value="cosine")
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['train, weight norm']
    """
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        name, color, marker = ARMS[candidate]
        mine = picked(rows, candidate=candidate)
        ends = [(row["linears_bytes"], scale * row.get("after", row["before"])[value]) for row in mine]
        ax.plot(*zip(*ends, strict=True), color=color, marker=marker, linestyle="", label=name)
        for row, (x, high) in zip(mine, ends, strict=True):
            if "after" in row:
                low = scale * row["before"][value]
                ax.plot(x, low, color=color, marker=marker, markerfacecolor="white", linestyle="")
                arrow = {"arrowstyle": "->", "color": color, "shrinkA": 5, "shrinkB": 5}
                ax.annotate("", (x, high), (x, low), arrowprops=arrow)
            else:
                ax.annotate(
                    f"int{row['size']:g}", (x, high), (8, -4), textcoords="offset points", color=readable(color)
                )
    ax.legend(loc="lower right")


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
    ax.set(xlabel="effective rank of the inputs / width", ylabel="error of train / error of whitened SVD")
    ax.legend()
