"""MPSEmbedding against its dense twin: rows, storage, and what is kept of the old table."""

import math

import pytest
import torch
from compressed import FLOATS, assert_rows, embedding, noise, rebuilt, row_norms
from compressed import smooth as smooth_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from mps_tables import (
    KINDS,
    made,
    matrix_of,
    tables_to_compress,
)
from strategies import norm

from ttref import MPSEmbedding, factorize, tt_params

# Rows against the oracle


@settings(max_examples=150)
@given(tables_to_compress(), st.integers(1, 9), st.sampled_from(FLOATS))
def test_rows_are_those_of_tt_svd(example, rank, dtype):
    count, width, shape, seed = example
    w = noise(count, width, seed, dtype)
    table = MPSEmbedding.from_embedding(embedding(w), rank=rank, shape=shape)
    modes = (2,) * max(math.ceil(math.log2(width)), 1) if shape is None else shape
    assert table.shape == modes and table.dtype == dtype
    assert (table.num_embeddings, table.embedding_dim) == (count, width)
    found = matrix_of(table)
    assert found.dtype == dtype
    assert_rows(found, rebuilt(w, modes, rank), dtype)
    assert torch.equal(table.to_embedding().weight, found)


@settings(max_examples=100)
@given(tables_to_compress(), st.integers(1, 9))
def test_the_stored_numbers_are_no_more_than_those_of_the_train_and_enough_for_it(example, rank):
    count, width, shape, seed = example
    table = MPSEmbedding.from_embedding(embedding(noise(count, width, seed)), rank=rank, shape=shape)
    (trains,) = table.store.buckets
    layout = trains.layout
    assert table.params == count * layout.numbers and table.nbytes == 4 * table.params
    assert table.ratio == width / layout.numbers
    assert table.store.bucket is None and table.store.place is None
    if layout.dense:
        assert layout.numbers == width
    else:
        ranks = layout.ranks
        free = tt_params(table.shape, rank) - sum(r * r for r in ranks[1:-1])
        assert free <= layout.numbers <= tt_params(table.shape, rank)


@pytest.mark.parametrize(
    "width, rank, shape, numbers, of_the_paper",
    [
        (768, 1, None, 20, 20),
        (768, 2, None, 64, 72),
        (768, 4, None, 192, 232),
        (768, 8, None, 512, 680),
        (768, 1, (2,) * 8 + (3,), 19, 19),
        (768, 1, factorize(768), 19, 19),
        (1024, 1, None, 20, 20),
        (768, 99, None, 768, None),
        (6, 1, (2, 3), 5, 5),
        (4, 1, (2, 2), 4, 4),
    ],
)
def test_the_counts_of_the_paper_and_ours(width, rank, shape, numbers, of_the_paper):
    table = MPSEmbedding.from_embedding(embedding(noise(3, width)), rank=rank, shape=shape)
    assert table.params == 3 * numbers and table.ratio == width / numbers
    if of_the_paper is not None:
        assert tt_params(table.shape, rank) == of_the_paper


def test_the_paper_s_ratio():
    table = MPSEmbedding.from_embedding(embedding(noise(5, 768)), rank=1)
    assert table.ratio == 38.4


@pytest.mark.parametrize("center", [False, True])
def test_the_error_falls_with_the_rank(center):
    w = smooth_rows(20, 100)
    errors = []
    for rank in range(1, 9):
        table = MPSEmbedding.from_embedding(embedding(w), rank=rank, center=center)
        errors.append(row_norms(matrix_of(table) - w))
    total = [float(norm(error)) for error in errors]
    assert all(after < before for before, after in zip(total, total[1:], strict=False))
    assert total[-1] < 1e-5


def test_the_old_table_stays_as_it_is_and_shares_nothing():
    for kind in KINDS.values():
        old = embedding(smooth_rows(12, 48), padding_idx=3)
        before = old.weight.detach().clone()
        table = MPSEmbedding.from_embedding(old, **kind)
        with torch.no_grad():
            for tensor in table.state_dict().values():
                tensor.zero_()
            assert torch.equal(old.weight, before)
            dense = made(kind).to_embedding()
            dense.weight.zero_()


def test_what_is_kept_of_the_old_table():
    for kind in (KINDS["one bucket"], KINDS["buckets in a frame"]):
        table = made(kind, padding_idx=-2, sparse=True).eval()
        assert (table.padding_idx, table.sparse) == (10, True)
        assert all(p.requires_grad for p in table.parameters())
        dense = table.to_embedding()
        assert dense.padding_idx == 10 and dense.weight.requires_grad and not dense.training
        old = embedding(smooth_rows(12, 48)).eval().requires_grad_(False)
        frozen = MPSEmbedding.from_embedding(old, **kind)
        assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
        assert not frozen.to_embedding().weight.requires_grad
        assert made(kind).training
