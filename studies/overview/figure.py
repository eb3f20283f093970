"""The figure of the introduction, drawn from ``book/results/overview.json`` alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.tools.results import RESULTS
from book.workbook import figures

PICTURE = RESULTS.parent / "_static" / "overview.png"


def draw(results: dict) -> Figure:
    """Left, where trains lose: a token table. Right, where they win: a position table."""
    figures.use_house_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    left.set(xscale="log", yscale="log", xlim=(0.6, 300), ylim=(4e-4, 30))
    families: dict[str, list[tuple[float, float]]] = {}
    for row in results["token_table"]:
        families.setdefault(row["family"], []).append((row["ratio"], row["loss_rise_nats"]))
    figures.pareto(
        left,
        {name: sorted(points) for name, points in families.items()},
        xlabel="compression ratio, bytes",
        ylabel="loss rise, nats per token",
        larger_x=True,
    )
    left.set_xticks([1, 10, 100], ["1×", "10×", "100×"])
    left.set_title("Token table of a language model")
    lines = (
        ("tensor train", results["position_table"], "tt_ratio", {"color": figures.OKABE_ITO[0], "marker": "o"}),
        ("SVD", results["position_table"], "svd_ratio", {"color": figures.OKABE_ITO[1], "marker": "s"}),
        ("tensor train of noise", results["position_null"], "tt_ratio", {"color": "0.45", "marker": "x", "ls": "--"}),
    )
    for name, rows, key, style in lines:
        right.plot([row["eps"] for row in rows], [row[key] for row in rows], label=name, **style)
    right.plot(
        [row["error"] for row in results["position_integers"]],
        [row["ratio"] for row in results["position_integers"]],
        label="integers (bytes)",
        color=figures.OKABE_ITO[2],
        marker="^",
        linestyle="",
    )
    right.axhline(1, color="0.6", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="relative error allowed", ylabel="compression ratio, numbers stored")
    errors = [row["eps"] for row in results["position_table"]]
    right.set_xticks(errors, [f"{eps:.0%}" for eps in errors])
    right.set_xticks([], minor=True)
    right.set_yticks([1, 10, 100], ["1×", "10×", "100×"])
    right.legend(loc="upper left")
    right.set_title("Position table of GPT-2")
    return figure


def write(record: dict) -> None:
    """Redraw the figure of the introduction."""
    figures.save_png(draw(record), PICTURE)
