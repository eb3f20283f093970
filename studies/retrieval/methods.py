"""Ways to keep document vectors in few bytes, and how each ranks all documents for a query."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ttref import MPSEmbedding, quantize_integer
from ttref.retrieval import TTIndex

from .peers import faiss_index, turbo

CANDIDATES = 100  # that are scored again
Rank = Callable[[Tensor], Tensor]  # from queries (b, width) to the places of all documents, best first, (b, n)


class Built(NamedTuple):
    """Documents that are stored.

    Attributes:
        rank: Ranks them.
        document: Bytes that each brings: codes and scales, no id.
        shared: Bytes that all of them share.
    """

    rank: Rank
    document: float
    shared: int


class Method(NamedTuple):
    """A way, by name: its family has one color in figures."""

    key: str
    family: str
    build: Callable[[Tensor], Built]


def ordered(scores: Tensor) -> Tensor:
    """Places of all documents, best first; ties as they stand."""
    return scores.sort(dim=1, descending=True, stable=True).indices


def decoded(documents: Tensor, document: float, shared: int) -> Built:
    """Documents by what their codes stand for, for which any scan of the codes has the same scores."""
    return Built(lambda q: ordered(q @ documents.mT), document, shared)


def floats(x: Tensor, dtype: torch.dtype = torch.float32) -> Built:
    """The vectors as they are, or rounded to half."""
    return decoded(x.to(dtype).float(), x.shape[1] * dtype.itemsize, 0)


def tt_index(x: Tensor, width: int, **options: object) -> Built:
    """The library's index; documents are ranked by its search."""
    index = TTIndex(width, **options).fit(x)
    shared = index.nbytes - index.code_nbytes * len(x)
    return Built(lambda q: index.kneighbors(q, len(x), return_distance=False), index.code_nbytes, round(shared))


def axes_of(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean, and the first principal axes in columns, rounded to float16."""
    mean = x.mean(0)
    turn = torch.linalg.eigh((x - mean).double().mT @ (x - mean).double())[1].flip(1)
    return mean, turn[:, :count].half().float()


def pca(x: Tensor, count: int, dtype: torch.dtype = torch.float16) -> Built:
    """Principal components as floating point numbers; axes in float16, the mean in float32."""
    mean, axes = axes_of(x, count)
    found = ((x - mean) @ axes).to(dtype).float()
    shared = 2 * axes.numel() + 4 * len(mean)
    return decoded(found @ axes.mT + mean, count * dtype.itemsize, shared)


def integers(x: Tensor, bits: int) -> Built:
    """Rows rounded to integers, with a bfloat16 scale for each."""
    made = quantize_integer(x, bits)
    return decoded(made.approximation, made.nbytes / len(x), 0)


def signs(x: Tensor) -> Tensor:
    """Of the entries, after the mean is subtracted: 1 or -1."""
    return torch.where(x - x.mean(0) >= 0, 1.0, -1.0)


def one_bit(x: Tensor) -> Built:
    """Signs of the centered entries, against the query in floating point."""
    return decoded(signs(x), x.shape[1] / 8, 4 * x.shape[1])


def one_bit_rescored(x: Tensor, second: Callable[[Tensor], Built], candidates: int = CANDIDATES) -> Built:
    """Signs choose candidates, which a second code orders; both are stored and billed."""
    first, again = one_bit(x), second(x)

    def rank(q: Tensor) -> Tensor:
        rough, fine = first.rank(q), again.rank(q)
        chosen = torch.zeros_like(rough, dtype=torch.bool).scatter_(1, rough[:, :candidates], True)
        # Places in the fine order, of those chosen first, then the rest as the signs have it.
        best = fine[chosen.gather(1, fine)].view(len(q), -1)
        return torch.cat((best, rough[:, best.shape[1] :]), 1)

    return Built(rank, first.document + again.document, first.shared + again.shared)


def row_trains(x: Tensor, *, turned: bool, **options: object) -> Built:
    """A train for each document; turned, after the mean is subtracted and the rows are rotated to principal axes."""
    options |= {"center": True, "rotate": True, "core_bits": 8} if turned else {}
    made = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(x), **options)
    shared = 4 * x.shape[1] * (x.shape[1] + 1) if turned else 0
    return decoded(made.dense(), (made.nbytes - shared) / len(x), shared)


def by_faiss(x: Tensor, factory: str) -> Built:
    """An index of FAISS by its name; all documents are asked for."""
    index, shared, document = faiss_index(x, factory)
    return Built(lambda q: torch.from_numpy(index.search(q.numpy(), len(x))[1]), document, shared)


def by_turbovec(x: Tensor, bits: int) -> Built:
    """An index by turbovec, calibrated; what it keeps beside the codes is taken from its file."""
    index, shared, document = turbo(x, bits)
    return Built(lambda q: torch.from_numpy(index.search(q.numpy(), len(x))[1]).long(), document, shared)


FACTORIES = {  # of FAISS
    "SQ8": "scalar quantizer",
    "SQ4": "scalar quantizer",
    "PQ192x4": "product quantization",
    "PQ96x8": "product quantization",
    "PQ48x8": "product quantization",
    "OPQ96,PQ96x8": "product quantization",
    "OPQ48,PQ48x8": "product quantization",
    "OPQ24,PQ24x8": "product quantization",
    "OPQ16,PQ16x8": "product quantization",
    "PQ192x4fs": "product quantization",
    "OPQ192,PQ192x4fs": "product quantization",
    "RaBitQ": "RaBitQ",
    "RaBitQ2": "RaBitQ",
    "RaBitQ4": "RaBitQ",
    "RaBitQ8": "RaBitQ",
}


def available(name: str) -> bool:
    """Whether an optional package is there."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def methods() -> Iterator[Method]:
    """All, in the order of the record."""
    yield Method("float32", "floats", floats)
    yield Method("float16", "floats", partial(floats, dtype=torch.float16))
    for bits, rotate in ((8, True), (4, True), (2, True), (1, True), (8, False), (4, False), (2, False)):
        family = "TTIndex, rotated" if rotate else "TTIndex, principal axes"
        for width in (384, 192, 96):
            build = partial(tt_index, width=width, bits=bits, rotate=rotate)
            yield Method(f"TTIndex {width} x {bits} bit{'' if rotate else ', not rotated'}", family, build)
    for rank in (12, 8):  # 16 cuts nothing
        build = partial(tt_index, width=192, bits=4, shape=(24, 16), rank=rank)
        yield Method(f"TTIndex 192 x 4 bit, shared train of rank {rank}", "TTIndex, shared train", build)
    for count in (24, 48, 96, 192):
        yield Method(f"PCA {count} float16", "PCA, floats", partial(pca, count=count))
        yield Method(f"PCA {count} float32", "PCA, floats", partial(pca, count=count, dtype=torch.float32))
    for bits in (8, 4, 2):
        yield Method(f"int{bits} rows", "integers", partial(integers, bits=bits))
    yield Method("one bit", "one bit", one_bit)
    for name, second in (("int8", partial(integers, bits=8)), ("float32", floats)):
        build = partial(one_bit_rescored, second=second)
        yield Method(f"one bit, {CANDIDATES} rescored with {name}", "one bit", build)
    for rank in (1, 2, 4):
        yield Method(f"train per row, rank {rank}", "train per row", partial(row_trains, rank=rank, turned=False))
    for eps in (0.1, 0.01):
        build = partial(row_trains, eps=eps, turned=False)
        yield Method(f"train per row, error at most {eps:g}", "train per row, error set", build)
    for rank in (1, 2, 4, 6, 8):
        build = partial(row_trains, rank=rank, turned=True)
        yield Method(f"train per row, centered, turned, int8, rank {rank}", "train per row", build)
    for factory, family in FACTORIES.items():
        yield Method(f"FAISS {factory}", family, partial(by_faiss, factory=factory))
    if available("turbovec"):
        for bits in (4, 2):
            yield Method(f"turbovec {bits} bit", "turbovec", partial(by_turbovec, bits=bits))
