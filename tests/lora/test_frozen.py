"""A TT-LoRA layer trains its update alone, however it was made, and what was frozen stays so."""

import copy

import pytest
import torch
from adapters import base_layer, scatter, tiny_bert, trained
from strategies import gaussian
from torch import nn
from transformers.pytorch_utils import Conv1D

from ttref import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora
from ttref.lora.base import delta_for

KINDS = {
    "linear": lambda: nn.Linear(12, 8),
    "no bias": lambda: nn.Linear(12, 8, bias=False),
    "conv1d": lambda: Conv1D(8, 12),
}


def by_hand(base):
    return TTLoRALinear(base, rank=2, alpha=1.5)


def around(base):
    return TTLoRALinear.from_delta(base, delta_for(base, rank=2, alpha=1.5))


def numbers(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("make", [by_hand, around])
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_over_what_requires_a_gradient_trains_the_cores_alone(kind, make):
    layer = scatter(make(KINDS[kind]()))
    assert numbers(layer) == layer.params
    before = copy.deepcopy(layer.base_layer.state_dict())
    cores = [core.detach().clone() for core in layer.cores]
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    layer(gaussian((5, 12), 0).float()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(layer.base_layer.state_dict()[name], value) for name, value in before.items())
    assert not any(map(torch.equal, layer.cores, cores))


def test_it_stays_frozen_when_merged_unmerged_and_taken_out():
    layer = by_hand(nn.Linear(12, 8))
    layer.merge()
    assert not layer.base_layer.weight.requires_grad
    layer.unmerge()
    assert not layer.base_layer.weight.requires_grad
    assert merge_tt_lora(nn.ModuleDict({"a": layer}))["a"] is layer.base_layer and numbers(layer.base_layer) == 0


def test_a_weight_that_another_layer_shares_is_frozen_there_too():
    first, second = nn.Linear(12, 12), nn.Linear(12, 12)
    second.weight = first.weight
    by_hand(first)
    assert not second.weight.requires_grad and second.bias.requires_grad


def test_a_layer_that_does_not_come_about_freezes_nothing():
    base = nn.Linear(12, 8)
    for wrong in ({"alpha": 0}, {"rank": 0}, {"shape": (5, 5)}, {"init": "ones"}):
        with pytest.raises(ValueError):
            TTLoRALinear(base, **{"rank": 2, "alpha": 1, **wrong})
        assert base.weight.requires_grad and base.bias.requires_grad
    model = nn.ModuleDict({"a": base, "b": nn.Linear(7, 7)})
    with pytest.raises(ValueError, match="^b: "):
        add_tt_lora(model, ["a", "b"], rank=2, alpha=1, shape=(8, 12))
    assert numbers(model) == 12 * 8 + 8 + 7 * 8


def test_models_are_frozen_as_ever(tmp_path):
    """Adapters and what is saved along; no base, whether it was put in or loaded."""
    model = add_tt_lora(tiny_bert(), "query", rank=2, alpha=1, modules_to_save="pooler.dense")
    wanted = trained(model)
    assert {name.rpartition(".cores.")[0] or name for name in wanted} == {
        *(f"encoder.layer.{k}.attention.self.query.delta" for k in range(2)),
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    save_tt_lora(model, tmp_path / "a.safetensors")
    assert trained(load_tt_lora(tiny_bert(), tmp_path / "a.safetensors")) == wanted


def test_a_base_may_be_trained_by_saying_so():
    layer = by_hand(base_layer(8, 12))
    layer.base_layer.requires_grad_(True)
    layer(gaussian((5, 12), 0).float()).sum().backward()
    assert layer.base_layer.weight.grad is not None and numbers(layer) == layer.params + 8 * 12 + 8
