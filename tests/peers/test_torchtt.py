"""torchTT as oracle: tensors within eps, arithmetic, products with matrices in its core convention, and its layer."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, modes, random_train, seeds

from ttref import TTLinear
from ttref.algebra import tt_add, tt_dot, tt_hadamard
from ttref.canonical import tt_norm, tt_round
from ttref.contraction import ttm_matvec
from ttref.matrices import ttm_svd, ttm_to_matrix
from ttref.plans import ORDERS
from ttref.trains import tt_svd, tt_to_tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it tells everyone that its C++ part was not built
    import torchtt

some_modes = modes.filter(lambda shape: len(shape) > 1)
ranks = st.integers(1, 3)
accuracies = st.floats(0.01, 0.8)
matrix_modes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3)


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def assert_same(ours, theirs):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-9, atol=1e-10 * scale)


@given(some_modes, accuracies, seeds)
def test_both_keep_their_word_about_eps(shape, eps, seed):
    x = gaussian(tuple(shape), seed)
    ours, theirs = tt_svd(x, eps=eps), torchtt.TT(x, eps=eps)
    assert relative(tt_to_tensor(ours), x) <= eps + 1e-12
    assert relative(theirs.full(), x) <= eps + 1e-12
    rounded = tt_round(list(torchtt.TT(x, eps=0.0).cores), eps=eps)  # their exact train, rounded by us
    assert relative(tt_to_tensor(rounded), x) <= eps + 1e-12
    assert [core.shape for core in ours] == [core.shape for core in rounded]


@given(some_modes, ranks, accuracies, seeds)
def test_trains_go_both_ways_and_round_within_eps(shape, rank, eps, seed):
    cores = random_train(shape, rank, seed)
    full = tt_to_tensor(cores)
    assert_same(full, torchtt.TT(cores).full())
    theirs = torchtt.TT(cores).round(eps)
    assert relative(theirs.full(), full) <= eps + 1e-12
    assert_same(tt_to_tensor(list(theirs.cores)), theirs.full())


@given(some_modes, ranks, ranks, seeds)
def test_arithmetic(shape, r, s, seed):
    a, b = random_train(shape, r, seed), random_train(shape, s, seed + 1)
    x, y = torchtt.TT(a), torchtt.TT(b)
    # A product of signs may cancel, so its size is the norms' and not its own.
    size = float(tt_norm(a) * tt_norm(b))
    torch.testing.assert_close(tt_dot(a, b), torchtt.dot(x, y).reshape(()), rtol=1e-9, atol=1e-12 * size)
    torch.testing.assert_close(tt_norm(a), x.norm().reshape(()), rtol=1e-7, atol=0)
    assert_same(tt_to_tensor(tt_add(a, b)), (x + y).full())
    assert_same(tt_to_tensor(tt_hadamard(a, b)), (x * y).full())
    assert [core.shape for core in tt_add(a, b)] == [core.shape for core in (x + y).cores]
    assert [core.shape for core in tt_hadamard(a, b)] == [core.shape for core in (x * y).cores]


@given(matrix_modes, accuracies, seeds)
def test_matrices_times_vectors(shape, eps, seed):
    """Cores are (r, M, N, r) on both sides: torchTT multiplies with ours and we with torchTT's."""
    rows, cols = [m for m, _ in shape], [n for _, n in shape]
    w = gaussian((math.prod(rows), math.prod(cols)), seed)
    x = gaussian((5, math.prod(cols)), seed + 1)
    ours = ttm_svd(w, rows, cols, eps=eps)
    theirs = torchtt.TT(w.reshape(*rows, *cols), shape=shape, eps=eps)
    assert theirs.is_ttm and relative(theirs.full().reshape(w.shape), w) <= eps + 1e-12
    assert relative(ttm_to_matrix(ours), w) <= eps + 1e-12
    for cores in (ours, list(theirs.cores)):
        expected = torchtt.TT(cores) @ x.reshape(5, *cols)
        for order in (*ORDERS, "auto"):
            torch.testing.assert_close(
                ttm_matvec(cores, x, order), expected.reshape(5, -1), rtol=1e-9, atol=1e-10 * float(w.norm())
            )


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # its initialization
@given(matrix_modes, ranks, st.sampled_from([(), (1,), (7,), (2, 3)]), seeds)
def test_layers_with_the_same_cores(shape, rank, batch, seed):
    """Its layer takes and gives tensors, one axis for each mode; the cores are copied from ours."""
    torch.manual_seed(seed)
    ours = TTLinear([n for _, n in shape], [m for m, _ in shape], rank, dtype=torch.float64)
    theirs = torchtt.nn.LinearLayerTT(list(ours.in_shape), list(ours.out_shape), list(ours.ranks), dtype=torch.float64)
    with torch.no_grad():
        for mine, core in zip(theirs.cores, ours.cores, strict=True):
            mine.copy_(core)
        theirs.bias.copy_(ours.bias.reshape(ours.out_shape))
    x = gaussian((*batch, ours.in_features), seed + 1)
    y, expected = ours(x), theirs(x.reshape(*batch, *ours.in_shape)).reshape(*batch, ours.out_features)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max() + 1))
    gradients = torch.autograd.grad(y.sum(), [*ours.cores, ours.bias])
    references = torch.autograd.grad(expected.sum(), [*theirs.cores, theirs.bias])
    for gradient, reference in zip(gradients, references, strict=True):
        assert_same(gradient, reference)
