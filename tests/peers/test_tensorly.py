"""TensorLy as oracle: the same tensors for every rank cap, and the same matrices as tensor trains."""

import math

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, modes, seeds
from tensorly.decomposition import tensor_train, tensor_train_matrix

from ttref.matrices import ttm_svd, ttm_to_matrix
from ttref.shapes import tt_ranks
from ttref.trains import tt_svd, tt_to_tensor

pytestmark = pytest.mark.usefixtures("torch_backend")

DTYPES = [torch.float64, torch.float32]


def tolerance(dtype):
    """Both are right to rounding; where two singular values nearly meet, the gap between them magnifies it."""
    return 1e-9 if dtype == torch.float64 else 1e-3


def assert_same(ours, theirs, dtype):
    assert ours.dtype == theirs.dtype == dtype
    gap = torch.linalg.vector_norm(ours.double() - theirs.double())
    assert gap <= tolerance(dtype) * torch.linalg.vector_norm(theirs.double())


@given(modes, st.integers(1, 6), seeds, st.sampled_from(DTYPES))
def test_tensors_for_every_rank_cap(shape, rank, seed, dtype):
    x = gaussian(tuple(shape), seed, dtype)
    ranks = tt_ranks(shape, rank)
    cores = tt_svd(x, rank=rank)
    if len(shape) == 1:
        theirs = x  # TensorLy's sweep needs two modes
    else:
        train = tensor_train(x, rank=list(ranks))
        assert tuple(train.rank) == ranks
        theirs = tensorly.tt_to_tensor(train)
    assert_same(tt_to_tensor(cores), theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_rows_of_binary_modes(rank, dtype):
    """The setting of compressed embeddings: rows of 2^10 entries, a batch on our side and one by one on TensorLy's."""
    rows = gaussian((3, *[2] * 10), 0, dtype)
    ours = tt_to_tensor(tt_svd(rows, rank=rank, batch_dims=1))
    for row, mine in zip(rows, ours, strict=True):
        assert_same(mine, tensorly.tt_to_tensor(tensor_train(row, rank=list(tt_ranks([2] * 10, rank)))), dtype)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=3),
    st.integers(1, 6),
    seeds,
    st.sampled_from(DTYPES),
)
def test_matrices(shape, rank, seed, dtype):
    rows, cols = tuple(m for m, _ in shape), tuple(n for _, n in shape)
    w = gaussian((math.prod(rows), math.prod(cols)), seed, dtype)
    ranks = tt_ranks([m * n for m, n in shape], rank)
    ours = ttm_svd(w, rows, cols, rank=rank)
    theirs = tensor_train_matrix(w.reshape(*rows, *cols), rank=list(ranks))
    assert [core.shape for core in ours] == [core.shape for core in theirs]
    assert_same(ttm_to_matrix(ours), tensorly.tt_matrix_to_matrix(theirs), dtype)
    # The core convention is the same, so each can read the other's trains.
    assert_same(ttm_to_matrix(list(theirs.factors)), tensorly.tt_matrix_to_matrix(theirs), dtype)
