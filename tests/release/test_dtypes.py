"""Numbers keep the dtype that they were saved in, whoever loads them, unless another one is asked for."""

import copy
import json

import pytest
import torch
import transformers
from compressed import same_state
from quantized import MODELS, answer, built, saved
from releases import WHY
from strategies import agree

from ttref.compressed import Compressed
from ttref.embeddings.head import ScaledTable, TiedHead
from ttref.release import load_release, save_release

HALVES = torch.float16, torch.bfloat16
models = pytest.mark.parametrize("name, half", [(name, HALVES[k % 2]) for k, name in enumerate(reversed(MODELS))])
RUN = "LLaMA, tied", "LLaMA, untied", "Gemma", "ViT", "T5"  # with autocast; layer norms of others take one dtype only


def dtypes(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def floats(model):
    """Dtypes of all numbers but the scales of integer rows, which are bfloat16 whatever the model is."""
    held = {name: tensor.dtype for name, tensor in model.state_dict().items() if not name.endswith(".scales")}
    return {dtype for dtype in held.values() if dtype.is_floating_point}


def mixed(name, half):
    """A model in half precision whose compressed layers, tied heads and last weights are float32."""
    model = built(name).to(half)
    for module in model.modules():
        if isinstance(module, (Compressed, TiedHead, ScaledTable)):
            module.float()
    [*model.modules()][-1].float()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.float32:  # digits that half precision has not
            tensor.mul_(1 + 1e-4 * torch.rand(tensor.shape, generator=generator))
    return model


def released(name, half, folder):
    model = mixed(name, half)
    source = type(model).from_pretrained(saved(built(name), folder / "before")).dequantize()
    save_release(model, folder / "r", source=source, override=WHY)
    return model, folder / "r"


@models
def test_transformers_and_load_release_give_the_numbers_that_were_saved(name, half, tmp_path):
    model, folder = released(name, half, tmp_path)
    assert {half, torch.float32} <= {*dtypes(model).values()}
    plain, auto = type(model).from_pretrained(folder), type(model).from_pretrained(folder, dtype="auto")
    for loaded in (plain, auto, load_release(folder)):
        assert dtypes(loaded) == dtypes(model) and same_state(loaded, model) and loaded.config.dtype == model.dtype
    if name in RUN:
        with torch.autocast("cpu", half):
            assert agree(answer(plain), answer(model))
    plain.save_pretrained(tmp_path / "again")
    assert same_state(type(model).from_pretrained(tmp_path / "again"), model)
    dense = {name: tensor.dtype for name, tensor in plain.dequantize().named_parameters()}
    assert {*dense.values()} == {half, torch.float32}


@models
def test_a_dtype_that_is_asked_for_is_that_of_all_numbers(name, half, tmp_path):
    """Also if it is the model's own, which a model without it gets for what was saved in it only."""
    model, folder = released(name, half, tmp_path)
    for kind in (half, torch.float32):
        loaded = type(model).from_pretrained(folder, dtype=kind)
        kept = {torch.float32} if kind == torch.float16 and loaded._keep_in_fp32_modules else set()  # T5's wo
        assert kind in floats(loaded) and floats(loaded) <= {kind} | kept and loaded.config.dtype == kind
        assert same_state(loaded, load_release(folder, torch_dtype=kind))


def test_auto_classes_and_names_of_dtypes(tmp_path):
    model, folder = released("GPT-2, tied", torch.bfloat16, tmp_path)
    auto = transformers.AutoModelForCausalLM
    for options in ({}, {"dtype": "auto"}, {"dtype": None}):
        assert same_state(auto.from_pretrained(folder, **options), model)
    for kind in ("bfloat16", torch.bfloat16):
        assert floats(auto.from_pretrained(folder, dtype=kind)) == {torch.bfloat16}
    base = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(base[name], tensor) for name, tensor in model.transformer.state_dict().items())
    config = transformers.AutoConfig.from_pretrained(folder)
    before = copy.deepcopy(config)
    assert same_state(auto.from_pretrained(folder, config=config), model) and config.to_dict() == before.to_dict()


def test_numbers_on_the_disk_keep_theirs(tmp_path):
    model, folder = released("LLaMA, tied", torch.bfloat16, tmp_path)
    devices = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    loaded = type(model).from_pretrained(folder, device_map=devices | {"lm_head": "cpu"}, offload_folder=tmp_path / "o")
    assert any(tensor.is_meta for tensor in loaded.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert agree(answer(loaded), answer(model))


@pytest.mark.parametrize("kind", [torch.float32, "bfloat16", torch.float64])
def test_a_dense_model_has_the_dtype_that_is_asked_for(kind, tmp_path):
    """Also where that is the one of its configuration, and numbers in another were kept as they were saved."""
    model, folder = released("LLaMA, tied", torch.bfloat16, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(kind).removeprefix("torch.")}))
    loaded = type(model).from_pretrained(folder)
    assert floats(loaded) == {torch.bfloat16, torch.float32}
    assert {str(one) for one in floats(loaded.dequantize(kind))} == {f"torch.{str(kind).removeprefix('torch.')}"}


@pytest.mark.parametrize("options", [{}, {"dtype": "auto"}, {"dtype": None}, {"dtype": torch.float32}], ids=str)
def test_a_configuration_without_a_dtype_asks_for_none(options, tmp_path):
    model, folder = released("LLaMA, tied", torch.bfloat16, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = type(model).from_pretrained(folder, **options)
    if options.get("dtype") == torch.float32:
        assert floats(loaded) == {torch.float32} and loaded.config.dtype == torch.float32
    else:
        assert dtypes(loaded) == dtypes(model) and same_state(loaded, model) and loaded.config.dtype == model.dtype
