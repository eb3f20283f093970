"""MPSEmbedding against its dense twin: rows, storage, the bound on each row, appending, gradients, scores."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from compressed import (
    FLOATS,
    Largest,
    Saved,
    assert_rows,
    embedding,
    every,
    noise,
    rebuilt,
    row_norms,
    same_state,
    unit,
)
from compressed import smooth as smooth_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import agree, norm, seeds
from torch import nn

from ttref import MPSEmbedding, factorize, quantize_integer, tt_params
from ttref.embeddings import tables
from ttref.rows import frame, sorting, store
from ttref.rows import packed as rows

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
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
TRAINABLE = {name: kind for name, kind in KINDS.items() if "core_bits" not in kind}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
trainable = pytest.mark.parametrize("kind", TRAINABLE.values(), ids=TRAINABLE)


def made(kind, dtype=torch.float32, seed=0, **options):
    """A table of twelve rows of 48, three of them easy."""
    return MPSEmbedding.from_embedding(embedding(smooth_rows(12, 48, seed, dtype), **options), **kind)


def matrix_of(table):
    with torch.no_grad():
        return table(every(table))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tables, "LOOK_UP", 5)
    monkeypatch.setattr(store, "BLOCK", 5)


# Rows against the oracle

shapes = st.one_of(st.none(), st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple))


@st.composite
def tables_to_compress(draw):
    """Rows of a random width, and modes that multiply to it, to more, or are left out."""
    shape = draw(shapes)
    most = 70 if shape is None else math.prod(shape)
    width = draw(st.one_of(st.just(most), st.integers(1, most)))
    return draw(st.integers(1, 9)), width, shape, draw(seeds)


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
    if layout.whole:
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


@pytest.mark.parametrize("dtype", FLOATS)
@kinds
def test_all_ways_to_a_row_give_the_same_row(kind, dtype, small_blocks):
    """One id, all of them, repeated, as int32, with gradients or without."""
    table = made(kind, dtype)
    expected = table.to_embedding().weight.detach()
    assert expected.dtype == dtype and expected.shape == (12, 48)
    computed = torch.float32 if table.core_bits == 8 and dtype == torch.float64 else dtype
    for mode in MODES:
        with mode():
            for ids in (
                torch.tensor(7),
                torch.tensor([3]),
                torch.tensor([[11, 0, 11], [0, 0, 5]]),
                torch.zeros(2, 3, 4, dtype=torch.int32),
                torch.arange(11, -1, -1).view(3, 2, 2),
                torch.zeros(0, dtype=torch.long),
                torch.zeros(2, 0, 3, dtype=torch.int32),
            ):
                found = table(ids)
                assert found.shape == (*ids.shape, 48) and found.dtype == dtype
                assert_rows(found.reshape(-1, 48), expected[ids.long()].reshape(-1, 48), computed)
            assert_rows(table.rows(torch.tensor([4, 4, 1])), expected[[4, 4, 1]], computed)


@settings(max_examples=40)
@given(tables_to_compress(), st.integers(1, 5), st.booleans(), st.booleans())
def test_rows_in_a_frame(example, rank, center, rotate):
    """The oracle works on what the stored mean and axes leave, and the frame is checked on its own."""
    count, width, shape, seed = example
    w = noise(count, width, seed, torch.float64)
    table = MPSEmbedding.from_embedding(embedding(w), rank=rank, shape=shape, center=center, rotate=rotate)
    mean, axes = table.store.frame.mean, table.store.frame.rotation
    assert (mean is not None, axes is not None) == (center, rotate)
    inner = w
    if center:
        torch.testing.assert_close(mean, w.mean(0), rtol=0, atol=1e-13)
        inner = inner - w.mean(0)
    if rotate:
        torch.testing.assert_close(axes @ axes.T, torch.eye(width).double(), rtol=0, atol=1e-12)
        inner = inner @ axes.T
        spread = inner.T @ inner
        scale = float(spread.diagonal().max()) + 1e-300
        assert (spread - spread.diagonal().diag()).abs().max() <= 1e-11 * scale
        assert (spread.diagonal().diff() <= 1e-11 * scale).all()  # largest variance first
    expected = rebuilt(inner, table.shape, rank)
    expected = expected @ axes if rotate else expected
    expected = expected + mean if center else expected
    torch.testing.assert_close(matrix_of(table), expected, rtol=0, atol=1e-11)
    shared = center * width + rotate * width**2
    assert table.params == count * table.store.buckets[0].layout.numbers + shared


def test_a_frame_brings_the_rows_of_a_common_shape_closer():
    w = noise(200, 1, 0) @ noise(1, 64, 1) + 5 * noise(1, 64, 2) + 0.05 * noise(200, 64, 3)
    errors = [
        norm(matrix_of(MPSEmbedding.from_embedding(embedding(w), rank=1, **frame)) - w) / norm(w)
        for frame in ({}, {"center": True}, {"center": True, "rotate": True})
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


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


# The bound on each row


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


def assert_bound(table, w, eps):
    allowed = eps + 10 * len(table.shape) * min(unit(w.dtype), unit(torch.float32))
    error = row_norms(matrix_of(table).double() - w.double())
    excess = error - allowed * row_norms(w)
    assert (excess <= 0).all(), f"rows {(excess > 0).nonzero().flatten().tolist()} exceed the bound"


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
    caps = [99 if trains.layout.whole else max(trains.layout.ranks) for trains in table.store.buckets]
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
        assert not all(trains.layout.whole for trains in table.store.buckets)
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
    monkeypatch.setattr(rows.RowTrains, "compress", lambda self, rows: [torch.zeros(len(rows), 1)])
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


# int8 cores


@settings(max_examples=80)
@given(tables_to_compress(), st.integers(1, 6), st.booleans(), st.sampled_from(FLOATS))
def test_rounding_to_int8_costs_no_more_than_each_core_s_rounding(example, rank, rotate, dtype):
    """An orthogonal core moves by half a code an entry, the carrier by half of its scale."""
    count, width, shape, seed = example
    w = noise(count, width, seed, dtype)
    kind = {"rank": rank, "shape": shape, "rotate": rotate}
    exact, rounded = (MPSEmbedding.from_embedding(embedding(w), **kind, core_bits=bits) for bits in (32, 8))
    layout = exact.store.buckets[0].layout
    sizes = [layout.carrier] if layout.whole else [math.prod(core) for core in layout.cores]
    grows = math.prod(1 + 1.01 * size**0.5 / 254 for size in sizes) - 1
    expected = matrix_of(exact).double()
    error = row_norms(matrix_of(rounded).double() - expected)
    assert (error <= (grows + 40 * unit(dtype)) * row_norms(expected) + 1e-30).all()
    shared = rotate * width**2
    assert rounded.params == count * (layout.numbers + 1) + shared
    assert rounded.nbytes == count * (layout.numbers + 2) + shared * w.element_size()
    assert matrix_of(rounded).dtype == dtype


def test_int8_cores_are_near_the_exact_ones():
    w = smooth_rows(100, 96)
    for rank in (1, 4):
        exact, rounded = (
            matrix_of(MPSEmbedding.from_embedding(embedding(w), rank=rank, core_bits=bits)) for bits in (32, 8)
        )
        assert 1e-4 < norm(rounded - exact) / norm(exact) < 0.02


def test_int8_cores_are_not_trained_but_pass_gradients_on_to_the_vectors():
    table = made(KINDS["int8 buckets in a frame"])
    assert not list(table.parameters())
    assert not table(every(table)).requires_grad
    hidden = noise(3, 48).requires_grad_()
    table.logits(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, matrix_of(table).sum(0).expand(3, 48), rtol=1e-4, atol=1e-4)


# What is refused


class Scaled(nn.Embedding):
    """As in transformers, where some models multiply what they look up."""

    def forward(self, ids):
        return super().forward(ids) * 3


class Named(nn.Embedding):
    """A subclass that only adds a method is a plain table."""

    def sizes(self):
        return self.num_embeddings, self.embedding_dim


def with_nan(position):
    w = noise(5, 48)
    w[position] = math.nan
    return embedding(w)


@pytest.mark.parametrize(
    "table, arguments, error, message",
    [
        (nn.Linear(4, 4), {"rank": 1}, TypeError, "only an nn.Embedding can be compressed, got Linear"),
        (torch.zeros(3, 4), {"rank": 1}, TypeError, "only an nn.Embedding can be compressed, got Tensor"),
        (nn.EmbeddingBag(4, 4), {"rank": 1}, TypeError, "got EmbeddingBag"),
        (Scaled(5, 48), {"rank": 1}, TypeError, "Scaled has a forward of its own, which would be lost; compress a"),
        (nn.Embedding(5, 48, max_norm=1.0), {"rank": 1}, ValueError, r"max_norm .* set embedding.max_norm = None"),
        (nn.Embedding(5, 48, scale_grad_by_freq=True), {"rank": 1}, ValueError, "set embedding.scale_grad_by_freq = F"),
        (with_nan((1, 2)), {"rank": 1}, ValueError, r"embedding.weight has 1 entries that are NaN.*index \(1, 2\)"),
        (nn.Embedding(0, 48), {"rank": 1}, ValueError, r"embedding.weight has no entries: its shape is \(0, 48\)"),
        (nn.Embedding(5, 0), {"rank": 1}, ValueError, r"embedding.weight has no entries"),
        (nn.Embedding(5, 48), {}, ValueError, "exactly one of rank, eps and row_ranks, got none"),
        (nn.Embedding(5, 48), {"rank": 1, "eps": 0.1}, ValueError, "got rank and eps"),
        (nn.Embedding(5, 48), {"rank": 1, "row_ranks": [1] * 5}, ValueError, "got rank and row_ranks"),
        (nn.Embedding(5, 48), {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (nn.Embedding(5, 48), {"rank": 1.5}, TypeError, "rank must be"),
        (nn.Embedding(5, 48), {"rank": [1, 2, 1]}, ValueError, "rank has 3 entries, but 6 modes have 7 ranks"),
        (nn.Embedding(5, 48), {"eps": 1}, ValueError, r"must lie in \[0, 1\), got 1"),
        (nn.Embedding(5, 48), {"eps": -0.1}, ValueError, r"must lie in \[0, 1\), got -0.1"),
        (nn.Embedding(5, 48), {"eps": math.nan}, ValueError, r"must lie in \[0, 1\), got nan"),
        (nn.Embedding(5, 48), {"eps": "0.1"}, TypeError, "eps must be a number"),
        (nn.Embedding(5, 48), {"eps": 0.1, "core_bits": 8}, ValueError, "eps does not bound the rounding of int8"),
        (nn.Embedding(5, 48), {"rank": 1, "core_bits": 4}, ValueError, r"core_bits must be 32 .* or 8 .*, got 4"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2]}, ValueError, "row_ranks has 2 caps, but there are 5 rows"),
        (nn.Embedding(5, 48), {"row_ranks": [1] * 6}, ValueError, "row_ranks has 6 caps, but there are 5 rows"),
        (nn.Embedding(5, 48), {"row_ranks": 3}, TypeError, "row_ranks must be 5 caps, .* got 3; rank takes one for"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2, 0, 1, 1]}, ValueError, r"row_ranks\[2\] must be at least 1, got 0"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2.5, 1, 1, 1]}, TypeError, r"row_ranks\[1\] must be an integer"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": (2, 3)}, ValueError, r"\(2, 3\) multiplies to 6, .* has 48 entries"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": ()}, ValueError, "shape is empty"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": 48}, TypeError, "shape must be a sequence of modes"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": (48, 0)}, ValueError, r"shape\[1\] must be at least 1, got 0"),
    ],
)
def test_bad_arguments(table, arguments, error, message):
    with pytest.raises(error, match=message):
        MPSEmbedding.from_embedding(table, **arguments)


def test_a_subclass_with_the_plain_look_up_is_taken():
    assert MPSEmbedding.from_embedding(Named(5, 48), rank=1).num_embeddings == 5


def test_ranks_may_be_given_bond_by_bond():
    table = MPSEmbedding.from_embedding(embedding(noise(4, 24)), rank=(1, 2, 3, 1), shape=(2, 4, 3))
    assert table.store.buckets[0].layout.ranks == (1, 2, 3, 1)


def test_halves_whose_norm_leaves_their_range_are_refused():
    w = torch.full((2, 768), 6e4, dtype=torch.float16)
    with pytest.raises(ValueError, match="beyond the range of torch.float16"):
        MPSEmbedding.from_embedding(embedding(w), rank=1)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        (torch.tensor([0, 12]), IndexError, "id 12 is out of range: the table has 12 rows, 0 to 11"),
        (torch.tensor([[0], [-1]]), IndexError, "id -1 is out of range.*negative ids do not count from the end"),
        (torch.tensor(99, dtype=torch.int32), IndexError, "id 99 is out of range"),
        (torch.tensor([1.0]), TypeError, "ids must be a tensor of int32 or int64, got torch.float32"),
        (torch.tensor([True]), TypeError, "got torch.bool"),
        (torch.tensor([1], dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.tensor([1], dtype=torch.int16), TypeError, "got torch.int16"),
        ([1, 2], TypeError, "got list"),
        (3, TypeError, "got int"),
    ],
)
@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["buckets in a frame"], KINDS["int8"]], ids=str)
def test_bad_ids(kind, ids, error, message):
    table = made(kind)
    for call in (table, table.rows):
        with pytest.raises(error, match=message):
            call(ids)


def test_rows_takes_one_axis():
    for ids in (torch.tensor(3), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="rows takes one axis, forward takes any shape"):
            made(KINDS["one bucket"]).rows(ids)


# Work and memory


@pytest.fixture
def contracted(monkeypatch):
    """How many rows are contracted, call by call."""
    counts, unpack = [], rows.RowLayout.unpack

    def counted(self, packed, out=None):
        counts.append(len(packed))
        return unpack(self, packed, out)

    monkeypatch.setattr(rows.RowLayout, "unpack", counted)
    return counts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["buckets"], KINDS["int8"]], ids=str)
def test_a_repeated_id_is_contracted_once(kind, mode, contracted):
    table = made(kind)
    contracted.clear()
    with mode():
        ids = torch.tensor([[3, 7, 3, 3], [3, 0, 7, 7]])
        table(ids)
        assert sum(contracted) == 3
        contracted.clear()
        table.rows(ids.flatten())
        assert sum(contracted) == 8


def test_a_look_up_works_on_a_few_rows_at_a_time(contracted):
    table = MPSEmbedding.from_embedding(embedding(noise(1300, 6)), rank=1)
    contracted.clear()
    with torch.no_grad():
        table(every(table))
    assert sum(contracted) == 1300 and max(contracted) == tables.LOOK_UP == 512


@pytest.fixture(scope="module")
def large():
    """A table of 20,000 x 768, which no step may hold as a whole; zeros compress fastest."""
    w = torch.zeros(20_000, 768)
    w[:, 0] = torch.arange(20_000)
    return MPSEmbedding.from_embedding(embedding(w), rank=1)


LARGE = 20_000 * 768


@pytest.mark.parametrize("mode", MODES)
def test_a_look_up_never_holds_the_table(large, mode):
    generator = torch.Generator().manual_seed(0)
    for high in (20_000, 50):
        ids = torch.randint(0, high, (4, 300), generator=generator)
        with mode(), Largest() as largest:
            rows = large(ids)
        assert torch.equal(rows[..., 0], ids.float())
        assert largest.numbers <= max(rows.numel(), large.params) < LARGE / 10


@pytest.mark.parametrize("mode", MODES)
def test_scores_never_hold_the_table(large, mode):
    hidden = noise(2, 768).requires_grad_(mode is torch.enable_grad)
    with mode(), Largest() as largest, Saved() as saved:
        scores = large.logits(hidden)
    assert scores.shape == (2, 20_000)
    assert largest.numbers <= store.BLOCK * 768 < LARGE / 9
    assert saved.numbers < LARGE / 9  # a block is forgotten until the backward pass
    if mode is torch.enable_grad:
        with Largest() as largest:
            scores.sum().backward()
        assert largest.numbers <= store.BLOCK * 768
        assert float(hidden.grad[0, 0]) == pytest.approx(20_000 * 19_999 / 2, rel=1e-4)
        large.zero_grad()


def test_the_back_pass_of_a_look_up_holds_the_cores_only(large):
    rows = large(torch.tensor([3, 5]))
    with Largest() as largest:
        rows.sum().backward()
    assert largest.numbers <= large.params < LARGE / 30
    large.zero_grad()


# Scores


@pytest.mark.parametrize("dtype", FLOATS)
@kinds
def test_scores_are_those_of_the_dense_table(kind, dtype, small_blocks):
    table = made(kind, dtype)
    w = matrix_of(table).double()
    for batch in ((), (1,), (7,), (2, 3), (0,), (2, 0, 3)):
        hidden = noise(math.prod(batch), 48, 1, dtype).reshape(*batch, 48)
        expected = hidden.double() @ w.T
        for mode in MODES:
            with mode():
                scores = table.logits(hidden)
            assert scores.shape == (*batch, 12) and scores.dtype == dtype
            computed = torch.float32 if table.core_bits == 8 and dtype == torch.float64 else dtype
            scale = 40 * unit(computed) * float(row_norms(w).max()) * 48**0.5
            torch.testing.assert_close(scores.double(), expected, rtol=0, atol=scale)


@trainable
def test_gradients_of_scores_are_those_of_the_dense_table(kind, small_blocks):
    table = made(kind, torch.float64)
    ours, theirs = (noise(6, 48, 1, torch.float64).requires_grad_() for _ in range(2))
    upstream = noise(6, 12, 2, torch.float64)
    gradients = torch.autograd.grad(table.logits(ours), [ours, *table.parameters()], upstream)
    w = table(every(table))
    expected = torch.autograd.grad(theirs @ w.T, [theirs, *table.parameters()], upstream)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "hidden, error, message",
    [
        (torch.zeros(2, 47), ValueError, r"hidden has shape \(2, 47\); its last axis must hold embedding_dim = 48"),
        (torch.tensor(1.0), ValueError, r"hidden has shape \(\)"),
        (torch.zeros(2, 48).double(), TypeError, "hidden is torch.float64 but the table is torch.float32; convert"),
        (torch.zeros(2, 48).half(), TypeError, "hidden is torch.float16"),
    ],
)
def test_bad_vectors(hidden, error, message):
    with pytest.raises(error, match=message):
        made(KINDS["one bucket"]).logits(hidden)


@kinds
def test_autocast(kind):
    """A look-up is a copy and keeps its dtype; scores are a product and take that of autocast."""
    table = made(kind)
    hidden, ids = noise(3, 48), torch.tensor([1, 11, 1])
    rows, scores = table(ids), table.logits(hidden)
    for mode in MODES:
        with mode(), torch.autocast("cpu", torch.bfloat16):
            assert agree(table(ids), rows)
            for given_as in (hidden, hidden.bfloat16()):
                found = table.logits(given_as)
                assert found.dtype == torch.bfloat16
                assert norm(found.double() - scores.double()) <= 0.02 * norm(scores)
    short = copy.deepcopy(table).half()
    with torch.autocast("cpu", torch.bfloat16):
        found = short.logits(hidden)
    assert found.dtype == torch.bfloat16 and norm(found.double() - scores.double()) <= 0.02 * norm(scores)


# Gradients


@trainable
def test_gradients_by_finite_differences(kind, small_blocks):
    table = made(kind, torch.float64)
    ids = torch.tensor([[1, 5, 1], [11, 0, 3]])
    assert torch.autograd.gradcheck(lambda *_: table(ids), tuple(table.parameters()), fast_mode=True)
    hidden = noise(2, 48, 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, *_: table.logits(h), (hidden, *table.parameters()), fast_mode=True)


@pytest.mark.parametrize("padding, pieces", [(0, False), (5, False), (11, False), (1, True), (11, True), (13, True)])
@trainable
def test_looking_up_the_padding_row_gives_it_no_gradient(kind, padding, pieces):
    table = made(kind, torch.float64, padding_idx=min(padding, 11))
    if pieces:
        more = smooth_rows(3, 48, 1, torch.float64)
        table.append(more, **({"row_ranks": [1, 2, 99]} if table.by_row else {}))
        table.padding_idx = padding  # a row that came later may be named, too
    free = copy.deepcopy(table)
    free.padding_idx = None
    ids = torch.arange(table.num_embeddings).repeat(2)
    upstream = noise(len(ids), 48, 3, torch.float64)
    table(ids).backward(upstream)
    # Without the row the other ones get the same gradient, and nothing is left for it.
    free(ids).backward(upstream.index_fill(0, (ids == padding).nonzero().flatten(), 0))
    for ours, theirs in zip(table.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    table.zero_grad(), free.zero_grad()
    hidden = noise(4, 48, 4, torch.float64)
    table.logits(hidden).sum().backward()
    free.logits(hidden).sum().backward()  # scoring with it does, as with a dense matrix
    for ours, theirs in zip(table.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["buckets in a frame"], KINDS["nothing cut"]], ids=str)
def test_sparse_gradients_are_the_dense_ones(kind):
    dense, sparse = made(kind, padding_idx=1), made(kind, padding_idx=1, sparse=True)
    for table in (dense, sparse):
        more = smooth_rows(2, 48, 1)
        table.append(more, **({"row_ranks": [1, 2]} if table.by_row else {}))
        ids = torch.tensor([1, 3, 3, 12, 13, 13])
        (table(ids) * noise(6, 48, 2)).sum().backward()
    for ours, theirs in zip(sparse.parameters(), dense.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            assert ours.grad.is_sparse and not theirs.grad.is_sparse
            torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["buckets in a frame"]], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_training_lowers_the_loss(kind, sparse):
    table = made(kind, sparse=sparse)
    wanted = smooth_rows(12, 48, 1)
    kinds_of = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizer = kinds_of(list(table.parameters()), lr=0.02)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (table(every(table)) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# Appending


def rows_for(table, count=5, seed=9):
    rows = smooth_rows(count, table.embedding_dim, seed, table.dtype)
    return rows, ({"row_ranks": [1, 2, 3, 99, 1][:count]} if table.by_row else {})


def stored_bits(table):
    """What is stored of each row, apart from the way it is laid out in pieces."""
    if table.store.place is None:
        where = [(0, k) for k in range(table.num_embeddings)]
    else:
        where = list(zip(table.store.bucket.tolist(), table.store.place.tolist(), strict=True))
    pieces = [trains.stored() for trains in table.store.buckets]
    return [[part[place].clone() for part in pieces[bucket]] for bucket, place in where]


def assert_same_bits(one, other):
    for mine, yours in zip(one, other, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, yours, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@kinds
def test_appending_leaves_the_old_rows_bit_for_bit(kind, dtype):
    table = made(kind, dtype)
    before, bits = matrix_of(table), stored_bits(table)
    shared = {name: tensor.clone() for name, tensor in table.store.frame.state_dict().items()}
    added = []
    for k in range(4):
        rows, caps = rows_for(table, k + 1, seed=k)
        ids = table.append(rows, **caps)
        assert ids.dtype == torch.int64
        assert ids.tolist() == list(range(table.num_embeddings - k - 1, table.num_embeddings))
        added.append((rows, caps))
    assert table.num_embeddings == 12 + 10 == len(matrix_of(table))
    assert agree(table(torch.arange(12)).detach(), before)
    assert agree(matrix_of(table)[:12], before)
    assert_same_bits(stored_bits(table)[:12], bits)
    assert all(torch.equal(tensor, shared[name]) for name, tensor in table.store.frame.state_dict().items())
    # New rows are what they would have been from the start, in the old frame.
    rows = torch.cat([rows for rows, _ in added])
    if not shared:
        caps = {"row_ranks": [cap for _, caps in added for cap in caps["row_ranks"]]} if table.by_row else {}
        options = {name: kind[name] for name in kind if name != "row_ranks"}
        fresh = MPSEmbedding.from_embedding(embedding(rows), **options, **caps)
        assert_rows(matrix_of(table)[12:], matrix_of(fresh), dtype)
    assert table.params == sum(tensor.numel() for tensor in table.state_dict().values())
    names = [name for name, _ in table.named_parameters()]
    assert len(names) == (0 if table.core_bits == 8 else sum(len(trains.pieces) for trains in table.store.buckets))


def test_rows_appended_in_a_frame_are_bounded_too():
    w = smooth_rows(30, 48)
    table = MPSEmbedding.from_embedding(embedding(w[:20]), eps=0.2, center=True, rotate=True)
    table.append(w[20:])
    assert_bound(table, w, 0.2)


def test_appending_with_eps_opens_buckets_as_they_are_needed():
    waves = torch.sin(torch.outer(torch.rand(4, generator=torch.Generator().manual_seed(0)) + 0.1, torch.arange(64.0)))
    table = MPSEmbedding.from_embedding(embedding(waves), eps=1e-3)
    assert len(table.store.buckets) == 1 and table.store.place is None
    before, bits = matrix_of(table), stored_bits(table)
    rough = noise(3, 64)
    table.append(rough)
    assert len(table.store.buckets) == 2 and agree(matrix_of(table)[4:], rough)
    assert agree(matrix_of(table)[:4], before)
    assert_same_bits(stored_bits(table)[:4], bits)
    assert table.store.bucket.dtype == torch.uint8 and table.store.place.dtype == torch.int32
    assert table.nbytes == 4 * (sum(len(t) * t.layout.numbers for t in table.store.buckets)) + 5 * 7
    table.append(torch.cat((waves, rough)))
    assert len(table.store.buckets) == 2 and table.num_embeddings == 14
    assert agree(matrix_of(table)[[11, 12, 13]], rough)
    torch.testing.assert_close(matrix_of(table)[7:11], waves, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["int8"]], ids=str)
def test_many_small_additions_cost_what_they_add(kind, monkeypatch):
    """The first rows stay where they are until as many have come; every other row moves a few times."""
    w = smooth_rows(100, 12)
    table = MPSEmbedding.from_embedding(embedding(w), **kind)
    first = table.store.buckets[0].pieces[0].stored()[0]
    moved = 0
    for k in range(127):
        before = list(table.store.buckets[0].pieces)
        with Largest() as largest:
            table.append(smooth_rows(1, 12, seed=k))
        (trains,) = table.store.buckets
        moved += sum(len(piece) for piece in before if not any(piece is kept for kept in trains.pieces))
        assert trains.pieces[0].stored()[0].data_ptr() == first.data_ptr()
        assert [len(piece) for piece in trains.pieces] == sorted(map(len, trains.pieces), reverse=True)
        assert len(trains.pieces) <= 2 + math.log2(k + 1)
        assert largest.numbers <= max(16, k + 1) * trains.layout.numbers * 2
    assert 0 < moved <= 127 * math.log2(127)
    table.append(smooth_rows(1, 12, seed=127))
    assert [len(piece) for piece in table.store.buckets[0].pieces] == [228]


@pytest.mark.parametrize("count", [1, 99, 100, 250])
def test_pieces_are_merged_in_order(count):
    w = smooth_rows(100 + count, 12)
    table = MPSEmbedding.from_embedding(embedding(w[:100]), rank=1)
    table.append(w[100:])
    assert [len(piece) for piece in table.store.buckets[0].pieces] == ([100, count] if count < 100 else [100 + count])
    assert_rows(matrix_of(table), rebuilt(w, table.shape, 1), torch.float32)


def test_an_optimizer_s_parameters_stay_until_pieces_merge():
    table = made(KINDS["one bucket"])
    old = dict(table.named_parameters())
    table.append(rows_for(table)[0])
    new = dict(table.named_parameters())
    assert set(old) < set(new) and all(new[name] is parameter for name, parameter in old.items())
    frozen = MPSEmbedding.from_embedding(embedding(noise(4, 48)).requires_grad_(False), rank=1)
    frozen.append(noise(2, 48))
    assert not any(p.requires_grad for p in frozen.parameters())


def test_appended_rows_that_require_grad_leave_no_graph():
    table = made(KINDS["one bucket"])
    table.append(noise(3, 48).requires_grad_())
    assert all(p.is_leaf and p.requires_grad for p in table.parameters())


@pytest.mark.parametrize(
    "kind, rows, caps, error, message",
    [
        ("one bucket", torch.zeros(2, 47), None, ValueError, r"rows have shape \(2, 47\); .* rows \(count, 48\)"),
        ("one bucket", torch.zeros(48), None, ValueError, r"rows have shape \(48,\)"),
        ("one bucket", torch.zeros(2, 48).double(), None, TypeError, "rows are torch.float64, but .* torch.float32"),
        ("one bucket", torch.full((2, 48), math.nan), None, ValueError, "rows has 96 entries that are NaN"),
        ("one bucket", [[1.0] * 48], None, TypeError, "rows must be a torch.Tensor, got list"),
        ("one bucket", torch.zeros(2, 48), [1, 1], ValueError, "this table was made with rank or eps, which new rows"),
        ("eps", torch.zeros(2, 48), [1, 1], ValueError, "this table was made with rank or eps"),
        ("eps", torch.full((1, 48), math.inf), None, ValueError, "rows has 48 entries"),
        ("buckets", torch.zeros(2, 48), None, ValueError, "made with row_ranks: give one for each new row"),
        ("buckets", torch.zeros(2, 48), [1], ValueError, "row_ranks has 1 caps, but there are 2 rows"),
        ("buckets", torch.zeros(2, 48), [1, 0], ValueError, r"row_ranks\[1\] must be at least 1"),
    ],
)
def test_a_failed_addition_changes_nothing(kind, rows, caps, error, message):
    table = made(KINDS[kind])
    twin = copy.deepcopy(table)
    with pytest.raises(error, match=message):
        table.append(rows, row_ranks=caps)
    assert table.num_embeddings == 12 and len(table.store.buckets) == len(twin.store.buckets)
    assert same_state(table, twin) and agree(matrix_of(table), matrix_of(twin))


def test_an_addition_that_fails_half_way_changes_nothing(monkeypatch):
    """The second of its buckets cannot be compressed."""
    table = made(KINDS["buckets"])
    twin, compress = copy.deepcopy(table), rows.RowTrains.compress
    calls = []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no more")
        return compress(self, *arguments)

    monkeypatch.setattr(rows.RowTrains, "compress", fails)
    with pytest.raises(ValueError, match="no more"):
        table.append(noise(3, 48), row_ranks=[1, 4, 5])
    assert table.num_embeddings == 12 and len(table.store.buckets) == len(twin.store.buckets)
    assert same_state(table, twin) and agree(matrix_of(table), matrix_of(twin))


def test_halves_that_cannot_be_stored_leave_the_table_as_it_was():
    table = made(KINDS["int8"], torch.float64)
    twin = copy.deepcopy(table)
    with pytest.raises(ValueError, match="too large for a bfloat16 scale"):
        table.append(torch.full((1, 48), 1e300, dtype=torch.float64))
    assert same_state(table, twin) and table.num_embeddings == 12


def test_new_caps_open_a_bucket_and_the_index_follows():
    w = noise(6, 48)
    table = MPSEmbedding.from_embedding(embedding(w[:4]), row_ranks=[2] * 4)
    assert table.store.place is None
    table.append(w[4:], row_ranks=[1, 99])
    assert [len(trains) for trains in table.store.buckets] == [4, 1, 1]
    assert table.store.bucket.tolist() == [0, 0, 0, 0, 1, 2] and table.store.place.tolist() == [0, 1, 2, 3, 0, 0]
    assert agree(matrix_of(table)[5], w[5])


# Saving, copying, moving


def through_torch_save(table):
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table)), through_torch_save])
@kinds
def test_copies_work_and_share_nothing(kind, copied):
    table = made(kind, padding_idx=2).eval()
    rows, caps = rows_for(table)
    table.append(rows, **caps)
    twin, before = copied(table), matrix_of(table)
    assert agree(matrix_of(twin), before) and repr(twin) == repr(table) and not twin.training
    assert (twin.padding_idx, twin.num_embeddings) == (2, 17)
    twin.append(rows, **caps)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert agree(matrix_of(table), before) and table.num_embeddings == 17


@kinds
def test_state_goes_into_a_table_of_the_same_form(kind):
    table, other = made(kind), made(kind)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            if name not in ("bucket", "place"):
                tensor.zero_()
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert agree(matrix_of(other), matrix_of(table))


@kinds
def test_a_table_without_numbers(kind):
    """On the meta device, as large models are laid out before their weights are read."""
    table = made(kind)
    bare = copy.deepcopy(table).to("meta")
    assert (bare.params, bare.nbytes, repr(bare)) == (table.params, table.nbytes, repr(table))
    assert bare(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, 48)
    bare.load_state_dict(table.state_dict(), assign=True)
    assert bare.device == table.device and bare.dtype == table.dtype
    assert agree(matrix_of(bare), matrix_of(table))
    hidden = noise(2, 48)
    assert agree(bare.logits(hidden), table.logits(hidden))
    rows, caps = rows_for(table)
    assert bare.append(rows, **caps).device == table.device


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@kinds
def test_a_table_moves_to_another_dtype(kind, dtype):
    table = made(kind)
    moved = copy.deepcopy(table).to(dtype)
    assert moved.dtype == dtype
    for mode in MODES:
        with mode():
            rows = moved(every(moved))
            assert rows.dtype == dtype
            assert_rows(rows, matrix_of(table), torch.float32 if dtype == torch.float64 else dtype)
            assert moved.logits(noise(2, 48, 0, dtype)).dtype == dtype
    assert moved.to_embedding().weight.dtype == dtype
    rows, caps = rows_for(moved)
    assert moved.append(rows, **caps).tolist() == [12, 13, 14, 15, 16]
    assert moved(every(moved)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_int8_cores_keep_their_bytes_and_their_range_in_every_dtype(dtype):
    w = smooth_rows(8, 48) * 1e-4
    table = MPSEmbedding.from_embedding(embedding(w), rank=3, core_bits=8)
    moved = copy.deepcopy(table).to(dtype)
    assert moved.nbytes == table.nbytes
    expected = matrix_of(table).to(dtype)
    assert norm(matrix_of(moved).double() - expected.double()) <= 1e-3 * norm(expected)


def test_half_and_double_are_short_for_that():
    assert made(KINDS["buckets in a frame"]).half()(torch.tensor(1)).dtype == torch.float16
    assert made(KINDS["buckets in a frame"]).double()(torch.tensor(1)).dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@kinds
def test_a_table_moves_to_a_gpu(kind):
    table = made(kind)
    moved = copy.deepcopy(table).cuda()
    assert_rows(moved(every(table).cuda()).cpu(), matrix_of(table), torch.float32)
    hidden = noise(2, 48)
    torch.testing.assert_close(moved.logits(hidden.cuda()).cpu(), table.logits(hidden), rtol=1e-4, atol=1e-3)
    rows, caps = rows_for(table)
    assert moved.append(rows, **caps).is_cuda
    on_gpu = MPSEmbedding.from_embedding(embedding(smooth_rows(12, 48)).cuda(), **kind)
    assert_rows(on_gpu(every(table).cuda()).cpu(), matrix_of(table), torch.float32, factor=1000)


@kinds
def test_parameters_and_bytes_are_those_of_the_state(kind):
    table = made(kind)
    state = table.state_dict()
    assert table.params == sum(tensor.numel() for tensor in state.values())
    assert table.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert table.ratio == 12 * 48 / table.params


def test_what_a_table_says_about_itself():
    table = MPSEmbedding.from_embedding(nn.Embedding(100, 768, padding_idx=3), rank=1)
    assert table.extra_repr() == (
        "100, 768, shape=(2, 2, 2, 2, 2, 2, 2, 2, 2, 2), ranks=(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), padding_idx=3, "
        "ratio=38.4"
    )
    w = smooth_rows(6, 48)
    table = MPSEmbedding.from_embedding(embedding(w), row_ranks=[1, 1, 1, 2, 99, 99], center=True, core_bits=8)
    assert "rows by rank=(3 1, 1 2, 2 whole), mean=True, core_bits=8, ratio=" in repr(table)
    table = MPSEmbedding.from_embedding(embedding(w), rank=1, rotate=True)
    assert "rotation=True" in repr(table) and "mean" not in repr(table)


def test_in_a_sequential_model():
    model = nn.Sequential(made(KINDS["frame"]), nn.Linear(48, 3))
    model(torch.tensor([[1, 2]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_to_add_adds_nothing():
    table = made(KINDS["one bucket"])
    twin = copy.deepcopy(table)
    assert table.append(torch.empty(0, 48)).tolist() == [] and same_state(table, twin)


@pytest.mark.parametrize("kind", [{"rank": 2}, {"row_ranks": [1, 2, 3, 99] * 3}])
def test_new_rows_of_a_frozen_table_are_frozen(kind, tmp_path):
    table = made(kind).requires_grad_(False)
    for count in (3, 12):  # a piece of its own, and one that merges
        caps = {"row_ranks": [1] * count} if "row_ranks" in kind else {}
        table.append(noise(count, 48), **caps)
        assert not any(p.requires_grad for p in table.parameters())
    table.save(tmp_path / "table.safetensors")
    assert not any(p.requires_grad for p in MPSEmbedding.load(tmp_path / "table.safetensors").parameters())


def test_random_rows_to_be_trained():
    torch.manual_seed(0)
    table = MPSEmbedding(50, 48, rank=64, padding_idx=-1, dtype=torch.float64)
    assert table.padding_idx == 49 and table.dtype == torch.float64 and not matrix_of(table)[49].any()
    assert abs(matrix_of(table).square().mean() - 1) < 0.1  # nothing is cut: the rows of nn.Embedding
    table = MPSEmbedding(50, 48, 2, shape=(6, 8), sparse=True)
    assert table.store.buckets[0].layout.ranks == (1, 2, 1) and table.sparse
    loss = (table(torch.arange(50)) - 1).square().sum()
    loss.backward()
    assert all(p.grad.is_sparse for p in table.parameters())
    with pytest.raises(ValueError, match="padding_idx is 50, but the table has 50 rows"):
        MPSEmbedding(50, 48, 2, padding_idx=50)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_axes_in_half_precision_are_undone_exactly(dtype):
    """Their rounding leaves them oblique: the transpose would be off by a quarter of a percent."""
    w = smooth_rows(60, 48, 0, torch.float32)
    axes = frame.Frame.of(w.to(dtype), center=False, rotate=True)
    assert norm(axes.outer(axes.inner(w)) - w) <= 1e-5 * norm(w)


def test_axes_of_huge_rows():
    w = noise(20, 8, 0, torch.float64) * 1e300
    found = frame.Frame.of(w, center=True, rotate=True)
    torch.testing.assert_close(found.rotation @ found.rotation.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(found.mean, w.mean(0))
