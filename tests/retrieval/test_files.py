"""Files, copies and pickles: stored numbers and distances equal to the bit, everything else refused."""

import copy
import json
import pickle
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from corpora import asked, texts
from safetensors import safe_open

import ttref
from ttref import files
from ttref.retrieval import TTIndex
from ttref.retrieval.settings import plain

X = texts(120)
Q = asked(X, 6)
KINDS = {
    "plain": ({}, None),
    "ids": ({"bits": 8, "metric": "inner_product"}, range(5, 125)),
    "large ids": ({"bits": 2, "core_bits": 32, "rotate": False}, range(2**40, 2**40 + 120)),
    "train": ({"bits": 1, "shape": (4, 12), "rank": [1, 9, 1]}, None),
    "float": ({"bits": 32, "engine": "float", "random_state": 7}, None),
    "faiss": ({"backend": "faiss"}, None),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind):
    how, ids = KINDS[kind]
    if how.get("backend") == "faiss":
        pytest.importorskip("faiss")
    index = TTIndex(30, **how).fit(X[:100], ids=None if ids is None else ids[:100])
    index.add(X[100:], ids=None if ids is None else ids[100:])
    return index.remove(index.ids_[[0, 119]] if ids else [118, 119])


def equal(one, other):
    held, others = one._stored.tensors(), other._stored.tensors()
    assert held.keys() == others.keys() and one.get_params().keys() == other.get_params().keys()
    assert all(torch.equal(held[name], others[name]) for name in held)
    assert one._stored.header() == other._stored.header()
    for k in (1, 20, 118):
        assert all(torch.equal(a, b) for a, b in zip(one.kneighbors(Q, k), other.kneighbors(Q, k), strict=True))
    return one.add(X[:1]).tolist() == other.add(X[:1]).tolist()  # the next id is kept, too


@kinds
def test_saved_and_loaded(kind, tmp_path):
    index, path = made(kind), tmp_path / "index.safetensors"
    index.save(path)
    content = path.read_bytes()
    again, loaded = TTIndex.load(path), ttref.load(path)
    assert type(loaded) is TTIndex
    assert all(plain(again.get_params()[name]) == plain(value) for name, value in index.get_params().items())
    again.save(path)
    assert path.read_bytes() == content and [file.name for file in tmp_path.iterdir()] == [path.name]
    path.unlink()  # nothing depends on the file
    assert equal(again, loaded) and equal(TTIndex.load(_written(index, path)), index)


def _written(index, path):
    index.save(path)
    return path


@kinds
def test_copied_and_pickled(kind):
    for how in (copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))):
        index = made(kind)
        index.kneighbors(Q)  # so that FAISS has its copy, which does not come along
        again = how(index)
        assert again._scanner is None and repr(again) == repr(index)
        assert equal(again, index)


def test_a_copy_goes_its_own_way():
    index = made("plain")
    for again in (copy.copy(index), copy.deepcopy(index)):
        again.remove([1, 2, 3]).add(X[:2])
        assert index.n_samples_fit_ == 118 and 1 in index.ids_


def test_parameters_of_numpy_are_written(tmp_path):
    index = TTIndex(
        np.int64(20),
        bits=np.int64(2),
        core_bits=np.int32(8),
        shape=np.array([4, 12]),
        rank=np.int32(9),
        random_state=np.int64(3),
    ).fit(X)
    index.save(tmp_path / "index.safetensors")
    again = TTIndex.load(tmp_path / "index.safetensors")
    assert (again.n_components, again.shape, again.rank, again.random_state) == (20, [4, 12], 9, 3)
    assert torch.equal(again.kneighbors(Q)[0], index.kneighbors(Q)[0])
    assert torch.equal(again.fit(X)._stored.codes, index._stored.codes)


def test_parameters_of_the_next_fit_are_kept(tmp_path):
    """They need not go together with what is held, nor with each other before that fit."""
    for later in ({"bits": 32}, {"rank": 4}, {"bits": np.int64(8), "n_components": None}):
        index = TTIndex(20, engine="int8").fit(X).set_params(**later)
        index.save(tmp_path / "index.safetensors")
        again = TTIndex.load(tmp_path / "index.safetensors")
        assert again.get_params() == index.get_params() and again._stored.grid.bits == 4
        assert torch.equal(again.kneighbors(Q)[0], index.kneighbors(Q)[0])


def test_a_file_is_read_where_faiss_is_missing(tmp_path, monkeypatch):
    TTIndex(20).fit(X).set_params(backend="faiss").save(tmp_path / "index.safetensors")
    monkeypatch.setitem(sys.modules, "faiss", None)  # importing it raises
    index = TTIndex.load(tmp_path / "index.safetensors")
    with pytest.raises(ModuleNotFoundError, match="python -m pip install faiss-cpu, or leave backend at 'torch'"):
        index.kneighbors(Q)
    assert index.set_params(backend="torch").kneighbors(X[:1], 1)[1].item() == 0


def test_an_empty_index_is_kept(tmp_path):
    index = made("ids")
    index.remove(index.ids_).save(tmp_path / "index.safetensors")
    again = ttref.load(tmp_path / "index.safetensors")
    assert again.n_samples_fit_ == 0 and again.add(X[:1]).tolist() == [125]


def test_the_file_has_the_bytes_that_are_counted(tmp_path):
    for kind in KINDS:
        index = made(kind)
        index.save(tmp_path / "index.safetensors")
        tensors = safetensors.torch.load_file(tmp_path / "index.safetensors")
        assert index.nbytes == sum(x.numel() * x.element_size() for x in tensors.values())
        header = (tmp_path / "index.safetensors").stat().st_size - index.nbytes
        assert 0 < header < 2500


@kinds
def test_one_byte_that_differs_is_noticed(kind, tmp_path):
    path = _written(made(kind), tmp_path / "index.safetensors")
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in {0, 20, start - 30, start, (start + len(content)) // 2, len(content) - 1}:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"index.safetensors is no .* saved by ttref, or is damaged"):
            TTIndex.load(path)
    for cut in (0, 7, start // 2, start, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="index.safetensors is no TTIndex saved by ttref, or is damaged"):
            TTIndex.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"codes": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="other.safetensors is no TTIndex .* it holds nothing of ttref"):
        TTIndex.load(path)
    ttref.MPSEmbedding(10, 8, rank=1).save(path)
    with pytest.raises(ValueError, match="it holds ttref.MPSEmbedding"):
        TTIndex.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        TTIndex.load(tmp_path / "none.safetensors")


def resealed(path, change):
    """A file whose hash is right, and whose content nothing of ours has written."""
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(about["header"])
    change(header, tensors)
    about = {name: about[name] for name in ("format", "version")} | {"header": json.dumps(header)}
    path.write_bytes(b"".join(files.sealed(about, tensors)))


def put(place, name, value):
    return lambda header, tensors: (tensors if place == "tensors" else header[place]).__setitem__(name, value)


FORGED = {
    "codes of another width": put("tensors", "codes", torch.zeros(118, 3, dtype=torch.uint8)),
    "codes of another dtype": put("tensors", "codes", torch.zeros(118, 15)),
    "fewer scales": put("tensors", "scales", torch.zeros(3, dtype=torch.float16)),
    "NaN": put("tensors", "ranges", torch.full((30,), float("nan"))),
    "fewer ranges": put("tensors", "ranges", torch.ones(29)),
    "a unit for each": put("tensors", "unit", torch.ones(118)),
    "another mean": put("tensors", "mean", torch.zeros(47)),
    "a core too many": put("tensors", "cores.1", torch.zeros(1, 2, 1, dtype=torch.int8)),
    "a core that does not chain": put("tensors", "cores.0", torch.zeros(30, 24, 2, dtype=torch.int8)),
    "scales of cores": put("tensors", "core_scales.0", torch.ones(30, 1, 1)),
    "ids twice": put("tensors", "ids", torch.ones(118, dtype=torch.int32)),
    "more": put("tensors", "more", torch.ones(1)),
    "no codes": lambda header, tensors: tensors.pop("codes"),
    "other bits": put("fitted", "bits", 2),
    "no such bits": put("fitted", "bits", 5),
    "an id that is taken": put("fitted", "next_id", 100),
    "another shape": put("fitted", "shape", [6, 9]),
    "a fraction in a shape": put("fitted", "shape", [48.0]),
    "a shape below zero": put("fitted", "shape", [-6, -8]),
    "truth in a shape": put("fitted", "shape", [True, 48]),
    "three axes": put("fitted", "shape", [2, 3, 8]),
    "an id beyond int64": put("fitted", "next_id", 2**64),
    "negative scales": put("tensors", "scales", -torch.ones(118, dtype=torch.float16)),
    "a negative unit": put("tensors", "unit", torch.tensor(-1.0)),
    "no unit": put("tensors", "unit", torch.tensor(0.0)),
    "a range of nothing": put("tensors", "ranges", torch.arange(30.0)),
    "cores of zeros": put("tensors", "cores.0", torch.zeros(30, 48, 1, dtype=torch.int8)),
    "negative scales of cores": put("tensors", "core_scales.0", -torch.ones(30, 1, 1).bfloat16()),
    "scales of cores of zeros": put("tensors", "core_scales.0", torch.zeros(30, 1, 1).bfloat16()),
    "a parameter's shape": put("params", "shape", [6.0, 8.0]),
    "a parameter's rank": put("params", "rank", [1, -9, 1]),
    "a rank of truth": put("params", "rank", [1, True, 1]),
    "another metric": put("fitted", "metric", "l2"),
    "a type": put("fitted", "next_id", "120"),
    "a parameter": put("params", "bits", 3),
    "another parameter": put("params", "speed", 3),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_content_that_does_not_fit_is_refused(change, tmp_path):
    path = _written(made("plain"), tmp_path / "index.safetensors")
    resealed(path, lambda header, tensors: None)
    assert TTIndex.load(path).n_samples_fit_ == 118
    resealed(path, change)
    with pytest.raises(ValueError, match="index.safetensors is no TTIndex saved by ttref, or is damaged"):
        TTIndex.load(path)
