"""Rows appended to an MPSEmbedding: old ones stay bit for bit, pieces merge, and what fails changes nothing."""

import copy
import math

import pytest
import torch
from compressed import Largest, assert_rows, embedding, noise, rebuilt, same_state
from compressed import smooth as smooth_rows
from mps_tables import (
    KINDS,
    assert_bound,
    kinds,
    made,
    matrix_of,
    rows_for,
)
from strategies import agree

from ttref import MPSEmbedding
from ttref.rows import buckets as rows


def stored_bits(table):
    """What is stored of each row, apart from the way it is laid out in pieces."""
    if table.store.place is None:
        where = [(0, k) for k in range(table.num_embeddings)]
    else:
        where = list(zip(table.store.bucket.tolist(), table.store.place.tolist(), strict=True))
    pieces = [trains.merged() for trains in table.store.buckets]
    return [[part[place].clone() for part in pieces[bucket]] for bucket, place in where]


def assert_same_bits(one, other):
    for mine, yours in zip(one, other, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, yours, strict=True))


# Appending


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
        caps = {"row_ranks": [cap for _, caps in added for cap in caps["row_ranks"]]} if table.store.by_row else {}
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
    first = table.store.buckets[0].pieces[0].tensors()[0]
    moved = 0
    for k in range(127):
        before = list(table.store.buckets[0].pieces)
        with Largest() as largest:
            table.append(smooth_rows(1, 12, seed=k))
        (trains,) = table.store.buckets
        moved += sum(len(piece) for piece in before if not any(piece is kept for kept in trains.pieces))
        assert trains.pieces[0].tensors()[0].data_ptr() == first.data_ptr()
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
    twin, compress = copy.deepcopy(table), rows.Bucket.compress
    calls = []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no more")
        return compress(self, *arguments)

    monkeypatch.setattr(rows.Bucket, "compress", fails)
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
