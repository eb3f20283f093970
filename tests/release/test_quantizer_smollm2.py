"""SmolLM2, compressed, in a process of its own: one line loads it, in the memory of its file and one layer."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from strategies import agree

from book.tools.notebooks import ROOT
from book.workbook.sources import load_language_model
from ttref import MPSEmbedding, TTLinear, replace_embedding, swap_layer
from ttref.release import load_release, save_release
from ttref.release.manifest import MODEL
from ttref.release.placing import describe_model

IDS = torch.tensor([[504, 3575, 282, 4649, 314]])
# What is imported comes before; the memory is what the system counts for the process.
ALONE = """
import json, sys
from pathlib import Path
import torch, ttref
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
import ttref.release.placing, ttref.release.quantizer, transformers.models.llama.modeling_llama

def bytes_of(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))

torch.set_num_threads(1)
folder, given, out = sys.argv[1:]
before = bytes_of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = AutoModelForCausalLM.from_pretrained(folder)
found = {"loading": bytes_of("VmHWM") - before, "loaded": bytes_of("VmRSS") - before}
with torch.no_grad():
    save_file({"logits": model(load_file(given)["ids"]).logits}, out)
print(json.dumps(found))
"""


def compressed(model):
    """The table, which is the head as well, and the matrices of all feed-forward blocks."""
    small = copy.deepcopy(model)
    table = MPSEmbedding.from_embedding(small.get_input_embeddings(), rank=4, core_bits=8)
    replace_embedding(small, table, head="tied")
    for name, layer in [*small.named_modules()]:
        if name.endswith(("gate_proj", "up_proj", "down_proj")):
            swap_layer(small, name, TTLinear.from_linear(layer, rank=64))
    return small


@pytest.mark.slow
def test_smollm2_loads_in_one_line_in_a_fresh_process(tmp_path):
    dense = load_language_model().model.eval()
    small = compressed(dense)
    save_release(small, tmp_path / "r", source=dense, override="a test, nothing was measured", keep_dense=False)
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    arguments = [str(tmp_path / name) for name in ("r", "ids.safetensors", "logits.safetensors")]
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = small(IDS).logits
        assert agree(load_file(tmp_path / "logits.safetensors")["logits"], wanted)
        loaded = load_release(tmp_path / "r")
        assert agree(loaded(IDS).logits, wanted)
    assert describe_model(loaded) == describe_model(small)
    assert loaded.get_output_embeddings().table is loaded.get_input_embeddings()
    file = (tmp_path / "r" / MODEL).stat().st_size
    layer = max(tensor.nbytes for tensor in loaded.state_dict().values())
    whole = sum(tensor.nbytes for tensor in dense.parameters())
    found = json.loads(done.stdout.splitlines()[-1])
    print({"file": file, "layer": layer, "dense": whole} | found)
    assert file < 0.6 * whole and found["loading"] <= file + layer
