"""TTMEmbedding made: compressed from a table, around given cores, initialized, copied, moved."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from compressed import FLOATS, embedding, every, noise, same_state, unit
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

from ttref import TTMEmbedding, ttm_params, ttm_svd

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@st.composite
def tables_to_compress(draw):
    shape = draw(pairs)
    row_shape, col_shape = rows_and_columns(shape)
    count, width = draw(st.integers(1, math.prod(row_shape))), draw(st.integers(1, math.prod(col_shape)))
    return noise(count, width, draw(seeds), draw(st.sampled_from(FLOATS))), row_shape, col_shape


# Compressing a table


@settings(max_examples=150)
@given(tables_to_compress(), st.one_of(st.integers(1, 6), st.just(10**6)), st.floats(0, 0.95), st.booleans())
def test_from_embedding(example, rank, eps, by_rank):
    w, row_shape, col_shape = example
    old = embedding(w)
    table = TTMEmbedding.from_embedding(
        old, row_shape=row_shape, col_shape=col_shape, **({"rank": rank} if by_rank else {"eps": eps})
    )
    assert (table.num_embeddings, table.embedding_dim) == w.shape and table.dtype == w.dtype
    assert (table.row_shape, table.col_shape) == (row_shape, col_shape)
    assert table.params == sum(core.numel() for core in table.cores)
    assert table.nbytes == table.params * w.element_size() and table.ratio == w.numel() / table.params
    error = norm(matrix_of(table) - w.double()) / norm(w)
    allowed = 10 * len(row_shape) * unit(w.dtype)
    if by_rank:
        assert table.params == ttm_params(row_shape, col_shape, rank)
        padded = nn.functional.pad(w, (0, math.prod(col_shape) - w.shape[1], 0, math.prod(row_shape) - len(w)))
        cores = ttm_svd(padded, row_shape, col_shape, rank=rank)
        assert all(torch.equal(ours, core) for ours, core in zip(table.cores, cores, strict=True))
    if not by_rank or rank == 10**6:
        assert error <= (0 if by_rank else eps) + allowed
    with torch.no_grad():
        for core in table.cores:
            core.zero_()
    assert torch.equal(old.weight, w)


def test_the_error_falls_with_the_rank():
    w = noise(30, 24)
    errors = []
    for rank in (1, 2, 4, 8, 16, 99):
        table = TTMEmbedding.from_embedding(embedding(w), row_shape=(5, 6), col_shape=(4, 6), rank=rank)
        errors.append(float(norm(matrix_of(table) - w) / norm(w)))
    assert all(after < before for before, after in itertools.pairwise(errors)) and errors[-1] < 1e-6


def test_what_is_kept_of_the_old_table():
    shapes = {"row_shape": (3, 4), "col_shape": (4, 5), "rank": 2}
    table = TTMEmbedding.from_embedding(embedding(noise(11, 19), padding_idx=-2).eval(), **shapes)
    assert table.padding_idx == 9 and not table.training and all(core.requires_grad for core in table.cores)
    dense = table.to_embedding()
    assert dense.padding_idx == 9 and not dense.training and dense.weight.requires_grad
    frozen = TTMEmbedding.from_embedding(embedding(noise(11, 19)).requires_grad_(False), **shapes)
    assert frozen.training and frozen.padding_idx is None
    assert not any(core.requires_grad for core in frozen.cores)
    assert not frozen.to_embedding().weight.requires_grad


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 3


NAN = noise(12, 20)
NAN[3, 4] = math.nan


@pytest.mark.parametrize(
    "table, arguments, error, message",
    [
        (nn.Linear(4, 4), {"rank": 1}, TypeError, "only an nn.Embedding can be compressed, got Linear"),
        (Scaled(12, 20), {"rank": 1}, TypeError, "Scaled has a forward of its own"),
        (nn.Embedding(12, 20, max_norm=1.0), {"rank": 1}, ValueError, "set embedding.max_norm = None"),
        (nn.Embedding(12, 20, scale_grad_by_freq=True), {"rank": 1}, ValueError, "scale_grad_by_freq = False"),
        (nn.Embedding(12, 20, sparse=True), {"rank": 1}, ValueError, "sparse gradients .* set embedding.sparse = Fal"),
        (embedding(NAN), {"rank": 1}, ValueError, r"embedding.weight has 1 entries that are NaN .* \(3, 4\)"),
        (nn.Embedding(12, 20), {}, ValueError, "exactly one of rank and eps, got neither"),
        (nn.Embedding(12, 20), {"rank": 1, "eps": 0.1}, ValueError, "exactly one of rank and eps, got both"),
        (nn.Embedding(12, 20), {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (nn.Embedding(12, 20), {"eps": 1.0}, ValueError, r"must lie in \[0, 1\)"),
        (
            nn.Embedding(13, 20),
            {"rank": 1},
            ValueError,
            r"row_shape \(3, 4\) multiplies to 12, less than 13",
        ),
        (
            nn.Embedding(12, 21),
            {"rank": 1},
            ValueError,
            r"col_shape \(4, 5\) multiplies to 20, less than 21",
        ),
        (nn.Embedding(12, 20), {"rank": 1, "col_shape": (20,)}, ValueError, "has 1 modes and row_shape .* has 2"),
        (nn.Embedding(12, 20), {"rank": 1, "row_shape": 12}, TypeError, "row_shape must be a sequence of modes"),
    ],
)
def test_bad_arguments_of_from_embedding(table, arguments, error, message):
    with pytest.raises(error, match=message):
        TTMEmbedding.from_embedding(table, **({"row_shape": (3, 4), "col_shape": (4, 5)} | arguments))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_embeddings": 13}, ValueError, r"num_embeddings is 13, but the modes \(3, 4\) multiply to 12 only"),
        ({"embedding_dim": 21}, ValueError, r"embedding_dim is 21, but the modes \(4, 5\) multiply to 20 only"),
        ({"num_embeddings": 0}, ValueError, "num_embeddings must be at least 1, got 0"),
        ({"embedding_dim": 1.5}, TypeError, "embedding_dim must be an integer"),
        ({"padding_idx": 12}, ValueError, "padding_idx is 12, but the table has 12 rows"),
        ({"padding_idx": -13}, ValueError, "padding_idx is -13, but the table has 12 rows"),
        ({"num_embeddings": 11, "padding_idx": 11}, ValueError, "padding_idx is 11, but the table has 11 rows"),
        ({"rank": (1, 2)}, ValueError, "rank has 2 entries, but 2 modes have 3 ranks"),
        ({"row_shape": (3, 2, 2)}, ValueError, "col_shape .* has 2 modes and row_shape .* has 3"),
    ],
)
def test_bad_arguments_of_the_constructor(arguments, error, message):
    with pytest.raises(error, match=message):
        TTMEmbedding(**(ARGUMENTS[0] | arguments))


# Around given cores


def test_from_cores_copies():
    cores = random_matrix_train([(2, 3), (4, 5)], 0)
    table = TTMEmbedding.from_cores(cores, 7, 13, padding_idx=-1)
    w = dense_matrix(cores)[:7, :13]
    assert (table.row_shape, table.col_shape, table.ranks, table.padding_idx) == ((2, 4), (3, 5), (1, 2, 1), 6)
    cores[0].zero_()
    assert_near(matrix_of(table), w, torch.float64)
    view = torch.randn(1, 3, 2, 1).transpose(1, 2)
    assert TTMEmbedding.from_cores([view]).cores[0].is_contiguous()
    assert TTMEmbedding.from_cores([view.requires_grad_() * 2]).cores[0].is_leaf


def test_cores_that_are_no_train_are_refused():
    with pytest.raises(ValueError, match="bond 1 does not chain"):
        TTMEmbedding.from_cores([torch.ones(1, 2, 3, 2), torch.ones(3, 2, 3, 1)])


# Initialization


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_entries_start_with_mean_square_one(order):
    for rank, seed in itertools.product((1, 2, 8), range(3)):
        table = made({"row_shape": (6, 4, 2, 3)[:order], "col_shape": (5, 3, 4, 2)[:order], "rank": rank}, seed=seed)
        assert float(matrix_of(table).square().mean()) == pytest.approx(1, rel=1e-5)
        sizes = [float(norm(core)) / core.numel() ** 0.5 for core in table.cores]
        assert max(sizes) < 100 * min(sizes)  # no core carries the scale alone


@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_other_dtypes_start_alike(dtype):
    table = made({"row_shape": (8, 8), "col_shape": (8, 8), "rank": 4}, dtype)
    assert table.dtype == dtype
    assert float(matrix_of(table).square().mean()) == pytest.approx(1, rel=8 * unit(dtype))


def test_the_start_is_drawn_from_torchs_generator_and_drawn_again():
    one, same, other = (made(ARGUMENTS[0], seed=seed) for seed in (3, 3, 4))
    assert same_state(one, same) and not same_state(one, other)
    one.reset_parameters()
    assert not same_state(one, same)
    assert float(matrix_of(one).square().mean()) == pytest.approx(1, rel=1e-5)


def through_torch_save(table):
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# Copying, moving


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table)), through_torch_save])
def test_copies_work_and_share_nothing(copied):
    table = made(ARGUMENTS[3], padding_idx=2).eval()
    table.cores[1].requires_grad_(False)
    twin, before = copied(table), table(every(table))
    assert agree(twin(every(twin)), before) and repr(twin) == repr(table) and not twin.training
    assert [core.requires_grad for core in twin.cores] == [True, False, True]
    with torch.no_grad():
        for core in twin.cores:
            core.zero_()
    assert agree(table(every(table)), before)


@alike
def test_state_goes_into_a_fresh_table_of_the_same_arguments(arguments):
    table, fresh = made(arguments), made(arguments, seed=1)
    assert list(table.state_dict()) == [f"cores.{k}" for k in range(len(table.cores))]
    fresh.load_state_dict(table.state_dict())
    assert same_state(table, fresh) and agree(table(every(table)), fresh(every(table)))
    with torch.device("meta"):
        bare = TTMEmbedding(**arguments)
    assert repr(bare) == repr(table) and (bare.params, bare.nbytes) == (table.params, table.nbytes)
    assert bare(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, table.embedding_dim)
    bare.load_state_dict(table.state_dict(), assign=True)
    assert agree(bare(every(bare)), table(every(table))) and bare.device == table.device
    hidden = noise(2, table.embedding_dim)
    assert agree(bare.logits(hidden), table.logits(hidden))
    with pytest.raises(RuntimeError, match="size mismatch|Unexpected key"):
        table.load_state_dict(made({"row_shape": (7, 2), "col_shape": (3, 3), "rank": 2}).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@alike
def test_a_table_moves_to_another_dtype(arguments, dtype):
    table = made(arguments)
    moved = copy.deepcopy(table).to(dtype)
    for mode in MODES:
        with mode():
            rows = moved(every(table))
            assert rows.dtype == moved.dtype == dtype
            assert_near(rows, matrix_of(table), torch.float32 if dtype == torch.float64 else dtype)
            assert moved.logits(noise(2, table.embedding_dim, 0, dtype)).dtype == dtype


def test_half_and_double_are_short_for_that():
    assert made(ARGUMENTS[0]).half()(torch.tensor(1)).dtype == torch.float16
    assert made(ARGUMENTS[0]).double()(torch.tensor(1)).dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@alike
def test_a_table_moves_to_a_gpu(arguments):
    table = made(arguments)
    moved = copy.deepcopy(table).cuda()
    assert_near(moved(every(table).cuda()).cpu(), matrix_of(table), torch.float32)
    hidden = noise(2, table.embedding_dim)
    assert_near(moved.logits(hidden.cuda()).cpu(), table.logits(hidden), torch.float32)
    assert TTMEmbedding(**arguments, device="cuda").device.type == "cuda"


def test_construction_on_the_meta_device_and_after():
    table = TTMEmbedding(**ARGUMENTS[1], device="meta")
    assert table.device.type == "meta"
    table.to_empty(device="cpu").reset_parameters()
    assert float(dense_matrix([core.detach().double() for core in table.cores]).square().mean()) == pytest.approx(1)


def test_what_a_table_says_about_itself():
    table = TTMEmbedding((16, 24, 131), (4, 12, 16), rank=8, num_embeddings=50_257, padding_idx=0)
    assert table.extra_repr() == (
        "50257, 768, row_shape=(16, 24, 131), col_shape=(4, 12, 16), ranks=(1, 8, 8, 1), padding_idx=0, ratio=1.08e+03"
    )
