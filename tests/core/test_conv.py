"""TTConv2d against its dense twin: both ways of computing, gradients, compression, files, and what is refused."""

import itertools
import math

import pytest
import torch
from linears import assert_close
from strategies import dense_matrix, gaussian
from torch import nn
from torch.nn import functional as F

import ttref
from ttref import TTConv2d
from ttref.convolving import patches, plan_conv
from ttref.integer_cores import quantize_cores

# Settings of convolutions that differ in all that matters.
PLAIN = {"kernel_size": (3, 3), "padding": (1, 1)}
STRIDED = {"kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
FLAT, TALL, POINT = {"kernel_size": (1, 5)}, {"kernel_size": (5, 1), "stride": (2, 3)}, {"kernel_size": (1, 1)}
WIDE = {"kernel_size": (2, 3), "padding": (2, 1), "dilation": (2, 1), "stride": (1, 2)}


def made(rows, cols, taps_first=False, bias=True, dtype=torch.float64, ranks=(3, 2), **settings):
    bonds = (1, *ranks[: len(rows) - 1], 1)
    cores = [
        gaussian((a, m, n, b), k, dtype)
        for k, (a, m, n, b) in enumerate(zip(bonds[:-1], rows, cols, bonds[1:], strict=True))
    ]
    bias = gaussian((math.prod(rows),), 9, dtype) if bias else None
    return TTConv2d.from_cores(cores, bias, taps_first=taps_first, **settings)


def kernel(layer):
    """The kernel by one einsum a core, and the patch put in order by hand."""
    matrix = dense_matrix(list(layer.cores))
    outs, ins, (height, width) = layer.out_channels, layer.in_channels, layer.kernel_size
    if layer.taps_first:
        return torch.stack([matrix.reshape(outs, height, width, ins)[..., channel] for channel in range(ins)], 1)
    return matrix.reshape(outs, ins, height, width)


def twin(layer, x):
    bias = None if layer.bias is None else layer.bias
    return F.conv2d(x, kernel(layer), bias, layer.stride, layer.padding, layer.dilation)


def pictures(layer, *batch, size=(9, 10), seed=5):
    return gaussian((*batch, layer.in_channels, *size), seed, layer.dtype)


# Row modes, column modes, taps first, settings, and whether a cut of the train makes two stages.
CASES = [
    ((6, 1), (1, 36), False, PLAIN, True),  # truncated SVD: taps, then 1 x 1
    ((6, 1), (9, 4), True, PLAIN, True),  # 1 x 1, then taps
    ((3, 2), (18, 2), True, STRIDED, True),  # channels in two blocks, one projection for both
    ((3, 2), (2, 18), False, STRIDED, True),
    ((2, 3), (3, 12), True, WIDE, False),  # 2 x 3 taps cut across the rows
    ((2, 3), (2, 12), True, WIDE, True),  # 1 x 3, then 2 x 1
    ((2, 3), (8, 3), False, WIDE, True),
    ((2, 3), (24, 1), False, WIDE, True),
    ((6, 1), (4, 9), False, PLAIN, True),
    ((6, 1), (6, 6), False, PLAIN, False),
    ((6, 1), (5, 4), True, FLAT, True),
    ((1, 6), (4, 5), False, TALL, True),
    ((2, 3), (2, 2), False, POINT, True),
    ((6, 1, 1), (1, 9, 4), True, PLAIN, True),  # Tucker's three
    ((2, 3, 1), (3, 3, 4), True, STRIDED, True),
    ((6,), (36,), False, PLAIN, False),
]


@pytest.mark.parametrize("rows, cols, taps, settings, staged", CASES)
def test_both_ways_equal_the_dense_convolution(rows, cols, taps, settings, staged):
    layer = made(rows, cols, taps, **settings)
    x = pictures(layer, 2)
    expected = twin(layer, x)
    assert_close(layer(x), expected)
    assert_close(layer(x[0]), expected[0])
    assert_close(layer.weight, kernel(layer))
    assert_close(layer.to_conv()(x), expected)
    plan = layer.plan(x.shape)
    assert plan.dense == expected.numel() * math.prod(cols)
    cuts = [plan_conv(layer._shapes, layer._geometry, batch, (9, 10)) for batch in (1, 100)]
    assert any(each.way == "factored" for each in cuts) <= staged
    forced = _every_cut(layer, x)
    assert bool(forced) == staged
    for y in forced:
        assert_close(y, expected)


def test_the_dense_convolution_is_trainable_where_all_cores_are():
    layer = made((6, 1), (4, 9), False, **PLAIN)
    assert all(part.requires_grad for part in layer.to_conv().parameters())
    layer.cores[0].requires_grad_(False)
    dense = layer.to_conv()
    assert not dense.weight.requires_grad and dense.bias.requires_grad
    rounded = TTConv2d.from_conv(dense.requires_grad_(True), rank=2, row_shape=(6, 1), col_shape=(4, 9), core_bits=4)
    assert not rounded.to_conv().weight.requires_grad


def _every_cut(layer, x):
    """The answer in two stages at every cut that makes them, whatever it costs."""
    from ttref.convolving import ConvPlan, convolved, stages

    found = []
    for cut in range(1, len(layer.cores)):
        outer = math.prod(layer.col_shape[:cut])
        if stages(outer, layer._geometry) is not None:
            plan = ConvPlan("factored", 0, 0, 0, cut)
            found.append(convolved(list(layer.cores), x, layer.bias, layer._geometry, plan))
    return found


@pytest.mark.parametrize("size, way", [((9, 9), "factored"), ((16, 16), "rebuilt")])
def test_the_plan_counts_the_way_that_is_taken(size, way):
    """16 to r channels, then 3 x 3 taps: at rank 15 that is more than the dense kernel, and than rebuilding it."""
    layer = made((16, 1), (9, 16), True, ranks=(2 if way == "factored" else 15,), **PLAIN)
    plan = layer.plan((2, 16, *size))
    spots = 2 * size[0] * size[1]
    two = spots * (16 * 2 + 9 * 2 * 16)
    assert plan.way == way and plan.dense == spots * 16 * 144
    assert plan.rebuilt == plan.dense + 16 * 144 * layer.ranks[1]
    assert plan.macs == (two if way == "factored" else plan.rebuilt) <= plan.rebuilt


@pytest.mark.parametrize("rows, cols, taps", [((6, 1), (9, 4), True), ((2, 3), (6, 6), False)])
def test_gradients_are_those_of_the_dense_convolution(rows, cols, taps):
    layer = made(rows, cols, taps, **PLAIN)
    ours, theirs = pictures(layer, 2).requires_grad_(), pictures(layer, 2).requires_grad_()
    upstream = gaussian((2, 6, 9, 10), 7)
    inputs = [*layer.cores, layer.bias]
    found = torch.autograd.grad(layer(ours), [ours, *inputs], upstream)
    for gradient, expected in zip(
        found, torch.autograd.grad(twin(layer, theirs), [theirs, *inputs], upstream), strict=True
    ):
        assert_close(gradient, expected)


def conv(ins=4, outs=6, bias=True, dtype=torch.float64, **settings):
    layer = nn.Conv2d(ins, outs, settings.pop("kernel_size", 3), bias=bias, dtype=dtype, **settings)
    with torch.no_grad():
        layer.weight.copy_(gaussian(tuple(layer.weight.shape), 0, dtype))
        if bias:
            layer.bias.copy_(gaussian((outs,), 1, dtype))
    return layer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("taps", [False, True])
def test_from_conv_keeps_what_the_layer_was(taps, dtype):
    dense = conv(dtype=dtype, stride=2, padding="valid", dilation=(1, 2)).eval()
    dense.weight.requires_grad_(False)
    layer = TTConv2d.from_conv(dense, eps=0, row_shape=(2, 3), col_shape=(6, 6), taps_first=taps)
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), (0, 0), (1, 2))
    assert layer.dtype == dtype and not layer.training
    assert not any(core.requires_grad for core in layer.cores) and layer.bias.requires_grad
    x = gaussian((2, 4, 9, 9), 3, dtype)
    tolerance = {"atol": 0.2, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(layer(x), dense(x), **tolerance)


@pytest.mark.parametrize("taps", [False, True])
def test_eps_bounds_the_error_of_the_weight(taps):
    dense = conv()
    for eps in (0.3, 0.7):
        layer = TTConv2d.from_conv(dense, eps=eps, row_shape=(6, 1), col_shape=(9, 4), taps_first=taps)
        error = (layer.weight - dense.weight).norm() / dense.weight.norm()
        assert error <= eps * (1 + 1e-9)


def seen(dense, count=60, seed=4):
    """Smooth pictures, which a convolution sees more often than noise, and the patches in them."""
    x = gaussian((count, dense.in_channels, 7, 7), seed, torch.float64).cumsum(-1).cumsum(-2)
    columns = F.unfold(x, dense.kernel_size, dense.dilation, dense.padding, dense.stride)
    flat = columns.transpose(0, 1).flatten(1)
    return x, flat @ flat.mT


def output_gap(layer, dense, x):
    with torch.no_grad():
        y = dense(x)
        return ((layer(x) - y).norm() / (y - dense.bias[:, None, None]).norm()).item()


@pytest.mark.parametrize("taps", [False, True])
def test_a_gram_matrix_of_patches_lowers_the_error_of_outputs(taps):
    dense = conv(padding=1)
    x, gram = seen(dense)
    how = {"rank": 3, "row_shape": (6, 1), "col_shape": (9, 4), "taps_first": taps}
    blind, fitted = TTConv2d.from_conv(dense, **how), TTConv2d.from_conv(dense, **how, gram=gram)
    assert output_gap(fitted, dense, x) < 0.9 * output_gap(blind, dense, x)
    # The Gram matrix is read in the order of the patch: one in another order would not help.
    mixed = gram.flip(0, 1)
    assert output_gap(TTConv2d.from_conv(dense, **how, gram=mixed), dense, x) > output_gap(fitted, dense, x)


def test_params_searches_modes_within_the_budget():
    dense = conv()
    x, gram = seen(dense)
    found = TTConv2d.from_conv(dense, params=80, gram=gram)
    assert 64 <= found.params <= 80
    assert found.core_bits == 32 and found.cores[0].requires_grad
    for taps, cols in itertools.product([False, True], [(1, 36), (9, 4)]):
        one = TTConv2d.from_conv(dense, rank=2, row_shape=(6, 1), col_shape=cols, taps_first=taps, gram=gram)
        assert one.params > 80 or output_gap(found, dense, x) <= 1.02 * output_gap(one, dense, x)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_integer_cores_count_and_save_what_they_hold(bits, path):
    dense = conv(dtype=torch.float32, padding=1)
    how = {"rank": 4, "row_shape": (6, 1), "col_shape": (9, 4), "taps_first": True}
    layer = TTConv2d.from_conv(dense, **how, core_bits=bits, group=16)
    cores = TTConv2d.from_conv(dense, **how)
    matrix = patches(dense.weight.detach(), True)
    codes, scales, _ = quantize_cores(list(cores.cores), matrix, torch.eye(36), bits, group=16)
    numbers, count = sum(c.numel() for c in codes), sum(s.numel() for s in scales)
    assert layer.params == numbers + count
    assert layer.nbytes == sum(-(-c.numel() * bits // 8) for c in codes) + 2 * count
    assert isinstance(layer, ttref.Compressed) and layer.dense_nbytes == 4 * dense.weight.numel()
    assert not list(layer.cores.parameters())
    layer.save(path)
    assert path.stat().st_size < 4000 + layer.nbytes
    again = ttref.load(path)
    x = gaussian((2, 4, 5, 5), 3, torch.float32)
    assert torch.equal(again(x), layer(x)) and again.nbytes == layer.nbytes
    assert (again.padding, again.taps_first, again.core_bits) == ((1, 1), True, bits)
    torch.testing.assert_close(layer.double()(x.double()).float(), again(x), atol=1e-4, rtol=1e-4)


def test_saved_and_loaded(path):
    layer = made((3, 2), (18, 2), True, **STRIDED)
    layer.cores.requires_grad_(False)
    layer.save(path)
    again = ttref.load(path)
    assert torch.equal(again(pictures(layer, 2)), layer(pictures(layer, 2)))
    assert (again.stride, again.dilation) == (layer.stride, layer.dilation)
    assert again.bias.requires_grad and not again.cores[0].requires_grad


def test_the_account_is_that_of_the_cores():
    layer = made((3, 2), (18, 2), True, dtype=torch.float32, **PLAIN)
    assert isinstance(layer, ttref.Compressed)
    assert layer.params == 3 * 18 * 3 + 3 * 2 * 2 and layer.nbytes == 4 * layer.params
    assert layer.ratio == 6 * 36 / layer.params and layer.modes == ((3, 18), (2, 2))
    assert "taps_first=True" in repr(layer) and layer.dense().shape == (6, 36)
    with pytest.raises(AttributeError, match="rebuilt"):
        layer.weight = torch.zeros(6, 4, 3, 3)


def test_autocast_computes_in_full_precision_and_answers_in_its_dtype():
    layer = made((6, 1), (9, 4), True, dtype=torch.float32, **PLAIN)
    x = pictures(layer, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, layer(x).bfloat16())


@pytest.mark.parametrize(
    "dense, how, error, says",
    [
        (nn.Conv2d(4, 6, 3, groups=2), {}, ValueError, "2 groups"),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), {}, ValueError, "F.pad"),
        (nn.Conv2d(4, 6, 2, padding="same"), {}, ValueError, "lopsided"),
        (nn.Linear(4, 6), {}, TypeError, "nn.Conv2d, got Linear"),
        (nn.Conv2d(4, 6, 3), {"rank": None}, ValueError, "got none"),
        (nn.Conv2d(4, 6, 3), {"eps": 0.1}, ValueError, "rank and eps"),
        (nn.Conv2d(4, 6, 3), {"row_shape": None}, ValueError, "params=, modes are searched"),
        (nn.Conv2d(4, 6, 3), {"col_shape": (6, 5)}, ValueError, "30"),
        (nn.Conv2d(4, 6, 3), {"core_bits": 9}, ValueError, "1 to 8"),
        (nn.Conv2d(4, 6, 3), {"gram": torch.eye(35)}, ValueError, "35"),
        (nn.Conv2d(4, 6, 3), {"rank": None, "params": 50}, ValueError, "leave row_shape"),
    ],
)
def test_what_is_refused(dense, how, error, says):
    with pytest.raises(error, match=says):
        TTConv2d.from_conv(dense, **{"rank": 2, "row_shape": (6, 1), "col_shape": (9, 4)} | how)


def test_inputs_that_do_not_fit_are_refused():
    layer = made((6, 1), (9, 4), True, **PLAIN)
    with pytest.raises(ValueError, match="batch, 4, height, width"):
        layer(torch.zeros(2, 3, 9, 9, dtype=torch.float64))
    with pytest.raises(TypeError, match="float32 but the cores are torch.float64"):
        layer(torch.zeros(2, 4, 9, 9))
    with pytest.raises(ValueError, match="no multiple of the 9 taps"):
        TTConv2d.from_cores([torch.ones(1, 2, 10, 1)], kernel_size=3)
