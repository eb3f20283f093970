"""Rows that cannot be compressed, folders and options that do not fit: what is said, and what is done all the same."""

import errno
import json
import os
import re

import pytest
import torch
from compressed import smooth
from row_sources import written

from ttref import atomic
from ttref.scale import Table, compress_rows
from ttref.scale.row_files import RawRows

HERE = {"engine": "pool", "workers": 1}
ROWS = smooth(40, 12)


@pytest.fixture
def do(tmp_path):
    """Compresses rows into ``out``, eight in a shard."""
    (tmp_path / "in").mkdir()

    def do(rows=ROWS, kind="npy", **how):
        how = {"rank": 2, "rows_per_shard": 8, "destination": tmp_path / "out", **HERE} | how
        return compress_rows(how.pop("source", None) or written(tmp_path / "in", rows, kind), **how)

    do.out = tmp_path / "out"
    return do


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_rows_that_are_no_numbers_are_named_and_the_rest_is_done(do, tmp_path):
    rows = ROWS.clone()
    rows[9, 3], rows[15], rows[31, 0] = torch.nan, torch.inf, -torch.inf
    parts = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(rows.split(12))]
    report = do(source=parts)
    assert report.errors == {
        "rows-00002-of-00005.safetensors": "ValueError: rows-00002-of-00005.safetensors has 2 rows that cannot be "
        "compressed: row 9 (row 9 of 0.npy): NaN or Inf; row 15 (row 3 of 1.npy): NaN or Inf. "
        "Mend them in the source and run again: what is done stays",
        "rows-00004-of-00005.safetensors": "ValueError: rows-00004-of-00005.safetensors has 1 rows that cannot be "
        "compressed: row 31 (row 7 of 2.npy): NaN or Inf. Mend them in the source and run again: what is done stays",
    }
    assert files(do.out) == [f"rows-0000{k}-of-00005.safetensors" for k in (1, 3, 5)]
    assert "3 of 5 shards of 40 rows" in str(report) and "row 31 (row 7 of 2.npy)" in str(report)
    with pytest.raises(ValueError, match="3 of 5 shards"):
        _ = report.table
    with pytest.raises(FileNotFoundError, match=r"no .*table.json: compress_rows writes it when all shards are done"):
        Table(do.out)
    for k, part in enumerate(ROWS.split(12)):
        written(tmp_path, part, "npy", f"{k}")
    table = do(source=parts).table
    whole = do(destination=do.out.with_name("whole")).table
    assert [shard.sha256 for shard in table.shards] == [shard.sha256 for shard in whole.shards]


def test_many_rows_are_counted(do):
    report = do(torch.full((30, 12), torch.nan), rows_per_shard=30)
    [says] = report.errors.values()
    assert "has 30 rows that" in says and "row 9 (row 9 of rows.npy): NaN or Inf; and 20 more. Mend" in says


def test_without_all_rows_there_is_no_mean(do):
    rows = ROWS.clone()
    rows[20] = torch.nan
    report = do(rows, center=True)
    assert str(report).startswith("0 of 5 shards of 40 rows, 0 bytes") and len(report.errors) == 5
    assert all(shard.keys() == {"name", "rows", "error"} for shard in report.shards)
    assert "row 20 (row 20 of rows.npy): NaN or Inf" in report.errors.pop("rows-00003-of-00005.safetensors")
    says = "ValueError: there is no mean: 1 shards could not be summed, first rows-00003-of-00005.safetensors"
    assert report.errors["rows-00001-of-00005.safetensors"] == says and not list(do.out.glob("rows-*"))
    assert do(ROWS, center=True).table.num_embeddings == 40


def test_rows_of_parquet_that_are_not_there(do, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = ROWS.tolist()
    rows[10], rows[12], rows[14][2] = None, [1.0], None
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "in" / "a.parquet")
    [says] = do(source=tmp_path / "in").errors.values()
    for why in ("row 10 (row 10 of a.parquet): null;", "row 12 (row 12 of a.parquet): 1 entries, and others have 12;"):
        assert why in says
    assert "row 14 (row 14 of a.parquet): NaN or Inf. Mend" in says


def test_rows_out_of_range_are_counted_in_the_table(do):
    rows = ROWS.clone()
    rows[19] = 1e-42
    [says] = do(rows, core_bits=8).errors.values()
    assert "rows-00003-of-00005.safetensors, rows counted from row 16 of the table: row 3 has no entry above" in says


def test_a_source_that_changes_while_it_is_read(do, monkeypatch):
    source = written(do.out.with_name("in"), ROWS, "npy")
    plain, calls = RawRows.fill, []

    def fill(self, out, start):
        calls.append(start)
        if start == 16:
            source.write_bytes(source.read_bytes() + b"more")
        return plain(self, out, start)

    monkeypatch.setattr(RawRows, "fill", fill)
    report = do(source=source)
    assert list(report.errors) == [f"rows-0000{k}-of-00005.safetensors" for k in (3, 4, 5)]
    assert all("rows.npy has changed since the job was planned" in says for says in report.errors.values())
    assert not (do.out / "table.json").exists()
    monkeypatch.undo()
    assert do(source=source).table.num_embeddings == 40


def test_a_full_disk(do, monkeypatch):
    begun = atomic._begun

    def full(fresh, mode):
        file = begun(fresh, mode)
        if fresh.name.startswith("rows-00002"):
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    monkeypatch.setattr(atomic, "_begun", full)
    report = do()
    [says] = report.errors.values()
    assert says.startswith("OSError: [Errno 28] No space left on device; nothing was saved")
    assert files(do.out) == [f"rows-0000{k}-of-00005.safetensors" for k in (1, 3, 4, 5)]
    monkeypatch.undo()
    assert do().table.num_embeddings == 40 and len(files(do.out)) == 6


@pytest.mark.parametrize(
    "how, error, says",
    [
        ({"rank": None}, ValueError, "give exactly one of rank and eps, got neither"),
        ({"eps": 0.1}, ValueError, "give exactly one of rank and eps, got both"),
        ({"rank": None, "eps": 1.0}, ValueError, r"must lie in \[0, 1\)"),
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": (1, 2, 1)}, ValueError, "rank has 3 entries"),
        ({"rank": (2, 2, 2, 2, 1)}, ValueError, "rank"),
        ({"shape": (2, 5)}, ValueError, r"shape \(2, 5\) multiplies to 10, but a row has 12 entries"),
        ({"core_bits": 4}, ValueError, "core_bits must be 32"),
        ({"rank": None, "eps": 0.1, "core_bits": 8}, ValueError, "eps does not bound the rounding of int8 cores"),
        ({"rows_per_shard": 0}, ValueError, "rows_per_shard must be at least 1, got 0"),
        ({"tensor": "x"}, ValueError, "holds one array without a name"),
        ({"engine": "dask"}, ValueError, "engine is one of pool, ray, not 'dask'"),
    ],
)
def test_options_that_do_not_fit(do, how, error, says):
    with pytest.raises(error, match=says):
        do(**how)
    assert not do.out.exists()


@pytest.mark.parametrize("center", [False, True])
def test_a_folder_of_another_job_is_refused(do, center):
    do(center=center)
    before = files(do.out)
    with pytest.raises(ValueError, match=r"holds a job with ranks? .*, and this one has .*"):
        do(rank=3, center=center)
    with pytest.raises(ValueError, match="holds a job with dtype 'float32', and this one has 'float64'"):
        do(ROWS.double(), center=center)
    written(do.out.with_name("in"), ROWS, "npy", "other")
    with pytest.raises(ValueError, match="holds a job with source .*rows.npy.*, and this one has .*other.npy"):
        do(source=do.out.with_name("in") / "other.npy", center=center)
    assert files(do.out) == before


def test_source_and_destination_stand_apart(do, tmp_path):
    """A folder below that of the source, or above it, is a folder of its own."""
    source, other = tmp_path / "in", tmp_path / "other"
    other.mkdir()
    path = written(source, ROWS, "npy")
    (tmp_path / "folder").symlink_to(source)
    (other / "link.npy").symlink_to(path)
    for given, folder in [
        (source, source),
        (source, tmp_path / "folder"),
        (path, source),
        ([written(tmp_path, ROWS, "npy"), path], source),
        ([other / "link.npy"], source),
        ([other / "link.npy"], other),
    ]:
        with pytest.raises(ValueError, match="is where the source lies; give a folder of its own"):
            do(source=given, destination=folder)
    assert [path.name for path in source.iterdir()] == ["rows.npy"]
    for folder in (source / "small", tmp_path):
        for _ in range(2):
            assert not do(source=source, destination=folder).errors


def test_a_destination_that_cannot_be_written(do):
    do.out.write_text("a file")
    for center in (False, True):
        for folder in (do.out, do.out / "below"):
            with pytest.raises(OSError, match=f"nothing was started: .*{re.escape(repr(str(folder)))}"):
                do(center=center, destination=folder)


def test_sources_that_do_not_fit_start_nothing(do, tmp_path):
    """Found by what the files say, before a row is read."""
    parts = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(ROWS.split(12))]
    whole = parts[2].read_bytes()
    for wrong, says in [
        (whole[:-1], r"2\.npy is truncated: it has \d+ bytes, and shape \(12, 12\) needs \d+"),
        (whole[:50], r"2\.npy is no \.npy file, or is truncated"),
        (written(tmp_path, ROWS[:, :11], "npy", "3").read_bytes(), r"2\.npy has torch.float32 rows of 11 and .*0\.npy"),
        (written(tmp_path, ROWS.double(), "npy", "3").read_bytes(), r"2\.npy has torch.float64 rows of 12"),
    ]:
        parts[2].write_bytes(wrong)
        with pytest.raises(ValueError, match=says):
            do(source=parts[:3])
    assert not do.out.exists()


@pytest.mark.parametrize("center", [False, True])
def test_a_cluster_that_is_not_there(do, monkeypatch, center):
    """It is said at once, and a table that is complete needs none."""
    pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    how = {"source": written(do.out.with_name("in"), ROWS, "npy"), "center": center}
    with pytest.raises(ConnectionError, match="no Ray answers at RAY_ADDRESS=127.0.0.1:1 .*; start one there"):
        do(**how, engine=None, workers=None)
    assert files(do.out) == []
    do(**how)
    assert do(**how, engine=None, workers=None).table.num_embeddings == 40


def test_a_list_of_shards_that_is_damaged_is_named(do):
    do()
    path = do.out / "table.json"
    about = json.loads(path.read_text())
    for wrong, says in [
        ("{", "JSONDecodeError"),
        ("[]", "its header is"),
        (json.dumps(about | {"version": 9}), "it is ttref.table of version 9"),
        (json.dumps(about | {"rows": 41}), "its shards do not hold the 41 rows"),
        (json.dumps(about | {"dtype": "int8"}), "its dtype is int8"),
        (json.dumps(about | {"shards": [{}]}), "KeyError"),
        (json.dumps(about | {"more": 1}), "its header has 'more' too"),
        (json.dumps(about | {"shards": about["shards"][::-1]}), "its shard 0 is"),
        (json.dumps(about | {"shards": [{**one, "sha256": None} for one in about["shards"]]}), "sha256 is None"),
        (json.dumps(about | {"shards": [{**one, "params": 0} for one in about["shards"]]}), "its shard 0 is"),
        (json.dumps(about | {"ranks": ["1"]}), r"its width, modes and ranks are \[12, 2, 2, 2, 2, '1'\]"),
    ]:
        path.write_text(wrong)
        with pytest.raises(ValueError, match=rf"table.json is no table of ttref, or is damaged \(.*{says}"):
            Table(do.out)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        Table(do.out / "nowhere")
