"""Documents x layers x dimensions: what a third core buys, beside one basis for all views and one for each.

The views are MiniLM's mean states after its last three layers. All ways are billed alike, and the ranking to keep is
that of the sum of the cosines of the views.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ttref.retrieval import TTIndex

from .methods import Built, Method, by_faiss, ordered

WIDTHS, BITS = (96, 192), 4
BONDS = (24, 96)  # between the core of the views and that of the dimensions, of at most 384


def flat(x: Tensor) -> Tensor:
    """Stacks as vectors of norm 1."""
    return x.flatten(1) / x.shape[1] ** 0.5


def joint(x: Tensor, width: int, **options: object) -> Built:
    """All views in one code; options of the index make its shared core a train."""
    index = TTIndex(width, bits=BITS, **options).fit(x)
    shared = round(index.nbytes - index.code_nbytes * len(x))
    rank = partial(index.kneighbors, n_neighbors=len(x), return_distance=False)
    return Built(lambda q: rank(q.reshape(len(q), *x.shape[1:])), index.code_nbytes, shared)


def each(x: Tensor, width: int) -> Built:
    """A code for each view, all of them together as large; the cosines are added."""
    views = x.shape[1]
    made = [TTIndex(width // views, bits=BITS).fit(x[:, view]) for view in range(views)]
    document = sum(index.code_nbytes for index in made)
    stored = torch.stack([index.dense() for index in made], 1).flatten(1)
    shared = round(sum(index.nbytes for index in made) - document * len(x))
    return Built(lambda q: ordered(q.reshape(len(q), -1) @ stored.mT), document, shared)


def last(x: Tensor, width: int) -> Built:
    """The sentence vector alone, with as many bytes."""
    index = TTIndex(width, bits=BITS).fit(x[:, -1])
    shared = round(index.nbytes - index.code_nbytes * len(x))
    rank = partial(index.kneighbors, n_neighbors=len(x), return_distance=False)
    return Built(lambda q: rank(q.reshape(len(q), *x.shape[1:])[:, -1]), index.code_nbytes, shared)


def product(x: Tensor, width: int) -> Built:
    """FAISS's product quantizer of all views, with as many bytes of codes."""
    return by_faiss(flat(x), f"PQ{width}x{BITS}")


def stacks() -> Iterator[Method]:
    """All ways, in the order of the record."""
    for width in WIDTHS:
        yield Method(f"all views in one code, {width}", "one code", partial(joint, width=width))
        for bond in BONDS:
            build = partial(joint, width=width, shape=(3, 384), rank=bond)
            yield Method(f"third core of bond {bond}, {width}", "third core", build)
        yield Method(
            f"third core, dimensions first, bond 2, {width}", "third core", partial(dimensions_first, width=width)
        )
        yield Method(f"a code for each view, {width}", "a code for each view", partial(each, width=width))
        yield Method(f"the last view alone, {width}", "the last view", partial(last, width=width))
        yield Method(f"product quantization, {width}", "product quantization", partial(product, width=width))


def dimensions_first(x: Tensor, width: int, bond: int = 2) -> Built:
    """A third core behind the dimensions instead of in front of them, which mixes the views."""
    turned = x.mT.contiguous()
    found = joint(turned, width, shape=(turned.shape[1], turned.shape[2]), rank=bond)
    views = x.shape[1:]
    return found._replace(rank=lambda q: found.rank(q.reshape(len(q), *views).mT.contiguous()))
