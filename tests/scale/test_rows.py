"""Rows compressed shard by shard are those that one process compresses, whatever interrupts."""

import json
import os
from pathlib import Path

import pytest
import torch
from compressed import smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from mps_tables import tables_to_compress
from row_sources import KINDS as FILES
from row_sources import written
from small_tasks import DAMAGES, flip
from strategies import agree, gaussian
from torch import nn

from ttref import MPSEmbedding
from ttref.files import load
from ttref.rows.frame import AT_ONCE
from ttref.scale import Table, compress_rows

KINDS = {
    "rank": {"rank": 2},
    "ranks": {"rank": (1, 2, 3, 3, 2, 1), "shape": (2, 2, 3, 2, 2)},
    "nothing cut": {"rank": 99},
    "eps": {"eps": 0.3},
    "center": {"rank": 1, "center": True},
    "eps and center": {"eps": 0.3, "center": True},
    "int8": {"rank": 2, "core_bits": 8, "center": True},
}
HERE = {"engine": "pool", "workers": 1}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def twin(rows, **how):
    return MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(rows), **how)


def same(one, other):
    """Tables of equal bits."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def content(folder):
    """The bytes of everything but the state of the job."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def done(folder):
    """Names of the shards that have a record."""
    records = [line for path in (folder / ".job" / "records").iterdir() for line in path.read_text().splitlines()]
    return [json.loads(line)["name"] for line in records]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_what_one_process_makes_of_all_rows(tmp_path, one_thread, kind, dtype):
    """To the bit, where a row's numbers do not depend on the rows beside it, as on every processor we know."""
    rows = smooth(50, 24, 1, dtype)
    source = written(tmp_path, rows, "safetensors")
    report = compress_rows(source, tmp_path / "out", tensor="x", rows_per_shard=20, **kind, **HERE)
    assert [shard["rows"] for shard in report.shards] == [20, 20, 10] and not report.errors
    whole, table = twin(rows, **kind), report.table
    assert agree(table.embedding().dense(), whole.dense())
    assert table.embedding().ranks == whole.ranks == table.ranks
    if dtype in (torch.float32, torch.float64):
        assert table.embedding().extra_repr() == whole.extra_repr()


def test_blocks_of_one_process_give_its_bits(tmp_path, one_thread):
    """Shards of whole blocks hand the same blocks to the same arithmetic."""
    rows = gaussian((AT_ONCE + 300, 4), 2, torch.float32)
    source = written(tmp_path, rows, "npy")
    for kind in ({"rank": 1, "center": True}, {"rank": 1, "core_bits": 8}):
        table = compress_rows(source, tmp_path / f"{len(kind)}{kind}", rows_per_shard=AT_ONCE, **kind, **HERE).table
        assert len(table.shards) == 2 and same(table.embedding(), twin(rows, **kind))
        table.save(tmp_path / "one"), twin(rows, **kind).save(tmp_path / "other")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_chunks_of_one_process_give_its_bits(tmp_path, one_thread):
    """Wide rows are taken a chunk of the decomposition at a time, 2,048 of them here."""
    rows = gaussian((5000, 768), 3, torch.float32)
    source = written(tmp_path, rows, "npy")
    table = compress_rows(source, tmp_path / "out", rank=1, rows_per_shard=4096, **HERE).table
    assert same(table.embedding(), twin(rows, rank=1))


@settings(max_examples=20)
@given(tables_to_compress(), st.integers(1, 4), st.booleans(), st.integers(1, 5))
def test_any_table(tmp_path_factory, sizes, rank, center, rows_per_shard):
    count, width, shape, seed = sizes
    folder = tmp_path_factory.mktemp("any")
    rows = gaussian((count, width), seed, torch.float32)
    how = {"rank": rank, "shape": shape, "center": center}
    report = compress_rows(written(folder, rows, "npy"), folder / "out", rows_per_shard=rows_per_shard, **how, **HERE)
    assert agree(report.table.dense(), twin(rows, **how).dense())
    assert report.rows == count and len(report.shards) == -(-count // rows_per_shard)


def test_files_of_every_kind_give_the_same_bytes(tmp_path):
    rows = smooth(30, 12, 3)
    made = {}
    for kind in FILES:
        (folder := tmp_path / kind).mkdir()
        where = {"tensor": "x"} if kind == "safetensors" else {}
        compress_rows(written(folder, rows, kind), folder / "out", rank=2, rows_per_shard=12, **where, **HERE)
        made[kind] = content(folder / "out")
        about = json.loads(made[kind].pop("table.json"))
        made[kind]["hashes"] = [shard["source_sha256"] for shard in about["shards"]]
    assert all(found == made["npy"] for found in made.values())


def test_the_result_does_not_depend_on_workers_or_interruptions(tmp_path):
    parts = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(smooth(50, 24, 4).split(15))]
    how = {"eps": 0.3, "center": True, "rows_per_shard": 8, "engine": "pool"}
    report = compress_rows(parts, tmp_path / "one", workers=1, **how)
    undisturbed = content(tmp_path / "one")
    assert len(undisturbed) == 8 and len(report.shards) == 7
    compress_rows(parts, tmp_path / "two", workers=2, **how)
    assert content(tmp_path / "two") == undisturbed

    # A kill may come before a record, between the file and its record, and within the line of a record.
    (path,) = (tmp_path / "one" / ".job" / "records").iterdir()
    gone = sorted((tmp_path / "one").glob("rows-*"))[5:]
    for kept in (10, 3):  # among the records of the shards, and among those of the sums
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        for name in (*gone, tmp_path / "one" / "table.json"):
            name.unlink()
        compress_rows(parts, tmp_path / "one", workers=1, **how)
        assert content(tmp_path / "one") == undisturbed


def test_what_is_complete_is_not_repeated(tmp_path, monkeypatch):
    source = written(tmp_path, smooth(20, 12), "npy")
    how = {"rank": 2, "center": True, "rows_per_shard": 8, **HERE}
    compress_rows(source, tmp_path / "out", **how)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    monkeypatch.setattr(MPSEmbedding, "save", None)
    assert not compress_rows(source, tmp_path / "out", **how).errors
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def swapped(path):
    """Another shard in its place, which is whole."""
    path.write_bytes(path.with_name("rows-00001-of-00003.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [*DAMAGES, swapped])
def test_a_file_that_is_lost_is_made_again(tmp_path, damage):
    source = written(tmp_path, smooth(20, 12), "npy")
    how = {"rank": 2, "rows_per_shard": 8, **HERE}
    compress_rows(source, tmp_path / "out", **how)
    before = content(tmp_path / "out")
    for _ in range(2):
        damage(tmp_path / "out" / "rows-00002-of-00003.safetensors")
        assert compress_rows(source, tmp_path / "out", **how).table.rows([9]).shape == (1, 12)
        assert content(tmp_path / "out") == before
    assert len(done(tmp_path / "out")) == 5


@pytest.mark.parametrize("name", ["sums", "exponents"])
def test_a_damaged_part_of_a_mean_is_made_again(tmp_path, name):
    """Neither its sums nor their exponents, which only rows in float64 have, ever get into the rows."""
    source = written(tmp_path, smooth(20, 12, 1, torch.float64), "npy")
    how = {"rank": 2, "center": True, "rows_per_shard": 8, **HERE}
    compress_rows(source, tmp_path / "out", **how)
    before, path = content(tmp_path / "out"), tmp_path / "out" / ".job" / "means" / "sums-00002-of-00003.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    flip(path, 8 + size + json.loads(path.read_bytes()[8 : 8 + size])[name]["data_offsets"][0])
    assert not compress_rows(source, tmp_path / "out", **how).errors
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("center", [False, True])
def test_a_complete_table_whose_source_is_spoiled_is_complete_no_more(tmp_path, center):
    """Its old rows would be taken for the new ones, or for a part of them."""
    rows = smooth(20, 12)
    source = written(tmp_path, rows, "npy")
    how = {"rank": 2, "center": center, "rows_per_shard": 8, **HERE}
    compress_rows(source, tmp_path / "out", **how)
    rows[15, 2] = torch.nan
    written(tmp_path, rows, "npy"), os.utime(source, ns=(0, 1))
    assert "rows-00002-of-00003.safetensors" in compress_rows(source, tmp_path / "out", **how).errors
    with pytest.raises(FileNotFoundError, match="compress_rows writes it when all shards are done"):
        Table(tmp_path / "out")
    rows[15, 2] = 1.0
    written(tmp_path, rows, "npy"), os.utime(source, ns=(0, 2))
    assert agree(
        compress_rows(source, tmp_path / "out", **how).table.dense(), twin(rows, rank=2, center=center).dense()
    )


def test_a_file_that_is_mended_costs_its_shards_alone(tmp_path):
    rows = smooth(40, 12)
    parts = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(rows.split(10))]
    how = {"rank": 2, "rows_per_shard": 8, **HERE}
    compress_rows(parts, tmp_path / "out", **how)
    rows[10:20] = smooth(10, 12, 9)
    written(tmp_path, rows[10:20], "npy", "1")
    os.utime(parts[1], ns=(0, 1))
    table = compress_rows(parts, tmp_path / "out", **how).table
    assert [name[5:10] for name in done(tmp_path / "out")] == [f"{k:05d}" for k in (1, 2, 3, 4, 5, 2, 3)]
    assert agree(table.dense(), twin(rows, rank=2).dense())


def test_shards_of_a_longer_source_do_not_stay(tmp_path):
    written(tmp_path, smooth(40, 12), "npy")
    compress_rows(tmp_path / "rows.npy", tmp_path / "out", rank=2, rows_per_shard=8, **HERE)
    written(tmp_path, smooth(20, 12), "npy")
    compress_rows(tmp_path / "rows.npy", tmp_path / "out", rank=2, rows_per_shard=8, **HERE)
    assert sorted(content(tmp_path / "out")) == [f"rows-0000{k}-of-00003.safetensors" for k in (1, 2, 3)] + [
        "table.json"
    ]


def test_files_of_others_stay(tmp_path):
    """Also those that are called as shards are, and were never made here."""
    others = ("rows-mine-of-me.safetensors", "rows-00009-of-00009.safetensors", "notes.txt")
    (tmp_path / "out").mkdir()
    for name in others:
        (tmp_path / "out" / name).write_text(name)
    for count in (40, 20):
        written(tmp_path, smooth(count, 12), "npy")
        compress_rows(tmp_path / "rows.npy", tmp_path / "out", rank=2, rows_per_shard=8, **HERE)
        assert {name: content(tmp_path / "out")[name] for name in others} == {n: n.encode() for n in others}
    assert len(content(tmp_path / "out")) == 3 + 3 + 1


def test_each_shard_is_a_file_of_its_own(tmp_path):
    rows = smooth(20, 12)
    report = compress_rows(written(tmp_path, rows, "npy"), tmp_path / "out", rank=2, rows_per_shard=8, **HERE)
    path = tmp_path / "out" / report.shards[1]["name"]
    assert agree(load(path).dense(), twin(rows[8:16], rank=2).dense())
    assert path.stat().st_size == report.shards[1]["file_nbytes"]
    assert repr(report) == f"3 of 3 shards of 20 rows, {report.nbytes} bytes, in {tmp_path / 'out'}"
    assert report.nbytes == Table(tmp_path / "out").nbytes and report.seconds > 0
