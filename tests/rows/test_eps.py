"""The bound on each row of an MPSEmbedding, and the buckets that rows of different ranks lie in."""

import numpy as np
import pytest
import torch
from compressed import FLOATS, assert_rows, embedding, noise, rebuilt, row_norms
from compressed import smooth as smooth_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from mps_tables import (
    assert_bound,
    matrix_of,
)
from strategies import agree, seeds

from ttref import MPSEmbedding, quantize_integer
from ttref.rows import buckets as rows
from ttref.rows import frame, sorting, store


@st.composite
def rows_to_bound(draw):
    """Rows of very different lengths and roughness, some of them zero, some alike."""
    count, width, dtype = draw(st.integers(1, 12)), draw(st.integers(1, 40)), draw(st.sampled_from(FLOATS))
    w = smooth_rows(count, width, draw(seeds), torch.float64, rough=draw(st.sampled_from([0, 0.02, 0.5])))
    w = w + draw(st.sampled_from([0, 0, 3])) * noise(1, width, 5, torch.float64)
    lengths = draw(st.lists(st.sampled_from([0.0, 1e-3, 1.0, 1.0, 100.0]), min_size=count, max_size=count))
    w = w * torch.tensor(lengths).unsqueeze(1)
    shape = draw(st.sampled_from([None, (width,), (width, 2), (3, 14)]))
    return w.to(dtype), shape


# The bound on each row


@settings(max_examples=150)
@given(rows_to_bound(), st.sampled_from([0, 1e-6, 0.01, 0.1, 0.3, 0.7, 0.99]))
def test_eps_bounds_the_error_of_each_row(example, eps):
    w, shape = example
    table = MPSEmbedding.from_embedding(embedding(w), eps=eps, shape=shape)
    assert_bound(table, w, eps)
    numbers = sum(len(trains) * trains.layout.numbers for trains in table.store.buckets)
    assert numbers <= w.numel()  # a row is never larger than itself
    index = 2 * len(w) if len(table.store.buckets) > 1 else 0
    assert table.params == numbers + index


@settings(max_examples=150)
@given(rows_to_bound(), st.sampled_from([0, 0.01, 0.1, 0.3, 0.7]), st.sampled_from([(1, 0), (0, 1), (1, 1)]))
def test_eps_bounds_the_error_of_the_original_row_in_a_frame(example, eps, frame):
    w, shape = example
    center, rotate = map(bool, frame)
    table = MPSEmbedding.from_embedding(embedding(w), eps=eps, shape=shape, center=center, rotate=rotate)
    assert_bound(table, w, eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_below_the_normal_numbers_have_the_bound_too(dtype):
    """Their norm is no normal number of the dtype, but it is one of float64."""
    tiny = torch.finfo(dtype).tiny if dtype != torch.float64 else 1e-290
    w = (noise(6, 48, 0, torch.float64) * tiny / 20).to(dtype)
    assert_bound(MPSEmbedding.from_embedding(embedding(w), eps=0.1), w, 0.1)


def test_each_row_takes_the_smallest_cap_that_keeps_the_bound():
    w, eps = smooth_rows(40, 100), 0.2
    table = MPSEmbedding.from_embedding(embedding(w), eps=eps)
    caps = [99 if trains.layout.dense else max(trains.layout.ranks) for trains in table.store.buckets]
    assert len(caps) > 2
    for cap in range(1, 6):
        error = row_norms(matrix_of(MPSEmbedding.from_embedding(embedding(w), rank=cap)) - w) / row_norms(w)
        mine = torch.tensor([caps[k] for k in table.store.bucket])
        assert (error[mine == cap] <= eps * 1.001).all()
        assert (error[(mine > cap)] >= eps * 0.999).all()


def test_a_short_row_far_from_the_mean_is_held_to_its_own_norm():
    """What is left of it without the mean is ten times as long, and its error may not be."""
    w = noise(20, 48, 0, torch.float64) + 5 * noise(1, 48, 1, torch.float64)
    w[:5] *= 0.1
    for frame_of in ({"center": True}, {"center": True, "rotate": True}):
        table = MPSEmbedding.from_embedding(embedding(w), eps=0.6, **frame_of)
        assert not all(trains.layout.dense for trains in table.store.buckets)
        assert_bound(table, w, 0.6)


def test_eps_of_zero_keeps_rows_that_are_no_trains_bit_for_bit():
    w = noise(5, 48)
    table = MPSEmbedding.from_embedding(embedding(w), eps=0)
    assert agree(matrix_of(table), w)
    assert table.params == w.numel() and table.store.place is None
    waves = torch.sin(torch.outer(torch.rand(5) + 0.1, torch.arange(64.0)))  # rank two
    table = MPSEmbedding.from_embedding(embedding(waves.double()), eps=1e-5)
    assert {max(trains.layout.ranks) for trains in table.store.buckets} == {2}


def test_zero_rows_cost_rank_one_and_come_back_as_zeros():
    w = torch.zeros(4, 48)
    w[2] = noise(1, 48)
    table = MPSEmbedding.from_embedding(embedding(w), eps=0.01)
    assert agree(matrix_of(table)[[0, 1, 3]], torch.zeros(3, 48))
    assert sorted(len(trains) for trains in table.store.buckets) == [1, 3]
    assert max(table.store.buckets[0].layout.ranks) == 1
    for core_bits in (8, 32):
        table = MPSEmbedding.from_embedding(embedding(torch.zeros(3, 48)), rank=2, core_bits=core_bits)
        assert agree(matrix_of(table), torch.zeros(3, 48))


@pytest.mark.parametrize("frame", [{}, {"center": True}, {"rotate": True}, {"center": True, "rotate": True}], ids=str)
def test_a_single_row(frame):
    w = noise(1, 48, 0, torch.float64)
    for kind in ({"rank": 99}, {"eps": 0}, {"row_ranks": [99]}):
        table = MPSEmbedding.from_embedding(embedding(w), **kind, **frame)
        torch.testing.assert_close(matrix_of(table), w, rtol=0, atol=1e-13)


# Buckets


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 60), seeds, st.sampled_from(FLOATS), st.data()
)
def test_each_row_is_that_of_a_table_of_its_own_cap(caps, width, seed, dtype, data):
    as_given = data.draw(st.sampled_from([list, tuple, torch.tensor, np.array]))
    w = noise(len(caps), width, seed, dtype)
    table = MPSEmbedding.from_embedding(embedding(w), row_ranks=as_given(caps))
    numbers, found = 0, matrix_of(table)
    for k, cap in enumerate(caps):
        alone = MPSEmbedding.from_embedding(embedding(w[k : k + 1]), rank=cap)
        assert_rows(found[k : k + 1], matrix_of(alone), dtype)
        numbers += alone.params
    kept = {trains.layout.ranks for trains in table.store.buckets}
    assert len(kept) == len(table.store.buckets)  # caps beyond what the modes allow are the same cap
    index = len(kept) > 1
    assert table.params == numbers + index * 2 * len(caps)
    assert table.nbytes == numbers * found.element_size() + index * 5 * len(caps)


def test_a_cap_at_which_nothing_is_cut_keeps_the_rows_bit_for_bit():
    for dtype in FLOATS:
        w = noise(7, 48, 0, dtype)
        table = MPSEmbedding.from_embedding(embedding(w), row_ranks=[10**6, 1] * 3 + [8])
        assert agree(matrix_of(table)[[0, 2, 4, 6]], w[[0, 2, 4, 6]])
        assert table.params == 4 * 48 + 3 * 12 + 2 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_whole_rows_in_int8_are_those_of_integer_quantization(dtype):
    w = noise(6, 48, 0, dtype)
    w[2] = 0
    baseline = quantize_integer(w, 8)
    table = MPSEmbedding.from_embedding(embedding(w), row_ranks=[99] * 6, core_bits=8)
    assert agree(matrix_of(table), baseline.approximation)
    assert (table.params, table.nbytes) == (baseline.params, baseline.nbytes)
    mixed = MPSEmbedding.from_embedding(embedding(w), row_ranks=[99, 1] * 3, core_bits=8)
    assert agree(matrix_of(mixed)[::2], baseline.approximation[::2])


def test_more_than_255_different_ranks_are_refused(monkeypatch):
    """The index has one byte for the bucket."""
    monkeypatch.setattr(rows.Bucket, "compress", lambda self, rows: [torch.zeros(len(rows), 1)])
    table, caps = embedding(torch.zeros(256, 600)), list(range(1, 257))
    with pytest.raises(ValueError, match="the rows have 256 different ranks; at most 255"):
        MPSEmbedding.from_embedding(table, row_ranks=caps, shape=(300, 300))
    kept = MPSEmbedding.from_embedding(table, row_ranks=[*caps[:255], 255], shape=(300, 300))
    assert len(kept.store.buckets) == 255 and kept.store.bucket.tolist() == [*range(255), 254]


def test_buckets_in_a_long_table():
    """More rows than are compressed at once, in no order."""
    w = smooth_rows(1500, 12)
    generator = torch.Generator().manual_seed(0)
    caps = torch.randint(1, 4, (1500,), generator=generator)
    table = MPSEmbedding.from_embedding(embedding(w), row_ranks=caps)
    expected = torch.stack([rebuilt(w, table.shape, cap) for cap in (1, 2, 3)])[caps - 1, torch.arange(1500)]
    assert_rows(matrix_of(table), expected, torch.float32)


def test_tables_are_compressed_a_few_rows_at_a_time(monkeypatch):
    """And the mean and the axes are summed in parts."""
    w = smooth_rows(50, 12)
    many = [{"rank": 1}, {"eps": 0.3, "center": True, "rotate": True}, {"row_ranks": [1, 2] * 25, "core_bits": 8}]
    whole = [MPSEmbedding.from_embedding(embedding(w), **kind) for kind in many]
    for module in (frame, sorting, store):
        monkeypatch.setattr(module, "AT_ONCE", 7)
    for table, kind in zip(whole, many, strict=True):
        again = MPSEmbedding.from_embedding(embedding(w), **kind)
        assert [len(trains) for trains in again.store.buckets] == [len(trains) for trains in table.store.buckets]
        assert_rows(matrix_of(again), matrix_of(table), torch.float32)
