"""TTLinear against its dense twin: forward and gradients, compression, initialization, given cores."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import (
    ARGUMENTS,
    assert_close,
    assert_same_state,
    made,
    state,
    vectors,
    weight_of,
)
from strategies import agree, dense_matrix, gaussian, norm, random_matrix_train, seeds
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttref import TTLinear
from ttref.shapes import tt_ranks

FLOATS = [torch.float64, torch.float32]
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
widths = st.one_of(st.integers(1, 64), st.sampled_from(PRIMES))


# Forward and gradients against the dense layer


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_forward_equals_the_dense_layer(arguments, dtype, monkeypatch):
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    layer = made(arguments, dtype)
    dense = layer.to_linear()
    assert_close(dense.weight, weight_of(layer))
    for batch, mode in itertools.product([(), (1,), (0,), (70,), (2, 3), (2, 0, 3)], MODES):
        x = vectors(layer, *batch)
        with mode():
            y = layer(x)
            assert y.shape == (*batch, layer.out_features) and y.dtype == dtype
            assert_close(y, dense(x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_gradients_equal_those_of_the_dense_layer(arguments, dtype):
    """Those of the cores follow from nn.Linear's gradient of its weight by the chain rule through the matrix."""
    layer = made(arguments, dtype)
    dense = layer.to_linear()
    ours, theirs = vectors(layer, 5).requires_grad_(), vectors(layer, 5).requires_grad_()
    upstream = gaussian((5, layer.out_features), 2, dtype)
    layer(ours).backward(upstream)
    dense(theirs).backward(upstream)
    assert_close(ours.grad, theirs.grad)
    expected = torch.autograd.grad(weight_of(layer), list(layer.cores), dense.weight.grad)
    for core, gradient in zip(layer.cores, expected, strict=True):
        assert_close(core.grad, gradient)
    if layer.bias is not None:
        assert_close(layer.bias.grad, dense.bias.grad)


@given(widths, widths, st.integers(1, 6), st.integers(1, 40), seeds)
def test_random_widths_forward_and_backward(ins, outs, rank, batch, seed):
    layer = made({"in_shape": ins, "out_shape": outs, "rank": rank}, torch.float64, seed)
    x = vectors(layer, batch).requires_grad_()
    upstream = gaussian((batch, outs), 2)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x), inputs, upstream)
    y = nn.functional.linear(x, weight_of(layer), layer.bias)
    assert_close(layer(x), y)
    for gradient, expected in zip(ours, torch.autograd.grad(y, inputs, upstream), strict=True):
        assert_close(gradient, expected)


def test_the_gradient_in_chunks_is_that_of_the_whole_batch(monkeypatch):
    layer = made(ARGUMENTS[1], torch.float64)
    x = vectors(layer, 50)
    whole = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    monkeypatch.setattr("ttref.plans.WORKING_BYTES", 1)
    assert layer.plan(50).chunk == 1
    chunks = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for ours, expected in zip(chunks, whole, strict=True):
        assert_close(ours, expected)


def test_a_training_step_lowers_the_loss():
    layer = made({"in_shape": 30, "out_shape": 20, "rank": 4})
    x, y = gaussian((64, 30), 0, torch.float32), gaussian((64, 20), 1, torch.float32)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_the_plan_is_that_of_the_batch():
    layer = made(ARGUMENTS[1])
    assert layer.plan(64).macs > layer.plan(1).macs > 0
    assert layer.plan(0) == layer.plan(1)


@st.composite
def layers_to_compress(draw):
    """A dense layer of random widths, and modes for it: left out, or one of the ways to factor a width."""
    order = draw(st.integers(1, 3))
    given_modes = draw(st.sampled_from([(), ("in_shape",), ("out_shape",), ("in_shape", "out_shape")]))
    modes = {name: tuple(draw(st.lists(st.integers(1, 5), min_size=order, max_size=order))) for name in given_modes}
    ins, outs = (math.prod(modes[name]) if name in modes else draw(widths) for name in ("in_shape", "out_shape"))
    dtype = draw(st.sampled_from(FLOATS))
    torch.manual_seed(draw(seeds))
    layer = nn.Linear(ins, outs, bias=draw(st.booleans()), dtype=dtype)
    layer.weight.requires_grad_(draw(st.booleans()))
    if layer.bias is not None:
        layer.bias.requires_grad_(draw(st.booleans()))
    return layer.train(draw(st.booleans())), modes


# Compressing a layer


@settings(max_examples=200)
@given(layers_to_compress(), st.one_of(st.integers(1, 8), st.just(10**6)), st.floats(0, 0.9), st.booleans())
def test_from_linear(example, rank, eps, by_rank):
    dense, modes = example
    before = state(dense)
    layer = TTLinear.from_linear(dense, **({"rank": rank} if by_rank else {"eps": eps}), **modes)
    for name, shape in modes.items():
        assert getattr(layer, name) == shape
    assert (layer.in_features, layer.out_features) == (dense.in_features, dense.out_features)
    assert len(layer.in_shape) == len(layer.out_shape) == (len(next(iter(modes.values()))) if modes else 3)

    unit = torch.finfo(dense.weight.dtype).eps
    error = norm(weight_of(layer) - dense.weight) / norm(dense.weight)
    if by_rank:
        paired = [m * n for m, n in zip(layer.out_shape, layer.in_shape, strict=True)]
        assert layer.ranks == tt_ranks(paired, rank)
        assert error <= 1
    if not by_rank or rank == 10**6:
        assert error <= (0 if by_rank else eps) + 10 * len(layer.cores) * unit

    assert {p.dtype for p in layer.parameters()} == {dense.weight.dtype}
    assert {core.requires_grad for core in layer.cores} == {dense.weight.requires_grad}
    assert layer.training == dense.training
    if dense.bias is None:
        assert layer.bias is None
    else:
        assert torch.equal(layer.bias, dense.bias) and layer.bias.requires_grad == dense.bias.requires_grad

    with torch.no_grad():  # nothing is shared, and the old layer is as it was
        for parameter in layer.parameters():
            parameter.add_(1)
    assert_same_state(dense, before)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("nf", "nx"), [(48, 16), (12, 35), (37, 24)])
def test_from_conv1d_of_gpt2(nf, nx, dtype):
    """Its weight is stored in x out, the transpose of nn.Linear's."""
    conv = Conv1D(nf, nx).to(dtype)
    nn.init.normal_(conv.bias)
    conv.weight.requires_grad_(False)
    before = state(conv)
    layer = TTLinear.from_linear(conv.eval(), eps=0)
    x = gaussian((2, 5, nx), 0, dtype).contiguous()  # GPT-2's layer wants rows that lie one after the other
    assert (layer.in_features, layer.out_features) == (nx, nf)
    assert norm(weight_of(layer).double() - conv.weight.T.double()) <= 20 * torch.finfo(dtype).eps * norm(conv.weight)
    assert norm(layer(x).double() - conv(x).double()) <= 20 * torch.finfo(dtype).eps * norm(conv(x))
    assert [core.requires_grad for core in layer.cores] == [False] * 3 and layer.bias.requires_grad
    assert not layer.training
    assert_same_state(conv, before)


def test_a_layer_that_is_a_subclass_of_linear():
    attention = nn.MultiheadAttention(16, 2)
    layer = TTLinear.from_linear(attention.out_proj, eps=0)
    assert_close(weight_of(layer), attention.out_proj.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(64, 48), (61, 60), (60, 61)])
def test_from_linear_and_back(widths, bias):
    dense = nn.Linear(*widths, bias=bias, dtype=torch.float64).eval()
    dense.weight.requires_grad_(False)
    frozen = TTLinear.from_linear(nn.Linear(*widths).requires_grad_(False), eps=0).to_linear()
    assert not any(p.requires_grad for p in frozen.parameters())
    back = TTLinear.from_linear(dense, eps=0).to_linear()
    assert type(back) is nn.Linear and not back.training
    assert not back.weight.requires_grad
    assert (back.in_features, back.out_features, back.weight.dtype) == (*widths, torch.float64)
    assert_close(back.weight, dense.weight)
    assert back.bias is None if not bias else (torch.equal(back.bias, dense.bias) and back.bias.requires_grad)


def test_to_linear_shares_nothing_with_the_layer():
    layer = made(ARGUMENTS[6])  # a single core of rank one is the matrix itself
    before = state(layer)
    dense = layer.to_linear()
    assert dense.weight.requires_grad and dense.bias.requires_grad
    with torch.no_grad():
        dense.weight.zero_(), dense.bias.zero_()
    assert_same_state(layer, before)


# Initialization


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weight_starts_with_the_mean_square_of_linear(order):
    """Exactly, and not only on average: rank one has far too heavy tails for an average to help."""
    in_shape, out_shape = (6, 4, 2, 3)[:order], (5, 3, 4, 2)[:order]
    for rank, seed in itertools.product(range(1, 17), range(3)):
        layer = made({"in_shape": in_shape, "out_shape": out_shape, "rank": rank}, seed=seed)
        mean_square = dense_matrix([core.detach().double() for core in layer.cores]).square().mean()
        assert float(mean_square) == pytest.approx(1 / (3 * math.prod(in_shape)), rel=1e-5)
        sizes = [float(norm(core)) / core.numel() ** 0.5 for core in layer.cores]
        assert max(sizes) < 100 * min(sizes)  # no core carries the scale alone


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_white_input_gives_the_output_variance_of_linear(order, rank):
    layer = made({"in_shape": (4,) * order, "out_shape": (3,) * order, "rank": rank})
    dense = nn.Linear(4**order, 3**order)
    x = vectors(layer, 20_000)
    with torch.no_grad():
        layer.bias.zero_(), dense.bias.zero_()
        ours = layer(x).square().mean()
        assert float(ours) == pytest.approx(1 / 3, rel=0.05)
        if order > 1:  # a dozen entries are too few for nn.Linear, which has its mean square on average
            assert float(dense(x).square().mean()) == pytest.approx(1 / 3, rel=0.1)


def test_the_padded_weight_starts_with_the_mean_square_of_its_true_width():
    layer = made({"in_shape": 61, "out_shape": 59, "rank": 4})
    padded = dense_matrix([core.detach().double() for core in layer.cores])
    assert padded.shape != (59, 61)
    assert float(padded.square().mean()) == pytest.approx(1 / (3 * 61), rel=1e-5)


def test_the_bias_starts_as_that_of_linear():
    bias = made({"in_shape": 100, "out_shape": 10_000, "rank": 1}).bias.detach()
    assert bias.abs().max() <= 0.1
    assert float(bias.square().mean()) == pytest.approx(0.1**2 / 3, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_start_alike(dtype):
    layer = made({"in_shape": (8, 8), "out_shape": (8, 8), "rank": 4}, dtype)
    mean_square = dense_matrix([core.detach().double() for core in layer.cores]).square().mean()
    assert float(mean_square) == pytest.approx(1 / 192, rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_default_dtype_is_torchs(dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert {p.dtype for p in TTLinear(12, 20, 2).parameters()} == {dtype}
    finally:
        torch.set_default_dtype(before)


def test_the_start_is_drawn_from_torchs_generator():
    one, same, other = (state(made(ARGUMENTS[0], seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


# Around given cores


def test_from_cores_copies_and_keeps_what_is_frozen():
    cores = random_matrix_train([(2, 3), (4, 5)], 0)
    bias = nn.Parameter(torch.zeros(7, dtype=torch.float64), requires_grad=False)
    layer = TTLinear.from_cores(
        [nn.Parameter(cores[0], requires_grad=False), cores[1]], bias, in_features=13, out_features=7
    )
    assert [core.requires_grad for core in layer.cores] == [False, True] and not layer.bias.requires_grad
    assert (layer.in_shape, layer.out_shape, layer.ranks) == ((3, 5), (2, 4), (1, 2, 1))
    x = gaussian((3, 13), 1)
    expected = x @ dense_matrix(cores)[:7, :13].T
    assert_close(layer(x), expected)
    cores[0].zero_(), cores[1].zero_(), bias.data.fill_(1)
    assert_close(layer(x), expected)


def test_from_the_cores_of_another_layer():
    layer = made(ARGUMENTS[3])
    twin = TTLinear.from_cores(layer.cores, layer.bias, in_features=layer.in_features, out_features=layer.out_features)
    assert agree(twin(vectors(layer, 3)), layer(vectors(layer, 3)))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(twin.parameters(), layer.parameters(), strict=True))


def test_cores_that_are_views_become_plain_ones():
    """A slice or a transpose of something large would drag that along into every saved file."""
    whole = torch.randn(1, 3, 2, 1).transpose(1, 2)
    layer = TTLinear.from_cores([whole])
    assert layer.cores[0].is_contiguous() and layer.cores[0].untyped_storage().nbytes() == 24


def test_a_result_of_computations_with_grad_becomes_a_leaf():
    core = torch.randn(1, 3, 2, 1, requires_grad=True) * 2
    assert TTLinear.from_cores([core]).cores[0].is_leaf
