"""Merging a TTLoRALinear into its base weight and back again, where "back" means every bit."""

import copy
import itertools
import math

import pytest
import torch
from adapters import FLOATS, SHAPES, adapted, bits, scatter, update_of, vectors, weight_of
from strategies import agree, gaussian
from torch import nn

from ttref import TTLoRALinear, merge_tt_lora

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")
every_dtype = pytest.mark.parametrize("dtype", FLOATS)
kinds = pytest.mark.parametrize("kind", ["linear", "conv1d"])
names = pytest.mark.parametrize("name", SHAPES)


def frozen_bits(layer):
    weight = layer.base_layer.weight
    return bits(weight), weight.stride(), weight.dtype, weight.requires_grad, id(weight)


def close(actual, expected, dtype):
    atol = 20 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)


@kinds
@every_dtype
@names
def test_merged_is_unmerged(name, dtype, kind):
    layer = adapted(name, dtype=dtype, kind=kind)
    before, x = frozen_bits(layer), vectors(layer, 7)
    answer, cores = layer(x).detach(), [bits(core) for core in layer.cores]
    expected = (weight_of(layer).double() + update_of(layer).double()).detach()
    assert not layer.merged
    layer.merge()
    assert layer.merged and "merged=True" in repr(layer)
    close(weight_of(layer), expected, dtype)
    assert torch.equal(layer.weight, layer.base_layer.weight) and layer.base_layer.weight.is_contiguous()
    assert agree(layer(x), layer.base_layer(x))
    scale = float((x.double().abs() @ expected.abs().T).max())
    assert float((layer(x) - answer).double().abs().max()) <= 8 * torch.finfo(dtype).eps * scale
    assert bits(layer.base_layer.weight) != before[0]
    layer.unmerge()
    assert frozen_bits(layer) == before and not layer.merged
    assert agree(layer(x), answer) and [bits(core) for core in layer.cores] == cores


@kinds
@every_dtype
def test_a_hundred_times_over(dtype, kind):
    """Subtracting would drift; what was kept does not."""
    layer = adapted("aligned", dtype=dtype, kind=kind)
    before = frozen_bits(layer)
    with torch.no_grad():
        layer.cores[-1].mul_(1e3)
    merged = set()
    for _ in range(100):
        layer.merge()
        merged.add(bits(layer.base_layer.weight))
        layer.unmerge()
        assert frozen_bits(layer) == before
    assert len(merged) == 1


def test_an_update_too_large_to_subtract_again():
    layer = adapted("aligned", dtype=torch.bfloat16)
    before = frozen_bits(layer)
    with torch.no_grad():
        layer.cores[-1].fill_(1e30)
    layer.merge()
    layer.unmerge()
    assert frozen_bits(layer) == before
    with torch.no_grad():
        layer.cores[-1].fill_(math.nan)
    layer.merge()
    assert layer.base_layer.weight.isnan().any()
    layer.unmerge()
    assert frozen_bits(layer) == before


@every_dtype
@kinds
@pytest.mark.parametrize("name", ["aligned", "straddling"])
def test_what_merge_adds_is_what_it_says(name, kind, dtype):
    """The sum is rounded once: to the bit, it is the wide sum in the weight's dtype."""
    layer = adapted(name, dtype=dtype, kind=kind)
    assert layer.get_delta_weight().shape == layer.base_layer.weight.shape
    assert layer.get_delta_weight().dtype == layer.cores[0].dtype
    announced, delta = layer.weight.detach().clone(), layer.get_delta_weight()
    wide = (layer.base_layer.weight.double() + delta.double()).to(dtype)
    assert announced.shape == layer.base_layer.weight.shape
    layer.merge()
    assert torch.equal(layer.base_layer.weight, announced)
    if dtype.itemsize == 2:
        assert (layer.base_layer.weight == wide).float().mean() > 0.99
    else:
        close(layer.base_layer.weight.detach(), wide, dtype)


def test_the_update_carries_no_gradient_and_the_weight_does():
    layer = adapted("aligned", dtype=torch.float64)
    assert not layer.get_delta_weight().requires_grad
    upstream = gaussian((24, 36), 0)
    found = torch.autograd.grad(layer.weight, list(layer.cores), upstream)
    for gradient, reference in zip(
        found, torch.autograd.grad(update_of(layer), list(layer.cores), upstream), strict=True
    ):
        torch.testing.assert_close(gradient, reference)
    assert layer.bias is layer.base_layer.bias


def test_twice_is_warned_of():
    layer = adapted("aligned")
    before = frozen_bits(layer)
    with pytest.warns(UserWarning, match="the adapter is not merged; nothing to do"):
        layer.unmerge()
    layer.merge()
    merged = bits(layer.base_layer.weight)
    with pytest.warns(UserWarning, match="merged already; nothing to do"):
        layer.merge()
    assert bits(layer.base_layer.weight) == merged
    layer.unmerge()
    with pytest.warns(UserWarning, match="not merged"):
        layer.unmerge()
    assert frozen_bits(layer) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_dtype
def test_safe_merge(dtype, value):
    layer = adapted("aligned", dtype=dtype)
    before = frozen_bits(layer)
    layer.merge(safe_merge=True)
    layer.unmerge()
    with torch.no_grad():
        layer.cores[1][0, 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite entries; nothing was merged"):
        layer.merge(safe_merge=True)
    assert not layer.merged and frozen_bits(layer) == before
    layer.merge()
    assert layer.merged and not layer.base_layer.weight.isfinite().all()


def test_a_sum_that_half_precision_cannot_hold():
    layer = adapted("aligned", dtype=torch.float16)
    with torch.no_grad():
        layer.cores[-1].fill_(1e4)
    assert layer.get_delta_weight().isfinite().all()
    with pytest.raises(ValueError, match="infinite"):
        layer.merge(safe_merge=True)
    assert not layer.merged


def train_a_little(layer, steps=3):
    optimizer = torch.optim.AdamW(layer.cores.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        layer(vectors(layer, 8, seed=step)).square().mean().backward()
        optimizer.step()


@every_dtype
def test_training_between_merges(dtype):
    layer = adapted("aligned", dtype=dtype)
    before, merged = frozen_bits(layer), []
    for _ in range(3):
        train_a_little(layer)
        layer.merge()
        merged.append(bits(layer.base_layer.weight))
        layer.unmerge()
        assert frozen_bits(layer) == before
    assert len(set(merged)) == 3


def test_no_gradient_reaches_the_cores_of_a_merged_layer():
    layer = adapted("aligned")
    layer.merge()
    x = vectors(layer, 3).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and all(core.grad is None for core in layer.cores)


@pytest.mark.parametrize("then", FLOATS)
@every_dtype
def test_another_dtype_while_merged(dtype, then):
    """Kept and merged weights are converted alike: unmerging gives the converted base, as if never merged."""
    layer = adapted("aligned", dtype=dtype)
    never = copy.deepcopy(layer).to(then)
    layer.merge()
    layer.to(then)
    assert layer.merged and layer.base_layer.weight.dtype == then
    layer.unmerge()
    assert bits(layer.base_layer.weight) == bits(never.base_layer.weight)
    assert agree(layer(vectors(layer, 3)), never(vectors(layer, 3)))


def test_copies_of_a_merged_layer_are_independent():
    layer = adapted("aligned")
    before = frozen_bits(layer)[0]
    layer.merge()
    other = copy.deepcopy(layer)
    other.unmerge()
    assert layer.merged and not other.merged
    assert bits(other.base_layer.weight) == before != bits(layer.base_layer.weight)
    layer.unmerge()
    assert bits(layer.base_layer.weight) == before
    with torch.no_grad():
        other.base_layer.weight.zero_()
    assert bits(layer.base_layer.weight) == before


def test_what_is_kept_is_no_part_of_the_state():
    layer = adapted("aligned")
    names = list(layer.state_dict())
    layer.merge()
    assert list(layer.state_dict()) == names and not any("_kept" in name for name in names)


def test_merging_where_no_gradients_are_known():
    """Under inference mode, and the weight can be trained afterwards."""
    for where in (torch.no_grad, torch.inference_mode):
        layer = adapted("aligned")
        before = bits(layer.base_layer.weight)
        with where():
            layer.merge()
        x = vectors(layer, 3).requires_grad_()
        layer(x).sum().backward()
        layer.unmerge()
        assert bits(layer.base_layer.weight) == before
        layer(x).sum().backward()
        assert all(core.grad is not None for core in layer.cores)


def test_merging_under_autocast_loses_no_digits():
    layer = adapted("aligned")
    expected = (weight_of(layer) + update_of(layer)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        layer.merge()
    assert layer.base_layer.weight.dtype == torch.float32
    close(layer.base_layer.weight.detach(), expected, torch.float32)


def test_a_base_that_learns_too():
    """Merged, it is an ordinary layer: what it learns then is its own, and goes when the adapter is taken out."""
    layer = adapted("aligned")
    layer.base_layer.requires_grad_(True)
    weight = layer.base_layer.weight
    layer.merge()
    assert layer.base_layer.weight is weight and weight.requires_grad
    layer(vectors(layer, 3)).sum().backward()
    assert weight.grad is not None and weight.grad.shape == weight.shape


# A whole model


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.layers = nn.ModuleList(adapted(name, dtype=dtype, seed=7 * k) for k, name in enumerate(self.names))

    names = ["aligned", "automatic", "straddling"]

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])


@every_dtype
@pytest.mark.parametrize("already", list(itertools.product([False, True], repeat=3))[::3])
def test_merging_a_model(already, dtype):
    model = Net(dtype)
    bases = [layer.base_layer for layer in model.layers]
    x = vectors(model.layers[0], 4)
    before = model(x).detach()
    expected = [layer.weight.detach().clone() for layer in model.layers]
    for layer, merged in zip(model.layers, already, strict=True):
        if merged:
            layer.merge()
    assert merge_tt_lora(model) is model
    assert [layer is base for layer, base in zip(model.layers, bases, strict=True)] == [True] * 3
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model.layers, expected, strict=True))
    assert set(model.state_dict()) == {f"layers.{k}.{name}" for k in range(3) for name in ("weight", "bias")}
    assert sum(p.numel() for p in model.parameters()) == 3 * (24 * 36 + 24)
    torch.testing.assert_close(model(x), before, rtol=0, atol=60 * torch.finfo(dtype).eps)
    with pytest.raises(ValueError, match="has no TT-LoRA layers to merge"):
        merge_tt_lora(model)


@pytest.mark.parametrize("bad", range(3))
@pytest.mark.parametrize("merged", [set(), {0}, {2}, {0, 1, 2}])
def test_all_or_none(bad, merged):
    """One update that is not finite: nothing is merged that was not merged before, and every adapter stays."""
    model = Net()
    with torch.no_grad():
        model.layers[bad].cores[0].fill_(math.nan)
    for k in merged:
        model.layers[k].merge()
    layers = list(model.layers)
    before = [(layer.merged, frozen_bits(layer)) for layer in layers]
    with pytest.raises(ValueError, match=f"layers.{bad}"):
        merge_tt_lora(model)
    assert [layer is was for layer, was in zip(model.layers, layers, strict=True)] == [True] * 3
    assert [(layer.merged, frozen_bits(layer)) for layer in layers] == before


def test_an_adapter_that_is_the_model():
    """It stands in no module that could hold the plain layer instead."""
    layer = adapted("aligned")
    before = frozen_bits(layer)
    with pytest.raises(ValueError):
        merge_tt_lora(layer)
    assert not layer.merged and frozen_bits(layer) == before and set(layer._modules) == {"delta", "base_layer"}


def test_what_was_kept_is_dropped():
    """A merged model is no larger than the base."""
    model = Net()
    kept = [layer.base_layer.weight.data for layer in model.layers]
    merge_tt_lora(model)
    assert not any(isinstance(module, TTLoRALinear) for module in model.modules())
    held = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert held.isdisjoint(weight.data_ptr() for weight in kept)


def test_a_merged_model_goes_where_the_base_went():
    model, plain = Net(), nn.ModuleList(nn.Linear(36, 24) for _ in range(3))
    scatter(model.layers[0], 3)
    merge_tt_lora(model)
    plain.load_state_dict(model.layers.state_dict())
    x = gaussian((2, 36), 0, torch.float32)
    assert torch.equal(torch.stack([layer(x) for layer in plain]), model(x))
