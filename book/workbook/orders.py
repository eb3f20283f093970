"""A contraction plan as a picture: the cost of every order, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from ttref.plans import ORDERS, plan_contraction


def draw_orders(cores: Sequence[Tensor], batch: int, *, ax: Axes | None = None) -> Axes:
    """Draw the cost of each contraction order for a batch of vectors: one bar an order, the chosen one filled.

    Args:
        cores: cores of a TT-matrix, `(r_left, m, n, r_right)` each; `layer.cores` of a TTLinear.
        batch: number of vectors.
        ax: Axes to draw in; None makes a figure of the right size.

    Returns:
        The Axes. A bar is multiply-adds (dark) plus float32 numbers moved (light), the sum that decides; the text
        beside it says how large the largest intermediate result is.

    Raises:
        TypeError, ValueError: as `plan_contraction`.

    Example:
        >>> from ttref import TTLinear
        >>> ax = draw_orders(TTLinear(64, 64, 4).cores, 16)
        >>> [label.get_text() for label in ax.get_yticklabels()][0]
        'right-to-left'
        >>> plt.close(ax.figure)
    """
    cores = list(cores)
    chosen = plan_contraction(cores, batch)
    plans = [plan_contraction(cores, batch, order) for order in ORDERS]
    if ax is None:
        ax = plt.subplots(figsize=(7.2, 2.9))[1]
    for y, plan in enumerate(plans):
        dark, light = ("#0072B2", "#9CC9E4") if plan == chosen else ("#8A8A8A", "#D2D2D2")
        macs, moved = plan.macs / 1e6, plan.bytes / 4e6
        ax.barh(y, macs, color=dark, height=0.62)
        ax.barh(y, moved, left=macs, color=light, height=0.62)
        text = f"{'chosen, ' if plan == chosen else ''}temporary {plan.temporary / 1e6:.2g} MB"
        ax.annotate(text, (macs + moved, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=10)
    ax.set(
        yticks=range(len(plans)),
        yticklabels=[plan.order for plan in plans],
        xlabel=f"million multiply-adds (dark) and numbers moved (light), batch {batch}",
        xlim=(0, 1.45 * max(plan.macs / 1e6 + plan.bytes / 4e6 for plan in plans)),
    )
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    return ax
