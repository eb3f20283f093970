"""``from_linear`` compresses what a layer multiplies by, and refuses a layer that does more than that."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers.pytorch_utils import Conv1D

from ttref import TTLinear, contraction, plan_contraction, ttm_matvec
from ttref.modes import choose_modes


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class ScaledConv1D(Conv1D):
    def forward(self, x):
        return 3 * super().forward(x)


class Called(nn.Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


class Named(nn.Linear):
    """A subclass that computes what its parent does."""


def hooked(register, hook):
    layer = nn.Linear(16, 16)
    getattr(layer, register)(hook)
    return layer


def patched():
    layer = nn.Linear(16, 16)
    plain = layer.forward
    layer.forward = lambda x: 3 * plain(x)
    return layer


def offloaded():
    return nn.Linear(16, 16).to("meta")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Scaled(16, 16), TypeError, "this Scaled has a forward of its own, which would be lost"),
        (lambda: ScaledConv1D(16, 16), TypeError, "this ScaledConv1D has a forward of its own"),
        (lambda: Called(16, 16), TypeError, "has a forward of its own"),
        (lambda: hooked("register_forward_hook", lambda layer, x, y: 3 * y), TypeError, "has forward hooks"),
        (lambda: hooked("register_forward_pre_hook", lambda layer, x: 3 * x[0]), TypeError, "has forward pre-hooks"),
        (patched, TypeError, "had its forward replaced"),
        (lambda: nn.LazyLinear(16), TypeError, "has no weight yet: call it once"),
        (offloaded, ValueError, "not here but on the meta device"),
    ],
)
def test_what_would_be_lost_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        TTLinear.from_linear(make(), eps=0)


def pruned():
    layer = prune.l1_unstructured(nn.Linear(16, 16), "weight", amount=0.5)
    return prune.l1_unstructured(layer, "bias", amount=0.5)


def parametrized():
    layer = parametrizations.weight_norm(nn.Linear(16, 16))
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


def built():
    layer = nn.LazyLinear(16)
    layer(torch.ones(1, 16))
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        pruned,
        parametrized,
        built,
        lambda: Named(16, 16),
        lambda: Conv1D(16, 16),
        lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
        lambda: nn.utils.spectral_norm(nn.Linear(16, 16)).eval(),
        lambda: nn.MultiheadAttention(16, 2).out_proj,
    ],
)
def test_the_weight_in_use_is_what_is_compressed(make):
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():  # what hooks computed at the last call is out of date now
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    state, x = copy.deepcopy(layer.state_dict()), torch.randn(3, 16)
    made = TTLinear.from_linear(layer, eps=0)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    torch.testing.assert_close(made(x), layer(x), rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_a_parametrization_is_computed_in_full_precision():
    class Product(nn.Module):
        def forward(self, weight):
            return weight @ weight.T

    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    parametrize.register_parametrization(layer, "weight", Product())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = TTLinear.from_linear(layer, eps=0)
    torch.testing.assert_close(made.weight.clone(), layer.weight, rtol=1e-4, atol=1e-4)


# Modes and plans


@pytest.mark.parametrize("array", [np.array, torch.tensor, list, tuple, range])
def test_modes_in_any_kind_of_sequence(array):
    modes = range(3, 5) if array is range else array([3, 4])
    layer = TTLinear(modes, array([2, 5]) if array is not range else (2, 5), rank=2)
    assert (layer.in_shape, layer.out_shape, layer.in_features, layer.out_features) == ((3, 4), (2, 5), 12, 10)
    assert all(type(n) is int for n in (*layer.in_shape, *layer.out_shape, layer.in_features))


@pytest.mark.parametrize("number", [np.int64, np.array, torch.tensor])
def test_widths_in_any_kind_of_number(number):
    layer = TTLinear(number(64), number(48), rank=2)
    assert (layer.in_features, layer.out_features) == (64, 48) and type(layer.in_features) is int
    assert (layer.in_shape, layer.out_shape) == choose_modes(64, 48, 2)


def test_many_different_modes_are_put_in_a_good_order_at_once():
    for ins, outs in (((2,) * 16, 768), ((2,) * 20, 2**10 * 3**5), ((2, 3, 2, 3, 2, 3, 2, 3, 2), 5040)):
        modes = choose_modes(ins, outs, 2)
        assert modes[0] == ins and len(modes[1]) == len(ins)
        ascending, descending = (tuple(sorted(modes[1], reverse=down)) for down in (False, True))
        cost = [
            min(
                plan_contraction([torch.empty(c, device="meta") for c in core_shapes(ins, outs)], 1, way).macs
                for way in ("left-to-right", "right-to-left")
            )
            for outs in (modes[1], ascending, descending)
        ]
        assert cost[0] <= min(cost)


def core_shapes(ins, outs):
    layer = TTLinear(ins, outs, 2, device="meta")
    return [tuple(core.shape) for core in layer.cores]


def test_a_plan_is_carried_out_as_it_is(monkeypatch):
    torch.manual_seed(0)
    layer, x = TTLinear((2, 3, 4), (4, 3, 2), 3), torch.randn(40, 24)
    plan, seen = plan_contraction(layer.cores, 40, "two-gemm"), []
    merge = contraction.merge
    monkeypatch.setattr(contraction, "merge", lambda part: seen.append(len(part)) or merge(part))
    for cut in (1, 2):
        found = ttm_matvec(layer.cores, x, plan._replace(cut=cut, chunk=7))
        torch.testing.assert_close(found, x @ layer.weight.T, rtol=1e-5, atol=1e-5)
    assert seen == [1, 2, 2, 1]
    for wrong in (plan._replace(cut=3), plan._replace(cut=0), plan._replace(chunk=0)):
        with pytest.raises(ValueError, match="this plan is of other cores"):
            ttm_matvec(layer.cores, x, wrong)
