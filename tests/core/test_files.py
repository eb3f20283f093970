"""Files in general: what is read is a copy, the same content is the same bytes, and older files still load."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import saved
import torch
from compressed import embedding, noise, same_state
from safetensors import safe_open
from saved import MAKERS, adapted, base, load, mps, save, state, ttm
from torch import nn

import ttref
from ttref import MPSEmbedding, TTMEmbedding, add_tt_lora, files, load_tt_lora, save_tt_lora

kinds = pytest.mark.parametrize("kind", MAKERS)
OLD = Path(__file__).parents[1] / "files"  # written by versions 1 and 2 of the format


# What is read is a copy


@kinds
def test_what_is_read_lies_as_fresh_tensors_do(kind, path):
    for count in range(5):  # names of other lengths move the numbers in the file
        place = path.with_name("x" * count + path.name)
        save(MAKERS[kind](), place)
        read = load(kind, place)
        tensors = read[1].state_dict() | read[0].delta.state_dict() if kind == "adapter" else read.state_dict()
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values())


@kinds
@pytest.mark.parametrize("change", ["zeros", "cut", "gone"])
def test_what_becomes_of_the_file_does_not_matter(kind, change, path):
    made = MAKERS[kind]()
    save(made, path)
    read = load(kind, path)
    if change == "zeros":
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    elif change == "cut":
        with path.open("r+b") as file:
            file.truncate(3)
    else:
        path.unlink()
    assert saved.same(state(read), state(made))


@kinds
def test_the_numbers_are_not_mapped(kind, path):
    """No page of the file is left in the process."""
    save(MAKERS[kind](), path)
    read = load(kind, path)
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not say what is mapped")
    assert str(path) not in maps.read_text()
    assert read is not None


def test_tables_loaded_in_inference_mode_can_be_trained(path):
    mps().save(path)
    with torch.inference_mode():
        table = MPSEmbedding.load(path)
    table(torch.arange(3)).sum().backward()
    assert all(p.grad is not None for p in table.parameters())


# The same content is the same bytes


@kinds
def test_two_saves_are_the_same_bytes(kind, path):
    made, contents = MAKERS[kind](), set()
    for _ in range(8):
        save(made, path)
        contents.add(path.read_bytes())
    save(load(kind, path), path)
    assert contents == {path.read_bytes()}


AGAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import saved
for kind, path in zip(sys.argv[2::2], sys.argv[3::2]):
    saved.save(saved.load(kind, path), path)
"""


def test_another_process_writes_the_same_bytes(path):
    """Whatever order it draws for its sets and maps."""
    places = {kind: path.with_name(kind) for kind in ("buckets", "TT-matrix", "adapter")}
    for kind, place in places.items():
        save(MAKERS[kind](), place)
    before = [place.read_bytes() for place in places.values()]
    arguments = [str(argument) for pair in places.items() for argument in pair]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", AGAIN, tests, *arguments], check=True, env=environment)
    assert [place.read_bytes() for place in places.values()] == before


@kinds
def test_a_file_is_one_that_safetensors_reads(kind, path):
    save(MAKERS[kind](), path)
    content = path.read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0
    plain = safetensors.torch.load(content)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(plain)
        assert file.metadata().keys() == {"format", "version", "header", "each", "sha256"}


def test_threads_that_save_do_not_disturb_each_other(path):
    """Eight threads, one name: each save is whole, and nothing is left beside it."""
    tables, failed = [mps(rank=1 + k % 2) for k in range(8)], []

    def work(table):
        try:
            for _ in range(10):
                table.save(path)
                MPSEmbedding.load(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [file.name for file in path.parent.iterdir()] == [path.name]
    assert any(same_state(MPSEmbedding.load(path), table) for table in tables)


# What is written


class Mine(MPSEmbedding):
    """A table of somebody else's."""


class Renamed(TTMEmbedding):
    """Another."""


def test_subclasses_and_their_parents_read_each_other(path):
    for mine, parent in (
        (Mine.from_embedding(embedding(noise(24, 32)), rank=2), MPSEmbedding),
        (Renamed.from_cores(ttm().cores), TTMEmbedding),
    ):
        mine.save(path)
        assert type(type(mine).load(path)) is type(mine) and type(parent.load(path)) is parent
        assert same_state(parent.load(path), mine)
        parent.load(path).save(path)
        assert same_state(type(mine).load(path), mine)


def test_numbers_of_numpy_are_numbers(path):
    """What a search or a table of settings hands out."""
    dense = nn.Embedding(24, 32, padding_idx=int(np.int64(3)), sparse=True)
    dense.sparse, dense.padding_idx = np.bool_(True), np.int64(3)
    for options in ({"rank": np.int64(2)}, {"eps": np.float64(0.25)}, {"eps": np.float32(0.25)}):
        table = MPSEmbedding.from_embedding(dense, **options)
        table.save(path)
        again = MPSEmbedding.load(path)
        assert same_state(again, table) and again.store.eps == table.store.eps
        assert again.padding_idx == 3 and again.sparse
    table = TTMEmbedding(np.array([4, 6]), np.array([4, 8]), np.int64(2), np.int64(23), np.int32(31), padding_idx=3)
    table.save(path)
    assert TTMEmbedding.load(path).num_embeddings == 23
    model = adapted(rank=np.int64(2), alpha=np.float32(0.5), shape=np.array([2, 3, 4, 2]), dropout=np.float32(0.25))
    save_tt_lora(model, path)
    assert load_tt_lora(base(), path)[0].alpha == 0.5
    held = json.loads(safe_open(path, "pt").metadata()["header"])["layers"]["0"]
    assert (held["alpha"], held["dropout"], held["shape"]) == (0.5, 0.25, [2, 3, 4, 2])


def test_what_has_no_numbers_is_not_saved(path):
    mps().save(path)
    before = path.read_bytes()
    for table in (mps(), ttm()):
        with pytest.raises(ValueError, match="no numbers yet .meta device."):
            table.to("meta").save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_tables_with_numbers_that_are_none_are_not_saved(number, path):
    """They could not be loaded again, so they do not take the place of a good file."""
    mps(rank=2).save(path)
    before = path.read_bytes()
    for table in (mps(rank=2), mps(row_ranks=[1, 2, 99] * 8), ttm()):
        with torch.no_grad():
            next(table.parameters()).view(-1)[5] = number
        with pytest.raises(ValueError, match="cores.0 has entries that are NaN or infinite"):
            table.save(path)
    table = mps(rank=2, center=True)
    table.store.frame.mean[3] = number
    with pytest.raises(ValueError, match="frame.mean has entries that are NaN"):
        table.save(path)
    assert path.read_bytes() == before


# Files of older versions

versions = pytest.mark.parametrize("version", ["1", "2"])


def waves(count, width):
    """Rows that trains of rank 2 hold exactly."""
    ids = torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(1)
    return torch.sin(ids * torch.arange(width, dtype=torch.float64) / 8).float()


def rows_of(table):
    return table(torch.arange(table.num_embeddings)).detach()


@versions
def test_tables_of_older_versions(version):
    table = MPSEmbedding.load(OLD / f"mps.v{version}.safetensors")
    torch.testing.assert_close(rows_of(table), waves(6, 24), rtol=0, atol=1e-5)

    expected = waves(8, 64)
    expected[:3] = torch.arange(1.0, 4).unsqueeze(1)
    expected[6:] = torch.sin(torch.arange(64.0) ** 2 * torch.tensor([[1.0], [2.0]]))
    table = MPSEmbedding.load(OLD / f"mps_buckets.v{version}.safetensors")
    assert len(table.store.buckets) == 3 and (table.store.eps, table.padding_idx) == (1e-4, 1)
    torch.testing.assert_close(rows_of(table), expected, rtol=0, atol=1e-3)

    scale = torch.tensor([[1.0], [-2], [3], [0.5], [4], [-1], [2], [-4]])
    table = MPSEmbedding.load(OLD / f"mps_int8.v{version}.safetensors")
    assert table.core_bits == 8 and table.store.frame.rotation is not None
    torch.testing.assert_close(rows_of(table), scale * torch.sin(torch.arange(16.0) / 4), rtol=0, atol=0.02)

    one = torch.arange(12.0).reshape(3, 2, 2) / 8
    two = torch.arange(24.0).reshape(2, 3, 4) / 8
    expected = torch.einsum("ajr,rbk->abjk", one, two).reshape(9, 8)[:8, :7]
    table = TTMEmbedding.load(OLD / f"ttm.v{version}.safetensors")
    torch.testing.assert_close(rows_of(table), expected)
    assert table.padding_idx == 0


@versions
def test_an_adapter_of_an_older_version_knows_its_base(version):
    path = OLD / f"tt_lora.v{version}.safetensors"
    plain = base()[:2]
    read = load_tt_lora(plain, path)
    assert saved.same(state(read), state(adapted()[:2]))
    other = base()[:2]
    with torch.no_grad():
        other[0].weight[0, 0] = torch.finfo(torch.float32).tiny
    with pytest.raises(ValueError, match=r"another base model \(1 of 2 tensors differ, the first is 0.weight\)"):
        load_tt_lora(other, path)


@pytest.mark.parametrize("name", ["mps", "mps_buckets", "mps_int8", "ttm", "tt_lora"])
@versions
def test_older_files_are_saved_as_the_newest(version, name, path):
    kind = {"ttm": "TT-matrix", "tt_lora": "adapter"}.get(name, "table")
    shutil.copy(OLD / f"{name}.v{version}.safetensors", path)
    assert safe_open(path, "pt").metadata()["version"] == version
    read = load_tt_lora(base()[:2], path) if kind == "adapter" else load(kind, path)
    save(read, path)
    assert safe_open(path, "pt").metadata()["version"] == files.VERSION == "3"
    again = load_tt_lora(base()[:2], path) if kind == "adapter" else load(kind, path)
    assert saved.same(state(again), state(read))


@versions
def test_load_reads_older_files(version):
    for name in ("mps", "mps_buckets", "mps_int8", "ttm"):
        path = OLD / f"{name}.v{version}.safetensors"
        table = ttref.load(path)
        assert saved.same(state(table), state(type(table).load(path)))
    (update,) = ttref.load(OLD / f"tt_lora.v{version}.safetensors").values()
    assert saved.same(update.state_dict(), adapted()[0].delta.state_dict())


def test_the_fingerprint_is_of_numbers_and_not_of_a_file():
    """dtype, shape and bytes count, and nothing else does: not strides, place, or how a library spells a header."""
    x = torch.arange(12.0).reshape(3, 4)
    expected = hashlib.sha256(b"torch.float32[3, 4]" + x.numpy().astype("<f4").tobytes()).hexdigest()
    assert files.digest(x) == files.digest(x.T.contiguous().T) == files.digest(torch.cat((x, x))[3:]) == expected
    others = [x.double(), x.reshape(4, 3), x.view(torch.int32), x.bfloat16(), x + 1e-6, -x, x.flatten(), x[None]]
    assert len({files.digest(other) for other in others} | {expected}) == len(others) + 1
    assert add_tt_lora(base(), "0", rank=1, alpha=1) is not None
