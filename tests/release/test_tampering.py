"""A thousand releases that were tampered with: every one is found out, and nothing of it reaches a model."""

import json
import random

import pytest
import torch
from language_models import gpt2
from releases import copied, dense, forged, released, resealed, same_state, small_dense, small_layers
from safetensors.torch import load_file, save_file
from torch import nn

from ttref import TTLinear
from ttref.command import main
from ttref.release import load_release, rollback, verify
from ttref.release.deriving import row_error
from ttref.release.manifest import MANIFEST, MODEL, ROLLBACK, encoded
from ttref.release.sources import Source

TRIES = 1000
KINDS = "bit", "core", "row", "file", "forged bit", "forged core", "forged row", "forged place"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder, model, other = tmp_path_factory.mktemp("releases"), small_dense(), small_dense(1)
    released(folder / "release", model, layers=small_layers(model))
    released(folder / "other", other, layers=small_layers(other))
    return Source.of(model), folder / "release", folder


def flipped(path, draw):
    """One bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def compressed_cores(tensors):
    return sorted(name for name in tensors if name.startswith(("0.", "1.cores.")))


def large_bit(draw):
    """A bit of the exponent, in the largest number of a tensor: it changes by more than any rounding."""

    def change(tensors, manifest):
        name = draw.choice([name for name in sorted(tensors) if tensors[name].dtype == torch.float32])
        tensors[name].view(-1).view(torch.int32)[tensors[name].abs().argmax()] ^= 1 << draw.randrange(24, 31)

    return change


def swapped(draw):
    """A core's numbers in another one's place, as many as there is room for, and the other way around."""

    def change(tensors, manifest):
        one, other = draw.sample(compressed_cores(tensors), 2)
        count = min(tensors[one].numel(), tensors[other].numel())
        kept = tensors[one].flatten()[:count].clone()
        tensors[one].view(-1)[:count] = tensors[other].flatten()[:count]
        tensors[other].view(-1)[:count] = kept

    return change


def poisoned(draw):
    """One row of a table, or what makes it, moved towards another."""

    def change(tensors, manifest):
        name = draw.choice([name for name in compressed_cores(tensors) if name.startswith("0.")])
        rows = tensors[name]
        rows[draw.randrange(len(rows))] += draw.choice((-1, 1)) * 0.02 * rows.abs().max()

    return change


def misplaced(draw):
    """The numbers of a tensor that is not compressed, in another order."""

    def change(tensors, manifest):
        name = draw.choice(("1.bias", "3.bias", "3.weight"))
        tensors[name] = tensors[name].flatten()[torch.randperm(tensors[name].numel())].reshape(tensors[name].shape)

    return change


FORGED = {"forged bit": large_bit, "forged core": swapped, "forged row": poisoned, "forged place": misplaced}


def tampered(path, folder, kind, draw):
    """Tamper with a release in one of the ways; the forged ones with new hashes everywhere."""
    if kind == "bit":
        flipped(draw.choice(sorted(path.iterdir())), draw)
    elif kind == "file":
        name = draw.choice([MODEL, ROLLBACK, "README.md", MANIFEST])
        (path / name).write_bytes((folder / "other" / name).read_bytes())
    elif kind in FORGED:
        forged(path, FORGED[kind](draw))
    else:
        tensors = load_file(path / MODEL)
        (swapped if kind == "core" else poisoned)(draw)(tensors, {})
        save_file(tensors, path / MODEL, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_found(kind, release, tmp_path):
    model, path, folder = release
    draw, found, fresh = random.Random(kind), 0, small_dense(5)
    for _ in range(TRIES // len(KINDS)):
        copy = copied(path, tmp_path / "copy")
        tampered(copy, folder, kind, draw)
        report = verify(copy, model, progress=False)
        assert not report.ok, kind
        found += 1
        if kind not in FORGED:  # without the source, a forger who gives new hashes can be found by sha256= only
            with pytest.raises(ValueError, match="is no release of ttref, or was changed"):
                load_release(copy, fresh)
    assert found == TRIES // len(KINDS) and same_state(fresh, small_dense(5))


def test_a_forged_bit_that_is_not_found_changes_no_more_than_rounding_may(release, tmp_path):
    model, path, _ = release
    draw, harmless = random.Random(0), 0
    for _ in range(40):
        copy = copied(path, tmp_path / "copy")

        def change(tensors, manifest):
            name = draw.choice(compressed_cores(tensors))
            flat = tensors[name].view(-1).view(torch.int32)
            flat[draw.randrange(len(flat))] ^= 1 << draw.randrange(31)

        forged(copy, change)
        report = verify(copy, model, progress=False)
        if report.ok:
            harmless += 1
            loaded, good = (load_release(folder, small_dense(3)) for folder in (copy, path))
            for name in ("0", "1"):
                one, other = (net[int(name)].weight for net in (loaded, good))
                assert row_error(one, other) <= 2e-5
    assert 0 < harmless < 40


def test_what_is_not_tampered_with_is_not_found(release, tmp_path):
    model, path, _ = release
    for change in (lambda tensors, manifest: None, lambda tensors, manifest: manifest.update(seed=3)):
        copy = copied(path, tmp_path / "copy")
        forged(copy, change)
        assert verify(copy, model, progress=False).proved


def test_the_damaged_tensor_is_named(release, tmp_path):
    model, path, _ = release
    copy = copied(path, tmp_path / "copy")
    content = bytearray((copy / MODEL).read_bytes())
    content[-1] ^= 1
    (copy / MODEL).write_bytes(content)
    problems = verify(copy, model, progress=False).problems
    assert problems[0] == f"{MODEL} is not what was written: its sha256 differs"
    assert problems[1:] == ["3.weight is not what was written"]


def test_a_known_sha256_tells_a_forged_release_without_the_source(release, tmp_path):
    model, path, _ = release
    known = verify(path, model, progress=False).sha256
    assert load_release(path, small_dense(3), sha256=known)
    copy = copied(path, tmp_path / "copy")
    forged(copy, large_bit(random.Random(0)))
    with pytest.raises(ValueError, match="this is another release"):
        load_release(copy, small_dense(3), sha256=known)
    assert not verify(copy, model, sha256=known, progress=False).ok


def change_manifest(path, change):
    manifest = json.loads((path / MANIFEST).read_bytes())
    change(manifest)
    resealed(path, manifest)


def swap_layers(manifest):
    """Two layers under each other's names, with the sources that they were made of."""
    layers = manifest["layers"]
    layers["hidden"], layers["out"] = layers["out"], layers["hidden"]


def test_layers_under_each_others_names_are_found(tmp_path):
    model = dense()
    model.out = nn.Linear(12, 12)
    layers = {name: TTLinear.from_linear(getattr(model, name), rank=3) for name in ("hidden", "out")}
    released(tmp_path / "r", model, layers=layers)

    def swap(tensors, manifest):
        swap_layers(manifest)
        for name in [name for name in tensors if name.startswith("hidden.")]:
            other = name.replace("hidden", "out")
            tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()

    forged(tmp_path / "r", swap)
    assert verify(tmp_path / "r", model, progress=False).names("differs") == [
        "hidden",
        "out",
        "hidden.bias",
        "out.bias",
    ]


def test_a_method_that_is_left_out_is_not_proved(release, tmp_path):
    """A forger may say that a layer was fitted: then nothing vouches for it, and the report says so."""
    model, path, _ = release
    copy = copied(path, tmp_path / "copy")

    def change(tensors, manifest):
        tensors["1.cores.0"].add_(1)
        manifest["layers"]["1"]["method"] = None

    forged(copy, change)
    report = verify(copy, model, progress=False)
    assert report.names("by hash") == ["1"] and not report.proved
    save_file(small_dense().state_dict(), tmp_path / "dense.safetensors")
    words = ["verify", str(copy), "--source", str(tmp_path / "dense.safetensors")]
    assert main(words) == 5 and main([*words, "--allow-by-hash"]) == 0
    assert main(["verify", str(path), *words[2:]]) == 0
    forged(copy, lambda tensors, manifest: tensors["3.bias"].add_(1))
    assert main([*words, "--allow-by-hash"]) == 1


@pytest.mark.parametrize(
    "setting", [{"layer_norm_epsilon": 0.5}, {"model_type": "evil"}, {"auto_map": {"AutoModel": "x.Y"}}]
)
def test_another_configuration_is_wrong(setting, tmp_path):
    model = gpt2()
    layer = TTLinear.from_linear(model.transformer.h[0].mlp.c_fc, rank=2)
    released(tmp_path / "r", model, layers={"transformer.h.0.mlp.c_fc": layer})
    model.save_pretrained(tmp_path / "dense")
    for source in (model, tmp_path / "dense", tmp_path / "dense" / MODEL):
        assert verify(tmp_path / "r", source, progress=False).proved
    config = json.loads((tmp_path / "r" / "config.json").read_bytes())
    (tmp_path / "r" / "config.json").write_text(json.dumps(config | setting))
    change_manifest(tmp_path / "r", lambda manifest: None)
    for source in (model, tmp_path / "dense"):
        report = verify(tmp_path / "r", source, progress=False)
        assert report.names("differs") == ["config.json"] and not report.ok
        assert report.problems == ["config.json has other settings than that of the source"]


def test_layers_in_the_configuration_are_those_of_the_manifest(tmp_path):
    """from_pretrained builds them from it, so verify reads it with any source."""
    model, name = gpt2(), "transformer.h.0.mlp.c_fc"
    released(tmp_path / "r", model, layers={name: TTLinear.from_linear(model.get_submodule(name), rank=2)})
    config = json.loads((tmp_path / "r" / "config.json").read_bytes())
    config["quantization_config"]["layers"][name]["bias"] = None
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    change_manifest(tmp_path / "r", lambda manifest: None)
    for source in (model, model.state_dict()):
        report = verify(tmp_path / "r", source, progress=False)
        assert report.names("differs") == ["config.json"] and not report.ok
        assert "quantization_config in config.json is not that of the layers" in report.problems[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["method"].update(rank=[1, 2, 2, 1]),
        lambda about: about["source"].update(sha256="0" * 64),
        lambda about: about.update(transposed=True),
        lambda about: about["spec"].update(ranks=[1, 3, 2, 1]),
        lambda about: about["spec"].update(kind="TTMEmbedding"),
    ],
)
def test_what_the_manifest_says_of_a_layer_is_checked(change, release, tmp_path):
    model, path, _ = release
    copy = copied(path, tmp_path / "copy")
    change_manifest(copy, lambda manifest: change(manifest["layers"]["1"]))
    report = verify(copy, model, progress=False)
    assert not report.ok and report.names("differs") == ["1"]


def test_the_way_back_is_checked_too(release, tmp_path):
    model, path, _ = release
    copy = copied(path, tmp_path / "copy")

    def change(tensors, manifest):
        tensors["0.weight"][3, 3] += 1

    forged(copy, change, ROLLBACK)
    assert verify(copy, model, progress=False).problems == [f"0.weight in {ROLLBACK} is not the source's"]
    with pytest.raises(ValueError, match="0.weight in rollback.safetensors is not the tensor that was replaced"):
        rollback(copy, small_dense(3))


@pytest.mark.parametrize("size", [10**14, 10**30])
def test_a_size_that_no_memory_has_is_a_size_that_differs(size, release, tmp_path):
    source, folder, _ = release
    held = copied(folder, tmp_path / "r")
    manifest = json.loads((held / MANIFEST).read_bytes())
    manifest["files"][MODEL]["bytes"] = size
    (held / MANIFEST).write_bytes(encoded(manifest))
    with pytest.raises(ValueError, match="model.safetensors is not what was written: its size differs"):
        load_release(held, small_dense())
    assert verify(held, source, progress=False).problems == [f"{MODEL} is not what was written: its size differs"]
