"""Adapters whose numbers are elsewhere until called for: offloaded, masked, parametrized, replicated, made late."""

import copy
import importlib

import pytest
import torch
from adapters import ORDERS, scatter, tiny_bert, tokens
from strategies import gaussian
from torch import nn
from torch.nn.utils import parametrize, prune

from ttref import TTLoRALinear, add_tt_lora, merge_tt_lora

X = gaussian((5, 24), 1, torch.float32)
accelerate = pytest.importorskip("accelerate")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))


def cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device="cpu")


def disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device="cpu")


offloads = pytest.mark.parametrize("offload", [cpu, disk])


@offloads
@pytest.mark.parametrize("order", ["auto", *ORDERS])
@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_offloaded_layers_answer_as_ever(offload, order, rows, tmp_path):
    model = add_tt_lora(net(), ["0", "2"], rank=3, alpha=2.0, init="paper")
    for layer in (model[0], model[2]):
        layer.order = order
    x = gaussian((rows, 24), 2, torch.float32)
    with torch.no_grad():
        wanted = model(x)
        offload(model, tmp_path)
        assert model[0].cores[0].is_meta and model[0].base_layer.weight.is_meta
        for _ in range(2):
            torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-4)


@offloads
def test_what_reads_an_offloaded_weight_gives_its_numbers_or_says_that_it_cannot(offload, tmp_path):
    model = add_tt_lora(net(), ["0", "2"], rank=3, alpha=2.0, init="paper")
    update = model[0].get_delta_weight()
    wanted = model(X)
    offload(model, tmp_path)
    torch.testing.assert_close(model[0].get_delta_weight(), update)
    for read in (model[0].merge, lambda: model[0].weight, lambda: merge_tt_lora(model)):
        with pytest.raises(ValueError, match="the base weight is offloaded.*remove_hook_from_submodules"):
            read()
    for model[0].order in ("dense", "auto"):
        torch.testing.assert_close(model(X), wanted, rtol=0, atol=1e-5)
    accelerate.hooks.remove_hook_from_submodules(model)
    torch.testing.assert_close(merge_tt_lora(model)(X), wanted, rtol=0, atol=1e-4)


@offloads
def test_adapters_beside_an_offloaded_base_are_trained(offload, tmp_path):
    """They are made where the base computes, not where its numbers are not."""
    here, model = net(), net()
    torch.manual_seed(1)
    add_tt_lora(here, ["0", "2"], rank=3, alpha=2.0, init="paper")
    offload(model, tmp_path)
    torch.manual_seed(1)
    add_tt_lora(model, ["0", "2"], rank=3, alpha=2.0, init="paper")
    for trained in (here, model):
        trained(X).square().sum().backward()
    torch.testing.assert_close(model(X), here(X))
    for found, wanted in zip(model[0].cores, here[0].cores, strict=True):
        assert not found.is_meta
        torch.testing.assert_close(found.grad, wanted.grad)


@offloads
def test_an_offloaded_transformer(offload, tmp_path):
    model = add_tt_lora(tiny_bert().eval(), ["query", "value"], rank=2, alpha=2.0, init="paper")
    with torch.no_grad():
        wanted = model(input_ids=tokens()).last_hidden_state
        offload(model, tmp_path)
        torch.testing.assert_close(model(input_ids=tokens()).last_hidden_state, wanted, rtol=0, atol=1e-4)


def layer_of(order="auto", **options):
    torch.manual_seed(0)
    layer = scatter(TTLoRALinear(nn.Linear(24, 36), rank=3, alpha=1.5, **options))
    layer.order = order
    return layer


def of_the_update(layer):
    return layer.base_layer(X) + X @ layer.get_delta_weight().T


@pytest.mark.parametrize("order", ORDERS)
def test_pruned_cores(order):
    layer, whole = layer_of(order), layer_of().get_delta_weight()
    for k in range(len(layer.cores)):
        prune.l1_unstructured(layer.cores, str(k), amount=0.5)
    torch.testing.assert_close(layer(X), of_the_update(layer), rtol=0, atol=1e-4)
    assert not torch.allclose(layer.get_delta_weight(), whole)
    layer(X).sum().backward()
    assert all((layer.cores.get_parameter(f"{k}_orig").grad is not None) for k in range(len(layer.cores)))
    before = layer(X)
    layer.merge()
    torch.testing.assert_close(layer(X), before, rtol=0, atol=1e-4)


class Half(nn.Module):
    def forward(self, core):
        return core / 2


@pytest.mark.parametrize("order", ORDERS)
def test_parametrized_cores(order):
    layer, whole = layer_of(order), layer_of().get_delta_weight()
    parametrize.register_parametrization(layer.cores, "0", Half())
    torch.testing.assert_close(layer.get_delta_weight(), whole / 2)
    torch.testing.assert_close(layer(X), of_the_update(layer), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:nn.ParameterList is being used with DataParallel")
@pytest.mark.parametrize("order", ORDERS)
def test_replicas(order, monkeypatch):
    """The copies that two GPUs would get, here."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(
        replicate,
        "_broadcast_coalesced_reshape",
        lambda found, devices, detach=False: [[tensor.clone() for tensor in found] for _ in devices],
    )
    layer = layer_of(order)
    for replica in replicate.replicate(nn.Sequential(layer), [0, 1]):
        torch.testing.assert_close(replica(X), layer(X))


def test_numbers_made_late():
    layer = TTLoRALinear(nn.Linear(24, 36, device="meta"), rank=3, alpha=1.5)
    assert all(core.is_meta for core in layer.cores)
    layer.to_empty(device="cpu")
    layer.base_layer.reset_parameters()
    layer.delta.reset_parameters()
    torch.testing.assert_close(layer(X), layer.base_layer(X))
    twin = copy.deepcopy(scatter(layer))
    torch.testing.assert_close(twin(X), of_the_update(layer), rtol=0, atol=1e-4)
