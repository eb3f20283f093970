"""The figure of the introduction, drawn from ``book/results/overview.json`` alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.tools.results import RESULTS
from book.workbook import figures

PICTURE = RESULTS.parent / "_static" / "overview.png"


def draw(results: dict) -> Figure:
    """Above, where trains lose: a token table. Below, where they win: a position table. Both count bytes."""
    figures.use_house_style()
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7.2, 9.2), layout="constrained")
    upper.set(xscale="log", yscale="log", xlim=(0.6, 300), ylim=(4e-4, 30))
    families: dict[str, list[tuple[float, float]]] = {}
    for row in results["token_table"]:
        families.setdefault(row["family"], []).append((row["ratio"], row["loss_rise_nats"]))
    figures.pareto(
        upper,
        {name: sorted(points) for name, points in families.items()},
        xlabel="compression ratio, bytes",
        ylabel="loss rise, nats per token",
        larger_x=True,
    )
    upper.set_xticks([1, 10, 100], ["1×", "10×", "100×"])
    upper.set_title("Token table of a language model")
    lines = (
        ("tensor train", results["position_table"], "tt_ratio", {"color": figures.OKABE_ITO[0], "marker": "o"}),
        ("SVD", results["position_table"], "svd_ratio", {"color": figures.OKABE_ITO[1], "marker": "s"}),
        ("tensor train of noise", results["position_null"], "tt_ratio", {"color": "0.45", "marker": "x", "ls": "--"}),
    )
    for name, rows, key, style in lines:
        lower.plot([row["eps"] for row in rows], [row[key] for row in rows], label=name, **style)
    lower.plot(
        [row["error"] for row in results["position_integers"]],
        [row["ratio"] for row in results["position_integers"]],
        label="integers",
        color=figures.OKABE_ITO[2],
        marker="^",
        linestyle="",
    )
    lower.axhline(1, color="0.6", linewidth=1)
    lower.set(xscale="log", yscale="log", xlabel="relative error allowed", ylabel="compression ratio, bytes")
    errors = [row["eps"] for row in results["position_table"]]
    lower.set_xticks(errors, [f"{eps:.0%}" for eps in errors])
    lower.set_xticks([], minor=True)
    lower.set_yticks([1, 10, 100], ["1×", "10×", "100×"])
    lower.legend(loc="upper left")
    lower.set_title("Position table of GPT-2")
    return figure


def write(record: dict) -> None:
    """Redraw the figure of the introduction."""
    figures.save_png(draw(record), PICTURE)
