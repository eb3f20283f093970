"""What is read, and what is refused in one line: nothing a file claims is believed."""

import json
import pickle
import struct

import gguf
import pytest
import torch
from small_checkpoints import as_gguf, noise, saved, sharded, small_model

from ttref.audit.reading import open_checkpoint


def same(entries, tensors):
    assert {entry.name for entry in entries} == set(tensors)
    for entry in entries:
        assert entry.shape == tuple(tensors[entry.name].shape)
        assert entry.nbytes == tensors[entry.name].nbytes
        assert torch.equal(entry.read(), tensors[entry.name])


def test_a_file_a_folder_and_shards_hold_the_same(tmp_path):
    tensors = small_model()
    path, index = saved(tensors, tmp_path / "one"), sharded(tensors, tmp_path / "two")
    for given, kind in [(path, "safetensors"), (path.parent, "safetensors"), (index, "sharded safetensors"),
                        (index.parent, "sharded safetensors"), (str(path), "safetensors")]:  # fmt: skip
        found = open_checkpoint(given)
        assert found.format == kind
        same(found.entries, tensors)
    assert [entry.name for entry in open_checkpoint(index).entries] == list(tensors)  # the order of the list


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_widths_are_those_of_the_file(tmp_path, dtype):
    tensor = noise(16, 24).to(dtype)
    [entry] = open_checkpoint(saved({"w": tensor}, tmp_path)).entries
    assert entry.nbytes == tensor.nbytes and entry.floats == (dtype != torch.float8_e4m3fn)
    assert torch.equal(entry.read().float(), tensor.float())


def test_the_content_decides_and_not_the_name(tmp_path):
    path = saved({"w": noise(16, 16)}, tmp_path)
    assert open_checkpoint(path.rename(tmp_path / "weights.bin")).format == "safetensors"


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_gguf_is_unpacked_as_its_own_package_does(tmp_path, kind):
    tensors = {"blk.0.attn_q.weight": noise(48, 64), "token_embd.weight": noise(10, 32, 1), "norm": torch.ones(64)}
    path = as_gguf(tensors, tmp_path / "m.gguf", kind)
    found = {entry.name: entry for entry in open_checkpoint(path).entries}
    reader = gguf.GGUFReader(path)
    assert list(found) == [one.name for one in reader.tensors]
    for one in reader.tensors:
        entry = found[one.name]
        assert entry.shape == tuple(tensors[one.name].shape) and entry.nbytes == one.n_bytes
        assert entry.dtype == one.tensor_type.name
        wanted = torch.from_numpy(gguf.quants.dequantize(one.data, one.tensor_type).copy())
        assert torch.equal(entry.read(), wanted.reshape(entry.shape))
    assert open_checkpoint(tmp_path).format == "GGUF"


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}])
def test_a_state_dict_is_read_only_where_it_is_asked_for(tmp_path, wrap):
    state = {"fc.weight": noise(16, 24), "fc.bias": torch.zeros(16)}
    path = tmp_path / "model.pt"
    torch.save(wrap(state), path)
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match="state dict"):
            open_checkpoint(given)
        found = open_checkpoint(given, state_dict=True)
        assert found.format == "state dict"
        same(found.entries, state)


@pytest.mark.parametrize("length", [128, 384])
def test_no_length_of_a_header_makes_a_pickle_of_a_file(tmp_path, length):
    tensors, path = {"w": noise(16, 16)}, tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 1024]}}).ljust(length)
    path.write_bytes(struct.pack("<Q", length) + header.encode() + tensors["w"].numpy().tobytes())
    same(open_checkpoint(path).entries, tensors)


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


@pytest.mark.parametrize("write", [torch.save, lambda held, path: path.write_bytes(pickle.dumps(held))])
def test_a_pickle_never_runs(tmp_path, write, capsys):
    path = tmp_path / "model.bin"
    write({"w": Bomb()}, path)
    for asked in (False, True):
        with pytest.raises(ValueError, match="pickle|state dict"):
            open_checkpoint(path, state_dict=asked)
    assert "boom" not in capsys.readouterr().out


def lie(tmp_path, where):
    """A list of shards with a wrong entry."""
    index = sharded({"a": noise(16, 16), "b": noise(16, 16)}, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": where}}))
    return index


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "C:x", "a\\b", 5]
)
def test_a_list_of_shards_leads_nowhere_else(tmp_path, shard):
    saved({"a": noise(16, 16)}, tmp_path, "secret.safetensors")
    with pytest.raises(ValueError, match="no file beside it"):
        open_checkpoint(lie(tmp_path / "model", shard))


def test_a_list_of_shards_must_be_true(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file beside it"):
        open_checkpoint(lie(tmp_path, "model-3.safetensors"))
    index = lie(tmp_path, "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="where it is not"):
        open_checkpoint(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "[" * 100_000, "\xff"])
def test_a_damaged_list_of_shards_is_named(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="index.json"):
        open_checkpoint(path)


def claims(size, text=b"{}", body=b""):
    return struct.pack("<Q", size) + text + body


OUTSIDE = b'{"w":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'
HUGE = b'{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}'
FOREIGN = {
    "empty": b"",
    "short": b"\1\2\3",
    "header beyond the end": claims(1 << 40),
    "header of 2^63": claims(1 << 63),
    "no JSON": claims(8, b"xxxxxxxx"),
    "tensor beyond the end": claims(len(OUTSIDE), OUTSIDE, b"0" * 32),
    "sizes that overflow": claims(len(HUGE), HUGE, b"0" * 16),
    "text": b"a plain text that is no checkpoint at all",
    "picture": b"\x89PNG\r\n\x1a\n" + b"0" * 64,
    "gguf of another version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "gguf cut": b"GGUF" + struct.pack("<IQ", 3, 1),
    "gguf that never ends": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    + struct.pack("<IIQ", 9, 0, 1 << 60),
    "gguf of deep arrays": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50,
    "gguf of many tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0),
    "gguf with a long name": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1 << 60),
    "gguf with a huge tensor": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"w"
    + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_and_hostile_files_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind):
    tensors = {"w.weight": noise(16, 32)}
    path = saved(tensors, tmp_path) if kind == "safetensors" else as_gguf(tensors, tmp_path / "m.gguf")
    content = path.read_bytes()
    for end in [*range(0, len(content) - 2048, 13), len(content) - 2048, len(content) - 40]:
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=path.name):
            open_checkpoint(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no safetensors and no GGUF"):
        open_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        saved({"w": noise(16, 16)}, tmp_path, name)
    with pytest.raises(ValueError, match=r"2 checkpoints \(a.safetensors, b.safetensors\)"):
        open_checkpoint(tmp_path)
