"""An interrupt at any line leaves a layer or a model entirely as it was, or entirely as it was to be."""

from functools import partial
from pathlib import Path

import pytest
import torch
from adapters import base_layer, bits, scatter, scatter_all
from interrupts import every_line as every_line_of
from strategies import gaussian
from torch import nn

import ttref.lora
from ttref import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora

FOLDER = str(Path(ttref.lora.__file__).parent)
every_line = partial(every_line_of, rooms=(FOLDER, str(Path(FOLDER).parent / "surgery")))


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"q": nn.Linear(12, 12), "v": nn.Linear(12, 12), "head": nn.Linear(12, 2)})


def adapted_net():
    torch.manual_seed(0)
    return scatter_all(add_tt_lora(net(), ["q", "v"], rank=2, alpha=2.0, modules_to_save="head"))


def state(model):
    """All but names of objects: kinds, numbers, flags and marks."""
    held = [*model.named_parameters(), *model.named_buffers()]
    kinds = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    return kinds, [(name, bits(x), x.requires_grad) for name, x in held]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("verb", ["merge", "unmerge"])
def test_a_layer(verb, kind):
    def make():
        layer = scatter(TTLoRALinear(base_layer(6, 8, kind=kind), rank=2, alpha=1.5))
        if verb == "unmerge":
            layer.merge()
        return layer

    x, base = gaussian((3, 8), 1, torch.float32), bits(base_layer(6, 8, kind=kind).weight)
    wanted = scatter(TTLoRALinear(base_layer(6, 8, kind=kind), rank=2, alpha=1.5))(x)
    for layer in every_line(make, lambda layer: getattr(layer, verb)()):
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)
        assert (bits(layer.base_layer.weight) == base) is not layer.merged
        if layer.merged:
            layer.unmerge()
        assert bits(layer.base_layer.weight) == base
    assert not layer.merged


@pytest.mark.parametrize("already", [(), ("v",)])
def test_merging_a_model(already):
    def make():
        model = adapted_net()
        for name in already:
            model[name].merge()
        return model

    untouched, done = state(make()), state(merge_tt_lora(make()))
    outcomes = [state(model) for model in every_line(make, merge_tt_lora)]
    assert all(outcome in (untouched, done) for outcome in outcomes)
    assert outcomes[0] == untouched and outcomes[-1] == done


def test_adapting_a_model():
    def add(model):
        torch.manual_seed(1)
        return add_tt_lora(model, ["q", "v"], rank=2, alpha=2.0, modules_to_save="head")

    untouched, done = state(net()), state(add(net()))
    outcomes = [state(model) for model in every_line(net, add)]
    assert all(outcome in (untouched, done) for outcome in outcomes)
    assert outcomes[0] == untouched and outcomes[-1] == done


def test_loading_adapters(tmp_path):
    model = adapted_net()
    with torch.no_grad():
        model["head"].weight.add_(1)
    save_tt_lora(model, path := tmp_path / "a.safetensors")
    untouched, done = state(net()), state(load_tt_lora(net(), path))
    assert untouched != done
    outcomes = [state(model) for model in every_line(net, lambda model: load_tt_lora(model, path))]
    assert all(outcome in (untouched, done) for outcome in outcomes)
    assert outcomes[0] == untouched and outcomes[-1] == done
