"""tntorch as oracle: its batched decomposition, inner products and norms."""

import pytest
import tntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import gaussian, modes, random_train, seeds

from ttref.algebra import tt_dot
from ttref.canonical import tt_norm, tt_round
from ttref.shapes import tt_ranks
from ttref.trains import tt_svd, tt_to_tensor

some_modes = modes.filter(lambda shape: len(shape) > 1)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    """Tntorch starts its products from ones of the default dtype, so other dtypes need it to be theirs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def backwards(x):
    """The modes behind the batch axis in reverse: tntorch truncates from the last bond to the first."""
    return x.permute(0, *range(x.ndim - 1, 0, -1))


@given(some_modes, st.integers(1, 5), seeds, st.sampled_from([torch.float64, torch.float32]))
def test_a_batch_of_tensors(shape, rank, seed, dtype):
    x = gaussian((4, *shape), seed, dtype)
    ours = tt_svd(backwards(x), rank=rank, batch_dims=1)
    theirs = tntorch.Tensor(x.clone(), ranks_tt=rank, batch=True)
    assert [core.shape[-1] for core in theirs.cores] == list(tt_ranks(shape, rank))[1:]
    assert [core.shape[-1] for core in ours] == list(tt_ranks(shape[::-1], rank))[1:]
    gap = torch.linalg.vector_norm(backwards(tt_to_tensor(ours)) - theirs.torch())
    assert gap <= (1e-8 if dtype == torch.float64 else 1e-3) * torch.linalg.vector_norm(x)


@given(some_modes, st.integers(1, 3), st.integers(1, 3), seeds)
def test_rounding_a_batch_of_trains(shape, rank, cap, seed):
    cores = random_train(shape, rank, seed, (3,))
    theirs = tntorch.Tensor([core.clone() for core in cores], batch=True)
    torch.testing.assert_close(tt_to_tensor(cores), theirs.torch())
    theirs.round_tt(rmax=cap)
    mirrored = [core.transpose(-3, -1) for core in reversed(cores)]
    ours = backwards(tt_to_tensor(tt_round(mirrored, rank=cap)))
    torch.testing.assert_close(ours, theirs.torch(), rtol=1e-7, atol=1e-7 * float(ours.abs().max()))


@given(some_modes, st.integers(1, 3), st.integers(1, 3), seeds)
def test_dot_and_norm(shape, r, s, seed):
    a, b = random_train(shape, r, seed), random_train(shape, s, seed + 1)
    x, y = tntorch.Tensor(a), tntorch.Tensor(b)
    size = float(tt_norm(a) * tt_norm(b))
    torch.testing.assert_close(tt_dot(a, b), tntorch.dot(x, y).reshape(()), rtol=1e-9, atol=1e-12 * size)
    torch.testing.assert_close(tt_norm(a), tntorch.norm(x).reshape(()), rtol=1e-7, atol=0)
    torch.testing.assert_close(tt_to_tensor(a), x.torch())
