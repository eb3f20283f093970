"""A release is replaced as a whole: killed at any line, interrupted, on a full disk, one of the two is there."""

import errno
import os
import signal
import sys
import threading

import pytest
from interrupts import run
from releases import same_state, small_dense
from saved_beside import in_child, names

from ttref.release import folders
from ttref.release.folders import opened, recovered, replacing

ROOM = (folders.__file__,)
OLD, NEW = {"one": b"old", "two": b"old"}, {"one": b"new", "three": b"new"}


def filled(folder, content, stop=None):
    """Replace the folder; killed at the line event of this number."""

    def work():
        with replacing(folder) as fresh:
            for name, data in content.items():
                (fresh / name).write_bytes(data)

    lines = 0

    def local(frame, event, argument):
        nonlocal lines
        if event == "line":
            if lines == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return local

    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename.startswith(ROOM) else None)
    try:
        work()
    finally:
        sys.settrace(None)
    return lines


def content(folder):
    return {path.name: path.read_bytes() for path in recovered(folder).iterdir()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inside").mkdir()
    filled(tmp_path / "inside" / "release", OLD)
    return tmp_path / "inside" / "release"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
def test_killed_at_any_line_a_whole_release_is_there(folder):
    lines = filled(folder, OLD)
    found = set()
    for stop in range(0, lines, 2):
        assert in_child(filled, folder, NEW, stop) == -signal.SIGKILL
        now = content(folder)
        assert now in (OLD, NEW), stop
        found.add(now == NEW)
        filled(folder, OLD)
        assert names(folder.parent) == ["release"], stop  # the next save tidies up
    assert found == {True, False} and lines > 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
def test_a_kill_between_the_two_renames_is_mended_when_the_folder_is_read(folder, monkeypatch):
    def killed():
        rename, done = os.rename, []

        def second(*arguments):
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(rename(*arguments))

        os.rename = second
        filled(folder, NEW)

    assert in_child(killed) == -signal.SIGKILL
    assert not folder.exists() and len(names(folder.parent)) == 2
    assert content(folder) == OLD and folder.exists()


def test_interrupted_at_any_line_a_whole_release_is_there(folder, monkeypatch):
    monkeypatch.setattr(folders, "MOST_WAIT", 0.02)  # for a lock that the interrupt kept from being given back

    def work():
        with replacing(folder) as fresh:
            for name, data in NEW.items():
                (fresh / name).write_bytes(data)

    lines, ended = run(work, ROOM)
    assert ended
    for stop in range(0, len(lines), 3):
        filled(folder, OLD)
        assert not run(work, ROOM, stop)[1]
        assert content(folder) in (OLD, NEW)
    filled(folder, NEW)
    assert content(folder) == NEW


@pytest.mark.parametrize("name", ["mkdir", "fsync", "rename"])
def test_an_error_of_the_disk_leaves_the_old_folder(name, folder, monkeypatch):
    real, count = getattr(os, name), 0

    def fails(*arguments, **options):
        nonlocal count
        count += 1
        if count == (2 if name == "rename" else 1):
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match="No space left"):
        filled(folder, NEW)
    monkeypatch.undo()
    assert content(folder) == OLD and names(folder.parent) == ["release"]


def test_a_folder_that_is_being_written_is_left_alone_by_another_save(folder):
    with replacing(folder) as fresh:
        (fresh / "one").write_bytes(b"slow")
        filled(folder, NEW)
        assert (fresh / "one").exists() and content(folder) == NEW
    assert content(folder) == {"one": b"slow"} and names(folder.parent) == ["release"]


def test_saves_at_the_same_time_leave_one_of_them_whole(folder):
    def work(data):
        for _ in range(5):
            with replacing(folder) as fresh:
                for name in ("a", "b"):
                    (fresh / name).write_bytes(data)

    threads = [threading.Thread(target=work, args=(bytes([k]),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = content(folder)
    assert found.keys() == {"a", "b"} and found["a"] == found["b"] and names(folder.parent) == ["release"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="rights, links and pipes as POSIX has them")
def test_permissions_and_a_link_to_the_folder_stay(folder, tmp_path):
    folder.chmod(0o750)
    (tmp_path / "current").symlink_to(folder)
    filled(tmp_path / "current", NEW)
    assert (tmp_path / "current").is_symlink() and content(folder) == NEW and folder.stat().st_mode & 0o777 == 0o750


def test_no_place_to_write_into_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere to write release into"):
        filled(tmp_path / "nowhere" / "release", NEW)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="rights, links and pipes as POSIX has them")
def test_only_ordinary_files_are_opened(folder):
    (folder / "link").symlink_to(folder / "one")
    os.mkfifo(folder / "pipe")
    (folder / "inside").mkdir()
    for name, says in (
        ("link", "is a link"),
        ("pipe", "no ordinary file"),
        ("inside", "no ordinary"),
        ("no", "missing"),
    ):
        with pytest.raises(ValueError, match=f"{name} .*{says}"):
            opened(folder, name)
    with opened(folder, "one") as file:
        assert file.read() == b"old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
@pytest.mark.parametrize("name", ["fsync", "rename", "unlink"])
def test_a_release_that_is_saved_again_is_whole_whenever_the_process_dies(name, tmp_path):
    """The same with the whole of a save: at each call of the system, the old release or the new one loads."""
    from releases import released, small_layers

    from ttref.release import load_release

    folder = tmp_path / "release"
    one, other = small_dense(0), small_dense(1)
    states = [released(folder, model, layers=small_layers(model))[1] for model in (other, one)]

    def killed(at):
        real, count = getattr(os, name), 0

        def counted(*arguments, **options):
            nonlocal count
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*arguments, **options)

        setattr(os, name, counted)
        released(folder, other, layers=small_layers(other))

    for at in range(12):
        died = in_child(killed, at) == -signal.SIGKILL
        loaded = load_release(folder, small_dense(9))
        assert any(same_state(loaded, state) for state in states)
        if not died:
            break
    assert at > 0 and same_state(loaded, states[0])


def test_files_are_flushed_as_windows_wants_it(folder, monkeypatch):
    """There, files that are open for reading only cannot be flushed, and folders neither be locked nor flushed."""
    fcntl, flush, flushed = folders.fcntl, os.fsync, []

    def fsync(number):
        if fcntl is not None and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(number)
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(folders, "fcntl", None)
    filled(folder, NEW)
    assert content(folder) == NEW and len(flushed) == len(NEW)
