"""The chapter on deployment: changes beside their margins, and recorded times beside what a roofline says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from .figures import MARKERS, OKABE_ITO

__all__ = ["FORMS", "draw_margins", "draw_roofline", "draw_times"]

FORMS = {  # name in the record: name on the page, color, marker
    "dense": ("dense", "#000000", "o"),
    "trains": ("trains", "#0072B2", "P"),
    "merged": ("trains, merged", "#56B4E9", "D"),
    "svd": ("whitened SVD", "#D55E00", "s"),
    "codes": ("int8, rebuilt", "#CC79A7", "v"),
    "int8": ("int8, its kernels", "#009E73", "^"),
}

Row = Mapping[str, Any]


def draw_margins(ax: Axes, candidates: Mapping[str, Sequence[Row]], metric: str) -> None:
    """The change of a metric of scores 0 and 1 on all examples and on slices, with its bounds, beside its margins.

    A bar reaches from one bound at level 5 % to the other, by the normal approximation to the flips; the suite itself
    tests exactly. A candidate passes where its bar ends right of the margin, which is a gray tick.

    Args:
        ax: Axes to draw in.
        candidates: For each candidate the ``rows`` of its acceptance report.
        metric: The metric to show.

    Raises:
        ValueError: No such metric, or one whose scores are not 0 and 1.

    Example:
        >>> from matplotlib.figure import Figure
        >>> row = {"metric": "right", "slice": "all", "examples": 100, "change": -0.02, "allowed": 0.05}
        >>> ax = Figure().subplots()
        >>> draw_margins(ax, {"small": [row | {"harmful": 3, "beneficial": 1}]}, "right")
        >>> ax.get_yticklabels()[0].get_text()
        'all'
    """
    shown = {name: [row for row in rows if row["metric"] == metric] for name, rows in candidates.items()}
    for name, rows in shown.items():
        if not rows or any(row["harmful"] is None for row in rows):
            raise ValueError(f"the report of {name} has no scores 0 and 1 of a metric {metric!r}")
    slices = [row["slice"] for row in next(iter(shown.values()))]
    step = 0.28
    for k, (name, rows) in enumerate(shown.items()):
        color, marker = OKABE_ITO[k], MARKERS[k]
        for place, row in enumerate(rows):
            height = place + step * (k - (len(shown) - 1) / 2)
            reach = 100 * 1.645 * _standard_error(row)
            label = name if place == 0 else None
            ax.errorbar(100 * row["change"], height, xerr=reach, color=color, marker=marker, capsize=4, label=label)
    for place, row in enumerate(next(iter(shown.values()))):
        ax.plot([-100 * row["allowed"]] * 2, [place - 0.42, place + 0.42], color="0.35", linewidth=2.5, marker="")
    ax.axvline(0, color="0.7", linewidth=1.2, marker="", zorder=0)
    ax.set_yticks(range(len(slices)), slices)
    ax.set(ylim=(len(slices) - 0.4, -0.6), xlabel=f"change of {metric} in points")
    ax.grid(axis="y", visible=False)


def draw_times(ax: Axes, rows: Sequence[Row], *, title: str = "") -> None:
    """Bars of the measured time of each form, and a tick where the roofline has its least time.

    Args:
        ax: Axes to draw in.
        rows: Rows of one case of the record: ``form``, ``median_ms``, ``roofline_ms``.
        title: What was run.

    Raises:
        ValueError: A form that has no name here.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> draw_times(ax, [{"form": "dense", "median_ms": 4.0, "roofline_ms": 1.5}], title="MiniLM")
        >>> float(ax.patches[0].get_width()), [text.get_text() for text in ax.texts]
        (4.0, ['4.0'])
    """
    _check(rows)
    known = {row["form"]: row for row in rows}
    shown = [known[form] for form in FORMS if form in known]
    longest = max(max(row["median_ms"], row["roofline_ms"]) for row in shown)
    for place, row in enumerate(shown):
        took, least = row["median_ms"], [row["roofline_ms"]] * 2
        ax.barh(place, took, height=0.62, color=FORMS[row["form"]][1], alpha=0.85)
        for color, width in (("white", 5), ("#444444", 2.2)):  # seen on a bar and beside it
            ax.plot(least, [place - 0.4, place + 0.4], color=color, linewidth=width, marker="", zorder=3)
        ax.text(max(took, *least) + 0.02 * longest, place, f"{took:,.{0 if took >= 10 else 1}f}", va="center")
    ax.set_yticks(range(len(shown)), [FORMS[row["form"]][0] for row in shown])
    ax.set(title=title, xlabel="milliseconds", xlim=(0, 1.2 * longest), ylim=(len(shown) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)


def draw_roofline(ax: Axes, machine: Mapping[str, float], cases: Mapping[str, Sequence[Row]]) -> None:
    """A machine's roofs, and where the forms of each case lie: operations for a byte, operations in a second.

    A case is a line of thin dots from its dense form to the others, so that one sees what a form changes. Forms that
    keep int8 inputs have a higher roof, drawn dashed.

    Args:
        ax: Axes to draw in; both become logarithmic.
        machine: ``flops32_per_s``, ``int8_ops_per_s`` and ``bytes_per_s`` of the record.
        cases: By what was run, rows with ``form``, ``macs``, ``bytes`` and ``median_ms``.

    Raises:
        ValueError: A form that has no name here.

    Example:
        >>> from matplotlib.figure import Figure
        >>> machine = {"flops32_per_s": 3e10, "int8_ops_per_s": 1e11, "bytes_per_s": 1e10}
        >>> ax = Figure().subplots()
        >>> draw_roofline(ax, machine, {"decode": [{"form": "dense", "macs": 1e9, "bytes": 4e9, "median_ms": 800.0}]})
        >>> [round(float(x), 2) for x in ax.lines[-1].get_xydata()[0]]
        [0.5, 2.5]
    """
    points = {name: [_point(row) for row in _check(rows)] for name, rows in cases.items()}
    every = [x for rows in points.values() for x, _ in rows]
    reach = np.geomspace(min(every) / 2, max(every) * 2, 200)
    for roof, dashes, text in (("flops32_per_s", "-", "float32"), ("int8_ops_per_s", "--", "int8")):
        bound = np.minimum(machine[roof], reach * machine["bytes_per_s"]) / 1e9
        ax.plot(reach, bound, color="0.35", linestyle=dashes, marker="", zorder=1)
        ax.annotate(text, (reach[-1], bound[-1]), xytext=(-2, 4), textcoords="offset points", ha="right", color="0.25")
    drawn = set()
    for name, rows in points.items():
        ax.plot(*zip(*sorted(rows), strict=True), color="0.75", linestyle=":", linewidth=1.2, marker="", zorder=1.5)
        left = min(rows)
        ax.annotate(name, left, xytext=(-2, -16), textcoords="offset points", ha="left", color="0.25", fontsize=10)
        for row, point in zip(cases[name], rows, strict=True):
            text, color, marker = FORMS[row["form"]]
            label = text if text not in drawn else None
            drawn.add(text)
            ax.plot(*point, color=color, marker=marker, linestyle="", markersize=7, label=label, zorder=3)
    ax.set(xscale="log", yscale="log", xlabel="operations for each byte moved", ylabel="billion operations a second")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _point(row: Row) -> tuple[float, float]:
    """Operations for each byte, and billions of them in a second: a multiply-add is two."""
    return 2 * row["macs"] / row["bytes"], 2 * row["macs"] / (1e6 * row["median_ms"])


def _standard_error(row: Row) -> float:
    """Of the mean difference of two scores 0 and 1, from the examples lost and won."""
    lost, won, count = row["harmful"], row["beneficial"], row["examples"]
    return float(np.sqrt(max(lost + won - (lost - won) ** 2 / count, 0)) / count)


def _check(rows: Sequence[Row]) -> Sequence[Row]:
    if odd := sorted({row["form"] for row in rows} - FORMS.keys()):
        raise ValueError(f"no name is known for the form {odd[0]!r}; there are {', '.join(FORMS)}")
    return rows
