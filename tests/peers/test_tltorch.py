"""TensorLy-Torch as oracle: its factorized layers compute the same function from the same cores."""

import contextlib
import io
import math
import warnings

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gaussian, seeds

from ttref import TTLinear, TTMEmbedding

before = tensorly.get_backend()
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    import tltorch
tensorly.set_backend(before)  # importing it sets the backend for everyone

pytestmark = pytest.mark.usefixtures("torch_backend")

shapes = st.lists(st.tuples(st.integers(2, 4), st.integers(2, 4)), min_size=2, max_size=4)


def twin(ours, implementation):
    """A layer of theirs that holds the cores and the bias of one of ours."""
    theirs = tltorch.FactorizedLinear(
        ours.in_shape,
        ours.out_shape,
        bias=ours.bias is not None,
        factorization="blocktt",
        rank=list(ours.ranks),
        implementation=implementation,
        dtype=ours.cores[0].dtype,
    )
    with torch.no_grad():
        for factor, core in zip(theirs.weight.factors, ours.cores, strict=True):
            assert factor.shape == core.shape
            factor.copy_(core)
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias)
    return theirs


@settings(max_examples=40)
@given(shapes, st.integers(1, 6), st.integers(1, 30), st.booleans(), seeds)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
def test_layers_with_the_same_cores(implementation, dtype, shape, rank, batch, bias, seed):
    torch.manual_seed(seed)
    ours = TTLinear([n for _, n in shape], [m for m, _ in shape], rank, bias=bias, dtype=dtype)
    theirs = twin(ours, implementation)
    x = gaussian((batch, ours.in_features), seed, dtype)
    y, expected = ours(x), theirs(x)
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))
    # Gradients too: their cores are called factors.
    upstream = torch.ones_like(y)
    gradients = torch.autograd.grad(y, list(ours.cores), upstream)
    references = torch.autograd.grad(expected, list(theirs.weight.factors), upstream)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=tolerance * float(reference.abs().max() + 1))


def test_the_layers_of_the_benchmark():
    for in_shape, out_shape, rank in (((8, 8, 12), (12, 16, 16), 8), ((64, 64), (86, 128), 32)):
        ours = TTLinear(in_shape, out_shape, rank)
        x = gaussian((3, math.prod(in_shape)), 0, torch.float32)
        with torch.no_grad():
            for implementation in ("factorized", "reconstructed"):
                torch.testing.assert_close(twin(ours, implementation)(x), ours(x), rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(shapes, st.integers(1, 6), st.integers(1, 60), seeds)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tables_with_the_same_cores(dtype, shape, rank, count, seed):
    """Rows, and the gradients of the cores; theirs looks up digits for each id, ours shares what ids have in common."""
    torch.manual_seed(seed)
    ours = TTMEmbedding([m for m, _ in shape], [n for _, n in shape], rank, dtype=dtype)
    theirs = table_twin(ours)
    ids = torch.randint(0, ours.num_embeddings, (count,), generator=torch.Generator().manual_seed(seed))
    rows, expected = ours(ids), theirs(ids)
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(rows, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))
    upstream = gaussian(rows.shape, seed, dtype)
    gradients = torch.autograd.grad(rows, list(ours.cores), upstream)
    references = torch.autograd.grad(expected, list(theirs.weight.factors), upstream)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=tolerance * float(reference.abs().max() + 1))


def table_twin(ours):
    """A table of theirs that holds the cores of one of ours."""
    theirs = tltorch.FactorizedEmbedding(
        ours.num_embeddings,
        ours.embedding_dim,
        auto_tensorize=False,
        tensorized_num_embeddings=list(ours.row_shape),
        tensorized_embedding_dim=list(ours.col_shape),
        factorization="blocktt",
        rank=list(ours.ranks),
    ).to(ours.dtype)
    with torch.no_grad():
        for factor, core in zip(theirs.weight.factors, ours.cores, strict=True):
            assert factor.shape == core.shape
            factor.copy_(core)
    return theirs


def test_the_table_of_the_benchmark():
    ours = TTMEmbedding((16, 24, 131), (4, 12, 16), rank=8)
    theirs = table_twin(ours)
    assert sum(p.numel() for p in theirs.parameters()) == ours.params == 35_712
    ids = torch.tensor([0, 1, 130, 131, 3143, 3144, 50_256, 50_303])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-4, atol=1e-4)
