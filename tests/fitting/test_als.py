"""Cores fitted in the norm of a Gram matrix: each solve against dense least squares, and what every fit guarantees."""

import pytest
import torch
from strategies import gaussian, norm

from ttref.fitting import fit_cores, output_error
from ttref.fitting.parts import paired
from ttref.fitting.solving import solved
from ttref.matrices import ttm_svd, ttm_to_matrix

SHAPES = [((4, 3), (2, 5)), ((12, 1), (2, 5)), ((2, 3, 2), (3, 2, 2)), ((12,), (10,)), ((1, 4), (5, 2))]


def inputs(width, tokens=200, seed=0):
    """Correlated inputs with a spectrum, as a layer's."""
    mixing = gaussian((width, width), seed) * torch.logspace(0, -2, width, dtype=torch.float64)
    x = gaussian((tokens, width), seed + 1) @ mixing
    return x.T @ x


def dense_update(weight, gram, cores, k):
    """The oracle: the whole design matrix of core k, column by column, and numpy-like least squares."""
    root = torch.linalg.cholesky(gram)
    columns = []
    for entry in range(cores[k].numel()):
        unit = torch.zeros(cores[k].numel(), dtype=torch.float64)
        unit[entry] = 1
        columns.append((ttm_to_matrix([*cores[:k], unit.reshape(cores[k].shape), *cores[k + 1 :]]) @ root).flatten())
    found = torch.linalg.lstsq(torch.stack(columns, 1), (weight @ root).flatten(), driver="gelsd").solution
    return found.reshape(cores[k].shape)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_one_core_solves_the_dense_least_squares_problem(rows, cols, diagonal):
    m, n = torch.tensor(rows).prod().item(), torch.tensor(cols).prod().item()
    weight, gram = gaussian((m, n), 3), inputs(n)
    weights = gram.diagonal() if diagonal else gram
    whole = weights.diag() if diagonal else gram
    cores = ttm_svd(weight, rows, cols, rank=2)
    for k in range(len(cores)):
        target = paired(weight @ whole, rows, cols)
        core, _ = solved(weights, target, cores, k)
        torch.testing.assert_close(core, dense_update(weight, whole, cores, k), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_never_worse_than_tt_svd(rows, cols):
    m, n = torch.tensor(rows).prod().item(), torch.tensor(cols).prod().item()
    weight, gram = gaussian((m, n), 5), inputs(n)
    fitted = ttm_to_matrix(fit_cores(weight, gram, rows, cols, rank=2))
    plain = ttm_to_matrix(ttm_svd(weight, rows, cols, rank=2))
    assert output_error(weight, fitted, gram) <= output_error(weight, plain, gram) + 1e-12
    assert norm(weight - fitted) > 0 or len(rows) == 1
