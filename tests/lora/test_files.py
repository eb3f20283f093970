"""Files of adapters: what comes back, and that a failed save leaves the model and the older file."""

import copy
import errno
import itertools
import math
import os
import sys

import pytest
import torch
from adapters import (
    FLOATS,
    adapted,
    anatomy,
    answers,
    bits,
    scatter_all,
    tiny_bert,
    tiny_classifier,
    tiny_gpt2,
    tiny_llama,
    trained,
)
from lora_nets import (
    net,
    opened,
    prepared,
)
from strategies import agree
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora
from ttref.lora.model import adapters

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


MODELS = {
    "bert": (tiny_bert, ["query", "value"], ()),
    "classifier": (tiny_classifier, ["query", "value", "intermediate.dense"], ("classifier", "pooler")),
    "llama": (tiny_llama, ["q_proj", "v_proj"], ()),
    "gpt2": (tiny_gpt2, ["c_attn", "c_fc"], ()),
}


def same_content(one, other):
    return one.read_bytes() == other.read_bytes()


# What comes back


@pytest.mark.parametrize("dtype, init", [(torch.float32, "paper"), *((dtype, "zero_last") for dtype in FLOATS)])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(name, dtype, init, path):
    make, targets, along = MODELS[name]
    base = make(dtype=dtype).eval()
    model = add_tt_lora(copy.deepcopy(base), targets, rank=3, alpha=0.5, init=init, dropout=0.25, modules_to_save=along)
    scatter_all(model)
    with torch.no_grad():
        for name_along in along:
            for parameter in model.get_submodule(
                next(n for n, _ in model.named_modules() if n.endswith(name_along))
            ).parameters():
                parameter.mul_(1.5)
    save_tt_lora(model, str(path))
    assert load_tt_lora(base, path) is base
    assert base.state_dict().keys() == model.state_dict().keys()
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())
    assert trained(base) == trained(model)
    assert {name: repr(layer) for name, layer in adapters(base).items()} == {
        name: repr(layer) for name, layer in adapters(model).items()
    }
    assert agree(answers(base), answers(model))
    assert {layer.delta.init for layer in adapters(base).values()} == {init}
    again = path.with_name("again.safetensors")
    save_tt_lora(base, again)
    assert same_content(path, again)


def test_training_goes_on_where_it_stopped(path):
    """The same steps from a loaded model as from the one that was saved."""
    model, base = prepared(net()), net()
    save_tt_lora(model, path)
    load_tt_lora(base, path)
    for one in (model, base):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            one(torch.arange(20).reshape(4, 5))["logits"].square().backward()
            optimizer.step()
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_the_file_says(path):
    save_tt_lora(prepared(net(), dropout=0.25), path)
    tensors, header, about = opened(path)
    assert about.keys() == {"format", "version", "each", "sha256"} and about["format"] == "ttref.TT-LoRA"
    assert about["version"] == "3" and len(about["sha256"]) == 64
    layers = header["layers"]
    assert set(layers) == {"query", "value", "up"} and header["modules_to_save"] == ["head"]
    assert layers["value"] == {
        "shape": [4, 9, 6],
        "ranks": [1, 2, 2, 1],
        "alpha": 1.5,
        "init": "zero_last",
        "dropout": 0.25,
        "features": [18, 12],
        "automatic": False,
    }
    # 13 outputs are padded to 14: such modes cannot be given back as a shape.
    assert layers["up"]["automatic"] and math.prod(layers["up"]["shape"]) == 14 * 12
    assert len(header["base"]["sha256"]) == 64
    head = {f"head.{name}" for name in net().head.state_dict()}
    assert set(tensors) == head | {
        f"{name}.cores.{k}" for name, layer in layers.items() for k in range(len(layer["shape"]))
    }


def test_the_file_holds_no_more_than_it_must(path):
    """Cores, what is saved along, and a header of a few hundred bytes a layer."""
    model = prepared(net())
    save_tt_lora(model, path)
    tensors, _, _ = opened(path)
    payload = sum(x.numel() * x.element_size() for x in tensors.values())
    cores = sum(layer.params for layer in adapters(model).values()) * 4
    assert payload == cores + sum(x.numel() * x.element_size() for x in model.head.state_dict().values())
    assert path.stat().st_size < payload + 4000
    big = add_tt_lora(tiny_bert(), ["query", "key", "value"], rank=1, alpha=1)
    save_tt_lora(big, path)
    assert path.stat().st_size < 4 * sum(p.numel() for p in big.parameters() if p.requires_grad) + 6 * 750 + 40 * 4


def test_merged_or_not_is_one_file(path):
    for merged in itertools.product([False, True], repeat=3):
        model = prepared(net())
        save_tt_lora(model, path)
        for layer, merge in zip(adapters(model).values(), merged, strict=True):
            if merge:
                layer.merge()
        state = {key: bits(value) for key, value in model.state_dict().items()}
        other = path.with_name("merged.safetensors")
        save_tt_lora(model, other)
        assert same_content(path, other)
        assert {key: bits(value) for key, value in model.state_dict().items()} == state


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_stays(training, path):
    save_tt_lora(prepared(net(), dropout=0.5), path)
    base = net().train(training)
    assert {module.training for module in load_tt_lora(base, path).modules()} == {training}


def test_a_gradient_or_an_odd_place_in_memory_changes_no_file(path):
    model = prepared(net())
    save_tt_lora(model, path)
    model(torch.arange(20).reshape(4, 5))["logits"].backward()
    with torch.no_grad():
        model.head[0].weight.data = model.head[0].weight.data.T.contiguous().T
        model.query.base_layer.weight.data = model.query.base_layer.weight.data.T.contiguous().T
        model.up.cores[0].data = model.up.cores[0].data.transpose(0, 1).contiguous().transpose(0, 1)
    other = path.with_name("other.safetensors")
    save_tt_lora(model, other)
    assert same_content(path, other)
    load_tt_lora(net(), other)


def test_a_model_that_was_converted_comes_back_in_its_dtype(path):
    """Cores that went to half precision with their model compute there again."""
    model = prepared(net()).to(torch.bfloat16)
    save_tt_lora(model, path)
    base = load_tt_lora(net().to(torch.bfloat16), path)
    assert {core.dtype for core in base.query.cores} == {torch.bfloat16}
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())


def test_loading_draws_no_random_numbers(path):
    """Nor does it decompose a matrix that is thrown away."""
    save_tt_lora(prepared(net(), init="paper"), path)
    base = net()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_tt_lora(base, path)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_adapter_can_be_merged(path):
    model = prepared(net())
    save_tt_lora(model, path)
    base = merge_tt_lora(load_tt_lora(net(), path))
    assert all(bits(a) == bits(b) for a, b in zip(base.parameters(), merge_tt_lora(model).parameters(), strict=True))
    with pytest.raises(ValueError, match="no TT-LoRA layers to save"):
        save_tt_lora(base, path)


def full_disk(monkeypatch):
    """Which may say so only when what was written is to stay."""

    def full(number):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)


# What a failed save leaves


@pytest.mark.parametrize("merged", [False, True])
def test_a_failed_save_leaves_the_old_file_and_the_model(merged, path, monkeypatch):
    model = prepared(net())
    save_tt_lora(model, path)
    if merged:
        model.query.merge()
    old, before = path.read_bytes(), anatomy(model)
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        save_tt_lora(model, path)
    assert path.read_bytes() == old and [file.name for file in path.parent.iterdir()] == [path.name]
    assert anatomy(model) == before


def test_a_failed_first_save_leaves_nothing(path, monkeypatch):
    model = prepared(net())
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        save_tt_lora(model, path)
    assert list(path.parent.iterdir()) == []


def test_who_may_read_other_files_may_read_this_one(path):
    save_tt_lora(prepared(net()), path)
    path.with_name("other").touch()
    assert path.stat().st_mode == path.with_name("other").stat().st_mode


def test_a_folder_that_is_not_there(path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        save_tt_lora(prepared(net()), path.parent / "nowhere" / "adapter.safetensors")
    assert list(path.parent.iterdir()) == []


def test_a_model_without_adapters(path):
    with pytest.raises(ValueError, match="no TT-LoRA layers to save; add_tt_lora puts them in"):
        save_tt_lora(net(), path)
    with pytest.raises(ValueError):
        save_tt_lora(adapted("aligned"), path)
    assert not path.exists()


def test_a_training_that_ended_in_nan(path):
    """What could not be loaded again does not take the place of a good file."""
    model = prepared(net())
    save_tt_lora(model, path)
    old = path.read_bytes()
    with torch.no_grad():
        model.query.cores[0].fill_(math.nan)
    with pytest.raises(ValueError, match="query"):
        save_tt_lora(model, path)
    assert path.read_bytes() == old


def test_without_safetensors_the_install_line_is_given(path, monkeypatch):
    model = prepared(net())
    save_tt_lora(model, path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: save_tt_lora(model, path), lambda: load_tt_lora(net(), path)):
        with pytest.raises(ModuleNotFoundError, match="python -m pip install safetensors"):
            call()


def test_a_model_that_is_quantized_elsewhere(path):
    """Its state holds more than tensors; the float layers beside can be adapted, saved and loaded."""

    def make():
        torch.manual_seed(0)
        model = nn.ModuleDict({"query": nn.Linear(12, 12), "other": nn.Sequential(nn.Linear(12, 12))})
        model["other"] = torch.ao.quantization.quantize_dynamic(model["other"], {nn.Linear})
        return model

    model = scatter_all(add_tt_lora(make(), "query", rank=2, alpha=1))
    save_tt_lora(model, path)
    base = load_tt_lora(make(), path)
    assert agree(base["query"](torch.ones(12)), model["query"](torch.ones(12)))


def test_a_saved_module_with_a_tie_inside(path):
    def make():
        torch.manual_seed(0)
        model = nn.ModuleDict({"query": nn.Linear(6, 6), "head": nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))})
        model["head"][1].weight = model["head"][0].weight
        return model

    model = scatter_all(add_tt_lora(make(), "query", rank=2, alpha=1, modules_to_save="head"))
    with torch.no_grad():
        model["head"][0].weight.add_(1)
    save_tt_lora(model, path)
    base = load_tt_lora(make(), path)
    assert torch.equal(base["head"][1].weight, model["head"][0].weight)
    assert isinstance(base["query"], TTLoRALinear)
