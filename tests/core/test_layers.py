"""TTLinear against its dense twin: forward, gradients, compression, initialisation, saving, moving, compiling."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import agree, dense_matrix, gaussian, norm, random_matrix_train, seeds
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.pytorch_utils import Conv1D

from ttref import TTLinear, contraction, swap_layer
from ttref.plans import LEAST_CHUNK, cost
from ttref.shapes import balanced_modes, tt_ranks

FLOATS = [torch.float64, torch.float32]
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]
PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
widths = st.one_of(st.integers(1, 64), st.sampled_from(PRIMES))
# Arguments of layers that differ in all that matters: modes given or chosen, padding on either side, a bias or none.
ARGUMENTS = [
    {"in_shape": (4, 3), "out_shape": (2, 5), "rank": 3},
    {"in_shape": (8, 8, 12), "out_shape": (12, 16, 16), "rank": 8},
    {"in_shape": 64, "out_shape": 48, "rank": 4, "bias": False},
    {"in_shape": 61, "out_shape": 60, "rank": 5},
    {"in_shape": 60, "out_shape": 61, "rank": (1, 2, 5, 1)},
    {"in_shape": 67, "out_shape": 71, "rank": 2, "bias": False},
    {"in_shape": (12,), "out_shape": 7, "rank": 1},
    {"in_shape": 1, "out_shape": 1, "rank": 9},
]


def made(arguments, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return TTLinear(**arguments, dtype=dtype)


def weight_of(layer):
    """The dense weight, contracted independently of ttref and without its padding."""
    return dense_matrix(list(layer.cores))[: layer.out_features, : layer.in_features]


def vectors(layer, *batch, seed=1):
    return gaussian((*batch, layer.in_features), seed, layer.cores[0].dtype)


def assert_close(actual, expected, dtype=None):
    """Within rounding of the largest entry."""
    dtype = expected.dtype if dtype is None else dtype
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=200 * torch.finfo(dtype).eps * max(scale, 1e-30))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# Forward and gradients against the dense layer


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_forward_equals_the_dense_layer(arguments, dtype, monkeypatch):
    monkeypatch.setattr("ttref.contraction.WORTH_KEEPING", 0)
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
    assert layer.plan(50).chunk == LEAST_CHUNK < 50
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


# Compressing a layer


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


# Initialisation


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


# Modes and ranks


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize(
    "sides",
    [(768, 3072), (4096, 11008), (64, 10), (1, 7), (769, 97), (2048, 2048), ((2, 8, 16), 768), (11008, (32, 8, 4))],
    ids=str,
)
def test_chosen_modes_are_three_and_balanced_in_the_cheapest_order(sides, rank):
    """Where one side is given, the other follows it; the direction of the contraction is free."""
    layer = TTLinear(*sides, rank, device="meta")
    choices = []
    for side, shape in zip(sides, (layer.in_shape, layer.out_shape), strict=True):
        assert shape == side if isinstance(side, tuple) else tuple(sorted(shape)) == balanced_modes(side, 3)
        choices.append([side] if isinstance(side, tuple) else list(itertools.permutations(shape)))

    def macs(ins, outs):
        ranks = tt_ranks([m * n for m, n in zip(outs, ins, strict=True)], rank)
        shapes = list(zip(ranks[:-1], outs, ins, ranks[1:], strict=True))
        return min(cost(way, shapes, 1).macs for way in ("left-to-right", "right-to-left"))

    assert macs(layer.in_shape, layer.out_shape) == min(macs(ins, outs) for ins, outs in itertools.product(*choices))


def test_the_order_of_the_modes_decides_about_the_operations():
    """The odd mode of 11008 at the wrong end costs more than the dense layer, at the right end less than half."""
    dense = 4096 * 11008
    wrong = TTLinear((16, 16, 16), (16, 43, 16), 16, device="meta")
    assert wrong.plan(1).macs > 0.5 * dense > TTLinear(4096, 11008, 16, device="meta").plan(1).macs


def test_given_modes_fix_how_many_are_chosen_on_the_other_side():
    layer = TTLinear((4, 4, 2, 2), 81, 3)
    assert layer.in_shape == (4, 4, 2, 2) and sorted(layer.out_shape) == [3, 3, 3, 3]
    layer = TTLinear(81, [9, 9], 3)
    assert layer.in_shape == (9, 9) and layer.out_shape == (9, 9)
    assert TTLinear.from_linear(nn.Linear(16, 30), rank=2, in_shape=(4, 4)).out_shape in ((5, 6), (6, 5))


def test_many_modes_are_put_in_order_at_once():
    """Twelve equal modes have one order, not twelve factorial of them."""
    assert TTLinear((2,) * 12, 4096, 2).out_shape == (2,) * 12


def test_ranks_are_clipped_and_shown():
    layer = TTLinear((4, 4), (4, 4), 100)
    assert layer.ranks == (1, 16, 1) and "ranks=(1, 16, 1)" in repr(layer)
    assert TTLinear((2, 2, 2), (1, 1, 1), (1, 9, 9, 1)).ranks == (1, 2, 2, 1)


def test_padding_is_shown():
    layer = TTLinear(769, 64, 2)
    assert "input padded from 769 to 770" in repr(layer) and "output padded" not in repr(layer)
    layer = TTLinear(64, 769, 2)
    assert "output padded from 769 to 770" in repr(layer) and "input padded" not in repr(layer)
    assert "padded" not in repr(TTLinear(768, 64, 2))


def test_what_a_layer_says_about_itself():
    layer = TTLinear((8, 8, 12), (12, 16, 16), rank=8)
    assert layer.extra_repr() == (
        "in_features=768, out_features=3072, in_shape=(8, 8, 12), out_shape=(12, 16, 16), ranks=(1, 8, 8, 1), "
        "bias=True, ratio=225"
    )
    assert layer.ratio == 768 * 3072 / (12 * 8 * 8 + 8 * 16 * 8 * 8 + 8 * 16 * 12)
    assert sum(core.numel() for core in layer.cores) == 10496


def test_parameters_have_the_names_that_torch_gives_them():
    assert [name for name, _ in TTLinear(64, 48, 2).named_parameters()] == ["bias", "cores.0", "cores.1", "cores.2"]
    layer = TTLinear(64, 48, 2, bias=False)
    assert layer.bias is None and list(layer.state_dict()) == ["cores.0", "cores.1", "cores.2"]


def test_integers_of_other_libraries_are_integers():
    layer = TTLinear(np.int64(64), (np.int64(6), torch.tensor(8)), np.int32(3))
    plain = (layer.in_features, layer.out_features, *layer.in_shape, *layer.out_shape, *layer.ranks)
    assert all(type(number) is int for number in plain)
    assert (layer.in_features, layer.out_features) == (64, 48)


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


# Saving, copying, moving


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_state_goes_into_a_fresh_layer_of_the_same_arguments(arguments):
    layer, fresh = made(arguments, seed=0), made(arguments, seed=1)
    x = vectors(layer, 4)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert fresh.load_state_dict(torch.load(file, weights_only=True)).missing_keys == []
    assert agree(fresh(x), layer(x))
    with torch.device("meta"):
        bare = TTLinear(**arguments)
    bare.load_state_dict(layer.state_dict(), assign=True)
    assert agree(bare(x), layer(x))


def test_state_of_another_rank_is_refused():
    layer = TTLinear(64, 48, 3)
    before = state(layer)
    with pytest.raises(RuntimeError, match=r"size mismatch for cores\.0"):
        layer.load_state_dict(TTLinear(64, 48, 2).state_dict())
    assert layer.ranks == (1, 3, 3, 1) and layer.state_dict()["cores.0"].shape == before["cores.0"].shape


def through_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_torch_save])
def test_copies_work_and_share_nothing(copied):
    layer = made(ARGUMENTS[3])
    layer.cores[1].requires_grad_(False)
    x = vectors(layer, 4)
    twin, before = copied(layer.eval()), layer(x)
    assert agree(twin(x), before) and repr(twin) == repr(layer) and not twin.training
    assert [p.requires_grad for p in twin.cores] == [True, False, True] and twin.bias.requires_grad
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert agree(layer(x), before)


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arguments", ARGUMENTS[:4], ids=str)
def test_a_layer_moves_to_another_dtype(arguments, dtype, mode):
    layer = made(arguments)
    moved = copy.deepcopy(layer).to(dtype)
    x = vectors(layer, 6)
    with mode():
        y, expected = moved(x.to(dtype)), layer(x)
    assert y.dtype == dtype and {p.dtype for p in moved.parameters()} == {dtype}
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert norm(y.double() - expected.double()) <= 10 * unit * norm(expected)
    assert moved.to_linear().weight.dtype == dtype


def test_half_and_double_are_short_for_that():
    x = torch.randn(3, 64)
    for short, dtype in ((nn.Module.half, torch.float16), (nn.Module.double, torch.float64)):
        assert short(TTLinear(64, 48, 2))(x.to(dtype)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_layer_moves_to_a_gpu():
    for arguments, mode in itertools.product(ARGUMENTS, MODES):
        layer = made(arguments, torch.float64)
        x = vectors(layer, 70)
        with mode():
            assert_close(copy.deepcopy(layer).cuda()(x.cuda()).cpu(), layer(x))
        assert {p.device.type for p in TTLinear(**arguments, device="cuda").parameters()} == {"cuda"}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_a_layer_without_numbers(arguments):
    """On the meta device, as large models are laid out before their weights are read."""
    with torch.device("meta"):
        layer = TTLinear(**arguments)
    assert {p.device.type for p in (*layer.parameters(), *TTLinear(**arguments, device="meta").parameters())} == {
        "meta"
    }
    x = torch.empty(5, layer.in_features, device="meta")
    assert layer(x).shape == (5, layer.out_features) and layer(x).is_meta
    assert repr(layer) == repr(made(arguments))
    layer.to_empty(device="cpu").reset_parameters()
    mean_square = dense_matrix([core.detach().double() for core in layer.cores]).square().mean()
    assert float(mean_square) == pytest.approx(1 / (3 * layer.in_features), rel=1e-5)


def test_a_default_device_of_the_callers_does_not_matter():
    with torch.device("meta"):
        layer = TTLinear(64, 48, 3, device="cpu")
    assert float(weight_of(layer).detach().square().mean()) == pytest.approx(1 / 192, rel=1e-5)


def test_construction_can_skip_the_initialisation():
    layer = nn.utils.skip_init(TTLinear, 64, 48, 3)
    assert layer(torch.randn(2, 64)).shape == (2, 48)


# Autocast, compilers, transforms


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer_dtype", FLOATS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_autocast_answers_as_linear_does(arguments, layer_dtype, mode, monkeypatch):
    monkeypatch.setattr("ttref.contraction.WORTH_KEEPING", 0)
    layer = made(arguments, layer_dtype)
    dense = layer.to_linear()
    x = vectors(layer, 6)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), dense(x)
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if layer_dtype == torch.float32 else torch.float64)
    assert norm(ours.double() - dense(x).double()) <= torch.finfo(ours.dtype).eps * 10 * norm(theirs)


def test_autocast_takes_the_half_precision_of_the_layer_before():
    model = nn.Sequential(nn.Linear(16, 24), TTLinear(24, 32, 3), nn.ReLU(), TTLinear(32, 7, 3), nn.Linear(7, 3))
    x = torch.randn(5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    gradients = [p.grad for p in (x, *model.parameters())]
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in gradients)
    assert norm(y.detach() - model(x).detach()) <= 0.05 * norm(model(x).detach())


def test_compressing_under_autocast_loses_no_digits():
    dense = nn.Linear(24, 36)
    with torch.autocast("cpu", torch.bfloat16):
        layer = TTLinear.from_linear(dense, eps=0)
    assert layer.cores[0].dtype == torch.float32
    assert_close(weight_of(layer), dense.weight)


@pytest.mark.filterwarnings("error:.*lru_cache")  # the compiler warns where it has to look behind a cache
@pytest.mark.parametrize(("arguments", "dynamic"), [(ARGUMENTS[0], None), (ARGUMENTS[3], True)], ids=str)
def test_a_compiled_layer_gives_the_same_results(arguments, dynamic):
    """In one graph; ``aot_eager`` traces forward and backward as the full compiler does, without C++ at the end."""
    layer = made(arguments)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (1, 2, 40):
        ours, theirs = vectors(layer, batch).requires_grad_(), vectors(layer, batch).requires_grad_()
        y, expected = compiled(ours), layer(theirs)
        assert_close(y, expected)
        gradients = torch.autograd.grad(y.square().sum(), [ours, *layer.parameters()])
        references = torch.autograd.grad(expected.square().sum(), [theirs, *layer.parameters()])
        for gradient, reference in zip(gradients, references, strict=True):
            assert_close(gradient, reference)
        with torch.no_grad():
            assert_close(compiled(ours), expected)


def test_a_compiled_graph_does_not_grow_with_the_batch():
    """Cutting the batch into chunks would be unrolled: a minute of tracing for a hundred chunks."""
    layer, sizes = made(ARGUMENTS[1]), []

    def backend(graph, _):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    for batch in (64, 2000):
        torch._dynamo.reset()
        assert_close(
            torch.compile(layer, backend=backend, fullgraph=True)(vectors(layer, batch)), layer(vectors(layer, batch))
        )
    assert layer.plan(2000).chunk < 200
    assert max(sizes) <= min(sizes) + 5


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_layer_can_be_exported_for_a_batch_size(mode, monkeypatch):
    """For one: the exported graph holds one plan, and the plan follows the batch."""
    monkeypatch.setattr("ttref.contraction.WORTH_KEEPING", 0)
    layer = made(ARGUMENTS[3]).eval()
    x = vectors(layer, 4)
    with mode():
        program = torch.export.export(layer, (x,))
        assert_close(program.module()(2 * x), layer(2 * x))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_the_full_compiler_gives_the_same_results(dynamic):
    layer = made(ARGUMENTS[1])
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for batch in (1, 2, 64, 512):
        ours, theirs = vectors(layer, batch).requires_grad_(), vectors(layer, batch).requires_grad_()
        y, expected = compiled(ours), layer(theirs)
        assert_close(y, expected)
        assert_close(*torch.autograd.grad(y.sum(), ours), *torch.autograd.grad(expected.sum(), theirs))


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("arguments", ARGUMENTS[:4], ids=str)
def test_transforms_of_functions(arguments, mode, monkeypatch):
    """An ensemble, each member's bias alone, and the gradient of every example."""
    monkeypatch.setattr("ttref.contraction.WORTH_KEEPING", 0)
    layers = [made(arguments, torch.float64, seed) for seed in range(3)]
    layer, x = layers[0], vectors(layers[0], 5)
    parameters, buffers = torch.func.stack_module_state(layers)
    names = [name for name, _ in layer.named_parameters()]

    def call(parameters, x):
        return torch.func.functional_call(layer, (parameters, buffers), (x,))

    def loss(parameters, x):
        return call(parameters, x).square().sum()

    own = dict(layer.named_parameters())
    examples = [dict(zip(names, torch.autograd.grad(loss(own, row), list(own.values())), strict=True)) for row in x]
    with mode():
        ensemble = torch.func.vmap(call, (0, None))(parameters, x)
        assert_close(ensemble, torch.stack([member(x) for member in layers]))
        if layer.bias is not None:
            biased = torch.func.vmap(lambda bias: call({**own, "bias": bias}, x))(parameters["bias"])
            assert_close(biased, torch.stack([layer(x) - layer.bias + member.bias for member in layers]))
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(own, x)
    for name in names:
        assert_close(gradients[name], torch.stack([example[name] for example in examples]))


# Bad input: messages that name what is wrong, and nothing changed

DENSE = nn.Linear(12, 20)
HOLED = nn.Linear(12, 20)
with torch.no_grad():
    HOLED.weight[3, 4] = float("nan")
LAYER = TTLinear((3, 4), (4, 5), 2)
CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
compress, around = TTLinear.from_linear, TTLinear.from_cores


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TTLinear((3, 4), (2, 2, 5), 2), ValueError, r"in_shape \(3, 4\) has 2 modes and out_shape .* has 3"),
        (lambda: TTLinear(0, 4, 2), ValueError, "in_shape must be at least 1, got 0"),
        (lambda: TTLinear(4, -4, 2), ValueError, "out_shape must be at least 1, got -4"),
        (lambda: TTLinear(4.0, 4, 2), TypeError, "in_shape must be an integer, got 4.0 of type float"),
        (lambda: TTLinear(4, True, 2), TypeError, "out_shape must be an integer, got True"),
        (lambda: TTLinear("12", 4, 2), TypeError, "in_shape must be an integer, got '12' of type str"),
        (lambda: TTLinear(None, 4, 2), TypeError, "in_shape must be an integer, got None"),
        (lambda: TTLinear((), 4, 2), ValueError, "in_shape is empty"),
        (lambda: TTLinear((3, 0), 4, 2), ValueError, r"in_shape\[1\] must be at least 1, got 0"),
        (lambda: TTLinear(12, (2, 2.0), 2), TypeError, r"out_shape\[1\] must be an integer, got 2.0"),
        (lambda: TTLinear(12, (2, True), 2), TypeError, r"out_shape\[1\] must be an integer, got True"),
        (lambda: TTLinear(12, (2, "2"), 2), TypeError, r"out_shape\[1\] must be an integer, got '2'"),
        (lambda: TTLinear(12, 20, 0), ValueError, "rank must be at least 1, got 0"),
        (lambda: TTLinear(12, 20, 2.0), TypeError, "rank must be an integer, got 2.0"),
        (lambda: TTLinear(12, 20, None), TypeError, "rank must be an integer, got None"),
        (lambda: TTLinear(12, 20, (1, 2, 1)), ValueError, "rank has 3 entries, but 3 modes have 4 ranks"),
        (lambda: TTLinear(12, 20, (2, 2, 2, 2)), ValueError, "ends must be 1, got 2 and 2"),
        (lambda: TTLinear(12, 20, 2, dtype=torch.int64), RuntimeError, "[Oo]nly Tensors of floating point"),
        (lambda: compress(DENSE), ValueError, "exactly one of rank and eps, got neither"),
        (lambda: compress(DENSE, rank=2, eps=0.1), ValueError, "exactly one of rank and eps, got both"),
        (lambda: compress(DENSE, rank=0), ValueError, "rank must be at least 1, got 0"),
        (lambda: compress(DENSE, rank=2.5), TypeError, "rank must be an integer, got 2.5"),
        (lambda: compress(DENSE, eps=1), ValueError, r"eps is .* must lie in \[0, 1\), got 1"),
        (lambda: compress(DENSE, eps=float("nan")), ValueError, r"eps is .* must lie in \[0, 1\), got nan"),
        (lambda: compress(DENSE, eps="0.1"), TypeError, "eps must be a number"),
        (lambda: compress(DENSE, rank=2, in_shape=(3, 5)), ValueError, r"in_shape \(3, 5\) multiplies to 15.*is 12"),
        (lambda: compress(DENSE, rank=2, out_shape=(3, 7)), ValueError, r"out_shape \(3, 7\) multiplies to 21.*is 20"),
        (
            lambda: compress(DENSE, rank=2, in_shape=(3, 4), out_shape=(2, 2, 5)),
            ValueError,
            r"in_shape \(3, 4\) has 2 modes and out_shape \(2, 2, 5\) has 3",
        ),
        (lambda: compress(DENSE, rank=2, in_shape=12), TypeError, "in_shape must be a sequence of modes"),
        (lambda: compress(DENSE, rank=2, in_shape=(3, 4.0)), TypeError, r"in_shape\[1\] must be an integer, got 4.0"),
        (lambda: compress(HOLED, rank=2), ValueError, r"layer.weight has 1 entries that are NaN .* index \(3, 4\)"),
        (lambda: compress(nn.Linear(12, 20, dtype=torch.cfloat), rank=2), TypeError, "layer.weight is torch.complex64"),
        (lambda: compress(nn.Linear(12, 0), rank=2), ValueError, "layer.weight has no entries"),
        (lambda: compress(nn.Conv1d(12, 20, 1), rank=2), TypeError, "nn.Linear or GPT-2's Conv1D, got Conv1d"),
        (lambda: compress(nn.Embedding(12, 20), rank=2), TypeError, "nn.Linear or GPT-2's Conv1D, got Embedding"),
        (lambda: compress(LAYER, rank=2), TypeError, "nn.Linear or GPT-2's Conv1D, got TTLinear"),
        (lambda: compress(DENSE.weight, rank=2), TypeError, "nn.Linear or GPT-2's Conv1D, got Parameter"),
        (lambda: around([]), ValueError, "cores is empty"),
        (lambda: around(CORES[0]), TypeError, "must be a list of cores, got Tensor"),
        (lambda: around([CORES[0]]), ValueError, "end ranks of cores must be 1, got 1 on the left and 2"),
        (lambda: around([CORES[0], CORES[1].double()]), TypeError, r"cores\[1\] is torch.float64, cores\[0\]"),
        (lambda: around([CORES[0], CORES[0]]), ValueError, r"cores\[0\] ends with rank 2 but cores\[1\] begins"),
        (lambda: around([torch.ones(1, 2, 1)]), ValueError, r"cores\[0\] has shape \(1, 2, 1\).*four axes"),
        (lambda: around(CORES, torch.ones(7)), ValueError, r"bias has shape \(7,\), but the layer has 8 outputs"),
        (lambda: around(CORES, torch.ones(8, 1)), ValueError, r"bias has shape \(8, 1\), but the layer has 8"),
        (lambda: around(CORES, torch.ones(8), out_features=7), ValueError, r"shape \(8,\), but the layer has 7"),
        (lambda: around(CORES, [0.0] * 8), TypeError, "bias must be a torch.Tensor, got list"),
        (lambda: around(CORES, torch.ones(8).double()), TypeError, "bias is torch.float64 but the cores are .*float32"),
        (lambda: around(CORES, in_features=16), ValueError, r"in_features is 16, but the modes \(3, 5\) .* 15 only"),
        (lambda: around(CORES, out_features=9), ValueError, r"out_features is 9, but the modes \(2, 4\) .* 8 only"),
        (lambda: around(CORES, in_features=0), ValueError, "in_features must be at least 1, got 0"),
        (lambda: around(CORES, in_features=15.0), TypeError, "in_features must be an integer, got 15.0"),
        (lambda: around(CORES, out_features=True), TypeError, "out_features must be an integer, got True"),
        (lambda: around(CORES, out_features="8"), TypeError, "out_features must be an integer, got '8'"),
        (lambda: LAYER(torch.ones(3, 13)), ValueError, r"x has shape \(3, 13\); .* in_features = 12"),
        (lambda: LAYER(torch.ones(12, 3)), ValueError, r"x has shape \(12, 3\); .* in_features = 12"),
        (lambda: LAYER(torch.tensor(1.0)), ValueError, r"x has shape \(\); .* in_features = 12"),
        (lambda: LAYER(torch.ones(3, 12).double()), TypeError, "x is torch.float64 but the cores are torch.float32"),
        (lambda: LAYER(torch.ones(3, 12).long()), TypeError, "x is torch.int64 but the cores are torch.float32"),
    ],
)
def test_bad_input(call, error, message):
    before = [copy.deepcopy(module) for module in (DENSE, LAYER)]
    with pytest.raises(error, match=message):
        call()
    for module, old in zip((DENSE, LAYER), before, strict=True):
        assert_same_state(module, old.state_dict())
        assert repr(module) == repr(old)


def test_autocast_does_not_turn_whole_numbers_into_vectors():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="x is torch.int64"):
        LAYER(torch.ones(3, 12).long())


# Code that looks at nn.Linear's weight


def test_a_transformer_layer_may_hold_one():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    dense = copy.deepcopy(encoder)
    swap_layer(encoder, "linear1", TTLinear.from_linear(encoder.linear1, eps=0))
    x = torch.randn(2, 3, 16)
    for fast in (torch.no_grad, torch.enable_grad):
        with fast():
            torch.testing.assert_close(encoder(x), dense(x), rtol=1e-4, atol=1e-5)


def test_the_dense_weight_is_exact_under_autocast():
    layer = TTLinear(64, 48, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        torch.testing.assert_close(layer.to_linear().weight, layer.weight)
    torch.testing.assert_close(layer.to_linear().weight, layer.weight)


def test_a_parametrized_layer_stays_trainable():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(12, 20))
    assert all(core.requires_grad for core in TTLinear.from_linear(layer, rank=2).cores)
    layer.parametrizations.weight.requires_grad_(False)
    assert not any(core.requires_grad for core in TTLinear.from_linear(layer, rank=2).cores)


@pytest.mark.parametrize("bias", [True, False])
def test_a_padded_answer_lies_in_one_piece(bias):
    layer = TTLinear(64, 769, 4, bias=bias)
    assert layer(torch.randn(5, 64)).view(-1).shape == (5 * 769,)


def test_without_a_bias_one_can_still_be_registered():
    layer = TTLinear(8, 8, 2, bias=False)
    assert layer.bias is None
    layer.register_parameter("bias", nn.Parameter(torch.ones(8)))
    torch.testing.assert_close(layer(torch.zeros(1, 8)), torch.ones(1, 8))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the trace is for one batch size, as it says
@pytest.mark.parametrize("how", ["jit", "fx"])
def test_a_traced_layer_holds_no_memory_of_the_thread(how, monkeypatch):
    """Kept memory inside a graph would be shared by every thread that runs it."""
    monkeypatch.setattr("ttref.contraction.WORTH_KEEPING", 0)
    layer, x = TTLinear((4, 4, 4), (4, 4, 4), 3), torch.randn(6, 64)
    with torch.no_grad():
        expected = layer(x)
        if how == "jit":
            traced = torch.jit.trace(layer, (x,), check_trace=False)
            constants = [node for node in traced.graph.nodes() if node.kind() == "prim::Constant"]
            held = [node.t("value") for node in constants if "Tensor" in str(node.output().type())]
        else:
            traced = make_fx(layer)(x)
            held = [value for value in vars(traced).values() if isinstance(value, torch.Tensor)]
        kept = {buffer.data_ptr() for buffer in getattr(contraction._KEPT, "buffers", ())}
        assert not kept & {tensor.data_ptr() for tensor in held}
        torch.testing.assert_close(traced(x), expected)
