"""TTMEmbedding against its dense twin: rows, padding, scores, gradients."""

import copy
import math

import pytest
import torch
from compressed import FLOATS, Largest, assert_rows, every, noise, row_norms
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import agree, dense_matrix, norm, pairs, random_matrix_train, rows_and_columns, seeds
from torch import nn
from ttm_tables import (
    ARGUMENTS,
    alike,
    assert_near,
    made,
    matrix_of,
)

from ttref import TTMEmbedding
from ttref.embeddings import tables

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tables, "LOOK_UP", 5)


# Rows


@pytest.mark.parametrize("dtype", FLOATS)
@alike
def test_look_ups_of_any_shape(arguments, dtype, small_blocks):
    table = made(arguments, dtype)
    w = matrix_of(table)
    last = table.num_embeddings - 1
    for ids in (
        torch.tensor(last),
        torch.tensor([0]),
        torch.tensor([[last, 0, last], [0, 1, 5]]),
        torch.zeros(2, 3, 4, dtype=torch.int32),
        every(table),
        every(table).repeat(9),
        every(table).flip(0).view(1, -1, 1),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(2, 0, 3, dtype=torch.int32),
    ):
        for mode in MODES:
            with mode():
                rows = table(ids)
                assert rows.shape == (*ids.shape, table.embedding_dim) and rows.dtype == dtype
                assert_near(rows, w[ids.long()], dtype)
        if ids.ndim == 1:
            assert_near(table.rows(ids), w[ids.long()], dtype)
    dense = table.to_embedding()
    assert type(dense) is nn.Embedding and dense.weight.dtype == dtype
    assert_near(dense.weight, w, dtype)


@settings(max_examples=150)
@given(pairs, seeds, st.integers(1, 60), st.data())
def test_random_modes_sizes_and_numbers_of_ids(shape, seed, count, data):
    """Whether an end is contracted for all digits or for the ids depends on how many there are."""
    cores = random_matrix_train(shape, seed)
    rows, columns = (math.prod(modes) for modes in rows_and_columns(shape))
    rows, columns = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    table = TTMEmbedding.from_cores(cores, rows, columns)
    w = dense_matrix(cores)[:rows, :columns]
    ids = torch.randint(0, rows, (count,), generator=torch.Generator().manual_seed(seed))
    assert_near(table(ids), w[ids], torch.float64)
    hidden = noise(count, columns, seed, torch.float64)
    assert_near(table.logits(hidden), hidden @ w.T, torch.float64)


def test_the_ids_are_digits_with_the_first_core_leading():
    ones = torch.ones(1, 1, 1, 1)
    first = torch.tensor([10.0, 20, 30]).view(1, 3, 1, 1)
    second = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    table = TTMEmbedding.from_cores([first, ones, second])
    assert table(torch.arange(12)).flatten().tolist() == [10 * i * j for i in (1, 2, 3) for j in (1, 2, 3, 4)]


def test_padding_is_out_of_reach():
    """An id among the padding rows is an error, no score and no column belongs to the padding."""
    table = made(ARGUMENTS[3])
    assert math.prod(table.row_shape) == 15 and math.prod(table.col_shape) == 8
    with pytest.raises(IndexError, match="id 13 is out of range: the table has 13 rows, 0 to 12"):
        table(torch.tensor([0, 13]))
    assert table(every(table)).shape == (13, 7) and table.logits(torch.randn(2, 7)).shape == (2, 13)
    assert table.to_embedding().weight.shape == (13, 7)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        (torch.tensor([0, 19]), IndexError, "id 19 is out of range: the table has 19 rows, 0 to 18"),
        (torch.tensor([[0], [-1]]), IndexError, "id -1 is out of range.*negative ids do not count from the end"),
        (torch.tensor(10**12), IndexError, "id 1000000000000 is out of range"),
        (torch.tensor([1.0]), TypeError, "ids must be a tensor of int32 or int64, got torch.float32"),
        (torch.tensor([True]), TypeError, "got torch.bool"),
        ([1, 2], TypeError, "got list"),
    ],
)
def test_bad_ids(ids, error, message):
    table = made(ARGUMENTS[1])
    for call in (table, table.rows):
        with pytest.raises(error, match=message):
            call(ids)


def test_the_table_of_the_benchmark():
    table = TTMEmbedding((16, 24, 131), (4, 12, 16), rank=8, num_embeddings=50_257)
    assert (table.params, table.nbytes, table.embedding_dim) == (35_712, 4 * 35_712, 768)
    assert table.ratio == 50_257 * 768 / 35_712
    generator = torch.Generator().manual_seed(0)
    for count in (1, 40, 3000):
        ids = torch.randint(0, 50_257, (count,), generator=generator)
        digits = ids // (24 * 131), ids // 131 % 24, ids % 131
        first, second, third = (core[:, digit] for core, digit in zip(table.cores, digits, strict=True))
        expected = torch.einsum("aijr,ribs,sicz->ijbc", *(x.double() for x in (first, second, third)))
        for mode in MODES:
            with mode(), Largest() as largest:
                rows = table(ids)
            assert_near(rows, expected.reshape(count, 768), torch.float32)
            assert largest.numbers <= max(count * 768, 16 * 24 * 48 * 8)


@pytest.mark.parametrize("mode", MODES)
def test_scores_never_hold_the_table(mode):
    table = TTMEmbedding((16, 24, 53), (4, 12, 16), rank=8, num_embeddings=20_000)
    hidden = torch.randn(2, 768)
    with mode(), Largest() as largest:
        scores = table.logits(hidden)
    assert scores.shape == (2, 20_000) and largest.numbers < 20_000 * 768 / 30
    ids = torch.tensor([0, 77, 19_999])
    assert_near(scores[:, ids], hidden.double() @ table(ids).double().T, torch.float32)


# Scores


@pytest.mark.parametrize("dtype", FLOATS)
@alike
def test_scores_are_those_of_the_dense_table(arguments, dtype):
    table = made(arguments, dtype)
    w = matrix_of(table)
    for batch in ((), (1,), (70,), (2, 3), (0,), (2, 0, 3)):
        hidden = noise(math.prod(batch), table.embedding_dim, 1, dtype).reshape(
            *batch, -1 if 0 not in batch else w.shape[1]
        )
        for mode in MODES:
            with mode():
                scores = table.logits(hidden)
            assert scores.shape == (*batch, table.num_embeddings) and scores.dtype == dtype
            assert_near(scores, hidden.double() @ w.T, dtype)


@pytest.mark.parametrize(
    "hidden, error, message",
    [
        (torch.zeros(2, 24), ValueError, r"hidden has shape \(2, 24\); its last axis must hold embedding_dim = 17"),
        (torch.tensor(1.0), ValueError, r"hidden has shape \(\)"),
        (torch.zeros(2, 17).double(), TypeError, "hidden is torch.float64 but the table is torch.float32; convert"),
    ],
)
def test_bad_vectors(hidden, error, message):
    with pytest.raises(error, match=message):
        made(ARGUMENTS[2]).logits(hidden)


@alike
def test_autocast(arguments):
    table = made(arguments)
    hidden, ids = noise(3, table.embedding_dim), torch.tensor([1, 9, 1])
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


@alike
def test_gradients_by_finite_differences(arguments):
    table = made(arguments, torch.float64)
    for ids in (torch.tensor([[1, 5, 1], [9, 0, 3]]), every(table).repeat(2)):
        assert torch.autograd.gradcheck(lambda *_, ids=ids: table(ids), tuple(table.cores), fast_mode=True)
    hidden = noise(2, table.embedding_dim, 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, *_: table.logits(h), (hidden, *table.cores), fast_mode=True)


@alike
def test_looking_up_the_padding_row_gives_it_no_gradient(arguments):
    table = made(arguments, torch.float64, padding_idx=3)
    free = made(arguments, torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(table.cores, free.cores, strict=True))
    for ids in (torch.tensor([3, 1, 3, 9]), every(table).repeat(5)):
        upstream = noise(len(ids), table.embedding_dim, 1, torch.float64)
        rows = table(ids)
        assert_near(rows, free(ids), torch.float64)  # the row itself stays
        ours = torch.autograd.grad(rows, list(table.cores), upstream)
        masked = upstream * (ids != 3).unsqueeze(1)
        theirs = torch.autograd.grad(free(ids), list(free.cores), masked)
        for gradient, expected in zip(ours, theirs, strict=True):
            assert_near(gradient, expected, torch.float64)
    hidden = noise(3, table.embedding_dim, 1, torch.float64)  # scoring with it does, as with a dense matrix
    ours, theirs = (torch.autograd.grad(one.logits(hidden).sum(), list(one.cores)) for one in (table, free))
    assert all(torch.equal(gradient, expected) for gradient, expected in zip(ours, theirs, strict=True))
    (alone,) = torch.autograd.grad(table(torch.tensor([3, 3])).sum(), table.cores[0])
    assert not alone.any()


def test_training_lowers_the_loss():
    table = made(ARGUMENTS[0])
    wanted = matrix_of(made(ARGUMENTS[0], seed=1)).float()
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (table(every(table)) - wanted).square().mean() + (
            table.logits(wanted[:2]) - wanted[:2] @ wanted.T
        ).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_rows_of_a_long_list_are_those_one_by_one():
    table = made({"row_shape": (5, 6, 7), "col_shape": (2, 3, 4), "rank": 3, "num_embeddings": 200})
    ids = torch.arange(199, -1, -1)
    with torch.no_grad():
        one_by_one = torch.stack([table(i) for i in ids])
        assert_rows(table(ids), one_by_one, torch.float32)
        assert_rows(table(ids.repeat(4)), one_by_one.repeat(4, 1), torch.float32)
    assert row_norms(one_by_one).min() > 0
