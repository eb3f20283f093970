"""An encoder whose token table is compressed: does it still find what it found?

MiniLM's table of 30,522 x 384 numbers is 52 % of its parameters. Each way keeps it in fewer bytes, documents and
queries are both encoded with what is left of it, and the ranking is judged as in the other sections. Nothing is trained
afterwards. Of a text the first 128 tokens are read, as in MiniLM's training, half as many as in the other sections.
Token frequencies are counted in other text than the collections: encyclopedia, film reviews, documentation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from book.tools import results
from ttref import MPSEmbedding, quantize_integer, replace_embedding

from ..embeddings import methods as stored
from ..embeddings.data import token_counts
from ..partial_tensorization.tasks import batches_of, minilm
from . import data
from .methods import ordered
from .metrics import judged

LENGTH = 128  # tokens of a text that are read
SMALLER, SOURCES_RATIO = 9, 44  # times: what int4 nearly has, and what the source claims
CENTERS = 256  # of a codebook
TURNED = {"center": True, "rotate": True, "core_bits": 8}  # the best found for a train of each row


class Kept(NamedTuple):
    """A token table in fewer bytes.

    Attributes:
        rows: What it stands for, ``(vocabulary, width)``.
        nbytes: Bytes that are stored: codes, scales, means, axes, codebooks.
        numbers: Numbers that are stored, a code counted as one.
    """

    rows: Tensor
    nbytes: int
    numbers: int


class Way(NamedTuple):
    """A way to keep a table; its family has one color in figures. ``keep`` gets the table and weights of its rows."""

    key: str
    family: str
    keep: Callable[[Tensor, Tensor], Kept]


def dense(table: Tensor, weight: Tensor) -> Kept:
    """The table as it is."""
    return Kept(table, 4 * table.numel(), table.numel())


def integers(table: Tensor, weight: Tensor, bits: int) -> Kept:
    """Integers with the scale of least squared error for each row."""
    made = quantize_integer(table, bits, best=True)
    return Kept(made.approximation, made.nbytes, made.params)


def codebooks(table: Tensor, weight: Tensor, pieces: int) -> Kept:
    """Product quantization: each piece of a row is the nearest of 256."""
    rows, nbytes = stored.product(table, pieces)
    return Kept(rows, nbytes, len(table) * pieces + CENTERS * table.shape[1])


def row_trains(table: Tensor, weight: Tensor, **options: object) -> Kept:
    """A train for each row."""
    made = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(table), **options)
    return Kept(made.dense(), made.nbytes, made.params)


def factors(table: Tensor, weight: Tensor, ratio: int, *, by_counts: bool, way: Callable) -> Kept:
    """Two factors or a TT-matrix in float32, of least squared error over the rows or over the tokens of a text."""
    rows, nbytes = way(table, 4 * table.numel() // ratio, weight=weight if by_counts else None)
    return Kept(rows, nbytes, nbytes // 4)


def ways() -> Iterator[Way]:
    """All, in the order of the record: those of which the source speaks, then what stands beside them."""
    yield Way("float32", "float32", dense)
    for bits in (8, 4):
        yield Way(f"int{bits} rows", "integers", partial(integers, bits=bits))
    shared = {"TT-matrix": stored.tt_matrix, "SVD": stored.svd}
    for name, way in shared.items():
        for ratio in (SMALLER, SOURCES_RATIO):
            yield Way(f"{name}, {ratio}x", name, partial(factors, ratio=ratio, by_counts=False, way=way))
    for name, way in shared.items():
        for ratio in (SMALLER, SOURCES_RATIO):
            family = f"{name}, fitted by counts"
            yield Way(f"{family}, {ratio}x", family, partial(factors, ratio=ratio, by_counts=True, way=way))
    for rank in (4, 2):
        key = f"train per row, centered, turned, int8, rank {rank}"
        yield Way(key, "train per row, turned", partial(row_trains, rank=rank, **TURNED))
    for pieces in (48, 24):
        yield Way(f"{pieces} pieces of 8 bits", "product quantization", partial(codebooks, pieces=pieces))
    yield Way("train per row, rank 2", "train per row", partial(row_trains, rank=2))


@functools.cache
def weights(folder: Path) -> Tensor:
    """How often each token comes in text of others, and one more: a token that was not seen is not given up."""
    rows = minilm().model.get_input_embeddings().num_embeddings
    return token_counts(minilm().tokenizer, rows, folder).double() + 1


@functools.cache
def kept(key: str, folder: Path) -> Kept:
    """The table in the way of this name; both collections need it, and a fit takes minutes."""
    table = minilm().model.get_input_embeddings().weight.detach()
    (way,) = (way for way in ways() if way.key == key)
    return way.keep(table, weights(folder))


class Texts:
    """Texts in batches of one length each; called, their sentence vectors with the model as it is."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.batches, self.places = batches_of(list(texts), LENGTH)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """``(texts, width)``, every one of norm 1."""
        found = [minilm().model(input_ids=ids).last_hidden_state.mean(1) for ids in self.batches]
        return normalize(torch.cat(found))[self.places]


class Search(NamedTuple):
    """A collection, its texts, and their vectors by the dense table."""

    name: str
    texts: tuple[Texts, Texts]  # documents, queries
    vectors: tuple[Tensor, Tensor]
    gains: Tensor


def search(name: str, folder: Path) -> Search:
    """A collection with judgments."""
    documents, queries, gains = data.READERS[name](folder)
    texts = Texts(documents), Texts(queries)
    return Search(name, texts, tuple(each() for each in texts), gains)


def encoded(rows: Tensor, *texts: Texts) -> list[Tensor]:
    """Vectors by MiniLM with these rows for its tokens, which are taken out again."""
    model = minilm().model
    before, _ = replace_embedding(model, nn.Embedding.from_pretrained(rows.contiguous()))
    try:
        return [each() for each in texts]
    finally:
        replace_embedding(model, before)


def sizes(found: Kept) -> dict[str, float]:
    """Bytes and numbers of the table and of the whole model, which has no pooler, and how many times fewer bytes."""
    table = minilm().model.get_input_embeddings().weight.numel()
    rest = sum(weight.numel() for weight in minilm().model.parameters()) - table
    whole = found.nbytes + 4 * rest
    return {
        "table_bytes": found.nbytes,
        "table_numbers": found.numbers,
        "table_ratio": 4 * table / found.nbytes,
        "model_bytes": whole,
        "model_numbers": found.numbers + rest,
        "model_ratio": 4 * (table + rest) / whole,
    }


def one(way: Way, folder: Path, found: Search) -> dict:
    """The row of a way: its sizes, how its ranking is judged, and how near its vectors are to the dense ones."""
    made, table = kept(way.key, folder), minilm().model.get_input_embeddings().weight.detach()
    x, q = found.vectors
    documents, queries = found.vectors if way.keep is dense else encoded(made.rows, *found.texts)
    row = {"key": f"{found.name}: {way.key}", "collection": found.name, "method": way.key, "family": way.family}
    row |= sizes(made) | {"error": ((made.rows - table).norm() / table.norm()).item()}
    row |= judged(ordered(queries @ documents.mT), ordered(q @ x.mT), found.gains)
    row |= {"cosine": (documents * x).sum(1).mean().item(), "query_cosine": (queries * q).sum(1).mean().item()}
    # The record's other rows may come from another machine.
    return row | {"measured": {"date": datetime.now(UTC).date().isoformat(), "processor": results.processor()}}


def rows(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``tables``: every way that the record lacks on a collection."""
    missing = [way for way in ways() if f"{name}: {way.key}" not in before]
    found = search(name, folder) if missing else None
    for way in missing:
        row = one(way, folder, found)
        print(f"{row['key']:64} {row['table_ratio']:6.2f} {row['cosine']:.3f} {row['ndcg_10']:.4f}", flush=True)
        yield row
