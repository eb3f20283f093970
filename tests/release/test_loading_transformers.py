"""Releases of transformers models: what was hashed is what from_pretrained gets, in its dtypes, for a known class."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from language_models import IDS as TOKENS
from language_models import gpt2, llama, masked_bert
from releases import WHY, resealed, same_state
from torch import nn

from book.tools.notebooks import ROOT
from ttref import TTLinear, swap_layer
from ttref.release import load_release, loading, rollback, save_release
from ttref.release.manifest import MANIFEST, MODEL


def small_gpt2(folder, seed):
    """A model with one compressed layer, and its release."""
    torch.manual_seed(seed)
    model = gpt2().eval()
    small = copy.deepcopy(model)
    name = "transformer.h.0.mlp.c_fc"
    swap_layer(small, name, TTLinear.from_linear(small.get_submodule(name), rank=2))
    save_release(small, folder, source=model, override=WHY)
    return small


@pytest.mark.parametrize("make", [llama, masked_bert], ids=["llama", "bert"])
def test_what_stays_on_the_meta_device_is_refused(make, tmp_path):
    """Buffers that no state holds would come out of it as any numbers."""
    model = make().eval()
    small = copy.deepcopy(model)
    name = next(name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    swap_layer(small, name, TTLinear.from_linear(small.get_submodule(name), rank=2))
    save_release(small, tmp_path / "r", source=model, override=WHY)
    with torch.device("meta"):
        fresh = make().eval()
    for change in (load_release, rollback):
        with pytest.raises(ValueError, match=r"(inv_freq|_ids) is on the meta device, and no state holds it"):
            change(tmp_path / "r", fresh)
        assert all(held.is_meta for held in fresh.parameters()) and isinstance(fresh.get_submodule(name), nn.Linear)
    loaded = load_release(tmp_path / "r")
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, small(TOKENS).logits)


def test_what_was_saved_wider_than_the_model_is_not_rounded(tmp_path):
    model = gpt2().bfloat16().eval()
    small = copy.deepcopy(model)
    small.transformer.ln_f.float()
    layer = TTLinear.from_linear(small.transformer.h[0].mlp.c_fc, rank=2).float()
    layer.bias.data.uniform_()
    swap_layer(small, "transformer.h.0.mlp.c_fc", layer)
    save_release(small, tmp_path / "r", source=model, override=WHY)
    loaded = load_release(tmp_path / "r")
    kinds = [{name: held.dtype for name, held in one.state_dict().items()} for one in (small, loaded)]
    assert kinds[0] == kinds[1] and same_state(loaded, small) and torch.float32 in kinds[0].values()
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    asked = load_release(tmp_path / "r", dtype=torch.bfloat16)
    assert {held.dtype for held in asked.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", [MODEL, "config.json", "generation_config.json"])
def test_what_was_hashed_is_what_is_loaded(name, tmp_path, monkeypatch):
    """A file that another takes the place of, after the check and before it is read, is refused."""
    small_gpt2(tmp_path / "r", 0)
    small_gpt2(tmp_path / "other", 1)
    other = (tmp_path / "other" / name).read_bytes() + (b"" if name == MODEL else b" ")

    def checked_then_changed(folder, manifest, damages=loading.damages):
        found = damages(folder, manifest)
        (folder / name).write_bytes(other)
        return found

    monkeypatch.setattr(loading, "damages", checked_then_changed)
    with pytest.raises(ValueError, match=f"{name} is not what was written"):
        load_release(tmp_path / "r")


def test_a_configuration_with_other_layers_than_the_manifest_is_refused(tmp_path):
    """transformers makes the layers from it, and would make one without its bias."""
    small_gpt2(tmp_path / "r", 0)
    manifest = json.loads((tmp_path / "r" / MANIFEST).read_bytes())
    config = json.loads((tmp_path / "r" / "config.json").read_bytes())
    for spec in config["quantization_config"]["layers"].values():
        spec["bias"] = None
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    resealed(tmp_path / "r", manifest)
    for target in (None, gpt2()):
        with pytest.raises(ValueError, match="quantization_config in config.json is not that of the layers"):
            load_release(tmp_path / "r", target)
    with pytest.raises(ValueError, match="quantization_config in config.json is not that of the layers"):
        rollback(tmp_path / "r", tmp_path / "dense")
    for content in (b"[1]", b"{", b"[" * 100_000):
        (tmp_path / "r" / "config.json").write_bytes(content)
        resealed(tmp_path / "r", manifest)
        with pytest.raises(ValueError, match="is no release of ttref") as error:
            load_release(tmp_path / "r")
        assert "\n" not in str(error.value)


def test_what_from_pretrained_is_asked_for_is_done(tmp_path):
    small = small_gpt2(tmp_path / "r", 0)
    loaded, found = load_release(tmp_path / "r", dtype=torch.bfloat16, output_loading_info=True, n_embd=16)
    assert {held.dtype for held in loaded.parameters()} == {torch.bfloat16} and not found["missing_keys"]
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path / "r")
    assert loaded.generation_config.to_dict() == small.generation_config.to_dict()


def test_from_pretrained_checks_no_hashes_and_load_release_does(tmp_path):
    """As its page says: transformers opens the files itself."""
    small_gpt2(tmp_path / "r", 0)
    content = bytearray((tmp_path / "r" / MODEL).read_bytes())
    content[-1] ^= 1
    (tmp_path / "r" / MODEL).write_bytes(content)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "r")
    with pytest.raises(ValueError, match="model.safetensors is not what was written: its sha256 differs"):
        load_release(tmp_path / "r")


def test_in_a_fresh_process_transformers_alone_reads_it(tmp_path):
    small = small_gpt2(tmp_path / "r", 0)
    torch.save(small(TOKENS).logits, tmp_path / "logits.pt")
    code = (
        "import sys, torch, ttref.release.quantizer; from transformers import AutoModelForCausalLM;"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "ids, wanted = (torch.load(path) for path in sys.argv[2:]);"
        "torch.testing.assert_close(model(ids).logits, wanted)"
    )
    torch.save(TOKENS, tmp_path / "ids.pt")
    command = [sys.executable, "-c", code, *(str(tmp_path / one) for one in ("r", "ids.pt", "logits.pt"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_class_but_those_of_transformers_is_made(tmp_path):
    small_gpt2(tmp_path / "r", 0)
    for kind in ("AutoConfig", "logging", "os.system", "Nothing"):
        manifest = json.loads((tmp_path / "r" / MANIFEST).read_bytes())
        manifest["model"]["class"] = kind
        resealed(tmp_path / "r", manifest)
        with pytest.raises(ValueError, match="transformers has no class"):
            load_release(tmp_path / "r")
