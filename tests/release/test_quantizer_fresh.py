"""One line in a process that knows nothing of the model: whichever of the two packages is imported first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from quantized import answer, built, saved
from safetensors.torch import load_file
from strategies import agree

import ttref
from book.workbook.sources import load_encoder
from ttref import MPSEmbedding, TTLinear, TTMEmbedding, replace_embedding, swap_layer

LOAD = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification
folder, out = sys.argv[1:]
"""
RUN = """
kinds = {"bert": AutoModel, "gpt2": AutoModelForCausalLM, "vit": AutoModelForImageClassification}
model = kinds[folder.rpartition("/")[2]].from_pretrained(folder)
pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
with torch.no_grad():
    found = model(pixels if folder.endswith("vit") else torch.tensor([[5, 6, 7, 59]]))
save_file({"out": found.get("logits", found.get("last_hidden_state")).clone()}, out)
"""
LIGHT = """
import sys, ttref
assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
"""
FIRST = {"ttref": LIGHT + LOAD, "transformers": LOAD + "import ttref\n"}


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(ttref.__file__).parents[1], timeout=300)


def minilm():
    """The real one, every layer but attention compressed."""
    model = load_encoder().model.eval()
    replace_embedding(model, MPSEmbedding.from_embedding(model.get_input_embeddings(), rank=1, core_bits=8))
    places = "embeddings.position_embeddings"
    swap_layer(model, places, TTMEmbedding.from_embedding(model.get_submodule(places), rank=16))
    for name, layer in list(model.named_modules()):
        if name.endswith(("intermediate.dense", "layer.5.output.dense")):
            swap_layer(model, name, TTLinear.from_linear(layer, rank=8))
    return model


MADE = {
    "GPT-2": ("ttref", lambda: built("GPT-2, tied")),
    "MiniLM": ("transformers", minilm),
    "ViT": ("ttref", lambda: built("ViT")),
}


@pytest.mark.parametrize("name", MADE)
def test_the_logits_are_those_of_the_model_that_was_saved(name, tmp_path):
    first, make = MADE[name]
    model = make()
    done = run(FIRST[first] + RUN, saved(model, tmp_path / model.config.model_type), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert agree(load_file(tmp_path / "out")["out"], answer(model))


def test_a_folder_from_elsewhere_is_refused_in_one_line(tmp_path):
    folder = saved(built("BERT"), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    done = run(FIRST["ttref"] + RUN, folder, tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "ValueError: this model was saved in version 9 of tensor_train" in done.stderr.strip().splitlines()[-1]
