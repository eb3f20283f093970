"""Document vectors in few bytes: quality on two collections with judgments, stacks of views, token tables, and speed.

MiniLM's vectors of MEDLARS (1,033 documents, 30 queries) and Cranfield (1,400 and 225). ``python -m studies.retrieval``
measures what the record lacks, so a run that was stopped continues; names choose parts. ``python -m studies.retrieval
speed`` times the searches, which wants a machine that does nothing else. Some 20 minutes on two cores, most of them for
the times; five to encode the texts, once. The parts ``questions`` and ``answers``, another fifteen
minutes, ask the reference of the running Python: see ``rag.py``. ``tables`` encodes all texts once for each way to keep
the encoder's token table: 25 minutes on one core. ``overlaps`` and ``ranks`` take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from book.tools import results
from book.workbook import sources

from ..resumed import add_rows
from ..toy_classifier.data import brief
from . import data, harness, overlaps, rag, ranks, speed, tables
from .methods import Method, available, methods, ordered
from .metrics import judged
from .stacks import flat, stacks
from .summary import billed, summed_up

NAME = "retrieval"
SECTIONS = ("slice", "quality", "stacks", "harness", "tables", "speed", "questions", "answers", "overlaps", "ranks")
PARTS = ("slice:MEDLARS", *(f"{section}:{name}" for section in SECTIONS[1:5] for name in data.READERS), *SECTIONS[5:])
OPTIONAL = ("turbovec", "usearch", harness.NAME)  # measured where they are installed
FEW = 150  # documents of a slice, which a test measures again
IN_SLICE = ("float32", "int4 rows", "TTIndex 96 x 4 bit", "PCA 48 float16")


def rows_of(
    found: data.Collection, ways: Iterable[Method], q: Tensor, dense: Tensor, x: Tensor, before: dict[str, dict]
) -> Iterator[dict]:
    """A row for each way that the record lacks.

    Args:
        found: The collection.
        ways: The ways.
        q: Queries ``(b, width)``.
        dense: The ranking that they are compared with, ``(b, n)``.
        x: Documents as the ways take them.
        before: Rows of the record by key.
    """
    for way in ways:
        key = f"{found.name}: {way.key}"
        if key not in before:
            made = way.build(x)
            row = {"key": key, "collection": found.name, "method": way.key, "family": way.family}
            row |= billed(made.document, made.shared, len(x)) | judged(made.rank(q), dense, found.gains)
            print(f"{key:64} {row['document']:7.1f} {row['recall_10_of_dense']:.3f} {row['ndcg_10']:.4f}", flush=True)
            yield row


def quality(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``quality``: every method on a collection."""
    yield from by_last_view(data.collection(name, folder), methods(), before)


def by_last_view(found: data.Collection, ways: Iterable[Method], before: dict[str, dict]) -> Iterator[dict]:
    """Rows for sentence vectors, the last of the views."""
    x, q = found.documents[:, -1].contiguous(), found.queries[:, -1].contiguous()
    yield from rows_of(found, ways, q, ordered(q @ x.mT), x, before)


def few(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``slice``: some methods on the first documents of a collection."""
    ways = [method for method in methods() if method.key in IN_SLICE]
    yield from by_last_view(data.collection(name, folder, FEW), ways, before)


def views(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``stacks``: every way to keep three views of each document."""
    found = data.collection(name, folder)
    x, q = found.documents, flat(found.queries)
    yield from rows_of(found, stacks(), q, ordered(q @ flat(x).mT), x, before)


def within_harness(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``harness``, if it is installed."""
    if available(harness.NAME):
        yield from harness.rows(name, folder, before)


def timing(threads: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``speed``."""
    yield from speed.one(int(threads), folder, before)


def asked(python: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``questions``, on the reference of this Python."""
    yield from rag.questions(before)


def answered(python: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``answers``."""
    yield from rag.answers(before)


MEASURES = dict(
    zip(
        SECTIONS,
        (few, quality, views, within_harness, tables.rows, timing, asked, answered, overlaps.rows, ranks.rows),
        strict=True,
    )
)


def recorded() -> dict:
    """The sections of the record."""
    before = results.read(NAME)
    return {name: before[name] for name in (*SECTIONS, "optional", "seconds", "processors") if name in before}


def keep(values: dict) -> Path:
    """Write the record."""
    return results.write(
        NAME,
        brief(values | summed_up(values))
        | {"machine": results.here() | {"threads": 1}},  # of the last part; "processors" has all
        models=["all-MiniLM-L6-v2", "SmolLM2-135M-Instruct (for the answers)"],
        data=[
            *data.READERS,
            "WikiText-2 valid (mixtures for the times; counts of tokens)",
            "SST-2 train and scikit-learn prose (counts of tokens)",
            "the reference of the Python that each row names, by book.workbook.passages",
        ],
        command=f"python -m studies.{NAME}",
        packages=("torch", "transformers", "scikit-learn", "numpy", "faiss-cpu"),
    )


def run(part: str, folder: Path) -> None:
    """Measure the rows that a part of the record lacks."""
    section, _, name = part.partition(":")
    if part == "speed":
        speed.all_threads()
        return
    values = recorded()
    values["optional"] = values.get("optional", {}) | {name: version(name) for name in OPTIONAL if available(name)}

    def measured(before: dict[str, dict]) -> Iterator[dict]:
        processors, here = values.setdefault("processors", {}).setdefault(part, []), results.here()["processor"]
        for row in MEASURES[section](name, folder, before):
            processors.extend([here] * (here not in processors))
            yield row

    add_rows(values, section, part, measured, keep)


def main(*names: str) -> None:
    """Run some parts, or all, and record them."""
    folder = sources.data_folder()
    if folder is None:
        return
    torch.set_num_threads(1)
    for part in names or PARTS:
        print(f"-- {part}", flush=True)
        run(part, folder)
