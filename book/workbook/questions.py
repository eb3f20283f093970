"""A hundred questions about Python, each with the sources that answer it, so that an index can be scored.

The questions are in ``questions.toml``, written for this book in words of people who do not know the name of what they
look for. A source counts as found if one of its passages is among the first few: that is kind to long topics, whose
passages are not all about the question, and the same for every index.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .passages import Passage

__all__ = ["Question", "is_right", "load_questions", "passages_for", "questions_answered"]

_FILE = Path(__file__).with_name("questions.toml")


class Question(NamedTuple):
    """A question.

    Attributes:
        ask: The question itself.
        sources: The sources that answer it, such as ``topic:with``.
        answer: Words of a right answer, for twenty of the questions: one of each group. Else empty.
    """

    ask: str
    sources: tuple[str, ...]
    answer: tuple[tuple[str, ...], ...]


def load_questions() -> list[Question]:
    """The hundred questions, always in one order.

    Example:
        >>> questions = load_questions()
        >>> len(questions), sum(bool(question.answer) for question in questions)
        (100, 20)
        >>> questions[1].sources, questions[1].answer
        (('topic:assert',), (('AssertionError',),))
    """
    return [
        Question(row["ask"], tuple(row["sources"]), tuple(map(tuple, row.get("answer", ()))))
        for row in tomllib.loads(_FILE.read_text(encoding="utf-8"))["question"]
    ]


def passages_for(
    questions: Sequence[Question], passages: Sequence[Passage], *, most: int = 3, step: int = 16
) -> list[Passage]:
    """A part of the passages that still answers the questions, for where encoding all of them takes too long.

    It keeps the first few passages of each source that answers a question, and every so many of all others, so that
    there is something to mistake them for. Fewer wrong passages make every index look better than among all of them.

    Args:
        questions: The questions.
        passages: Where they are to be answered from, such as :func:`~book.workbook.passages.python_passages`.
        most: How many passages of a source that answers a question are kept, at most.
        step: Of how many other passages one is kept.

    Returns:
        The passages that are kept, in their order; about three hundred of a thousand.

    Raises:
        ValueError: ``most`` or ``step`` is below 1, or no passage is of a source that answers a question.

    Example:
        >>> passages = [Passage("topic:assert", "", ""), *[Passage("topic:if", "", str(k)) for k in range(16)]]
        >>> [passage.text for passage in passages_for(load_questions()[1:2], passages, step=8)]
        ['', '0', '8']
    """
    if most < 1 or step < 1:
        raise ValueError(f"most and step must be at least 1, got {most} and {step}")
    answering = {source for question in questions for source in question.sources}
    kept, seen, others = [], Counter(), 0
    for passage in passages:
        if passage.source in answering and seen[passage.source] < most:
            seen[passage.source] += 1
            kept.append(passage)
        else:
            if others % step == 0:
                kept.append(passage)
            others += 1
    if not seen:
        raise ValueError(
            f"none of {len(passages)} passages is of a source that answers one of {len(questions)} questions"
        )
    return kept


def questions_answered(
    nearest: Tensor, passages: Sequence[Passage], questions: Sequence[Question], k: int = 3
) -> Tensor:
    """Whether the first k passages found for each question hold one from a source that answers it.

    Args:
        nearest: Indices of passages, int64 ``(questions, at least k)``, the nearest first.
        passages: What the indices point to.
        questions: The questions, in the order of the rows.
        k: How many passages of each row count.

    Returns:
        Booleans ``(questions,)``; their mean is hit@k.

    Raises:
        ValueError: There are not as many rows as questions, fewer than k columns, or an index is of no passage.

    Example:
        >>> passages = [Passage("topic:if", "", ""), Passage("topic:assert", "", "")]
        >>> questions_answered(torch.tensor([[0, 1]]), passages, load_questions()[1:2], k=2)
        tensor([True])
    """
    if nearest.ndim != 2 or len(nearest) != len(questions) or not 1 <= k <= nearest.shape[1]:
        raise ValueError(
            f"nearest must have {len(questions)} rows, one for each question, and {k} columns or more, k at least 1; "
            f"got shape {tuple(nearest.shape)}"
        )
    if not ((nearest >= 0) & (nearest < len(passages))).all():
        raise ValueError(
            f"nearest must hold indices of {len(passages)} passages, got {nearest.min()} to {nearest.max()}"
        )
    return torch.tensor(
        [
            any(passages[place].source in question.sources for place in row)
            for row, question in zip(nearest[:, :k].tolist(), questions, strict=True)
        ]
    )


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer has one word of each group of the question's; upper and lower case count as one.

    Words of letters must stand alone, so that "list" is not found in "enlist". It is a check of words: an answer that
    says the opposite in the same words passes.

    Raises:
        ValueError: The question has no such words.

    Example:
        >>> question = load_questions()[1]
        >>> is_right(question, "It raises an `AssertionError`."), is_right(question, "It fails.")
        (True, False)
    """
    if not question.answer:
        raise ValueError(f"{question.ask!r} has no words to check an answer by; only questions with an answer have")
    return all(any(_said(word, answer) for word in group) for group in question.answer)


def _said(word: str, answer: str) -> bool:
    """Whether a word stands in the answer, alone if it begins and ends with letters."""
    left, right = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return re.search(left + re.escape(word) + right, answer, re.IGNORECASE) is not None
