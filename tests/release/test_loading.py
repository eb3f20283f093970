"""Hashes before anything reaches a model: hostile folders and other models are refused, and change nothing."""

import copy
import json

import pytest
import torch
from language_models import IDS as TOKENS
from language_models import gpt2, t5
from releases import (
    WHY,
    Net,
    compressed,
    copied,
    dense,
    output,
    released,
    resealed,
    same_state,
    small_dense,
    small_layers,
)
from safetensors.torch import load_file
from torch import nn

from ttref import MPSEmbedding, replace_embedding
from ttref.release import load_release, loading, rollback, save_release, undoing
from ttref.release.manifest import MANIFEST, MODEL, encoded


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return released(tmp_path_factory.mktemp("release") / "r")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_dense_model_becomes_the_one_that_was_saved(device, release):
    _, small, folder = release
    with torch.device(device):
        fresh = Net().eval()
    assert load_release(folder, fresh) is fresh
    assert same_state(fresh, small) and torch.equal(output(fresh), output(small))
    assert fresh.words.padding_idx == 0 and not fresh.training and fresh.hidden.cores[0].requires_grad


@pytest.mark.parametrize("change, module", [(load_release, loading), (rollback, undoing)])
def test_layers_go_to_the_devices_of_those_they_replace(change, module, release, monkeypatch):
    """There is no GPU here: the model is said to have one layer there, and what is sent there is noted."""
    _, small, folder = release
    gpu, sent, to = torch.device("cuda"), [], torch.Tensor.to
    target = dense(4) if change is load_release else copy.deepcopy(small)
    here = module.devices_of(target)
    assert here["hidden"] == here["words"] == torch.device("cpu") and "" in here

    def noted(tensor, where, **options):
        sent.append((tuple(tensor.shape), where))
        return to(tensor, "cpu" if where == gpu else where, **options)

    monkeypatch.setattr(module, "devices_of", lambda model: here | {"hidden": gpu})
    monkeypatch.setattr(torch.Tensor, "to", noted)
    change(folder, target)
    hidden = target.hidden.state_dict()
    there = [shape for shape, where in sent if where == gpu]
    assert sorted(there) == sorted(tuple(tensor.shape) for tensor in hidden.values()) and len(sent) > len(there)


def test_it_can_be_trained_on_and_saved_again(release, tmp_path):
    model, small, folder = release
    loaded = load_release(folder, dense(4)).train()
    from releases import IDS

    loaded(IDS).sum().backward()
    assert loaded.hidden.cores[0].grad is not None and loaded.words.store.buckets[0].pieces[0].cores.grad is not None
    save_release(load_release(folder, dense(4)), tmp_path / "again", source=model, override=WHY)
    assert (tmp_path / "again" / MODEL).read_bytes() == (folder / MODEL).read_bytes()


def test_frozen_layers_stay_frozen_and_wrappers_stay(tmp_path):
    model = dense().requires_grad_(False)
    _, small, folder = released(tmp_path / "r", model)
    wrapped = nn.DataParallel(Net())
    load_release(folder, wrapped)
    assert same_state(wrapped.module, small) and not wrapped.module.hidden.cores[0].requires_grad


def test_half_precision_stays(tmp_path):
    _, small, folder = released(tmp_path / "r", dense().bfloat16())
    loaded = load_release(folder, dense(3))
    assert same_state(loaded, small) and {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}


def test_parameters_that_modules_share_stay_shared(tmp_path):
    def make():
        model = small_dense()
        model.add_module("4", nn.Linear(8, 8))
        model.add_module("5", nn.Linear(8, 8))
        model[5].weight = model[4].weight
        return model

    model = make()
    released(tmp_path / "r", model, layers=small_layers(model))
    loaded = load_release(tmp_path / "r", make())
    assert loaded[5].weight is loaded[4].weight and torch.equal(loaded[4].weight, model[4].weight)


@pytest.mark.parametrize("make", [gpt2, t5], ids=["gpt2", "t5"])
def test_tied_tables_of_transformers_both_ways(make, tmp_path):
    model = make().eval()
    small = copy.deepcopy(model)
    table = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach())
    replace_embedding(small, MPSEmbedding.from_embedding(table, rank=2), head="tied")
    save_release(small, tmp_path / "r", source=model, override=WHY)
    given = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if make is t5 else {})
    with torch.no_grad():
        expected = small(**given).logits
        for loaded in (load_release(tmp_path / "r"), load_release(tmp_path / "r", make().eval())):
            assert torch.equal(loaded(**given).logits, expected)
            assert loaded.get_output_embeddings().table is loaded.get_input_embeddings()
            loaded.save_pretrained(tmp_path / "again")
            again = type(model).from_pretrained(tmp_path / "again")
            assert torch.equal(again(**given).logits, expected)


def other(**layers):
    model = dense(5)
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


@pytest.mark.parametrize(
    "model, says",
    [
        (lambda: small_dense(), "is the release of a Net, and this model is a Sequential"),
        (lambda: other(hidden=nn.Linear(12, 9)), "hidden has out_features = 9 in this model"),
        (lambda: other(hidden=nn.Embedding(12, 12)), "hidden is a Embedding in this model"),
        (lambda: other(hidden=nn.Identity()), "hidden is a Identity in this model"),
        (lambda: other(out=nn.Linear(12, 9)), r"its out.bias has shape \(9,\)|its out.weight has shape \(9, 12\)"),
        (lambda: other(out=nn.Linear(12, 8, bias=False)), "it has no out.bias, which the release has"),
        (lambda: other(more=nn.Linear(2, 2)), "it has more.weight, which the release has not"),
    ],
)
def test_another_model_is_refused_and_stays_as_it_was(model, says, release):
    _, _, folder = release
    fresh = model()
    before = copy.deepcopy(fresh)
    modules = list(fresh.modules())
    with pytest.raises(ValueError, match=says) as error:
        load_release(folder, fresh)
    assert "\n" not in str(error.value)
    assert same_state(fresh, before) and all(one is two for one, two in zip(modules, fresh.modules(), strict=True))


def hostile(release, tmp_path, change):
    """A copy of a release, changed, that must be refused in one line without changing the model."""
    copy_of = copied(release[2], tmp_path / "copy")
    change(copy_of)
    fresh = dense(5)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_release(copy_of, fresh)
    assert same_state(fresh, dense(5)) and "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def in_manifest(change):
    def changed(folder):
        manifest = json.loads((folder / MANIFEST).read_bytes())
        change(manifest)
        (folder / MANIFEST).write_bytes(encoded(manifest))

    return changed


def link(folder):
    (folder / MODEL).rename(folder.parent / "elsewhere")
    (folder / MODEL).symlink_to(folder.parent / "elsewhere")


def long_header(folder):
    (folder / MODEL).write_bytes((1 << 40).to_bytes(8, "little") + (folder / MODEL).read_bytes()[8:])
    resealed(folder, json.loads((folder / MANIFEST).read_bytes()))


def no_tensors(folder):
    (folder / MODEL).write_bytes(b"PK\x03\x04 a pickle, perhaps")
    resealed(folder, json.loads((folder / MANIFEST).read_bytes()))


def seed_changed(folder):
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b'"seed": null', b'"seed": 1'))


def renamed(name):
    return in_manifest(lambda manifest: manifest["files"].update({name: manifest["files"].pop("README.md")}))


FOLDERS = {
    "a path upwards": (renamed("../README.md"), "'../README.md' is no name of a file"),
    "an absolute path": (renamed("/etc/passwd"), "'/etc/passwd' is no name of a file"),
    "a path on Windows": (renamed("C:evil"), "'C:evil' is no name of a file"),
    "a hidden file": (renamed(".bashrc"), "'.bashrc' is no name of a file"),
    "a link": (link, "model.safetensors is a link"),
    "a link to the manifest": (
        lambda folder: ((folder / MANIFEST).rename(folder.parent / "m"), (folder / MANIFEST).symlink_to("../m")),
        "manifest.json is a link",
    ),
    "a foreign file": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is not in"),
    "a foreign folder": (lambda folder: (folder / "more").mkdir(), "more is not in the manifest"),
    "a missing file": (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
    "a missing model": (lambda folder: (folder / MODEL).unlink(), "model.safetensors is missing"),
    "a folder for a file": (
        lambda folder: ((folder / MODEL).unlink(), (folder / MODEL).mkdir()),
        "model.safetensors is no ordinary file",
    ),
    "a long header": (long_header, "its header would take 1099511627776 bytes"),
    "no safetensors": (no_tensors, "header"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "has no manifest.json"),
    "an empty manifest": (lambda folder: (folder / MANIFEST).write_bytes(b""), "no release of ttref"),
    "a list": (lambda folder: (folder / MANIFEST).write_bytes(b"[]"), "not of the format"),
    "deep JSON": (lambda folder: (folder / MANIFEST).write_bytes(b"[" * 100_000), "no release of ttref"),
    "no numbers": (lambda folder: (folder / MANIFEST).write_bytes(b'{"format": NaN}'), "not of the format"),
    "another format": (in_manifest(lambda manifest: manifest.update(format="other")), "not of the format"),
    "a later version": (in_manifest(lambda manifest: manifest.update(version=2)), "it has version 2"),
    "an entry more": (in_manifest(lambda manifest: manifest.update(evil=1)), "'evil' too"),
    "an entry less": (in_manifest(lambda manifest: manifest.pop("layers")), "lacks layers"),
    "another type": (in_manifest(lambda manifest: manifest.update(ties=[])), "its header's ties is"),
    "another hash of itself": (seed_changed, "manifest.json is not what was written"),
    "the same with more spaces": (
        lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b" "),
        "manifest.json is not what was written",
    ),
    "another kind of layer": (
        in_manifest(lambda manifest: manifest["layers"]["hidden"]["spec"].update(kind="os.system")),
        "'os.system' is no kind of compressed layer",
    ),
    "a layer of any size": (
        in_manifest(lambda manifest: manifest["layers"]["hidden"]["spec"].update(ranks=[1, 1 << 40, 1 << 40, 1])),
        "hidden: no TTLinear is like that",
    ),
    "a tie to nowhere": (in_manifest(lambda manifest: manifest["ties"].update({"out.bias": "nowhere"})), "out.bias"),
    "another class": (in_manifest(lambda manifest: manifest["model"].update({"class": "os.system"})), "of a os.system"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused(name, release, tmp_path):
    change, says = FOLDERS[name]
    assert says in hostile(release, tmp_path, change)


def test_what_is_missing_is_said(release, tmp_path):
    _, _, folder = release
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_release(tmp_path / "nothing", dense())
    with pytest.raises(ValueError, match="is the release of a Net, no transformers model: give a model of that class"):
        load_release(folder)
    with pytest.raises(TypeError, match="must be an nn.Module"):
        load_release(folder, "a model")
    with pytest.raises(TypeError, match="device_map are for from_pretrained"):
        load_release(folder, dense(), device_map="cpu")


def test_what_tools_leave_in_a_folder_does_no_harm(release, tmp_path):
    copy_of = copied(release[2], tmp_path / "copy")
    (copy_of / ".gitattributes").write_text("*.safetensors filter=lfs")
    (copy_of / ".cache").mkdir()
    (copy_of / "model.sig").write_text("a signature of model-signing")
    assert same_state(load_release(copy_of, dense(1)), release[1])


def test_an_interrupt_leaves_the_model_as_it_was(release):
    from interrupts import run

    from ttref.release import contents, loading, placing

    _, _, folder = release
    rooms = tuple(module.__file__ for module in (contents, loading, placing))
    lines, ended = run(lambda: load_release(folder, dense(2)), rooms)
    assert ended
    for stop in range(0, len(lines), 17):
        fresh = dense(2)
        if not run(lambda fresh=fresh: load_release(folder, fresh), rooms, stop)[1]:
            assert same_state(fresh, dense(2)) or same_state(fresh, release[1])


def test_the_safetensors_file_alone_is_a_state(release):
    _, small, folder = release
    again = compressed(dense())
    again.load_state_dict(load_file(folder / MODEL))
    assert same_state(again, small)
