"""Tables of rows, and what workers, disks, sources and second drivers do to them meanwhile."""

import errno
import functools
import os

import pytest
from compressed import smooth
from row_sources import dying, written
from small_tasks import hashes

from ttref import atomic
from ttref.scale import compress_rows, jobs, rows

HOW = {"eps": 0.3, "center": True, "rows_per_shard": 12}
ONE = {"engine": "pool", "workers": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return [written(folder, part, "npy", f"{k}") for k, part in enumerate(smooth(40, 24, 4).split(15))]


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert not compress_rows(source, folder, **HOW, **ONE).errors
    found = hashes(folder)
    assert len(found) == 5
    return found


def test_a_worker_that_is_killed(source, undisturbed, tmp_path, monkeypatch):
    """Between its file and its record. (On Ray one is killed within its work, in the tests of the engine there.)"""
    monkeypatch.setattr(rows, "compress", functools.partial(dying, marks=str(tmp_path), within=False))
    assert not compress_rows(source, tmp_path / "out", engine="pool", workers=2, **HOW).errors
    assert (tmp_path / "rows-00002-of-00004.safetensors").exists() and hashes(tmp_path / "out") == undisturbed


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["table.json", "job.json", "sums-00002-of-00004.safetensors"])
def test_a_disk_that_is_full_when_a_file_is_written(source, undisturbed, tmp_path, monkeypatch, name):
    begun, out = atomic._begun, tmp_path / "out"

    def one(fresh, mode):
        return full() if fresh.name.startswith(name) else begun(fresh, mode)

    monkeypatch.setattr(atomic, "_begun", one)
    if name.startswith("sums"):
        report = compress_rows(source, out, **HOW, **ONE)
        assert len(report.errors) == 4 and "No space left on device" in report.errors[name.replace("sums", "rows")]
    else:
        with pytest.raises(OSError, match="No space left on device"):
            compress_rows(source, out, **HOW, **ONE)
    assert not (out / "table.json").exists()
    monkeypatch.undo()
    assert not compress_rows(source, out, **HOW, **ONE).errors and hashes(out) == undisturbed


@pytest.mark.parametrize("times", [1, 6])
def test_a_disk_that_is_full_when_a_record_is_written(source, undisturbed, tmp_path, monkeypatch, times):
    """Of a sum, and of a shard: the driver says so, and the next one goes on behind half a record."""
    left = [times]

    class Full:
        """A file of records on a disk that has no room for one of them, but for its beginning."""

        def __init__(self, *how):
            self.file = open(*how)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, line):
            left[0] -= 1
            self.file.write(line if left[0] else line[:20])
            return None if left[0] else full()

    monkeypatch.setattr(jobs, "open", lambda *how: Full(*how) if how[1] == "a+b" else open(*how), raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        compress_rows(source, tmp_path / "out", **HOW, **ONE)
    assert not (tmp_path / "out" / "table.json").exists()
    monkeypatch.undo()
    compress_rows(source, tmp_path / "out", **HOW, **ONE)
    assert hashes(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("work", ["add_up", "compress"])
def test_a_source_that_is_cut_short_while_it_is_read(source, undisturbed, tmp_path, monkeypatch, work):
    """For the sums, or for the shards after them; once it is whole again, it is as if nothing had happened."""
    plain, cut, out = getattr(rows, work), source[1], tmp_path / "out"
    content, times = cut.read_bytes(), cut.stat()

    def meanwhile(task, **how):
        if "rows-00002" in task["name"]:
            cut.write_bytes(content[:-100])
        return plain(task, **how)

    monkeypatch.setattr(rows, work, meanwhile)
    try:
        report = compress_rows(source, out, **HOW, **ONE)
        assert "1.npy has changed since the job was planned: it had" in report.errors["rows-00002-of-00004.safetensors"]
        assert not (out / "table.json").exists()
        monkeypatch.undo()
        with pytest.raises(ValueError, match="1.npy is truncated"):
            compress_rows(source, out, **HOW, **ONE)
    finally:
        cut.write_bytes(content)
        os.utime(cut, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not compress_rows(source, out, **HOW, **ONE).errors and hashes(out) == undisturbed


@pytest.mark.parametrize("when", ["_mean", "_gather", "compress"])
def test_a_second_driver_is_sent_away_at_any_time(source, undisturbed, tmp_path, monkeypatch, when):
    """Between sums and shards too, and while the list of the table is written."""
    plain, met = getattr(rows, when), []

    def meanwhile(*args, **how):
        with pytest.raises(BlockingIOError, match="another run works on this folder now") as error:
            compress_rows(source, tmp_path / "out", **HOW, **ONE)
        met.append(error)
        return plain(*args, **how)

    monkeypatch.setattr(rows, when, meanwhile)
    compress_rows(source, tmp_path / "out", **HOW, **ONE)
    assert met and hashes(tmp_path / "out") == undisturbed
