"""Layers swapped in a model: all or nothing, and back again."""

import copy

import pytest
import torch
from strategies import agree, gaussian
from surgery_models import (
    Tied,
    plan_of,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ttref import TTLinear, swap_layer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12)])
        self.heads = nn.ModuleDict({"first": nn.Linear(12, 3), "second": nn.Linear(12, 3)})

    def forward(self, x):
        hidden = self.layers[1](torch.relu(self.layers[0](x)))
        return self.heads["first"](hidden) + self.heads["second"](hidden)


class Twice(nn.Module):
    """One layer under two names; registering it again does not copy it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = self.first
        self.act = self.again = nn.ReLU()


def compressed(layer):
    return TTLinear.from_linear(layer, rank=2)


@pytest.mark.parametrize("name", ["layers.0", "layers.1", "heads.first"])
def test_swapping_back_restores_the_outputs_bit_for_bit(name):
    model = nn.Sequential(nn.Identity(), Block())
    x, before = gaussian((5, 12), 0, torch.float32), copy.deepcopy(model)
    layer = compressed(model.get_submodule(f"1.{name}"))
    plan = plan_of(model)
    old = swap_layer(model, f"1.{name}", layer)
    assert model.get_submodule(f"1.{name}") is layer
    assert not agree(model(x), before(x))
    assert swap_layer(model, f"1.{name}", old) is layer
    assert plan_of(model) == plan
    assert agree(model(x), before(x))


def test_the_new_layer_takes_part_in_all_the_model_does():
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    swap_layer(model, "0", TTLinear(12, 20, 2))
    model(gaussian((5, 12), 0, torch.float32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [name for name in model.state_dict() if name.startswith("0.cores")] == [f"0.cores.{k}" for k in range(3)]
    assert len(list(model)) == 3 and isinstance(model[0], TTLinear)


def test_every_other_layer_stays():
    model = Block()
    others = [model.layers[1], model.heads["first"], model.heads["second"]]
    swap_layer(model, "layers.0", compressed(model.layers[0]))
    assert [model.layers[1], model.heads["first"], model.heads["second"]] == others
    assert list(model.heads) == ["first", "second"]


@pytest.mark.parametrize(("name", "shared"), [("embed", "head.weight"), ("head", "embed.weight")])
def test_a_shared_parameter_is_refused(name, shared):
    model = Tied()
    plan, state = plan_of(model), copy.deepcopy(model.state_dict())
    layer = TTLinear(12, 20, 2, bias=False) if name == "head" else nn.Embedding(20, 12)
    with pytest.raises(ValueError, match=f"{name} shares a parameter with {shared}: .* untie them"):
        swap_layer(model, name, layer)
    assert plan_of(model) == plan and model.head.weight is model.embed.weight
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    swap_layer(model, "body", compressed(model.body))  # what is not tied can go


def test_a_layer_under_two_names_is_refused():
    model = Twice()
    plan = plan_of(model)
    for name, other in (("first", "second"), ("second", "first")):
        with pytest.raises(ValueError, match=f"{name} shares a parameter with {other}.weight"):
            swap_layer(model, name, compressed(model.first))
        assert plan_of(model) == plan


def test_a_module_without_parameters_may_have_two_names():
    model = Twice()
    swap_layer(model, "act", nn.GELU())
    assert isinstance(model.act, nn.GELU) and isinstance(model.again, nn.ReLU)


def test_a_tie_within_the_old_module_goes_with_it():
    model = nn.Sequential(Twice(), nn.Linear(12, 12))
    swap_layer(model, "0", nn.Linear(12, 12))
    assert isinstance(model[0], nn.Linear)


def test_names_that_begin_alike_are_told_apart():
    """Layer 1 and layer 10 are different layers, and what they share is shared."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(11)))
    model[10].weight = model[1].weight
    with pytest.raises(ValueError, match=r"1 shares a parameter with 10\.weight"):
        swap_layer(model, "1", nn.Linear(4, 4))


def test_layers_of_gpt2():
    """Its layers are Conv1D, whose widths have other names; its head is tied to the embedding."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    name, tokens = "transformer.h.1.mlp.c_fc", torch.arange(10)[None]
    with torch.no_grad():
        before = model(tokens).logits
        plan = plan_of(model)
        with pytest.raises(ValueError, match=f"{name} has out_features = 64, but the replacement has 16"):
            swap_layer(model, name, TTLinear(16, 16, 2))
        with pytest.raises(ValueError, match="lm_head shares a parameter with transformer.wte.weight"):
            swap_layer(model, "lm_head", TTLinear(16, 30, 2, bias=False))
        assert plan_of(model) == plan
        conv = swap_layer(model, name, TTLinear.from_linear(model.get_submodule(name), eps=0))
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
        swap_layer(model, name, conv)
        assert agree(model(tokens).logits, before)


@pytest.mark.parametrize(
    ("name", "layer", "error", "message"),
    [
        ("layers.2", nn.Linear(12, 20), ValueError, "no module is named 'layers.2' .* end in 0, 1, first, second"),
        ("", nn.Linear(12, 20), ValueError, "no module is named ''"),
        (None, nn.Linear(12, 20), ValueError, "no module is named None"),
        ("layers.0.weight", nn.Linear(12, 20), ValueError, "no module is named 'layers.0.weight'"),
        ("layers.0", TTLinear(13, 20, 2), ValueError, "layers.0 has in_features = 12, but the replacement has 13"),
        ("layers.0", TTLinear(12, 21, 2), ValueError, "layers.0 has out_features = 20, but the replacement has 21"),
        ("heads.first", nn.Linear(12, 4), ValueError, "heads.first has out_features = 3, but the replacement has 4"),
        ("layers.0", torch.ones(20, 12), TypeError, "layer must be an nn.Module, got Tensor"),
        ("layers.0", TTLinear, TypeError, "layer must be an nn.Module, got type"),
    ],
)
def test_bad_input(name, layer, error, message):
    model = Block()
    plan = plan_of(model)
    with pytest.raises(error, match=message):
        swap_layer(model, name, layer)
    assert plan_of(model) == plan
