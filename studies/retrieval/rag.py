"""A hundred questions to the reference of the Python that runs: what each index finds, and what a small model says.

Passages and questions are the book's own (`book.workbook`). Other releases of Python have somewhat other passages, so
each row names its Python.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from book.workbook import sources
from book.workbook.answering import answer
from book.workbook.models import LoadedModel
from book.workbook.passages import Passage, python_passages
from book.workbook.questions import Question, is_right, load_questions, questions_answered
from book.workbook.vectors import vectors_of
from ttref.surgery.paired import mcnemar

from .methods import Built, Method, floats, integers, one_bit, one_bit_rescored, ordered, tt_index
from .metrics import error_of, overlap
from .summary import billed

FIRST = (1, 3, 5)  # hit@k
READ = 3  # passages that the model reads
TOKENS = 60  # of an answer: room for more than the one sentence that is asked for
FEW = 20  # that are scored again, of about a thousand
READ_FROM = ("float32", "TTIndex 192 x 4 bit", "one bit")  # indexes whose passages the model reads
MEMORY, RIGHT = "no passages", "the right passage"
CONDITIONS = (MEMORY, *READ_FROM, RIGHT)


class Shelf(NamedTuple):
    """What is asked, and where it is looked for.

    Attributes:
        passages: All of them.
        questions: All of them.
        x: Vectors of the passages, ``(n, width)``, of norm 1.
        q: Those of the questions.
    """

    passages: list[Passage]
    questions: list[Question]
    x: Tensor
    q: Tensor


@cache
def filled() -> Shelf:
    """The passages of this Python and the hundred questions, encoded: a minute or two."""
    encoder, passages, asked = sources.load_encoder(), python_passages(), load_questions()
    texts, asks = [str(passage) for passage in passages], [question.ask for question in asked]
    return Shelf(passages, asked, vectors_of(encoder, texts), vectors_of(encoder, asks))


@cache
def reader() -> LoadedModel:
    """The language model."""
    return sources.load_language_model()


def by_words(shelf: Shelf) -> Built:
    """No encoder at all: cosines of weighted word counts, stored as places and float32 numbers, with the vocabulary."""
    counts = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    table = counts.fit_transform(map(str, shelf.passages))
    scores = counts.transform(question.ask for question in shelf.questions) @ table.T
    shared = sum(len(word.encode()) + 4 for word in counts.vocabulary_)
    return Built(lambda q: ordered(torch.from_numpy(scores.toarray())), 8 * table.nnz / len(shelf.passages), shared)


def by_chance(x: Tensor) -> Built:
    """Passages in an order drawn for each question."""
    draw = torch.Generator().manual_seed(0)
    return Built(lambda q: torch.rand(len(q), len(x), generator=draw).argsort(1), 0, 0)


def ways() -> Iterator[Method]:
    """All ways to find passages, in the order of the record: indexes of vectors, words, and chance."""
    yield Method("float32", "floats", floats)
    for bits in (8, 4):
        yield Method(f"int{bits} rows", "integers", partial(integers, bits=bits))
    for width, bits in ((384, 8), (192, 8), (384, 4), (192, 4), (96, 4), (384, 1)):
        yield Method(f"TTIndex {width} x {bits} bit", "TTIndex", partial(tt_index, width=width, bits=bits))
    yield Method("one bit", "one bit", one_bit)
    build = partial(one_bit_rescored, second=floats, candidates=FEW)
    yield Method(f"one bit, {FEW} rescored with float32", "one bit", build)
    yield Method("words alone, TF-IDF", "words", lambda x: by_words(filled()))
    yield Method("any passages", "chance", by_chance)


def scored(shelf: Shelf, ranking: Tensor) -> dict[str, float]:
    """How many questions a ranking of all passages answers, and what it loses and wins beside that of the vectors."""
    dense = ordered(shelf.q @ shelf.x.mT)
    hits = {k: questions_answered(ranking, shelf.passages, shelf.questions, k) for k in FIRST}
    theirs = questions_answered(dense, shelf.passages, shelf.questions, READ)
    lost, won = (theirs & ~hits[READ]).sum().item(), (~theirs & hits[READ]).sum().item()
    row = {f"hit_{k}": each.double().mean().item() for k, each in hits.items()}
    row |= {"hit_3_se": error_of(hits[READ].double()), "lost": lost, "won": won, "p": mcnemar(lost, won)}
    return row | {"recall_10_of_dense": overlap(ranking, dense).mean().item()}


def questions(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``questions``: all ways on the hundred questions."""
    for way in ways():
        if way.key not in before:
            shelf = filled()
            made = way.build(shelf.x)
            row = {"key": way.key, "family": way.family}
            row |= {"python": platform.python_version(), "passages": len(shelf.passages)}
            row |= billed(made.document, made.shared, len(shelf.x)) | scored(shelf, made.rank(shelf.q))
            print(f"{way.key:32} {row['everything']:7.1f} {row['hit_3']:.2f} -{row['lost']} +{row['won']}", flush=True)
            yield row


@cache
def first_found(method: str) -> list[list[Passage]]:
    """For each question the passages that an index finds, or the nearest of those that say the answer."""
    shelf = filled()
    if method != RIGHT:
        (way,) = (way for way in ways() if way.key == method)
        places = way.build(shelf.x).rank(shelf.q)[:, :READ].tolist()
        return [[shelf.passages[place] for place in row] for row in places]
    near = ordered(shelf.q @ shelf.x.mT).tolist()
    return [
        [passage for passage in map(shelf.passages.__getitem__, row) if says(question, passage)][:1]
        for row, question in zip(near, shelf.questions, strict=True)
    ]


def says(question: Question, passage: Passage) -> bool:
    """Whether a passage is from a source that answers the question, and has the words of the answer."""
    return passage.source in question.sources and bool(question.answer) and is_right(question, str(passage))


def answers(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``answers``: what the model says to the questions that can be checked, by what it reads."""
    for condition, (place, question) in product(CONDITIONS, enumerate(load_questions())):
        key = f"{condition}: {question.ask}"
        if question.answer and key not in before:
            read = [] if condition == MEMORY else first_found(condition)[place]
            lm, start = reader(), time.perf_counter()
            text = answer(lm, question.ask, read, tokens=TOKENS)
            row = {"key": key, "condition": condition, "ask": question.ask, "python": platform.python_version()}
            row |= {"read": [passage.source for passage in read], "there": any(says(question, each) for each in read)}
            yield row | {"text": text, "right": is_right(question, text), "seconds": time.perf_counter() - start}
            print(f"{condition:20} {is_right(question, text)!s:6} {text}", flush=True)
