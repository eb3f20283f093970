"""The questions between the ratios of a matrix and its verdict, kept as data: what judges and what is drawn are one.

::

    Has the best train or SVD fewer numbers than the matrix?
      yes  In eight bits, is it at least 1.5 times as small as integers?
             yes  Is the train more than 1.1 times as small as SVD?
                    yes  train
                    no   SVD
             no   integers
      no   Do integers of at most eight bits keep the error?
             yes  integers
             no   none
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["TREE", "Node", "judged", "walk"]

IN_INT8 = 4  # numbers of float32 that take four bytes take one each, so a ratio in numbers is a fourth of that in bytes
MARGIN_INTEGERS, MARGIN_SVD = 1.5, 1.1


class Node(NamedTuple):
    """A question about the ratios of one matrix, and where each answer leads.

    Attributes:
        ask: In words, to be answered by yes or no.
        holds: The answer, from the ratios of the train, of SVD and of integers, as ``Check`` has them.
        yes: The next question, or a verdict.
        no: The same for no.

    Example:
        >>> small = Node("Is a train smaller?", lambda train, svd, integers: train > 1, "train", "none")
        >>> small.holds(2.0, 1.0, 1.0), small.yes
        (True, 'train')
    """

    ask: str
    holds: Callable[[float, float, float], bool]
    yes: Node | str
    no: Node | str


TREE = Node(
    "Has the best train or SVD fewer numbers than the matrix?",
    lambda train, svd, integers: max(train, svd) > 1,
    yes=Node(
        f"In eight bits, is it at least {MARGIN_INTEGERS} times as small as integers?",
        lambda train, svd, integers: IN_INT8 * max(train, svd) >= MARGIN_INTEGERS * integers,
        yes=Node(
            f"Is the train more than {MARGIN_SVD} times as small as SVD?",
            lambda train, svd, integers: train > MARGIN_SVD * svd,
            yes="train",
            no="SVD",
        ),
        no="integers",  # which are then more than 2.6 times as small as float32: eight bits or fewer do keep the error
    ),
    no=Node(
        "Do integers of at most eight bits keep the error?",
        lambda train, svd, integers: integers > 1,
        yes="integers",
        no="none",
    ),
)


def walk(train: float, svd: float, integers: float) -> tuple[str, list[tuple[str, bool]]]:
    """Walk the tree for one matrix: its verdict, and each question with its answer.

    Args:
        train: Numbers of the matrix for each number of its best train at some error; below 1 the train is larger.
        svd: The same for truncated SVD.
        integers: Bytes of the matrix in float32 for each byte of integers at that error; 1 if eight bits err more.

    Returns:
        ``"train"``, ``"SVD"``, ``"integers"`` or ``"none"``, and the pairs of question and answer, in order.

    Example:
        A table of positions at an error of a fifth, in ratios of GPT-2's:

        >>> verdict, answers = walk(115.0, 73.0, 8.0)
        >>> verdict, [answer for _, answer in answers]
        ('train', [True, True, True])
    """
    answers, here = [], TREE
    while isinstance(here, Node):
        answer = bool(here.holds(train, svd, integers))
        answers.append((here.ask, answer))
        here = here.yes if answer else here.no
    return here, answers


def judged(train: float, svd: float, integers: float) -> str:
    """The verdict alone; arguments as :func:`walk` takes them.

    Example:
        >>> judged(1.0, 0.9, 7.9)
        'integers'
    """
    return walk(train, svd, integers)[0]
