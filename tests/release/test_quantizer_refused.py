"""Folders that hold no whole compressed model: refused by name, never filled with random numbers."""

import json
import shutil

import pytest
import torch
import transformers
from quantized import answer, built, saved
from safetensors.torch import load_file, save_file
from strategies import agree

from ttref.release.quantizer import TensorTrainConfig

ATTENTION, TABLE = "transformer.h.0.attn.c_attn", "transformer.wte"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(built("GPT-2, tied"), tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def configured(folder, change):
    """Change what ``config.json`` says."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def stored(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def layer(name, **changes):
    return lambda config: config["layers"][name].update(changes)


WRONG = {
    "a version to come": (lambda c: c.update(version=2), "saved in version 2 of tensor_train, and this ttref reads ve"),
    "no version": (lambda c: c.update(version="1"), "the version of a tensor_train configuration is '1'"),
    "no layers": (lambda c: c.update(layers=None), "layers of a tensor_train configuration are None"),
    "a layer that is none": (lambda c: c["layers"].update({ATTENTION: 5}), "no descriptions by name"),
    "something else": (lambda c: c.update(bits=4), "a tensor_train configuration has no 'bits'"),
    "a module that is not there": (
        lambda c: c["layers"].update({"transformer.h.7.attn": c["layers"][ATTENTION]}),
        "described as 'transformer.h.7.attn', and a GPT2LMHeadModel has no such module",
    ),
    "the model itself": (lambda c: c["layers"].update({"": c["layers"][ATTENTION]}), "has no such module"),
    "another kind of layer": (
        lambda c: c["layers"].update({"transformer.h.0.ln_1": c["layers"][ATTENTION]}),
        "transformer.h.0.ln_1 is a LayerNorm in this model, and described as a TTLinear",
    ),
    "an unknown kind": (layer(ATTENTION, kind="Pickle"), f"{ATTENTION}: 'Pickle' is no kind of compressed layer"),
    "other widths": (layer(ATTENTION, out_features=47), "out_features = 48 in this model, and is described with 47"),
    "more than there is memory": (layer(ATTENTION, modes=[[1 << 40, 1 << 40]] * 3), "a tensor of"),
    "another table": (layer(TABLE, num_embeddings=61, pieces=[[61]]), "= 60 in this model, and is described with 61"),
    "a head of no table": (
        layer("lm_head", look_up=ATTENTION),
        "a TiedHead needs an MPSEmbedding or a TTMEmbedding, got TT",
    ),
    "a kind that is no name": (layer(ATTENTION, kind=["TTLinear"]), r"\['TTLinear'\] is no kind of compressed layer"),
    "a look-up that is no name": (layer("lm_head", look_up=[TABLE]), "is described with the table of"),
    "a head of itself": (layer("lm_head", look_up="lm_head"), "the table of 'lm_head', which is no look-up here"),
    "a head of another bias": (layer("lm_head", bias=True, rows=61, dtype="float32"), "bias has 61 entries, and its"),
    "other ranks than those stored": (
        layer(ATTENTION, ranks=[1, 2, 3, 1]),
        rf"{ATTENTION}.cores.0 has shape .*, and by its configuration it has",
    ),
    "a layer that is not described": (
        lambda c: c["layers"].pop(ATTENTION),
        f"incomplete: it holds no {ATTENTION}.weight, which would be random numbers",
    ),
    "a head that is not described": (lambda c: c["layers"].pop("lm_head"), "holds no lm_head.weight"),
}


@pytest.mark.parametrize("change, says", WRONG.values(), ids=WRONG)
def test_a_configuration_that_does_not_fit_is_refused(change, says, folder):
    configured(folder, change)
    with pytest.raises(ValueError, match=says):
        load(folder)


@pytest.mark.parametrize("name, other", [("stride", [1, 1]), ("padding", [1, 1]), ("kernel_size", [4, 1])])
def test_a_convolution_of_other_settings_is_refused(name, other, tmp_path):
    model = built("ViT")
    folder = saved(model, tmp_path)
    conv = next(name for name, spec in model.config.quantization_config.layers.items() if spec["kind"] == "TTConv2d")
    configured(folder, layer(conv, **{name: other}))
    with pytest.raises(ValueError, match=rf"{conv} has {name} = \(., .\) in this model, and is described with"):
        type(model).from_pretrained(folder)


@pytest.mark.parametrize("name", ["Gemma", "BART, scaled"])
def test_another_factor_of_rows_is_refused(name, tmp_path):
    """Gemma's is on the meta device when layers are put in place."""
    model = built(name)
    folder = saved(model, tmp_path)
    table = next(key for key, spec in model.config.quantization_config.layers.items() if spec["kind"] == "ScaledTable")
    configured(folder, layer(table, scale=50.0))
    with pytest.raises(ValueError, match="scales its rows by 4.0 in this model, and is described with 50.0"):
        type(model).from_pretrained(folder)


LACKING = [f"{ATTENTION}.cores.1", f"{ATTENTION}.bias", f"{TABLE}.store.buckets.0.pieces.0.cores"]
LACKING += [f"{TABLE}.store.frame.mean", "transformer.ln_f.weight", "transformer.h.0.mlp.c_proj.weight"]


@pytest.mark.parametrize("name", LACKING)
def test_a_folder_without_one_of_its_tensors_is_refused(name, folder):
    stored(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"incomplete: it holds no {name}, which would be random numbers"):
        load(folder)
    if "ln_f" not in name and "c_proj" not in name:
        with pytest.raises(ValueError, match="incomplete"):
            transformers.AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("ignore", [False, True])
def test_a_tensor_of_another_shape_is_refused(ignore, folder):
    name = f"{ATTENTION}.cores.1"
    stored(folder, lambda tensors: tensors.update({name: torch.zeros(1, 2, 3, 4)}))
    with pytest.raises(ValueError, match=rf"{name} has shape \(1, 2, 3, 4\), and by its configuration it has"):
        load(folder, ignore_mismatched_sizes=ignore)


def test_what_is_not_this_method_is_left_to_transformers(folder):
    configured(folder, lambda config: config.update(quant_method="gptq", bits=4))
    with pytest.raises((ImportError, ValueError), match="GPTQ|gptq"):
        load(folder)
    with pytest.raises(ValueError, match="quant_method is 'gptq'"):
        TensorTrainConfig({}, quant_method="gptq")


def test_nothing_is_compressed_while_a_dense_model_loads(tmp_path):
    model = built("GPT-2, tied")
    config = TensorTrainConfig({})
    transformers.GPT2LMHeadModel(model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tensor_train does require the model to be pre-quantized"):
        load(tmp_path, quantization_config=config)


def test_a_good_folder_loads_after_all_of_that(good):
    assert agree(answer(load(good)), answer(built("GPT-2, tied")))
