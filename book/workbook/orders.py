"""A contraction plan as a picture: what every order costs beside the dense layer, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from torch import Tensor

from ttref.plans import ORDERS, plan_contraction

_LOOKS = {"multiply-adds": "#0072B2", "bytes moved": "#E69F00"}


def draw_orders(cores: Sequence[Tensor], batch: int, *, ax: Axes | None = None) -> Axes:
    r"""Draw what each contraction order costs for a batch of vectors, as multiples of what the dense layer costs.

    Args:
        cores: cores of a TT-matrix, `(r_left, m, n, r_right)` each; `layer.cores` of a TTLinear.
        batch: number of vectors.
        ax: Axes to draw in; None makes a figure of the right size.

    Returns:
        The Axes. Each order has two bars, multiply-adds and bytes read and written; the line at 1 is `nn.Linear`, and
        the order that a TTLinear takes is named so.

    Raises:
        TypeError, ValueError: as `plan_contraction`.

    Example:
        >>> from ttref import TTLinear
        >>> ax = draw_orders(TTLinear((8, 8), (8, 8), 3).cores, 16)
        >>> [label.get_text() for label in ax.get_yticklabels()][:2]
        ['right-to-left\n(chosen)', 'left-to-right']
        >>> plt.close(ax.figure)
    """
    cores = list(cores)
    chosen = plan_contraction(cores, batch)
    plans = [plan_contraction(cores, batch, order) for order in ORDERS]
    outputs, inputs = (prod(core.shape[k] for core in cores) for k in (1, 2))
    # As the plans count them: float32, the weight once, every input and output once.
    dense = {
        "multiply-adds": batch * outputs * inputs,
        "bytes moved": 4 * (outputs * inputs + batch * (outputs + inputs)),
    }
    if ax is None:
        ax = plt.subplots(figsize=(6.2, 3.4))[1]
    for shift, (name, color) in zip((-0.2, 0.2), _LOOKS.items(), strict=True):
        costs = [plan.macs if name == "multiply-adds" else plan.bytes for plan in plans]
        times = [cost / dense[name] for cost in costs]
        bars = ax.barh([y + shift for y in range(len(plans))], times, height=0.38, color=color, label=name)
        texts = ax.bar_label(bars, [f"{value:.2f}" for value in times], padding=4, fontsize=11)
        for text in texts:
            text.set_path_effects([withStroke(linewidth=4, foreground="white")])
    ax.axvline(1, color="#444444", linewidth=1.4, linestyle="--", marker="", zorder=0.9)
    ax.set(
        yticks=range(len(plans)),
        yticklabels=[plan.order + "\n(chosen)" * (plan == chosen) for plan in plans],
        xlabel=f"times nn.Linear, batch {batch}",
    )
    ax.margins(x=0.12)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    return ax
