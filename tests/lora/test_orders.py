"""The orders of a TTLoRALinear: what each costs, which is chosen, and when the base itself is called."""

import itertools
import math

import pytest
import torch
from adapters import ORDERS, SHAPES, adapted, scatter, trains, update_of, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_twins import (
    assert_close,
)
from strategies import agree
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ttref import TTLoRALinear
from ttref.costs import Plan, price

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


def counted(layer, batch, training):
    """Multiply-adds that torch really does, without those of the frozen layer."""
    x = vectors(layer, batch).requires_grad_(training)
    with FlopCounterMode(display=False) as counter:
        if training:
            layer(x).sum().backward()
        else:
            with torch.no_grad():
                layer(x)
    own = batch * layer.in_features * layer.out_features * (2 if training else 1)
    return counter.get_total_flops() / 2 - own


# Costs


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in SHAPES if "padded" not in name])
def test_the_plan_counts_what_runs(name, training, batch):
    layer = adapted(name)
    for order in ORDERS:
        layer.order = order
        with torch.set_grad_enabled(training):
            plan = layer.plan(batch)
        assert isinstance(plan, Plan) and plan.order == order and plan.bytes > 0
        # Where one side of the boundary has no cores, a product with a constant needs no second gradient.
        one_sided = training and min(layer.out_features, layer.in_features) == 1
        spare = max(batch, layer.out_features * layer.in_features) if one_sided else 0
        assert 0 <= plan.macs - counted(layer, batch, training) <= spare, order


@pytest.mark.parametrize("name", ["padded", "rows padded"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_is_counted_in_full(name, training):
    """What is cut off early is not computed, so the plan is at most the padded share too high."""
    layer = adapted(name)
    share = math.prod(layer.shape) / (layer.out_features * layer.in_features)
    for order in ORDERS:
        layer.order = order
        with torch.set_grad_enabled(training):
            macs = layer.plan(33).macs
        assert macs / share <= counted(layer, 33, training) <= macs


def test_the_plan_by_hand():
    """[12, 8, 8 | 8, 8, 12] on 768 x 768 at rank 4, and the same matrix with the mode 16 across the boundary."""
    layer = TTLoRALinear(nn.Linear(768, 768), rank=4, alpha=1, shape=(12, 8, 8, 8, 8, 12))
    with torch.no_grad():
        macs = {}
        for layer.order in ORDERS:
            macs[layer.order] = layer.plan(10).macs
    side = 12 * 8 * 4 * 4 + 12 * 8 * 8 * 4 * 4  # cores meet: (12 x 4)(4 x 32), then (96 x 4)(4 x 32)
    assert macs["two-gemm"] == 2 * side + 10 * 4 * (768 + 768)
    # The last core leaves 64 positions of 4, the next 8 of 4, the third one of 4; then the same upward.
    steps = 64 * 12 * 4 + 8 * 32 * 4 + 32 * 4
    assert macs["right-to-left"] == 10 * 2 * steps
    assert macs["dense"] == 2 * side + 768 * 4 * 768
    layer = TTLoRALinear(nn.Linear(768, 768), rank=4, alpha=1, shape=(64, 16, 9, 64))
    layer.order = "right-to-left"
    with torch.no_grad():
        # Modes 16 and 9 merge, which are 12 rows by 12 columns; 64 columns go in, 64 rows come out.
        assert layer.plan(10).macs == 16 * 4 * 9 * 4 * 4 + 10 * (12 * 64 * 4 + 48 * 48 + 12 * 4 * 64)


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=100)
@given(trains(), st.integers(1, 6), st.sampled_from([0, 1, 7, 64, 1000, 10**5]))
def test_auto_takes_the_cheapest(training, modes, rank, batch):
    out, ins, shape = modes
    layer = TTLoRALinear(nn.Linear(ins, out), rank=rank, alpha=1, shape=shape)
    with torch.set_grad_enabled(training):
        chosen, plans = layer.plan(batch), {}
        for order in ORDERS:
            layer.order = order
            plans[order] = layer.plan(batch)
    assert plans[chosen.order] == chosen
    assert price(chosen) == min(map(price, plans.values()))


def test_auto_is_the_order_it_names():
    """Each order but one is the cheapest somewhere: the outputs come first, and a walk from there grows the state."""
    taken = set()
    for name, rank, batch in itertools.product(["aligned", "straddling", "padded"], [1, 3, 9], [1, 3, 40, 400]):
        layer = adapted(name, rank=rank)
        x = vectors(layer, batch)
        for training in (True, False):
            with torch.set_grad_enabled(training):
                layer.order = "auto"
                y, order = layer(x), layer.plan(batch).order
                taken.add(order)
                layer.order = order
                assert agree(layer(x), y)
    assert taken == {*ORDERS} - {"left-to-right"}


def test_gradients_make_a_difference_to_the_plan():
    layer = adapted("aligned")
    assert layer.plan(9).macs > (frozen := plan_without_grad(layer, 9)).macs
    layer.cores.requires_grad_(False)
    assert layer.plan(9) == frozen


def plan_without_grad(layer, batch):
    with torch.no_grad():
        return layer.plan(batch)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(register):
    return lambda layer: getattr(layer, register)(lambda *args: None)


def replaced(layer):
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 1


WAYS_TO_CHANGE_THE_BASE = {
    "forward hook": hooked("register_forward_hook"),
    "forward pre-hook": hooked("register_forward_pre_hook"),
    "backward hook": hooked("register_full_backward_hook"),
    "backward pre-hook": hooked("register_full_backward_pre_hook"),
    "forward replaced": replaced,
}


@pytest.mark.parametrize("change", WAYS_TO_CHANGE_THE_BASE)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_base_that_does_more_than_multiply_is_called(change, kind):
    layer = adapted("aligned", rank=9, kind=kind, dtype=torch.float64)
    x = vectors(layer, 500)
    assert layer.plan(500).order == "dense"
    WAYS_TO_CHANGE_THE_BASE[change](layer.base_layer)
    for layer.order in ("auto", *ORDERS):
        assert_close(layer(x), layer.base_layer(x) + x @ update_of(layer).T, torch.float64)
    assert layer.plan(500).macs > 500 * 24 * 36  # rebuilt, and multiplied apart


def test_a_hook_on_the_base_runs():
    layer, seen = adapted("aligned", rank=9), []
    layer.base_layer.register_full_backward_pre_hook(lambda *args: seen.append("before backward"))
    layer.base_layer.register_full_backward_hook(lambda *args: seen.append("backward"))
    layer.base_layer.register_forward_pre_hook(lambda *args: seen.append("before"))
    layer.base_layer.register_forward_hook(lambda *args: seen.append("after"))
    layer(vectors(layer, 500).requires_grad_()).sum().backward()
    assert seen == ["before", "after", "before backward", "backward"]


def test_a_subclass_of_linear_is_called():
    base = Doubled(36, 24, dtype=torch.float64)
    layer = scatter(TTLoRALinear(base, rank=9, alpha=1, shape=(4, 6, 4, 9)))
    x = vectors(layer, 500)
    assert_close(layer(x), base(x) + x @ update_of(layer).T, torch.float64)


def test_an_unknown_order():
    layer = adapted("aligned")
    layer.order = "fastest"
    with pytest.raises(ValueError, match="order must be 'auto' or one of .'right-to-left'.*'dense'.*got 'fastest'"):
        layer(vectors(layer, 2))
