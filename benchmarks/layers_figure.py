"""The roofline figure and the tables of layers on the performance page, made from ``book/results/layers.json``."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from book.workbook import figures

from .figure import OTHERS, short

ROOT = Path(__file__).resolve().parents[1]
PART = "layers"
RESULTS = ROOT / "book" / "results" / "layers.json"
PICTURE = ROOT / "book" / "_static" / "layers.png"
TABLE = ROOT / "book" / "results" / "layers.md"
SIGNS = {"left-to-right": "→", "right-to-left": "←", "two-gemm": "two-gemm", "dense": "dense"}
PEERS = ("tltorch factorized", "tltorch reconstructed", "torchTT")


def times(case: dict) -> dict[str, float]:
    """Median microseconds of each contender."""
    return {row["name"]: row["median_us"] for row in case["rows"]}


def ratios(case: dict) -> dict[str, float]:
    """Each contender's time divided by ttref's, within a round."""
    return {row["name"]: row["ratio"] for row in case["rows"]}


def draw(results: dict) -> Figure:
    """Achieved speed against arithmetic intensity, for ttref and for the dense layer, under the machine's two roofs."""
    figures.use_house_style()
    limits = results["machine"]
    peak, bandwidth = limits["flops32_per_s"] / 1e9, limits["bytes_per_s"] / 1e9
    figure, ax = plt.subplots(figsize=(8, 5.6))
    x = np.geomspace(0.3, 2e4, 200)
    ax.plot(x, np.minimum(peak, bandwidth * x), color="0.35", marker="", linewidth=1.4)
    ax.annotate("arithmetic", (x[-1], peak), xytext=(0, 5), textcoords="offset points", ha="right")
    ax.annotate("memory", (3, 3 * bandwidth), xytext=(-6, 4), textcoords="offset points", ha="right")
    sizes = dict(zip((1, 16, 64, 512), (28, 55, 95, 150), strict=True))
    for name, macs, moved, color, marker in (
        ("nn.Linear", "dense_macs", "dense_bytes", figures.OKABE_ITO[1], "s"),
        ("ttref", "macs", "bytes", figures.OKABE_ITO[0], "o"),
    ):
        for case in results["cases"]:
            flops = 2 * case[macs]
            ax.scatter(
                flops / case[moved],
                flops / times(case)[name] / 1e3,
                s=sizes[case["batch"]],
                marker=marker,
                facecolor=color if name == "ttref" else "none",
                edgecolor=color,
                alpha=0.85,
                zorder=3,
                linewidth=1.3,
            )
    handles = [
        ax.scatter([], [], s=95, marker="o", color=figures.OKABE_ITO[0], label="ttref.TTLinear"),
        ax.scatter([], [], s=95, marker="s", facecolor="none", edgecolor=figures.OKABE_ITO[1], label="nn.Linear"),
    ]
    handles += [ax.scatter([], [], s=size, color="0.6", label=f"batch {batch}") for batch, size in sizes.items()]
    ax.legend(handles=handles, loc="lower right", ncols=2)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="flops for each byte that must move (input, answer, parameters)",
        ylabel="achieved Gflop/s",
        xlim=(0.3, 2e4),
        ylim=(2, 2 * peak),
    )
    return figure


def markdown(results: dict) -> str:
    """The tables that the performance page includes: times, mode orders, and how well the planner chose."""
    machine = results["machine"]
    lines = [
        f"Measured {results['date']} by `{results['command']}` on {machine['processor']}, {machine['threads']} "
        f"threads, {machine['flops32_per_s'] / 1e9:.0f} Gflop/s (float32 GEMM), "
        f"{machine['bytes_per_s'] / 1e9:.0f} GB/s (copy from and to memory; what fits the cache moves faster); "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f". {OTHERS} "
        "Times are medians of five rounds. The last four columns say how many times as long as `ttref` the other "
        "layers took, as the median of the ratios within a round (dense: `nn.Linear`; tltorch f. and r.: its "
        "implementations factorized and reconstructed). Work: multiply-adds as a share of the dense layer's. Order: "
        "→ left to right, ← right to left.",
    ]
    for key, cases in groupby(results["cases"], key=lambda c: (c["in_shape"], c["out_shape"], c["rank"])):
        cases = list(cases)
        ins, outs, rank = key
        lines += [
            "",
            f"**{np.prod(ins)} to {np.prod(outs):,}**, {tuple(ins)} to {tuple(outs)}, rank {rank}: "
            f"{cases[0]['parameters']:,} numbers in the cores, {np.prod(ins) * np.prod(outs):,} in the dense weight",
            "",
            "| batch | order | work | floor, ms | ttref, ms | dense | tltorch f. | tltorch r. | torchTT |",
            "| ---: | :---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for case in cases:
            ratio = ratios(case)
            others = " | ".join(f"{short(ratio[name])}×" for name in ("nn.Linear", *PEERS))
            lines.append(
                f"| {case['batch']} | {SIGNS[case['order']]} | {case['macs'] / case['dense_macs']:.2f} "
                f"| {short(case['floor_us'] / 1e3)} | {short(times(case)['ttref'] / 1e3)} | {others} |"
            )
    lines += [
        "",
        "**The place of the odd mode**: operations of 4096 to 11,008 at rank 16, as a share of the dense layer's",
        "",
        "| output modes | left to right | right to left | |",
        "| --- | ---: | ---: | --- |",
    ]
    for row in results["mode_orders"]:
        lines.append(
            f"| {tuple(row['out_shape'])} | {row['left-to-right']:.2f} | {row['right-to-left']:.2f} "
            f"| {'chosen by TTLinear' if row['chosen'] else ''} |"
        )
    regrets = regret(results)
    lines += [
        "",
        f"**The planner's choice.** In {sum(r <= 1.1 for r in regrets)} of {len(regrets)} cases the order chosen is "
        "the fastest of the four or within 10 % of it; in the (geometric) mean it takes "
        f"{np.exp(np.log(regrets).mean()):.2f} times as long as the fastest, at worst {max(regrets):.2f} times.",
    ]
    return "\n".join(lines) + "\n"


def regret(results: dict) -> list[float]:
    """Time of the chosen order divided by that of the fastest, for each case."""
    return [case["orders_ms"][case["order"]] / min(case["orders_ms"].values()) for case in results["cases"]]


def write() -> None:
    """Redo the picture and the tables."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    figures.save_png(draw(results), PICTURE)
    TABLE.write_text(markdown(results), encoding="utf-8")
