"""The figure and the table of token tables on the performance page, made from ``book/results/tables.json``."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.workbook import figures

from .figure import markdown

ROOT = Path(__file__).resolve().parents[1]
PART = "tables"
RESULTS = ROOT / "book" / "results" / "tables.json"
PICTURE = ROOT / "book" / "_static" / "tables.png"
TABLE = ROOT / "book" / "results" / "tables.md"
KINDS = {"one train a row": "one train for each row", "one TT-matrix": "one TT-matrix for the table"}
STYLES = {
    "MPSEmbedding": 0,
    "TTMEmbedding": 0,
    "tltorch FactorizedEmbedding": 1,
    "rebuild, then index": 2,
    "MPSEmbedding, int8 cores": 3,
    "MPSEmbedding, centered and rotated": 4,
}


def look_ups(results: dict, kind: str) -> dict[str, list[tuple[int, float]]]:
    """For each contender of one kind of table, the number of ids and the microseconds of a look-up."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for case in results["cases"]:
        for row in case["rows"] if case.get("kind") == kind else []:
            lines.setdefault(row["name"], []).append((case["ids"], row["median_us"]))
    return lines


def ratios(results: dict, case: str) -> dict[str, float]:
    """Each contender's time divided by ttref's, within a round."""
    (found,) = (c for c in results["cases"] if c["case"] == case)
    return {row["name"]: row["ratio"] for row in found["rows"]}


def draw(results: dict) -> Figure:
    """Time of a look-up against the number of ids, one panel for each kind of table."""
    figures.use_house_style()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
    for ax, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for name, points in look_ups(results, kind).items():
            color, marker = "0.45", "x"
            if name in STYLES:
                color, marker = figures.OKABE_ITO[STYLES[name]], figures.MARKERS[STYLES[name]]
            ax.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)
        ax.set(xscale="log", yscale="log", xlabel="ids looked up at once", title=title)
        ax.legend(fontsize=9, loc="best")
    axes[0].set_ylabel("microseconds")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * 30)  # room for the legends
    return figure


def write() -> None:
    """Redo the picture and the table that the performance page shows."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figures.save_png(draw(results), PICTURE)
    TABLE.write_text(markdown(results), encoding="utf-8")
