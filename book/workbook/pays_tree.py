"""The tree that `ttref.advise` walks, drawn from the same data."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes

from ttref.advice.tree import Node

from .figures import OKABE_ITO, readable

__all__ = ["Box", "boxes_of", "draw_tree"]

WIDTH = 24  # characters of a line in a box
VERDICTS = {"train": OKABE_ITO[0], "SVD": OKABE_ITO[1], "integers": OKABE_ITO[2], "none": "#777777"}
ASIDE = 0.25  # how far a verdict stands from the middle of its question, if both answers are verdicts
BESIDE = 0.43  # and if the other answer leads to a question below
HALF = 0.29  # of the width of a question


class Box(NamedTuple):
    """A box of the drawing: its text, where its middle is, and whether it is a verdict."""

    text: str
    x: float
    y: float
    verdict: bool


def boxes_of(tree: Node) -> tuple[list[Box], list[tuple[int, int, bool]]]:
    """Where each question and each verdict stands, and the arrows between them.

    Questions that follow from yes stand below each other; those that follow from no stand a column to the right, each
    once, however many arrows lead to it. A verdict stands below its question, yes on the left, no on the right.

    Returns:
        The boxes, and for each arrow the boxes at its ends and its answer.

    Example:
        >>> rule = Node("Smaller?", lambda train, svd, integers: train > 1, "train", "none")
        >>> boxes, arrows = boxes_of(rule)
        >>> [box.text for box in boxes], arrows
        (['Smaller?', 'train', 'none'], [(0, 1, True), (0, 2, False)])
    """
    depth: dict[int, int] = {}
    column: dict[int, int] = {}
    order: list[Node] = []

    def visit(question: Node, at: int, aside: int) -> None:
        if id(question) not in depth:
            order.append(question)
            column[id(question)] = aside
        depth[id(question)] = max(at, depth.get(id(question), 0))
        for answer, following in ((0, question.yes), (1, question.no)):
            if isinstance(following, Node):
                visit(following, depth[id(question)] + 1, column[id(question)] + answer)

    visit(tree, 0, 0)
    boxes = [Box(question.ask, column[id(question)], -depth[id(question)], False) for question in order]
    arrows = []
    for start, question in enumerate(order):
        for answer, following in ((True, question.yes), (False, question.no)):
            if isinstance(following, Node):
                arrows.append((start, [id(each) for each in order].index(id(following)), answer))
            else:
                both = isinstance(question.yes, str) and isinstance(question.no, str)
                side = (ASIDE if both else BESIDE) * (-1 if answer else 1)
                boxes.append(Box(following, boxes[start].x + side, boxes[start].y - 1, True))
                arrows.append((start, len(boxes) - 1, answer))
    return boxes, arrows


def draw_tree(ax: Axes, tree: Node) -> None:
    """Draw the questions as boxes, the verdicts in color, and an arrow for each answer.

    Args:
        ax: Axes to draw in; they lose their frame.
        tree: The first question, such as ``ttref.advice.tree.TREE``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from ttref.advice.tree import TREE
        >>> ax = Figure().subplots()
        >>> draw_tree(ax, TREE)
        >>> sorted({text.get_text() for text in ax.texts} & {"train", "SVD", "integers", "none", "yes", "no"})
        ['SVD', 'integers', 'no', 'none', 'train', 'yes']
    """
    boxes, arrows = boxes_of(tree)
    for start, end, answer in arrows:
        one, other = boxes[start], boxes[end]
        aside = other.x > one.x + ASIDE  # then the arrow leaves the box at its right side and turns down
        begin = (one.x + HALF, one.y) if aside else (one.x, one.y - 0.26)
        stop = (other.x, other.y + (0.14 if other.verdict else 0.29))
        bend = "angle,angleA=0,angleB=90,rad=6" if aside else "arc3"
        look = {"arrowstyle": "-|>", "color": "0.35", "linewidth": 1.3, "connectionstyle": bend}
        ax.annotate("", stop, begin, arrowprops=look, zorder=1)
        middle = ((begin[0] + stop[0]) / 2, (begin[1] + stop[1]) / 2)
        left = other.x <= one.x
        at, side = ((begin[0] + 0.02, begin[1] + 0.07), "left") if aside else (middle, "right" if left else "left")
        gap = 0.0 if aside else (-0.03 if left else 0.03)
        word = {"ha": side, "va": "bottom" if aside else "center"}
        ax.text(at[0] + gap, at[1], "yes" if answer else "no", color="0.25", **word)
    for box in boxes:
        color = readable(VERDICTS.get(box.text, "#222222")) if box.verdict else "#222222"
        frame = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
        said = box.text if box.verdict else textwrap.fill(box.text, WIDTH)
        weight = "bold" if box.verdict else "normal"
        ax.text(box.x, box.y, said, ha="center", va="center", color=color, bbox=frame, fontweight=weight, zorder=3)
    ax.set(xlim=(-0.45, max(box.x for box in boxes) + 0.2), ylim=(min(box.y for box in boxes) - 0.3, 0.4))
    ax.set_axis_off()
