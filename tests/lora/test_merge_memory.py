"""Merging a model goes layer by layer: no old weight is kept, and once it has begun it is brought to its end."""

import weakref

import pytest
import torch
from adapters import bits, scatter_all
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

import ttref.lora.model
from ttref import TTLoRALinear, add_tt_lora, merge_tt_lora

WIDTH, LAYERS = 64, 12
WEIGHT = 4 * WIDTH**2


class Memory(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and keeps the most there ever were."""

    def __init__(self, model):
        super().__init__()
        self.live = self.most = 0
        self.known = weakref.WeakSet()
        for tensor in (*model.parameters(), *model.buffers()):
            self.see(tensor.untyped_storage())
        self.start = self.most = self.live

    def see(self, storage):
        if storage not in self.known:
            self.known.add(storage)
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, nbytes):
        self.live -= nbytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return made


def model_of(kind, merged=()):
    torch.manual_seed(0)
    layers = [Conv1D(WIDTH, WIDTH) if kind == "conv1d" else nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    model = nn.ModuleDict({"layers": nn.ModuleList(layers), "head": nn.Linear(WIDTH, 2)})
    targets = [f"layers.{k}" for k in range(LAYERS)]
    scatter_all(add_tt_lora(model, targets, rank=2, alpha=1, modules_to_save="head"))
    for k in merged:
        model["layers"][k].merge()
    return model


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_no_more_than_one_layer_comes_on_top(kind):
    model = model_of(kind)
    expected = [layer.weight.detach().clone() for layer in model["layers"]]
    with Memory(model) as memory:
        merge_tt_lora(model)
    assert memory.start > LAYERS * WEIGHT
    assert memory.most - memory.start < 4 * WEIGHT  # the sum, what is computed with it, and whether it is finite
    cores = memory.start - memory.live
    assert 0 < cores < WEIGHT  # the adapters are gone, and every old weight
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model["layers"], expected, strict=True))


def test_what_merged_layers_kept_is_dropped_on_the_way():
    model = model_of("linear", merged=range(LAYERS))
    with Memory(model) as memory:
        merge_tt_lora(model)
    assert memory.start > 2 * LAYERS * WEIGHT > 1.9 * memory.live


@pytest.fixture
def at_third(monkeypatch):
    """Raise this, once, where the third layer is merged for good."""

    def prepare(error, where):
        calls = []
        plain = TTLoRALinear.merge if where == "before" else ttref.lora.model.put

        def stopping(*arguments):
            calls.append(arguments)
            if len(calls) == 3 and where == "before":
                raise error
            plain(*arguments)
            if len(calls) == 3:
                raise error

        if where == "before":
            monkeypatch.setattr(TTLoRALinear, "merge", stopping)
        else:
            monkeypatch.setattr(ttref.lora.model, "put", stopping)

    return prepare


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_raised_when_all_are_merged(error, where, at_third):
    model, wanted = model_of("linear"), merge_tt_lora(model_of("linear"))
    at_third(error, where)
    with pytest.raises(error):
        merge_tt_lora(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in wanted.modules()]
    for found, expected in zip(model.parameters(), wanted.parameters(), strict=True):
        assert bits(found) == bits(expected)
    assert vars(model["head"]).keys() == vars(wanted["head"]).keys()


def test_an_error_that_nobody_foresaw_leaves_a_model_that_computes_the_same(at_third):
    model, wanted = model_of("linear"), merge_tt_lora(model_of("linear"))
    at_third(MemoryError, "before")
    with pytest.raises(MemoryError):
        merge_tt_lora(model)
    kinds = [isinstance(layer, TTLoRALinear) for layer in model["layers"]]
    assert kinds == [False] * 2 + [True] * (LAYERS - 2)
    assert not any(layer.merged for layer in model["layers"][2:])
    merge_tt_lora(model)
    for found, expected in zip(model.parameters(), wanted.parameters(), strict=True):
        assert bits(found) == bits(expected)
