"""The figure and the tables of adapters on the performance page, made from ``book/results/adapters.json``."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.workbook import figures

from .figure import markdown as times

ROOT = Path(__file__).resolve().parents[1]
PART = "adapters"
RESULTS = ROOT / "book" / "results" / "adapters.json"
PICTURE = ROOT / "book" / "_static" / "adapters.png"
TABLE = ROOT / "book" / "results" / "adapters.md"
PANELS = {"train": "a training step", "apart": "inference, adapter apart"}
BASE = "no adapter"


def ratios(results: dict, kind: str) -> dict[str, float]:
    """Each contender's time divided by ttref's, within a round."""
    (found,) = (case for case in results["cases"] if case["kind"] == kind)
    return {row["name"]: row["ratio"] for row in found["rows"]}


def draw(results: dict) -> Figure:
    """Milliseconds of every contender, one panel for training and one for inference."""
    figures.use_house_style()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
    for ax, (kind, title) in zip(axes, PANELS.items(), strict=True):
        (case,) = (case for case in results["cases"] if case["kind"] == kind)
        rows = case["rows"][::-1]
        for place, row in enumerate(rows):
            color = "0.45" if row["name"] == BASE else figures.OKABE_ITO[1 if "PEFT LoRA" in row["name"] else 0]
            low, middle, high = (row[key] / 1000 for key in ("low_us", "median_us", "high_us"))
            ax.plot([low, high], [place, place], color=color, lw=1.5, marker="none")
            ax.plot(middle, place, color=color, marker="x" if row["name"] == BASE else "o")
        base = next(row["median_us"] for row in rows if row["name"] == BASE) / 1000
        ax.axvline(base, color="0.45", ls="--", lw=1)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set(xlabel="milliseconds", title=title)
        ax.set_xlim(left=0)
    return figure


def markdown(results: dict) -> str:
    """What the adapters weigh, then their times."""
    (training,) = (case for case in results["cases"] if case["kind"] == "train")
    lines = ["| Adapter | Trained numbers | Adam's moments, kB | File, kB |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['name']} | {row['trained']:,} | {row['adam_bytes'] / 1000:,.0f} | {row['file_bytes'] / 1000:,.0f} |"
        for row in training["weights"]
    ]
    return "\n".join(lines) + "\n\n" + times(results)


def write() -> None:
    """Redo the picture and the tables that the performance page shows."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figures.save_png(draw(results), PICTURE)
    TABLE.write_text(markdown(results), encoding="utf-8")
