"""Matrices as tensor trains: guarantees of the decomposition, and matrices rebuilt from their cores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense_matrix, gaussian, norm, pairs, random_matrix_train, rows_and_columns, seeds

from ttref.matrices import ttm_svd, ttm_to_matrix
from ttref.shapes import tt_ranks

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


# Decomposition


@given(pairs, seeds, st.sampled_from([torch.float64, torch.float32]))
def test_full_rank_is_exact(shape, seed, dtype):
    rows, cols = rows_and_columns(shape)
    w = gaussian((math.prod(rows), math.prod(cols)), seed, dtype)
    cores = ttm_svd(w, rows, cols, rank=10**6)
    ranks = tt_ranks([m * n for m, n in shape], 10**6)
    assert [core.shape for core in cores] == [
        (r, m, n, s) for r, (m, n), s in zip(ranks[:-1], shape, ranks[1:], strict=True)
    ]
    error = norm(dense_matrix([core.double() for core in cores]) - w.double())
    assert error <= 10 * len(shape) * torch.finfo(dtype).eps * norm(w)


@given(pairs, st.floats(0, 0.95), seeds, st.sampled_from(FLOATS))
def test_eps_bounds_the_error_of_the_whole_matrix(shape, eps, seed, dtype):
    rows, cols = rows_and_columns(shape)
    w = gaussian((math.prod(rows), math.prod(cols)), seed, dtype)
    cores = ttm_svd(w, rows, cols, eps=eps)
    assert {core.dtype for core in cores} == {dtype}
    error = norm(dense_matrix([core.double() for core in cores]) - w.double())
    assert error <= (eps + 10 * len(shape) * torch.finfo(dtype).eps) * norm(w)


@given(pairs, seeds)
def test_a_kronecker_product_has_rank_one(shape, seed):
    factors = [gaussian(size, seed + k) for k, size in enumerate(shape)]
    w = torch.ones(1, 1, dtype=torch.float64)
    for factor in factors:
        w = torch.kron(w, factor.contiguous())
    cores = ttm_svd(w, *rows_and_columns(shape), eps=1e-10)
    assert all(core.shape == (1, m, n, 1) for core, (m, n) in zip(cores, shape, strict=True))
    torch.testing.assert_close(dense_matrix(cores), w)


def test_the_rank_of_a_sum_of_kronecker_products_is_the_number_of_terms():
    w = sum(torch.kron(gaussian((4, 3), k), gaussian((5, 6), 10 + k)) for k in range(3))
    assert [core.shape[-1] for core in ttm_svd(w, (4, 5), (3, 6), eps=1e-10)] == [3, 1]


@given(pairs, seeds, st.sampled_from(FLOATS))
def test_to_matrix_agrees_with_an_independent_contraction(shape, seed, dtype):
    cores = random_matrix_train(shape, seed, dtype)
    matrix, expected = ttm_to_matrix(cores), dense_matrix([core.double() for core in cores])
    assert matrix.dtype == dtype and matrix.shape == expected.shape
    assert norm(matrix.double() - expected) <= 10 * torch.finfo(dtype).eps * norm(expected)


def test_gradients_reach_the_cores_of_a_rebuilt_matrix():
    cores = [core.requires_grad_() for core in random_matrix_train([(2, 3), (3, 1), (1, 2)], 0)]
    assert torch.autograd.gradcheck(lambda *cores: ttm_to_matrix(list(cores)), cores)


# Bad input

CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
HOLED = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ttm_svd(HOLED, (2,), (2,), rank=1), ValueError, r"w has 1 entries that are NaN .* index \(1, 1\)"),
        (lambda: ttm_svd(torch.ones(4, 6), (2, 2), (2, 2), rank=1), ValueError, r"w has shape \(4, 6\).*4 x 4 matrix"),
        (lambda: ttm_svd(torch.ones(16), (2, 2), (2, 2), rank=1), ValueError, r"w has shape \(16,\).*4 x 4 matrix"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (4,), rank=1), ValueError, "2 modes and col_shape .* has 1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 0), (2, 2), rank=1), ValueError, r"row_shape\[1\] must be at least 1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2.0), rank=1), TypeError, r"col_shape\[1\] must be an integer"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2)), ValueError, "exactly one of rank and eps, got neither"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), rank=1, eps=0.1), ValueError, "got both"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), rank=-1), ValueError, "rank must be at least 1, got -1"),
        (lambda: ttm_svd(torch.ones(4, 4), (2, 2), (2, 2), eps=2), ValueError, r"must lie in \[0, 1\), got 2"),
        (lambda: ttm_svd(torch.ones(4, 4).long(), (4,), (4,), rank=1), TypeError, r"w is torch.int64.*w.float\(\)"),
        (lambda: ttm_svd(torch.ones(4, 4).cfloat(), (4,), (4,), rank=1), TypeError, "w is .*complex.*not supported"),
        (lambda: ttm_svd(torch.ones(0, 4), (2,), (4,), rank=1), ValueError, "w has no entries"),
        (lambda: ttm_to_matrix([]), ValueError, "cores is empty"),
        (lambda: ttm_to_matrix(torch.ones(1, 2, 3, 1)), TypeError, "must be a list of cores, got Tensor"),
        (lambda: ttm_to_matrix([torch.ones(1, 2, 1)]), ValueError, r"cores\[0\] has shape \(1, 2, 1\).*four axes"),
        (lambda: ttm_to_matrix([CORES[0], CORES[0]]), ValueError, r"cores\[0\] ends with rank 2 but cores\[1\] begins"),
        (lambda: ttm_to_matrix([CORES[0]]), ValueError, "end ranks of cores must be 1, got 1 on the left and 2"),
        (lambda: ttm_to_matrix([CORES[0], CORES[1].double()]), TypeError, r"cores\[1\] is torch.float64, cores\[0\]"),
        (lambda: ttm_to_matrix([CORES[0].long()]), TypeError, r"cores\[0\] is torch.int64"),
        (lambda: ttm_to_matrix([CORES[0], [1.0]]), TypeError, r"cores\[1\] must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
