"""MPSEmbedding at work: what look-ups, scores and gradients compute, and how much memory they take."""

import copy
import math

import pytest
import torch
from compressed import FLOATS, Largest, Saved, assert_rows, embedding, every, noise, row_norms, unit
from compressed import smooth as smooth_rows
from mps_tables import (
    KINDS,
    kinds,
    made,
    matrix_of,
)
from strategies import agree, norm

from ttref import MPSEmbedding
from ttref.embeddings import tables
from ttref.rows import buckets as rows
from ttref.rows import store

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


TRAINABLE = {name: kind for name, kind in KINDS.items() if "core_bits" not in kind}


trainable = pytest.mark.parametrize("kind", TRAINABLE.values(), ids=TRAINABLE)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tables, "LOOK_UP", 5)
    monkeypatch.setattr(store, "BLOCK", 5)


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


@pytest.fixture
def contracted(monkeypatch):
    """How many rows are contracted, call by call."""
    counts, unpack = [], rows.RowLayout.unpack

    def counted(self, packed, out=None):
        counts.append(len(packed))
        return unpack(self, packed, out)

    monkeypatch.setattr(rows.RowLayout, "unpack", counted)
    return counts


# Work and memory


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
        table.append(more, **({"row_ranks": [1, 2, 99]} if table.store.by_row else {}))
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
        table.append(more, **({"row_ranks": [1, 2]} if table.store.by_row else {}))
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
