"""Truncated SVD in the norm of a layer's inputs: the optimum, and what it is for special Gram matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian

from ttref import Baseline, truncated_svd
from ttref.fitting import Gram


def lost(w, made, gram):
    """The squared error of the outputs."""
    gap = made.double() - w.double()
    return ((gap @ gram) * gap).sum().item()


def inputs(tokens, width, seed=0):
    """Inputs whose directions differ a hundredfold."""
    return gaussian((tokens, width), seed) @ (gaussian((width, width), seed + 1) * torch.logspace(0, -2, width))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 8), st.integers(0, 99))
def test_no_matrix_of_this_rank_loses_less(m, n, rank, seed):
    w, x = gaussian((m, n), seed), inputs(3 * n, n, seed)
    gram = x.mT @ x
    made = truncated_svd(w, rank=rank, gram=gram)
    best = lost(w, made.approximation, gram)
    # The error of the outputs is that of the outputs' own SVD: no layer of this rank can do better.
    s = torch.linalg.svdvals(w @ x.mT)
    assert best == pytest.approx(s[rank:].square().sum().item(), rel=1e-6, abs=1e-10 * s.square().sum().item())
    left, right = made.stored["left"], made.stored["right"]
    for k in range(5):
        step = 10.0 ** -(k % 3)
        other = (left + step * gaussian(left.shape, k)) @ (right + step * gaussian(right.shape, k + 9))
        assert lost(w, other, gram) >= best * (1 - 1e-9)


def test_alternating_least_squares_finds_the_same():
    w, x = gaussian((9, 12), 3), inputs(40, 12, 4)
    gram = x.mT @ x
    left = gaussian((9, 3), 5)
    for _ in range(400):
        right = torch.linalg.lstsq(left, w).solution  # G cancels in the step for the right factor
        left = torch.linalg.solve(right @ gram @ right.mT, right @ gram @ w.mT).mT
    found = lost(w, truncated_svd(w, rank=3, gram=gram).approximation, gram)
    assert found == pytest.approx(lost(w, left @ right, gram), rel=1e-6)
    plain = lost(w, truncated_svd(w, rank=3).approximation, gram)
    assert found < 0.9 * plain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_for_white_inputs_it_is_the_svd(dtype):
    w = gaussian((20, 12), 0).to(dtype)
    made = truncated_svd(w, rank=4, gram=3 * torch.eye(12, dtype=torch.float64))
    plain = truncated_svd(w, rank=4)
    assert made.name == "whitened SVD rank 4" and made.dtype == dtype
    assert (made.params, made.nbytes, made.ranks, made.modes) == (
        plain.params,
        plain.nbytes,
        plain.ranks,
        plain.modes,
    )
    gap = (made.approximation.double() - plain.approximation.double()).norm() / w.double().norm()
    assert gap < 8 * torch.finfo(dtype).eps


def test_inputs_that_span_little_are_fitted_exactly():
    """Three directions were seen, so rank 3 suffices, and a rank above that adds nothing."""
    w, x = gaussian((8, 10), 1), gaussian((3, 10), 2)
    for rank in (3, 7):
        made = truncated_svd(w, rank=rank, gram=Gram.from_inputs(x))
        assert made.stored["left"].shape == (8, rank) and made.stored["right"].shape == (rank, 10)
        torch.testing.assert_close(made.approximation @ x.mT, w @ x.mT)
        unseen = torch.linalg.svd(x).Vh[3:]
        assert (made.approximation @ unseen.mT).abs().max() < 1e-10


def test_budgets_count_as_without_a_gram_matrix(path):
    w, gram = gaussian((16, 12), 0, torch.float32), Gram.from_inputs(gaussian((40, 12), 1))
    for budget in ({"rank": 3}, {"params": 100}, {"nbytes": 400}):
        made, plain = truncated_svd(w, gram=gram, **budget), truncated_svd(w, **budget)
        assert (made.nbytes, made.params) == (plain.nbytes, plain.params)
    made.save(path)
    torch.testing.assert_close(Baseline.load(path).approximation, made.approximation, rtol=0, atol=0)


def test_bad_gram_matrices_are_refused():
    w, good = gaussian((4, 3), 0), torch.eye(3)
    with pytest.raises(ValueError, match="width 3; is it the Gram matrix of another layer"):
        truncated_svd(w, rank=1, gram=torch.eye(4))
    with pytest.raises(ValueError, match="not symmetric"):
        truncated_svd(w, rank=1, gram=good + torch.triu(torch.ones(3, 3), 1))
    with pytest.raises(ValueError, match="negative eigenvalue -1"):
        truncated_svd(w, rank=1, gram=-good)
    with pytest.raises(ValueError, match="NaN"):
        truncated_svd(w, rank=1, gram=good * torch.nan)
    with pytest.raises(TypeError, match="gram must be a Gram or a tensor"):
        truncated_svd(w, rank=1, gram="identity")
