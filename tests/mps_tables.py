"""What the tests of MPSEmbedding share: tables that differ in all that matters, and the rows that they hold."""

import math

import pytest
import torch
from compressed import embedding, every, row_norms, unit
from compressed import smooth as smooth_rows
from hypothesis import strategies as st
from strategies import seeds

from ttref import MPSEmbedding

# Tables that differ in all that matters: one bucket or more, a frame or none, int8 or not, padded modes or not.
KINDS = {
    "one bucket": {"rank": 2},
    "rank one": {"rank": 1},
    "unpadded": {"rank": 3, "shape": (2, 2, 2, 2, 3)},
    "nothing cut": {"rank": 99},
    "frame": {"rank": 2, "center": True, "rotate": True},
    "center": {"rank": 2, "center": True},
    "rotate": {"rank": 2, "rotate": True},
    "buckets": {"row_ranks": [1, 2, 3, 99] * 3},
    "buckets in a frame": {"row_ranks": [1, 2, 3, 99] * 3, "center": True, "rotate": True},
    "eps": {"eps": 0.3},
    "int8": {"rank": 3, "core_bits": 8},
    "int8 buckets in a frame": {"row_ranks": [1, 2, 3, 99] * 3, "core_bits": 8, "center": True, "rotate": True},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def made(kind, dtype=torch.float32, seed=0, **options):
    """A table of twelve rows of 48, three of them easy."""
    return MPSEmbedding.from_embedding(embedding(smooth_rows(12, 48, seed, dtype), **options), **kind)


def matrix_of(table):
    with torch.no_grad():
        return table(every(table))


shapes = st.one_of(st.none(), st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple))


@st.composite
def tables_to_compress(draw):
    """Rows of a random width, and modes that multiply to it, to more, or are left out."""
    shape = draw(shapes)
    most = 70 if shape is None else math.prod(shape)
    width = draw(st.one_of(st.just(most), st.integers(1, most)))
    return draw(st.integers(1, 9)), width, shape, draw(seeds)


def assert_bound(table, w, eps):
    allowed = eps + 10 * len(table.shape) * min(unit(w.dtype), unit(torch.float32))
    error = row_norms(matrix_of(table).double() - w.double())
    excess = error - allowed * row_norms(w)
    assert (excess <= 0).all(), f"rows {(excess > 0).nonzero().flatten().tolist()} exceed the bound"


def rows_for(table, count=5, seed=9):
    rows = smooth_rows(count, table.embedding_dim, seed, table.dtype)
    return rows, ({"row_ranks": [1, 2, 3, 99, 1][:count]} if table.store.by_row else {})
