"""TT-LoRA through PEFT: saved and loaded, by PEFT and by transformers."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from adapters import FLOATS, answers, bits, tiny_bert, tiny_classifier, trained
from peft import PeftModel, get_peft_model
from peft_models import (
    base_of,
    config,
    fill,
    layers,
    made,
    models,
)
from strategies import agree
from transformers import AutoModel, AutoModelForSequenceClassification

from ttref.lora.peft import TTLoraConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:rank .* exceeds what modes"),
    # PEFT cannot look a model up that has no name on the hub.
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]


# Saved and loaded


@models
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", FLOATS[1:3])
def test_the_round_trip(name, dtype, low, tmp_path):
    model = made(name, dtype, init="orthogonal", dropout=0.25)
    if low:  # PEFT then takes adapters through the dtype of the base: LoRA's lose these digits, too
        with torch.no_grad():
            for layer in layers(model).values():
                for core in layer.ttlora_delta["default"].cores:
                    core.copy_(core.to(dtype))
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["peft_type"], about["rank"], about["alpha"], about["init"]) == ("TTLORA", 2, 1.5, "orthogonal")
    again = PeftModel.from_pretrained(base_of(name, dtype), tmp_path, low_cpu_mem_usage=low).eval()
    assert agree(answers(again), answers(model)) and not trained(again)
    assert type(again.peft_config["default"]) is TTLoraConfig
    for one, other in zip(layers(model).values(), layers(again).values(), strict=True):
        assert repr(one.ttlora_delta) == repr(other.ttlora_delta)
        assert all(map(torch.equal, one.ttlora_delta["default"].cores, other.ttlora_delta["default"].cores))
    further = PeftModel.from_pretrained(base_of(name, dtype), tmp_path, is_trainable=True)
    assert trained(further) == trained(model) != set()
    other = tmp_path / "again"
    again.save_pretrained(other)
    assert (other / "adapter_config.json").read_text() == (tmp_path / "adapter_config.json").read_text()
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (tmp_path, other))
    assert {key: bits(x) for key, x in load(ours).items()} == {key: bits(x) for key, x in load(theirs).items()}
    assert all("default" not in key for key in load(ours))
    assert ours.stat().st_size < sum(x.nbytes for x in load(ours).values()) + 200 * len(load(ours)) + 200


def load(path):
    import safetensors.torch

    return safetensors.torch.load_file(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": [4, 6, 4, 6]},
        {"shape": {"query": [8, 9, 8], "1.attention.self.value": [24, 24]}},
        {"rank": [1, 2, 3, 2, 1], "shape": [4, 6, 4, 6]},
        {"target_modules": r".*\.(query|value)"},
        {"layers_to_transform": [1], "layers_pattern": ["layer"]},
        {"exclude_modules": ["value"]},
    ],
)
def test_every_field_of_the_configuration_comes_back(options, tmp_path):
    settings = config(**options)
    model = fill(get_peft_model(tiny_bert(), settings)).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base_of(), tmp_path).eval()
    assert agree(answers(again), answers(model))
    was, now = model.peft_config["default"].to_dict(), again.peft_config["default"].to_dict()
    for key in was.keys() - {"inference_mode", "auto_mapping"}:  # PEFT's own, which it sets on saving
        assert now[key] == was[key], key


@pytest.fixture
def stored(tmp_path):
    """A base model in a folder, and an adapter that names it."""
    tiny_classifier().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = fill(get_peft_model(base, config(modules_to_save=["classifier"], task_type="SEQ_CLS"))).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model


def test_auto_peft_models(stored):
    folder, model = stored
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter", num_labels=3).eval()
    assert agree(answers(again), answers(model))
    features = fill(get_peft_model(AutoModel.from_pretrained(folder / "base"), config(task_type="FEATURE_EXTRACTION")))
    features.eval().save_pretrained(folder / "features")
    again = peft.AutoPeftModelForFeatureExtraction.from_pretrained(folder / "features").eval()
    assert agree(answers(again), answers(features))


def test_transformers_loads_and_adds_adapters(tmp_path):
    made().save_pretrained(tmp_path)
    model = base_of()
    before = answers(model)
    model.load_adapter(str(tmp_path))
    assert agree(answers(model), answers(made()))
    model.disable_adapters()
    assert agree(answers(model), before)
    model.enable_adapters()
    assert agree(answers(model), answers(made()))
    other = base_of()
    other.add_adapter(config())
    assert agree(answers(other), before) and len(layers(other)) == 4
    fill(other)
    assert agree(answers(other), answers(made()))
    other.add_adapter(config(rank=1), adapter_name="second")
    other.set_adapter("second")
    assert agree(answers(other), before)
    assert other.active_adapters() == ["second"]


def test_a_missing_registration_is_loud(tmp_path):
    """A process that does not import the bridge stops; it does not go on without the adapter."""
    made().save_pretrained(tmp_path)
    tiny_bert().save_pretrained(tmp_path / "base")
    program = (
        "import sys; from transformers import AutoModel; from peft import PeftModel\n"
        "base = AutoModel.from_pretrained(sys.argv[1])\n"
        "{}PeftModel.from_pretrained(base, sys.argv[2]); print('loaded')"
    )
    run = lambda text: subprocess.run(  # noqa: E731
        [sys.executable, "-c", text, str(tmp_path / "base"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    without = run(program.format(""))
    assert without.returncode != 0 and "KeyError" in without.stderr and "TTLORA" in without.stderr
    assert "loaded" not in without.stdout
