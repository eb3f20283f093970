"""Cores fitted in the norm of a Gram matrix: each solve against dense least squares, and what every fit guarantees."""

import math

import pytest
import torch
from compressed import Largest
from gramians import dense_update, inputs, lost
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import gaussian, norm, pairs, random_matrix_train, rows_and_columns, seeds

from ttref.fitting import Gram, fit_cores, output_error, solving
from ttref.fitting.parts import paired
from ttref.fitting.sweeping import swept
from ttref.matrices import ttm_svd, ttm_to_matrix

SHAPES = [((4, 3), (2, 5)), ((12, 1), (2, 5)), ((2, 3, 2), (3, 2, 2)), ((12,), (10,)), ((1, 4), (5, 2))]


def problem(rows, cols, diagonal=False):
    weight, gram = gaussian((math.prod(rows), math.prod(cols)), 3), inputs(math.prod(cols))
    return weight, (gram.diagonal().contiguous() if diagonal else gram)


# One core


@pytest.mark.parametrize("steps", [10**6, 0], ids=["factorized", "conjugate gradients"])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_one_core_solves_the_dense_least_squares_problem(rows, cols, diagonal, steps, monkeypatch):
    monkeypatch.setattr(solving, "STEPS", steps)
    weight, gram = problem(rows, cols, diagonal)
    whole = gram.diag() if diagonal else gram
    cores = ttm_svd(weight, rows, cols, rank=2)
    for k in range(len(cores)):
        core, gain = solving.solved(gram, paired(weight @ whole, rows, cols), cores, k, tol=1e-14)
        torch.testing.assert_close(core, dense_update(weight, whole, cores, k), rtol=1e-5, atol=1e-7)
        changed = [*cores[:k], core, *cores[k + 1 :]]
        assert gain == pytest.approx(lost(weight, cores, gram) - lost(weight, changed, gram), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("entries", [1, 100])
def test_systems_of_a_diagonal_are_made_a_few_at_a_time(entries, monkeypatch):
    weight, gram = problem((4, 3), (4, 6), diagonal=True)
    cores, target = ttm_svd(weight, (4, 3), (4, 6), rank=3), paired(weight * gram, (4, 3), (4, 6))
    for k in range(2):
        expected, _ = solving.solved(gram, target, cores, k)
        monkeypatch.setattr(solving, "ENTRIES", entries)
        monkeypatch.setattr(solving, "_diagonal_pays", lambda around: True)
        torch.testing.assert_close(solving.solved(gram, target, cores, k)[0], expected, rtol=1e-8, atol=1e-10)
        monkeypatch.undo()


@pytest.mark.parametrize("steps", [10**6, 0], ids=["factorized", "conjugate gradients"])
def test_a_gram_matrix_of_few_inputs_has_a_solution_all_the_same(steps, monkeypatch):
    monkeypatch.setattr(solving, "STEPS", steps)
    weight, gram = gaussian((6, 8), 0), inputs(8, tokens=3)
    cores = ttm_svd(weight, (2, 3), (4, 2), rank=2)
    core, gain = solving.solved(gram, paired(weight @ gram, (2, 3), (4, 2)), cores, 0, tol=1e-14)
    regular = gram + 1e-9 * gram.trace() * torch.eye(8, dtype=torch.float64)
    best = [dense_update(weight, regular, cores, 0), cores[1]]
    assert core.isfinite().all() and gain > 0
    assert lost(weight, [core, cores[1]], gram) <= lost(weight, best, gram) + 1e-6 * lost(weight, cores, gram)


@pytest.mark.parametrize("steps", [10**6, 0], ids=["factorized", "conjugate gradients"])
@given(shape=pairs, seed=seeds)
@example(shape=[(1, 1), (1, 1)], seed=0)  # more unknowns than equations: what is left after a step is rounding
@settings(max_examples=20)
def test_no_update_of_a_core_raises_the_error(steps, shape, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "STEPS", steps)
        rows, cols = rows_and_columns(shape)
        weight, gram = gaussian((math.prod(rows), math.prod(cols)), seed), inputs(math.prod(cols), seed=seed % 100)
        cores, target = random_matrix_train(shape, seed), paired(weight @ gram, rows, cols)
        before = lost(weight, cores, gram)
        for k in [*range(len(cores)), *reversed(range(len(cores)))]:
            cores[k], _ = solving.solved(gram, target, cores, k)
            after = lost(weight, cores, gram)
            assert after <= before * (1 + 1e-9) + 1e-9 * norm(gram) * norm(weight) ** 2
            before = after


# Whole fits


@given(pairs, seeds, st.integers(1, 3), st.booleans())
@settings(max_examples=40)
def test_never_worse_than_tt_svd(shape, seed, rank, diagonal):
    rows, cols = rows_and_columns(shape)
    weight, gram = gaussian((math.prod(rows), math.prod(cols)), seed), inputs(math.prod(cols), seed=seed % 100)
    gram = gram.diagonal() if diagonal else gram
    fitted, plain = fit_cores(weight, gram, rows, cols, rank=rank), ttm_svd(weight, rows, cols, rank=rank)
    assert [core.shape for core in fitted] == [core.shape for core in plain]
    assert output_error(weight, ttm_to_matrix(fitted), gram) <= output_error(weight, ttm_to_matrix(plain), gram) + 1e-12


def test_a_fit_is_far_better_than_tt_svd_where_inputs_are_uneven():
    weight, gram = problem((4, 6), (6, 4))
    fitted, plain = fit_cores(weight, gram, (4, 6), (6, 4), rank=8), ttm_svd(weight, (4, 6), (6, 4), rank=8)
    assert lost(weight, fitted, gram) < lost(weight, plain, gram) / 4


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_more_sweeps_are_never_worse_and_change_less_and_less(rows, cols):
    weight, gram = problem(rows, cols)
    fits = [swept(weight, gram, ttm_svd(weight, rows, cols, rank=2), sweeps) for sweeps in range(5)]
    errors = [output_error(weight, ttm_to_matrix(cores), gram) for cores in fits]
    assert all(after <= before + 1e-12 for before, after in zip(errors, errors[1:], strict=False))
    assert errors[3] - errors[4] <= errors[0] - errors[1] + 1e-12


@given(seeds)
@settings(max_examples=10)
def test_equals_the_whitened_svd_where_the_train_is_a_product_of_two_matrices(seed):
    weight, gram = gaussian((8, 6), seed), inputs(6, seed=seed % 100)
    gram = gram + 1e-4 * gram.trace() * torch.eye(6, dtype=torch.float64)
    cores = fit_cores(weight, gram, (8, 1), (1, 6), rank=2, ridge=0)
    root = torch.linalg.cholesky(gram)
    best = torch.linalg.svdvals(weight @ root)[2:].square().sum().item()
    assert lost(weight, cores, gram) == pytest.approx(best, rel=1e-6)


def test_a_train_that_can_represent_the_matrix_is_found_exactly():
    true = random_matrix_train([(3, 4), (4, 3)], 1, ranks=(2,))
    weight, gram = ttm_to_matrix(true), inputs(12)
    assert output_error(weight, ttm_to_matrix(fit_cores(weight, gram, (3, 4), (4, 3), rank=2)), gram) < 1e-9
    shaken = [true[0] + gaussian(tuple(true[0].shape), 5), true[1]]  # linear in this core, so that one sweep is enough
    found = fit_cores(weight, gram, (3, 4), (4, 3), rank=2, start=shaken, sweeps=1)
    assert norm(ttm_to_matrix(found) - weight) < 1e-6 * norm(weight)


def test_with_all_inputs_alike_two_cores_are_those_of_tt_svd():
    weight, same = gaussian((12, 12), 0), torch.eye(12, dtype=torch.float64)
    fitted, plain = fit_cores(weight, same, (3, 4), (4, 3), rank=4), ttm_svd(weight, (3, 4), (4, 3), rank=4)
    torch.testing.assert_close(ttm_to_matrix(fitted), ttm_to_matrix(plain), rtol=1e-6, atol=1e-8)
    three = fit_cores(weight, same, (2, 3, 2), (3, 2, 2), rank=3)
    assert lost(weight, three, same) < lost(weight, ttm_svd(weight, (2, 3, 2), (3, 2, 2), rank=3), same)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_weights_are_the_diagonal_of_a_gram_matrix(rows, cols):
    weight, weights = problem(rows, cols, diagonal=True)
    short, long = (fit_cores(weight, given, rows, cols, rank=2) for given in (weights, weights.diag()))
    assert lost(weight, short, weights) == pytest.approx(lost(weight, long, weights), rel=1e-3, abs=1e-12)


def test_a_table_as_long_as_a_vocabulary_needs_no_square_matrix():
    table = gaussian((30_000, 8), 0, torch.float32)  # a square one would take 7 GB
    frequencies = torch.arange(1, 30_001).reciprocal()
    fitted = fit_cores(table.mT, frequencies, (2, 4), (150, 200), rank=6)
    plain = ttm_svd(table.mT, (2, 4), (150, 200), rank=6)
    errors = [output_error(table.mT, ttm_to_matrix(cores), frequencies) for cores in (fitted, plain)]
    assert errors[0] < 0.8 * errors[1]


# Ridges


def test_held_out_inputs_choose_a_ridge_that_generalizes():
    weight = gaussian((12, 24), 0)
    many = inputs(24, tokens=600)
    x = gaussian((30, 24), 9) @ torch.linalg.cholesky(many).T
    few = Gram.from_inputs(x)
    chosen = fit_cores(weight, few, (3, 4), (6, 4), rank=6, held_out=many)
    small = fit_cores(weight, few, (3, 4), (6, 4), rank=6, ridge=1e-6)
    assert lost(weight, chosen, many) < lost(weight, small, many)


def test_inputs_that_do_not_span_are_named_in_a_warning():
    weight = gaussian((6, 8), 0)
    few = Gram.from_inputs(gaussian((5, 8), 1))
    with pytest.warns(UserWarning, match=r"do not span its width 8 \(5 tokens\).*held_out") as caught:
        cores = fit_cores(weight, few, (2, 3), (4, 2), rank=2)
    assert caught[0].filename == __file__
    assert norm(ttm_to_matrix(cores)) < 10 * norm(weight)  # what no input has shown stays close to the matrix
    with pytest.warns(UserWarning, match="do not span its width 8, so"):
        fit_cores(weight, few.matrix, (2, 3), (4, 2), rank=2)


@pytest.mark.filterwarnings("error")
def test_inputs_that_span_and_ridges_that_are_given_cause_no_warning():
    weight = gaussian((6, 8), 0)
    fit_cores(weight, inputs(8), (2, 3), (4, 2), rank=2)
    fit_cores(weight, inputs(8, tokens=5), (2, 3), (4, 2), rank=2, ridge=1e-2)


@pytest.mark.parametrize("how", [{"rank": 3}, {"eps": 0.8}], ids=str)
def test_weights_need_no_matrix_as_wide_as_the_inputs(how):
    """Not where one core has all the columns either, where the best train is the SVD of the weighted matrix."""
    weight, weights = gaussian((6, 400), 0), gaussian((400,), 1).square() + 0.1
    with Largest() as largest:
        cores = fit_cores(weight, weights, (6, 1), (1, 400), ridge=0.0, **how)
    assert largest.numbers < 400 * 400 / 2
    rank = cores[0].shape[3]
    kept = torch.linalg.svdvals(weight * weights.sqrt()).square()
    best = (kept[rank:].sum() / kept.sum()).sqrt().item()
    assert output_error(weight, ttm_to_matrix(cores), weights) == pytest.approx(best, rel=1e-6)
