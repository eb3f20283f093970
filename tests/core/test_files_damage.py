"""Damaged and hostile files: whatever is not what was written is refused by name, before anything is built of it."""

import json
import struct

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from saved import MAKERS, base, load, mps, save
from torch import nn

from ttref import MPSEmbedding, add_tt_lora, files, load_tt_lora, save_tt_lora
from ttref.embeddings import settings
from ttref.lora.delta import TTDelta

kinds = pytest.mark.parametrize("kind", MAKERS)
REFUSED = r"file.safetensors is no .* saved by ttref, or is damaged .*; save it again"


def refused(kind, path, message=""):
    """A ValueError that names the file; what it was to be loaded into is as it was."""
    with pytest.raises(ValueError, match=REFUSED) as error:
        load(kind, path)
    assert message in str(error.value)


def parts(path):
    """Tensors, metadata, and the header among it."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # of a file that is about to change
        return tensors, about, json.loads(about["header"])


def sealed(path, tensors, about, header):
    """A file that is damaged in itself, and under a hash that agrees."""
    about = {key: about[key] for key in ("format", "version")} | {"header": json.dumps(header)}
    path.write_bytes(b"".join(files.sealed(about, tensors)))


# The hash


@kinds
def test_a_bit_that_flips_anywhere(kind, path):
    """Every byte of the header and every seventh of the numbers, one bit each."""
    save(MAKERS[kind](), path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    places = [*range(0, start), *range(start, len(good), 7), len(good) - 1]
    for place in places[:: max(len(places) // 400, 1)]:
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused(kind, path)
    path.write_bytes(good)
    load(kind, path)


@kinds
def test_every_bit_of_some_numbers(kind, path):
    save(MAKERS[kind](), path)
    good = path.read_bytes()
    for place in range(len(good) - 4, len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            refused(kind, path, "is not what was written: its sha256 differs")


@kinds
def test_a_damaged_tensor_is_named(kind, path):
    """The first and the last byte of each."""
    save(MAKERS[kind](), path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    held = json.loads(good[8:start])
    del held["__metadata__"]
    for name, about in held.items():
        for place in (about["data_offsets"][0], about["data_offsets"][1] - 1):
            damaged = bytearray(good)
            damaged[start + place] ^= 1
            path.write_bytes(damaged)
            refused(kind, path, f"{name} is not what was written: its sha256 differs")


@kinds
def test_tensors_that_change_places(kind, path):
    """Of the same shape and dtype, so that nothing but the hash can tell."""
    save(MAKERS[kind](), path)
    tensors, about, _ = parts(path)
    for one in tensors:
        for other in tensors:
            same = tensors[one].shape == tensors[other].shape and tensors[one].dtype == tensors[other].dtype
            if one < other and same and not torch.equal(tensors[one], tensors[other]):
                swapped = tensors | {one: tensors[other], other: tensors[one]}
                path.write_bytes(safetensors.torch.save(swapped, about))
                refused(kind, path, f"{one} is not what was written")
    rolled = {name: tensor.roll(1, 0) if tensor.ndim else tensor + 1 for name, tensor in tensors.items()}
    for name in tensors:
        if not torch.equal(rolled[name], tensors[name]):
            path.write_bytes(safetensors.torch.save(tensors | {name: rolled[name]}, about))
            refused(kind, path, f"{name} is not what was written")


@kinds
def test_settings_that_change(kind, path):
    """One number of the header, a shape or a dtype of the same bytes."""
    save(MAKERS[kind](), path)
    tensors, about, _ = parts(path)
    for k, letter in enumerate(about["header"]):
        if letter.isdigit():
            other = str((int(letter) + 1) % 10)
            header = about["header"][:k] + other + about["header"][k + 1 :]
            path.write_bytes(safetensors.torch.save(tensors, about | {"header": header}))
            refused(kind, path)
    name = next(name for name in tensors if tensors[name].ndim > 1)
    for changed in (tensors[name].flatten(), tensors[name].view(torch.uint8)):
        path.write_bytes(safetensors.torch.save(tensors | {name: changed}, about))
        refused(kind, path, f"{name} is not what was written")


@kinds
def test_another_order_is_the_same_content(kind, path):
    """What other programs write anew, with the same metadata, is what was written."""
    save(MAKERS[kind](), path)
    tensors, about, _ = parts(path)
    path.write_bytes(safetensors.torch.save(dict(reversed(tensors.items())), dict(reversed(about.items()))))
    load(kind, path)


def test_a_version_cannot_pass_for_an_older_one(path):
    mps().save(path)
    tensors, about, _ = parts(path)
    for version in "12":
        path.write_bytes(safetensors.torch.save(tensors, about | {"version": version}))
        refused("table", path, "its metadata are")
    del about["each"]
    path.write_bytes(safetensors.torch.save(tensors, about | {"version": "2"}))
    refused("table", path, "its sha256 differs")


# What agrees with its hash and is wrong all the same


@kinds
def test_numbers_that_are_none(kind, path):
    save(MAKERS[kind](), path)
    tensors, about, header = parts(path)
    name = next(name for name in tensors if "cores" in name or "scales" in name)
    for number in (float("nan"), float("inf"), -float("inf")):
        damaged = tensors[name].clone()
        damaged.view(-1)[-1] = number
        sealed(path, tensors | {name: damaged}, about, header)
        refused(kind, path, "NaN or infinite")


TYPES = {
    "table": {
        "sparse": [1, "no", None],
        "eps": ["x", True, -0.5, 1.0, [0.1]],
        "by_row": ["no", 0, None],
        "trainable": [None, 1, "yes"],
        "num_embeddings": [24.0, True, "24", None],
        "embedding_dim": [32.0, True],
        "padding_idx": [1.0, True, "1", -1, 24],
        "core_bits": [32.0, True, 16],
        "dtype": [32, "nn", None],
        "shape": [32, None, [2.0] * 5, [True, 32], "22222"],
        "ranks": [2, None, [2], [[1, 2, 2, 2, 2, 2]], [[1, 2, 9, 2, 2, 1]], [[1.0, 2, 2, 2, 2, 1]], []],
    },
    "TT-matrix": {"trainable": [None, 1], "num_embeddings": [24.0, True, 0], "padding_idx": [1.0, True, -1]},
    "adapter": {
        "modules_to_save": [None, "1", ["1", "1"], [1]],
        "base": [None, {}, {"sha256": "", "each": "", "rule": 3}],
    },
}
LAYER = {
    "alpha": [True, None, "x", 0, float("nan")],
    "dropout": [False, None, 2],
    "automatic": [0, None],
    "init": [None, "x"],
    "shape": [[2, 3, 4, True], [2, 3, 4, 2, 1], 48],
    "ranks": [[1, 2, 2, 2.0, 1], [1, 2, 2, 2], 2],
    "features": [[6, 8.0], [6], [48, 1, 1], [48, 2], 6],
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in TYPES for name in TYPES[kind]])
def test_settings_of_the_wrong_type(kind, name, path):
    save(MAKERS[kind](), path)
    tensors, about, header = parts(path)
    for value in TYPES[kind][name]:
        sealed(path, tensors, about, header | {name: value})
        refused(kind, path)
    sealed(path, tensors, about, {key: value for key, value in header.items() if key != name})
    refused(kind, path, name)
    sealed(path, tensors, about, header | {"more": 1})
    refused(kind, path, "its header has 'more' too")


@pytest.mark.parametrize("name", LAYER)
def test_settings_of_one_adapter_of_the_wrong_type(name, path):
    save(MAKERS["adapter"](), path)
    tensors, about, header = parts(path)
    for value in LAYER[name]:
        sealed(path, tensors, about, header | {"layers": {"0": header["layers"]["0"] | {name: value}}})
        refused("adapter", path)


def test_settings_that_exclude_each_other(path):
    for kind, changes in (("table", {"eps": 0.1, "by_row": True}), ("int8 grown", {"eps": 0.1})):
        save(MAKERS[kind](), path)
        tensors, about, header = parts(path)
        sealed(path, tensors, about, header | changes)
        refused(kind, path, "its header has eps")
    save(MAKERS["buckets"](), path)
    tensors, about, header = parts(path)
    sealed(path, tensors, about, header | {"by_row": False})
    refused("buckets", path, "its header has 3 buckets")


def test_a_place_in_the_next_bucket(path):
    """The index names every slot once, and one row lies beyond its own bucket: looking it up would fail later."""
    save(MAKERS["buckets"](), path)
    tensors, about, header = parts(path)
    first = int((tensors["bucket"] == 1).nonzero()[0])
    bucket, place = tensors["bucket"].clone(), tensors["place"].clone()
    place[first] += int((bucket == 0).sum())
    bucket[first] = 0
    sealed(path, tensors | {"bucket": bucket, "place": place}, about, header)
    refused("buckets", path, "the index does not name every row once")


def test_a_head_of_another_kind_of_number(path):
    """The bits of floats, read as integers, are other weights; the model is left as it was."""
    save(MAKERS["adapter"](), path)
    tensors, about, header = parts(path)
    for dtype in (torch.int32, torch.uint8, torch.complex64):
        head = torch.ones(3, 6, dtype=dtype)
        sealed(path, tensors | {"1.weight": head}, about, header)
        model = base()
        with pytest.raises(ValueError, match=r"has torch.* for 1.weight, and this model torch.float32"):
            load_tt_lora(model, path)
        assert isinstance(model[0], nn.Linear) and torch.equal(model[1].weight, base()[1].weight)
    sealed(path, tensors | {"1.weight": tensors["1.weight"].double()}, about, header)
    assert load_tt_lora(base(), path)[1].weight.dtype == torch.float32


# Bombs


def written(path, header, tensors, kind="MPSEmbedding", version="1", **about):
    about = {"format": f"ttref.{kind}", "version": version, "header": header} | about
    path.write_bytes(safetensors.torch.save(tensors, about))


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("opens", ["[", '{"a":', '[{"a":'])
def test_nested_headers(opens, depth, path):
    for kind, name in (("table", "MPSEmbedding"), ("TT-matrix", "TTMEmbedding"), ("adapter", "TT-LoRA")):
        written(path, opens * depth, {"a": torch.ones(1)}, name)
        refused(kind, path)
        closes = "".join({"[": "]", "{": "}"}[letter] for letter in reversed(opens) if letter in "[{")
        written(path, opens * depth + ("1" if ":" in opens else "") + closes * depth, {"a": torch.ones(1)}, name)
        refused(kind, path)
    text = (opens * depth).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused("table", path)


def test_keys_that_come_twice(path):
    mps().save(path)
    tensors, about, header = parts(path)
    twice = json.dumps(header)[:-1] + ', "sparse": true}'
    about = {"format": about["format"], "version": files.VERSION, "header": twice}
    path.write_bytes(b"".join(files.sealed(about, tensors)))
    refused("table", path, "names something twice")
    mps().save(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    entry = b'"cores.0":{"dtype":"F32","shape":[24,32],"data_offsets":[0,3072]},'
    text = b"{" + entry + content[9 : 8 + size].rstrip()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    refused("table", path)


def test_a_header_beyond_all_measure(path):
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    refused("table", path, "its header would take")
    path.write_bytes(b"\xff" * 8 + b"{}")
    refused("table", path, "its header would take")


HEAD = {
    "num_embeddings": 1,
    "embedding_dim": 1,
    "shape": [1],
    "ranks": [[1, 1]],
    "dtype": "float32",
    "core_bits": 32,
    "eps": None,
    "by_row": False,
    "padding_idx": None,
    "sparse": False,
    "trainable": True,
}
BOMBS = {
    "modes of one": {"shape": [1] * 100_000, "ranks": [[1] * 100_001]},
    "a huge mode": {"shape": [1 << 4000], "ranks": [[1, 1]]},
    "huge modes": {"shape": [1 << 39] * 1000, "ranks": [[1] * 1001]},
    "a huge width": {"embedding_dim": 100_000_007},
    "a width of many digits": {"embedding_dim": 10**4000},
    "many buckets": {"ranks": [[1, 1]] * 100_000, "by_row": True},
    "nested ranks": {"ranks": [[[1, 1]] * 100_000]},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_beyond_all_measure(bomb, path, monkeypatch):
    """They are compared with what the file holds, or with limits, before a layout is made of them."""

    def layout(*arguments):
        raise AssertionError("a layout is made of sizes that nobody checked")

    written(path, json.dumps(HEAD), {"cores.0": torch.ones(1, 1)})
    load("table", path)
    if bomb not in ("a huge mode", "a huge width", "a width of many digits", "nested ranks"):
        monkeypatch.setattr(settings, "RowLayout", layout)
    written(path, json.dumps(HEAD | BOMBS[bomb]), {"cores.0": torch.ones(1, 1)})
    refused("table", path)
    with pytest.raises(ValueError) as error:
        load("table", path)
    assert "nobody checked" not in str(error.value)


def test_more_rows_than_the_file_holds(path):
    for rows in (2, 10**9, 10**4000):
        written(path, json.dumps(HEAD | {"num_embeddings": rows}), {"cores.0": torch.ones(1, 1)})
        refused("table", path, "it holds 1 rows")
    written(path, json.dumps(HEAD), {"cores.0": torch.ones(0, 1)})
    refused("table", path, "bucket 0 has no rows")


@pytest.mark.parametrize("features", [[16, 100_000_007], [100_000_007, 100_000_007], [1 << 60, 16], [10**4000, 16]])
@pytest.mark.parametrize("automatic", [True, False])
def test_widths_beyond_all_measure(features, automatic, path, monkeypatch):
    """No modes are chosen for a width that the cores do not have."""
    monkeypatch.setattr(TTDelta, "__init__", lambda *arguments, **options: pytest.fail("an update is built"))
    layer = {"shape": [16, 16], "ranks": [1, 1, 1], "alpha": 1.0, "init": "paper", "dropout": 0.0}
    header = {"layers": {"0": layer | {"features": features, "automatic": automatic}}, "modules_to_save": []}
    header["base"] = {"sha256": "", "each": ""}
    written(path, json.dumps(header), {f"0.cores.{k}": torch.ones(1, 16, 1) for k in "01"}, "TT-LoRA")
    refused("adapter", path)
    layer |= {"shape": [1] * 2000, "ranks": [1] * 2001}
    header["layers"] = {"0": layer | {"features": [1, 1], "automatic": automatic}}
    written(path, json.dumps(header), {f"0.cores.{k}": torch.ones(1, 1, 1) for k in range(2000)}, "TT-LoRA")
    refused("adapter", path, "has 2000 modes")


def test_wide_layers_come_back(path):
    """A width that is padded far up is found among the numbers without large factors, not by trying all between."""
    model = add_tt_lora(nn.Sequential(nn.Linear(1, 100_003, bias=False)), "0", rank=1, alpha=1)
    save_tt_lora(model, path)
    plain = nn.Sequential(nn.Linear(1, 100_003, bias=False))
    plain[0].weight = model[0].base_layer.weight
    assert load_tt_lora(plain, path)[0].shape == model[0].shape


def test_a_table_has_no_more_modes_than_can_be_loaded():
    with pytest.raises(ValueError, match="shape has 1025 modes, more than 1024; leave out the ones"):
        MPSEmbedding(4, 2, 1, shape=(1,) * 1024 + (2,))
