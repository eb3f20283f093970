"""The figure and the table of the performance page, made from ``book/results/speed.json`` and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.workbook import figures

ROOT = Path(__file__).resolve().parents[1]
PART = "trains"
RESULTS = ROOT / "book" / "results" / "speed.json"
PICTURE = ROOT / "book" / "_static" / "speed.png"
TABLE = ROOT / "book" / "results" / "speed.md"
OTHERS = "Times are this processor's, and ratios move with it too."


def draw(results: dict) -> Figure:
    """Time per item of every contender, one panel row per case, on a logarithmic axis; the floor as a tick."""
    figures.use_house_style()
    cases = results["cases"]
    count = sum(len(case["rows"]) + 1 for case in cases)
    figure, ax = plt.subplots(figsize=(8, 0.36 * count + 0.8), layout="constrained")
    colors = dict(zip(("ttref", "TensorLy", "tntorch", "torchTT", "LAPACK"), figures.OKABE_ITO, strict=False))
    markers = dict(zip(colors, "oDs^v", strict=True))
    y, ticks, labels = 0, [], []
    for case in cases:
        ax.text(
            0.0,
            y,
            f"{case['case']}, per {case['unit']}",
            transform=ax.get_yaxis_transform(),
            weight="bold",
            va="center",
            fontsize=10,
        )
        top = y + 0.5
        for row in case["rows"]:
            y += 1
            library = row["name"].split(",")[0].split(".")[0]
            if library not in colors:  # a part of ttref's own work, timed alone
                library = "LAPACK"
            ax.plot([row["low_us"], row["high_us"]], [y, y], color=colors[library], linewidth=2, marker="")
            ax.plot(row["median_us"], y, markers[library], color=colors[library], markersize=8)
            ax.annotate(
                "" if library == "ttref" else f"{row['ratio']:.1f}×",
                (row["high_us"], y),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
            )
            ticks.append(y)
            labels.append(row["name"])
        ax.vlines(case["floor_us"], top, y + 0.5, color="0.35", linestyle=(0, (2, 1.5)), linewidth=1.2)
        y += 1
    ax.set(
        xscale="log",
        yticks=ticks,
        yticklabels=labels,
        ylim=(y - 0.4, -0.6),
        xlabel="microseconds per item; dashed: floor",
    )
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * 2.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    return figure


def markdown(results: dict) -> str:
    """The table that the performance page includes."""
    machine, made_by = results["machine"], results["command"]
    lines = [
        f"Measured {results['date']} by `{made_by}` on {machine['processor']}, {machine['threads']} threads, "
        f"{machine['flops_per_s'] / 1e9:.0f} Gflop/s (float64 GEMM), {machine['bytes_per_s'] / 1e9:.0f} GB/s (copy); "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f". {OTHERS}",
    ]
    for case in results["cases"]:
        lines += [
            "",
            f"**{case['case']}**, per {case['unit']}; floor {short(case['floor_us'])} µs",
            "",
            "| library | µs | fastest and slowest round | threads | times ttref's |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for k, row in enumerate(case["rows"]):
            ratio = "" if k == 0 else short(row["ratio"])
            spread = f"{short(row['low_us'])}, {short(row['high_us'])}"
            lines.append(f"| {row['name']} | {short(row['median_us'])} | {spread} | {row['threads']} | {ratio} |")
    return "\n".join(lines) + "\n"


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.6g}"


def write() -> None:
    """Redo the picture and the table that the performance page shows."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figures.save_png(draw(results), PICTURE)
    TABLE.write_text(markdown(results), encoding="utf-8")
