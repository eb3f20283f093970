"""Modes chosen for a layer: what is tried, what wins, and that no budget is exceeded."""

import math
import warnings

import pytest
import torch
from strategies import gaussian

from ttref import truncated_svd, ttm_to_matrix
from ttref.fitting import Gram, output_error
from ttref.fitting.choosing import candidates, choose_modes, within

M, N = 24, 32


def inputs(seed, width=N, decay=1.0, tokens=10_000):
    """Tokens whose directions have falling variance, turned at random."""
    scale = torch.arange(1.0, width + 1).double() ** -decay
    turn = torch.linalg.qr(gaussian((width, width), 1))[0]
    return (gaussian((tokens, width), seed) * scale) @ turn.mT


def case(seed=0, m=M, n=N, **how):
    return gaussian((m, n), seed + 7), Gram.from_inputs(inputs(seed, n, **how))


@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (7, 12), (30, 7), (2, 2), (13, 17), (384, 1536)])
def test_what_is_tried_makes_the_matrix_and_nothing_twice(shape):
    tried = list(candidates(*shape))
    assert len(tried) == len(set(tried)) <= 17
    assert ((shape[0], 1), (1, shape[1])) in tried
    for rows, cols in tried:
        assert (math.prod(rows), math.prod(cols)) == shape
        assert len(rows) == len(cols) and min(a * b for a, b in zip(rows, cols, strict=True)) > 1


def stored(rows, cols, cap):
    """Numbers of a train with this cap, counted bond by bond."""
    sizes = [a * b for a, b in zip(rows, cols, strict=True)]
    bonds = [min(cap, math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(len(sizes) + 1)]
    return sum(size * left * right for size, left, right in zip(sizes, bonds[:-1], bonds[1:], strict=True))


@pytest.mark.parametrize("budget", [60, 190, 500])
def test_ranks_are_the_largest_within_the_budget(budget):
    for rows, cols in candidates(M, N):
        ranks, cap = within(rows, cols, budget), 0
        while cap < M * N and stored(rows, cols, cap + 1) <= budget:
            cap += 1
        if cap == 0:
            assert ranks is None
            continue
        assert max(ranks) <= cap
        assert stored(rows, cols, max(ranks)) == stored(rows, cols, cap) <= budget


@pytest.mark.parametrize(
    ("rows", "cols"), [((M, 1), (2, N // 2)), ((1, M), (N // 4, 4)), ((M // 2, 2), (2, N // 2)), ((M, 1), (1, N))]
)
def test_planted_modes_are_found(rows, cols):
    """A matrix that is a train of these modes is fitted exactly within its own numbers; no other modes are as good."""
    ranks = (1, 3, 1)
    cores = [gaussian((ranks[k], rows[k], cols[k], ranks[k + 1]), k) for k in range(2)]
    w, gram = ttm_to_matrix(cores), case()[1]
    chosen = choose_modes(w, gram, params=sum(core.numel() for core in cores))
    assert (chosen.row_shape, chosen.col_shape) == (rows, cols)
    assert chosen.error < 1e-6
    assert chosen.tried[1].error > 0.1 and min(one.ranked for one in chosen.tried[1:]) > 0.1


@pytest.mark.parametrize(("seed", "ratio"), [(0, 2), (1, 5)])
def test_it_is_never_worse_than_whitened_svd_within_the_budget(seed, ratio):
    w, gram = case(seed, m=12, n=18)
    budget = w.numel() // ratio
    chosen = choose_modes(w, gram, params=budget)
    svd = truncated_svd(w, params=budget, gram=gram).approximation
    assert chosen.params <= budget
    assert chosen.error <= output_error(w, svd, gram) * (1 + 1e-5)


def test_of_few_tokens_the_whitened_svd_has_the_same_ridge():
    """Without one it is better on these tokens, which is what a ridge costs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    w = torch.randn(24, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    w += 0.02 * torch.randn(24, 24, generator=generator)
    seen = Gram.from_inputs(x)
    with pytest.warns(UserWarning, match="do not span"):
        chosen = choose_modes(w, seen, params=144)
    ridged = seen.matrix + seen.matrix.diagonal().mean() * torch.eye(24)  # 24 inputs over 10 tokens, but at most 1
    plain, same = (truncated_svd(w, rank=3, gram=gram).approximation for gram in (seen, ridged))
    assert output_error(w, plain, seen) * 1.1 < chosen.error <= output_error(w, same, seen) * (1 + 1e-4)


def test_inputs_of_few_directions_favor_a_shared_projection():
    """Then nearly any projection keeps what matters, and a shared one is cheap; white inputs leave little to gain."""
    w, few, white = case(m=N, decay=2.0) + (torch.eye(N).double(),)
    budget, gains = w.numel() // 4, []
    for gram in (few, white):
        chosen = choose_modes(w, gram, params=budget)
        svd = truncated_svd(w, params=budget, gram=gram).approximation
        gains.append(chosen.error / output_error(w, svd, gram))
        if gram is few:
            assert chosen.row_shape[-1] * chosen.col_shape[0] > 1
    assert gains[0] < 0.8 < 0.95 < gains[1]


def test_the_answer_agrees_with_its_cores_and_with_what_was_tried():
    w, gram = case()
    chosen = choose_modes(w.float(), gram, params=200, finish=4)
    assert chosen.error == pytest.approx(output_error(w.float(), ttm_to_matrix(chosen.cores), gram), rel=1e-6)
    shapes = [tuple(core.shape) for core in chosen.cores]
    bonds = zip(chosen.ranks[:-1], chosen.row_shape, chosen.col_shape, chosen.ranks[1:], strict=True)
    assert shapes == list(bonds)
    assert all(core.dtype == torch.float32 for core in chosen.cores)
    assert (chosen.params, chosen.nbytes) == (sum(map(math.prod, shapes)), 4 * sum(map(math.prod, shapes)))
    finished = [one.error for one in chosen.tried if one.error is not None]
    assert len(finished) == 4 and finished == sorted(finished) and finished[0] == chosen.error
    rest = [one.ranked for one in chosen.tried if one.error is None]
    assert rest == sorted(rest) and max(one.ranked for one in chosen.tried[:4]) <= rest[0]
    assert all(one.error <= one.ranked for one in chosen.tried[:4])
    assert all(one.params <= 200 for one in chosen.tried)


def test_printed_it_is_a_table_of_what_was_tried():
    chosen = choose_modes(*case(), params=200)
    lines = str(chosen).splitlines()
    assert lines[0].split() == "row modes column modes ranks numbers one sweep finished".split()
    assert len(lines) == len(chosen.tried) + 1
    assert f"{chosen.error:.4f}" in lines[1] and " x ".join(map(str, chosen.row_shape)) in lines[1]


def test_held_out_inputs_judge():
    w, gram = case()
    other = Gram.from_inputs(inputs(50))
    chosen = choose_modes(w, gram, params=200, held_out=other)
    assert chosen.error == pytest.approx(output_error(w, ttm_to_matrix(chosen.cores), other), rel=1e-9)
    assert choose_modes(w, gram, params=200).error < chosen.error  # what was fitted to flatters itself


def test_few_tokens_are_said_once_and_a_ridge_is_chosen_on_held_out_inputs():
    w, other = gaussian((M, N), 7), Gram.from_inputs(inputs(0))
    few = Gram.from_inputs(inputs(0)[:16])
    with pytest.warns(UserWarning, match="do not span") as told:
        chosen = choose_modes(w, few, params=200, held_out=other)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = choose_modes(w, few, params=200)
    assert chosen.error <= output_error(w, ttm_to_matrix(alone.cores), other) * 1.001


def test_bytes_are_numbers_in_the_dtype_of_the_weight():
    w, gram = case()
    chosen = choose_modes(w.half(), gram, nbytes=401)
    assert chosen.nbytes <= 401 and chosen.tried == choose_modes(w.half(), gram, params=200).tried


def test_weights_on_a_diagonal():
    """Frequencies of tokens: a table's transpose, whose columns matter by how often they are asked for."""
    w, frequency = gaussian((M, N), 3), torch.arange(1.0, N + 1) ** -2
    chosen = choose_modes(w, frequency, params=200)
    full = choose_modes(w, frequency.diag(), params=200)
    assert chosen.error == pytest.approx(full.error, rel=1e-2)


def test_one_answer_for_one_question():
    first, second = (choose_modes(*case(), params=190) for _ in range(2))
    assert first.tried == second.tried


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({}, ValueError, "exactly one of params and nbytes, got none"),
        ({"params": 200, "nbytes": 800}, ValueError, "got params and nbytes"),
        ({"params": 0}, ValueError, "params must be at least 1"),
        ({"params": 200.0}, TypeError, "params must be an integer"),
        ({"params": 20}, ValueError, "budget of 20 numbers is too small: the smallest train tried for a 24 x 32"),
        ({"nbytes": 80}, ValueError, "budget of 10 numbers is too small"),
        ({"params": 200, "finish": 0}, ValueError, "finish must be at least 1"),
        ({"params": 200, "held_out": torch.eye(3).double()}, ValueError, "held_out"),
    ],
)
def test_what_it_refuses(how, error, words):
    with pytest.raises(error, match=words):
        choose_modes(*case(), **how)


def test_other_weights_and_grams_that_it_refuses():
    w, gram = case()
    with pytest.raises(ValueError, match="another layer"):
        choose_modes(w, torch.eye(M).double(), params=200)
    with pytest.raises(ValueError, match="NaN"):
        choose_modes(torch.full_like(w, math.nan), gram, params=200)
    with pytest.raises(TypeError, match="torch.Tensor"):
        choose_modes(w.tolist(), gram, params=200)
    with pytest.raises(ValueError, match="24 x 1 weight has no modes"):
        choose_modes(w[:, :1], torch.eye(1).double(), params=200)
