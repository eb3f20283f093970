"""Compressed models that transformers loads in one line, saves again and makes dense."""

import copy
import json

import pytest
import torch
import transformers
from compressed import FLOATS, same_state
from quantized import MODELS, answer, built, saved
from safetensors.torch import load_file
from strategies import agree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.trainer_utils import validate_quantization_for_training

from ttref.compressed import Compressed
from ttref.embeddings.head import ScaledTable, TiedHead
from ttref.release.placing import describe_model

models = pytest.mark.parametrize("name", MODELS)


def compressed(model):
    kinds = (Compressed, TiedHead, ScaledTable)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def sizes(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


def shared(model):
    """Which names stand for the same parameter or the same module."""
    found = {}
    for name, part in (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)):
        found.setdefault(id(part), []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


@models
def test_a_model_loads_as_it_was_saved_and_is_saved_again(name, tmp_path):
    model = built(name)
    loaded = type(model).from_pretrained(saved(model, tmp_path / "one"))
    assert same_state(loaded, model) and describe_model(loaded) == describe_model(model)
    assert compressed(loaded) == compressed(model) and shared(loaded) == shared(model)
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers())) and not loaded.training
    assert agree(answer(loaded), answer(model))
    loaded.save_pretrained(tmp_path / "two")
    one, two = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("one", "two"))
    assert one["quantization_config"] == two["quantization_config"]
    assert one["quantization_config"].keys() == {"quant_method", "version", "layers"}
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert answer(type(model).from_pretrained(tmp_path / "two")).equal(answer(loaded))


@models
def test_a_model_becomes_dense_and_is_one_like_any_other(name, tmp_path):
    model = built(name)
    loaded = type(model).from_pretrained(saved(model, tmp_path / "one"))
    twin = type(model)(copy.deepcopy(model.config))
    copied = copy.deepcopy(loaded)
    assert loaded.dequantize() is loaded and compressed(copied) == compressed(model)
    assert agree(answer(copied.dequantize()), answer(loaded))
    assert not compressed(loaded) and str(loaded) == str(twin) and agree(answer(loaded), answer(model))
    assert not hasattr(loaded.config, "quantization_config") and "resize_token_embeddings" not in vars(loaded)
    if "dense head" not in name:  # which is tied no more
        assert shared(loaded) == shared(twin)
    loaded.save_pretrained(tmp_path / "two")
    assert agree(answer(type(model).from_pretrained(tmp_path / "two")), answer(loaded))


@pytest.mark.parametrize("dtype", FLOATS)
@models
def test_another_dtype_converts_all_but_codes_and_the_scales_of_rows(name, dtype, tmp_path):
    model = built(name)
    loaded = type(model).from_pretrained(saved(model, tmp_path), dtype=dtype)
    converted = copy.deepcopy(model).to(dtype)
    for name, module in converted.named_modules():
        if dtype == torch.float16 and name.endswith(tuple(model._keep_in_fp32_modules)):  # T5's wo
            module.float()
            module.load_state_dict(model.get_submodule(name).state_dict())
    assert sizes(loaded) == sizes(converted) and same_state(loaded, converted)
    gap = (answer(loaded).double() - answer(model).double()).abs().max() / answer(model).abs().max()
    assert str(loaded.dequantize().dtype) == str(dtype)
    assert gap < {torch.float64: 1e-5, torch.float32: 1e-6, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]


def test_a_dtype_that_a_model_was_saved_in_is_kept(tmp_path):
    model = built("GPT-2, tied").bfloat16()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path))
    assert loaded.dtype == torch.bfloat16 and same_state(loaded, model)
    dense = loaded.dequantize(torch.float32)
    assert {tensor.dtype for tensor in dense.parameters()} == {torch.float32}
    assert agree(answer(dense).bfloat16(), answer(model))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@pytest.mark.parametrize("name", ["GPT-2, tied", "LLaMA, tied", "BART"])
def test_a_map_of_devices(name, device_map, tmp_path):
    model = built(name)
    loaded = type(model).from_pretrained(saved(model, tmp_path), device_map=device_map)
    assert same_state(loaded.cpu(), model)


@pytest.mark.parametrize("name", ["GPT-2, tied", "LLaMA, tied", "Gemma"])
def test_numbers_may_stay_on_the_disk(name, tmp_path):
    model = built(name)
    inner = {name: "disk" for name, _ in model.base_model.named_children()}
    devices = {f"{model.base_model_prefix}.{name}": where for name, where in inner.items()} | {"lm_head": "cpu"}
    devices[next(iter(devices))] = "cpu"
    folder = saved(model, tmp_path / "model")
    loaded = type(model).from_pretrained(folder, device_map=devices, offload_folder=tmp_path / "offloaded")
    assert any(tensor.is_meta for tensor in loaded.parameters()) and agree(answer(loaded), answer(model))


@pytest.mark.parametrize("name", ["GPT-2, tied", "LLaMA, tied", "LLaMA, untied", "BERT, masked words", "BART"])
def test_the_base_model_loads_from_the_release_of_one_with_a_head(name, tmp_path):
    model = built(name)
    loaded = transformers.AutoModel.from_pretrained(saved(model, tmp_path))
    base = getattr(model, model.base_model_prefix)
    assert compressed(loaded) == compressed(base)
    state = loaded.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in base.state_dict().items())


def test_a_new_head_on_the_release_of_a_base_model_is_random_as_ever(tmp_path):
    model = built("BERT")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(saved(model, tmp_path), num_labels=3)
    assert same_state(loaded.bert, model) and loaded.classifier.weight.std() > 0


def test_a_tied_head_on_the_release_of_a_base_model_is_refused(tmp_path):
    model = built("GPT-2, tied").transformer
    with pytest.raises(ValueError, match="holds no lm_head.weight: a GPT2LMHeadModel ties it .* as the GPT2Model"):
        transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path))


def test_a_layer_replaced_since_is_saved_as_it_is(tmp_path):
    model = built("GPT-2, tied")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "one"))
    name = "transformer.h.0.attn.c_attn"
    loaded.set_submodule(name, loaded.get_submodule(name).to_linear())
    with pytest.raises(ValueError, match="c_attn"):  # transposed: the model's own layer is a Conv1D
        loaded.save_pretrained(tmp_path / "two")
        type(model).from_pretrained(tmp_path / "two")


def test_a_trainer_may_train_cores(tmp_path):
    model = built("LLaMA, untied")
    loaded = type(model).from_pretrained(saved(model, tmp_path)).train()
    validate_quantization_for_training(loaded)
    answer_before = answer(loaded)
    optimizer = torch.optim.SGD([p for p in loaded.parameters() if p.requires_grad], lr=0.1)
    ids = torch.tensor([[1, 2, 3]])
    loaded(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not agree(answer(loaded), answer_before)


class OffMeta(TorchDispatchMode):
    """Bytes of the largest tensor made meanwhile that has memory."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.nbytes for x in tree_leaves(made) if isinstance(x, torch.Tensor) and not x.is_meta]
        self.largest = max([self.largest, *sizes])
        return made


@pytest.mark.parametrize("name", ["GPT-2, tied", "LLaMA, tied", "ViT", "BART", "T5"])
def test_no_dense_layer_is_made_while_a_model_loads(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes see one thread
    model = built(name)
    saved(model, tmp_path)
    with OffMeta() as made:
        type(model).from_pretrained(tmp_path)
    assert made.largest <= max(tensor.nbytes for tensor in model.state_dict().values())
