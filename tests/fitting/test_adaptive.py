"""Ranks found for a given output error: the guarantee, and that they are few."""

import math

import pytest
import torch
from gramians import inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, pairs, random_matrix_train, rows_and_columns, seeds

from ttref.fitting import fit_cores, output_error
from ttref.matrices import ttm_svd, ttm_to_matrix

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def ranks(cores):
    return [core.shape[3] for core in cores[:-1]]


@given(pairs, st.floats(0, 0.95), seeds, st.sampled_from(FLOATS), st.booleans())
@settings(max_examples=30)
def test_eps_bounds_the_output_error(shape, eps, seed, dtype, diagonal):
    rows, cols = rows_and_columns(shape)
    gram = inputs(math.prod(cols), seed=seed % 100)
    gram = gram.diagonal() if diagonal else gram
    weight = gaussian((math.prod(rows), math.prod(cols)), seed).to(dtype)
    cores = fit_cores(weight, gram, rows, cols, eps=eps)
    assert {core.dtype for core in cores} == {dtype}
    error = output_error(weight, ttm_to_matrix([core.double() for core in cores]).to(torch.float64), gram)
    assert error <= eps + 10 * len(shape) * torch.finfo(dtype).eps


@pytest.mark.parametrize(("rows", "cols"), [((4, 6), (6, 4)), ((24, 1), (4, 6)), ((2, 3, 4), (4, 3, 2))])
def test_fewer_numbers_than_tt_svd_needs_for_the_same_output_error(rows, cols):
    weight, gram = gaussian((24, 24), 0), inputs(24)
    fitted = fit_cores(weight, gram, rows, cols, eps=0.3)
    error = output_error(weight, ttm_to_matrix(fitted), gram)
    assert error <= 0.3
    plain = next(
        cores
        for cores in (ttm_svd(weight, rows, cols, rank=r) for r in range(1, 100))
        if output_error(weight, ttm_to_matrix(cores), gram) <= 0.3
    )
    assert sum(map(torch.numel, fitted)) < 0.8 * sum(map(torch.numel, plain))


def test_one_rank_less_is_not_enough():
    weight, gram = gaussian((24, 24), 1), inputs(24)
    (found,) = ranks(fit_cores(weight, gram, (4, 6), (6, 4), eps=0.3))
    less = fit_cores(weight, gram, (4, 6), (6, 4), rank=found - 1)
    assert output_error(weight, ttm_to_matrix(less), gram) > 0.3


def test_the_ranks_of_a_train_are_found_again():
    true = random_matrix_train([(2, 3), (3, 2), (2, 3)], 0, ranks=(2, 3))
    weight = ttm_to_matrix(true)
    assert ranks(fit_cores(weight, inputs(18), (2, 3, 2), (3, 2, 3), eps=1e-6)) == [2, 3]


def test_merged_cores_part_with_uneven_ranks():
    """A bond that carries little gets a small rank, though another needs many."""
    flat = torch.kron(gaussian((4, 4), 0), gaussian((3, 3), 1))
    weight = torch.kron(gaussian((2, 2), 2), flat)
    weight = weight + torch.kron(torch.eye(2).double(), gaussian((12, 12), 3))
    cores = fit_cores(weight, inputs(24), (2, 4, 3), (2, 4, 3), eps=0.05)
    assert ranks(cores)[0] <= 2 < ranks(cores)[1]


def test_a_zero_weight_has_rank_one():
    assert ranks(fit_cores(torch.zeros(6, 8), inputs(8), (2, 3), (4, 2), eps=0.1)) == [1]
