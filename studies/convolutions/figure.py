"""The second figure of the introduction, drawn from ``book/results/convolutions.json`` alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from book.tools.results import RESULTS
from book.workbook import figures, fronts

PICTURE = RESULTS.parent / "_static" / "convolutions.png"
FAMILIES = ("fitted train", "GPTQ-like", "whitened SVD")


def draw(results: dict) -> Figure:
    """Accuracy of ResNet-20 against bits a weight, a line for each method."""
    figures.use_house_style()
    network = results["networks"][0]
    figure, ax = plt.subplots(figsize=(7.2, 5), layout="constrained")
    fronts.accuracy_front(ax, fronts.front_of(network["points"], FAMILIES), dense=network["dense"])
    return figure


def write(record: dict) -> None:
    """Redraw the second figure of the introduction."""
    figures.save_png(draw(record), PICTURE)
