"""The modes and ranks of TTLinear, what it says about itself, and the messages for bad input."""

import copy
import itertools

import numpy as np
import pytest
import torch
from linears import (
    assert_same_state,
)
from torch import nn

from ttref import TTLinear
from ttref.costs import cost
from ttref.shapes import balanced_modes, tt_ranks

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


DENSE = nn.Linear(12, 20)
HOLED = nn.Linear(12, 20)
with torch.no_grad():
    HOLED.weight[3, 4] = float("nan")
LAYER = TTLinear((3, 4), (4, 5), 2)
CORES = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
compress, around = TTLinear.from_linear, TTLinear.from_cores


# Bad input: messages that name what is wrong, and nothing changed


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
        (lambda: TTLinear(12, 20, 2, dtype=torch.int64), TypeError, r"cores\[0\] is torch.int64"),
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
