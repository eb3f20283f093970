"""Tensor-network pictures drawn with matplotlib: cores are nodes, bonds are edges, modes are dangling legs.

Every picture has the same scale, and pictures drawn into the same Axes line up from left to right:

    ax = draw_tensor((4, 4, 4))
    draw_symbol("=", ax=ax)
    draw_train((1, 4, 4, 1), (4, 4, 4), ax=ax)
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Wedge

# Geometry in drawing units; fonts are in points, so a unit has a fixed size on paper.
SPACING = 1.3
ROW = 2.1
_RADIUS = 0.31
_LEG = 0.72
_GAP = 0.38
_INCHES = 0.72

_INK, _MUTED, _BOND = "#222222", "#555555", "#0072B2"
_NODE, _ISOMETRY, _CENTER, _TENSOR = "#DCEBF5", "#8CC0E2", "#F3B27A", "#E4E4E4"


def draw_train(
    ranks: Sequence[int | str],
    shape: Sequence[int | str],
    *,
    ax: Axes | None = None,
    labels: Sequence[str] | None = None,
    center: int | None = None,
    at: tuple[float, float] | None = None,
) -> Axes:
    """Draw a tensor train, one node per core.

        G1 --r1-- G2 --r2-- G3
        |         |         |
        n1        n2        n3

    Args:
        ranks: d+1 ranks with the ends, numbers or text such as `"$r_1$"`; the bonds at the ends are not drawn.
        shape: d mode sizes, numbers or text, written at the legs.
        ax: Axes to draw in; None makes a figure of the right size.
        labels: d node labels; G with its index by default.
        center: position, from 0, of the core that is not orthogonal. Cores left of it are shown left-orthogonal (left
            half filled), cores right of it right-orthogonal (right half filled), and arrows on the bonds point to it.
        at: x and y of the first node; None places the picture right of what `ax` holds.

    Returns:
        The Axes.

    Raises:
        ValueError: ranks and shape do not match, wrong number of labels, center out of range.

    Source:
        The notation is that of Schollwöck, "The density-matrix renormalization group in the age of matrix product
        states", 2011, section 4; half-filled nodes as in Holtz, Rohwedder and Schneider, 2012.

    Example:
        >>> ax = draw_train((1, 2, 4, 1), (2, 3, 4), center=1)
        >>> [text.get_text() for text in ax.texts][-2:]
        ['3', '4']
        >>> plt.close(ax.figure)
    """
    return _draw_chain(ranks, [("mode", shape, -1)], ax=ax, labels=labels, center=center, at=at)


def draw_train_matrix(
    ranks: Sequence[int | str],
    row_shape: Sequence[int | str],
    col_shape: Sequence[int | str],
    *,
    ax: Axes | None = None,
    labels: Sequence[str] | None = None,
    center: int | None = None,
    at: tuple[float, float] | None = None,
) -> Axes:
    """Draw a matrix as a tensor train: row (output) modes on the upper legs, column (input) modes on the lower ones.

        m1        m2
        |         |
        G1 --r1-- G2
        |         |
        n1        n2

    Args:
        ranks: d+1 ranks with the ends, numbers or text; the bonds at the ends are not drawn.
        row_shape: d row modes m_k.
        col_shape: d column modes n_k.
        ax: Axes to draw in; None makes a figure of the right size.
        labels: d node labels; G with its index by default.
        center: position, from 0, of the core that is not orthogonal, shown as in `draw_train`.
        at: x and y of the first node; None places the picture right of what `ax` holds.

    Returns:
        The Axes.

    Raises:
        ValueError: ranks and modes do not match, wrong number of labels, center out of range.

    Source:
        Oseledets, "Tensor-train decomposition", 2011, section 4.3 (matrices in the TT format).

    Example:
        >>> ax = draw_train_matrix((1, 8, 1), (16, 48), (24, 32))
        >>> sorted(text.get_text() for text in ax.texts)[:3]
        ['$G_{1}$', '$G_{2}$', '16']
        >>> plt.close(ax.figure)
    """
    return _draw_chain(
        ranks, [("row mode", row_shape, 1), ("column mode", col_shape, -1)], ax=ax, labels=labels, center=center, at=at
    )


def draw_tensor(
    shape: Sequence[int | str], *, ax: Axes | None = None, label: str = "$X$", at: tuple[float, float] | None = None
) -> Axes:
    """Draw a dense tensor: one box with a leg for each mode.

    Args:
        shape: mode sizes, numbers or text.
        ax: Axes to draw in; None makes a figure of the right size.
        label: text in the box.
        at: x and y of the first leg's top; None places the picture right of what `ax` holds.

    Returns:
        The Axes.

    Raises:
        ValueError: shape is empty.

    Example:
        >>> ax = draw_tensor((8, 8, 8), label="$T$")
        >>> [text.get_text() for text in ax.texts]
        ['$T$', '8', '8', '8']
        >>> plt.close(ax.figure)
    """
    if not shape:
        raise ValueError("a tensor needs at least one mode to be drawn, got an empty shape")
    ax = _canvas(ax)
    left, y = at if at is not None else (_next_left(ax), 0.0)
    xs = left + 0.6 * SPACING * np.arange(len(shape))
    width = xs[-1] - xs[0] + 2 * _RADIUS
    ax.add_patch(
        FancyBboxPatch(
            (xs[0] - _RADIUS + 0.1, y - _RADIUS + 0.1),
            width - 0.2,
            2 * _RADIUS - 0.2,
            boxstyle="round,pad=0.1",
            facecolor=_TENSOR,
            edgecolor=_INK,
            linewidth=1.4,
            zorder=3,
        )
    )
    ax.text((xs[0] + xs[-1]) / 2, y, label, ha="center", va="center", fontsize=12, color=_INK, zorder=5)
    for x, size in zip(xs, shape, strict=True):
        _leg(ax, x, y, size, -1)
    return _fit(ax, xs[0], xs[-1], y - _LEG - _RADIUS, y + _RADIUS)


def draw_symbol(text: str, *, ax: Axes) -> Axes:
    """Write a sign such as "=" or "≈" right of what the Axes holds, on the line of the nodes.

    Example:
        >>> ax = draw_symbol("=", ax=draw_tensor((2, 2)))
        >>> ax.texts[-1].get_text()
        '='
        >>> plt.close(ax.figure)
    """
    x = _next_left(ax)
    ax.text(x, 0, text, ha="center", va="center", fontsize=18, color=_INK)
    return _fit(ax, x, x, -_RADIUS, _RADIUS)


def _draw_chain(
    ranks: Sequence[int | str],
    modes: list[tuple[str, Sequence[int | str], int]],
    *,
    ax: Axes | None,
    labels: Sequence[str] | None,
    center: int | None,
    at: tuple[float, float] | None,
) -> Axes:
    order = len(modes[0][1])
    for name, sizes, _ in modes:
        if not sizes or len(sizes) != order or len(ranks) != order + 1:
            raise ValueError(
                f"a train of {len(sizes)} {name}s needs {len(sizes) + 1} ranks with both ends and at "
                f"least one mode, got {len(ranks)} ranks and {order} nodes"
            )
    if labels is not None and len(labels) != order:
        raise ValueError(f"{order} nodes need {order} labels, got {len(labels)}")
    if center is not None and not 0 <= center < order:
        raise ValueError(f"center must be a position from 0 to {order - 1}, got {center}")
    names = labels if labels is not None else [f"$G_{{{k + 1}}}$" for k in range(order)]
    ax = _canvas(ax)
    left, y = at if at is not None else (_next_left(ax), 0.0)
    xs = left + SPACING * np.arange(order)
    for k, (x, name) in enumerate(zip(xs, names, strict=True)):
        _node(ax, x, y, name, 0 if center is None else int(np.sign(k - center)), center is not None)
    for k in range(1, order):
        _bond(ax, xs[k - 1], xs[k], y, ranks[k], 0 if center is None else (1 if k <= center else -1))
    for _, sizes, side in modes:
        for x, size in zip(xs, sizes, strict=True):
            _leg(ax, x, y, size, side)
    top = y + (_LEG + _RADIUS if len(modes) == 2 else _RADIUS + 0.15)
    return _fit(ax, xs[0], xs[-1], y - _LEG - _RADIUS, top)


def _node(ax: Axes, x: float, y: float, label: str, side: int, canonical: bool) -> None:
    """Draw one core; `side` -1 fills the left half, 1 the right half, 0 all of it."""
    face = "white" if side else (_CENTER if canonical else _NODE)
    ax.add_patch(Circle((x, y), _RADIUS, facecolor=face, edgecolor="none", zorder=3))
    if side:
        start = 90 if side < 0 else -90
        ax.add_patch(Wedge((x, y), _RADIUS, start, start + 180, facecolor=_ISOMETRY, edgecolor="none", zorder=3))
    ax.add_patch(Circle((x, y), _RADIUS, facecolor="none", edgecolor=_INK, linewidth=1.4, zorder=4))
    ax.text(x, y - 0.01, label, ha="center", va="center", fontsize=11, color=_INK, zorder=5)


def _bond(ax: Axes, start: float, end: float, y: float, rank: int | str, direction: int) -> None:
    ax.plot([start, end], [y, y], color=_BOND, linewidth=2.2, marker="", zorder=1, solid_capstyle="butt")
    middle = (start + end) / 2
    if direction:
        ax.plot(middle, y, marker=">" if direction > 0 else "<", markersize=8, color=_BOND, zorder=2)
    ax.text(middle, y + 0.13, str(rank), ha="center", va="bottom", fontsize=11, color=_BOND, zorder=5)


def _leg(ax: Axes, x: float, y: float, size: int | str, side: int) -> None:
    ax.plot([x, x], [y, y + side * _LEG], color=_MUTED, linewidth=1.8, marker="", zorder=1, solid_capstyle="butt")
    ax.text(
        x,
        y + side * (_LEG + 0.05),
        str(size),
        ha="center",
        va="top" if side < 0 else "bottom",
        fontsize=11,
        color=_MUTED,
        zorder=5,
    )


def _canvas(ax: Axes | None) -> Axes:
    if ax is None:
        ax = plt.figure(facecolor="white", layout="none").add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_aspect("equal")
    return ax


def _next_left(ax: Axes) -> float:
    """The next picture's first node, as its x: right of the data limits of all that is drawn already."""
    return ax.dataLim.x1 + _GAP + _RADIUS if np.isfinite(ax.dataLim.x1) else 0.0


def _fit(ax: Axes, first: float, last: float, bottom: float, top: float) -> Axes:
    """Extend the limits to nodes from `first` to `last`; a figure made here is enlarged, at a fixed scale."""
    ax.update_datalim([(first - _RADIUS, bottom), (last + _RADIUS, top)])
    box = ax.dataLim
    ax.set_xlim(box.x0 - 0.15, box.x1 + 0.15)
    ax.set_ylim(box.y0 - 0.15, box.y1 + 0.15)
    if len(ax.figure.axes) == 1:
        ax.figure.set_size_inches(_INCHES * (box.width + 0.3), _INCHES * (box.height + 0.3))
    return ax
