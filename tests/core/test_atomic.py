"""What a save leaves: the old file whole, its rights, its links, nothing beside it, whatever ends it and wherever."""

import errno
import multiprocessing
import os
import resource
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest
import saved
from saved import MAKERS, load, mps, save, state, ttm

from ttref import MPSEmbedding, TTMEmbedding, atomic, files

kinds = pytest.mark.parametrize("kind", MAKERS)
needs_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def in_child(work, *arguments):
    """The exit status of a process that does this."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


# Interruptions


class Stop(BaseException):
    """What nobody foresees."""


def lines_of_save(work):
    """How many lines of ``ttref.files`` a save runs through."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in (files.__file__, atomic.__file__):
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def stopped_at(work, line, error):
    """The same, ended by an error before the line of this number."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in (files.__file__, atomic.__file__):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise error
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


ERRORS = [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "no space left"), Stop]


@pytest.mark.parametrize("kind", ["table", "adapter"])
@pytest.mark.parametrize("first", range(4))
def test_a_save_that_ends_anywhere(kind, first, path):
    """At every line, by one error or another: the file is the old one or the new one, and the next save tidies up."""
    made, other = MAKERS[kind](), mps(rank=1)
    save(other, path)
    old = path.read_bytes()
    save(made, path)
    new = path.read_bytes()
    path.write_bytes(old)
    count = lines_of_save(lambda: save(made, path))
    assert count > 60
    for line in range(1 + first, count + 1, 4):
        path.write_bytes(old)
        try:
            stopped_at(lambda: save(made, path), line, ERRORS[(line // 4 + first) % 4])
        except (Stop, KeyboardInterrupt, MemoryError, OSError):
            pass
        assert path.read_bytes() in (old, new)
        assert len(names(path.parent)) <= 2  # what was being written may be left if even tidying up was stopped
        save(made, path)
        assert names(path.parent) == [path.name] and path.read_bytes() == new


def killed(path, at):
    """A process that dies in the middle of a save."""
    real = getattr(os, at)

    def die(*arguments, **options):
        if at == "replace":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, at, die)
    mps(rank=1).save(path)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_killed_save_leaves_the_old_file_and_the_next_one_tidies_up(at, path):
    table, other = ttm(), path.with_name("another.safetensors")
    table.save(path)
    old = path.read_bytes()
    for _ in range(3):
        assert in_child(killed, path, at) == -signal.SIGKILL
        assert path.read_bytes() == old
        assert len(names(path.parent)) == 2  # each save removes what the one before it left
        assert in_child(killed, other, at) == -signal.SIGKILL
        assert len(names(path.parent)) == 3 and not other.exists()
        next(file for file in path.parent.iterdir() if file.name.startswith("another")).unlink()
    table.save(path)
    assert names(path.parent) == [path.name] and path.read_bytes() == old


def test_only_what_a_save_of_this_name_left_is_removed(path):
    """Others' files stay, and so does what a save is writing now, in this process or another."""
    digits = "0123456789abcdef"
    stay = [
        f"{path.name}.{digits}",
        f"{path.name}.{digits}.part.bak",
        f"{path.name}.{digits[:-1]}.part",
        f"{path.name}.{digits.upper()}.part",
        f"x{path.name}.{digits}.part",
        f"{path.name}.old.{digits}.part",
        f"{path.name}.backup",
    ]
    for name in [*stay, f"{path.name}.{digits}.part"]:
        path.with_name(name).write_bytes(b"left")
    mps().save(path)
    assert names(path.parent) == sorted([*stay, path.name])


def test_a_save_that_goes_on_is_not_disturbed(path, monkeypatch):
    """A second save of the same name begins and ends while the first one writes."""
    first, second = mps(rank=1), mps(rank=2)
    real, inside, go_on = os.fsync, threading.Event(), threading.Event()

    def slowly(number):
        if threading.current_thread() is thread and not inside.is_set():
            inside.set()
            assert go_on.wait(60)
        real(number)

    monkeypatch.setattr(os, "fsync", slowly)
    thread = threading.Thread(target=first.save, args=(path,))
    thread.start()
    assert inside.wait(60)
    second.save(path)
    assert saved.same(state(MPSEmbedding.load(path)), state(second))
    assert len(names(path.parent)) == 2
    go_on.set()
    thread.join()
    assert saved.same(state(MPSEmbedding.load(path)), state(first)) and names(path.parent) == [path.name]


def save_often(path, barrier):
    table = mps(rank=1)
    barrier.wait()
    for _ in range(20):
        table.save(path)


def test_processes_that_save_do_not_disturb_each_other(path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=save_often, args=(path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert names(path.parent) == [path.name] and MPSEmbedding.load(path).num_embeddings == 24


def test_where_no_locks_are_known(path, monkeypatch):
    """Saving works; what might belong to a save that goes on is left alone."""

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    left = path.with_name(f"{path.name}.{'0' * 16}.part")
    left.write_bytes(b"")
    mps().save(path)
    assert names(path.parent) == sorted([path.name, left.name])
    MPSEmbedding.load(path)


def test_where_there_is_no_fcntl(path, monkeypatch):
    """As on Windows, where a file that is open cannot be removed."""
    monkeypatch.setattr(atomic, "fcntl", None)
    path.with_name(f"{path.name}.{'0' * 16}.part").write_bytes(b"")
    mps().save(path)
    mps(rank=1).save(path)
    assert names(path.parent) == [path.name] and MPSEmbedding.load(path).num_embeddings == 24


# Rights and links


@kinds
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o755, 0o400])
def test_the_rights_of_a_file_stay(kind, mode, path):
    before = os.umask(0o022)
    try:
        made = MAKERS[kind]()
        save(made, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(mode)
        save(made, path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640), (0, 0o666)])
def test_a_new_file_gets_what_the_umask_leaves(mask, mode, path):
    before = os.umask(mask)
    try:
        mps().save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_private_file_is_private_while_it_is_written(path, monkeypatch):
    mps().save(path)
    path.chmod(0o600)
    seen, real = [], os.fsync

    def look(number):
        seen.append(stat.S_IMODE(os.fstat(number).st_mode))
        real(number)

    monkeypatch.setattr(os, "fsync", look)
    mps().save(path)
    assert seen[0] == 0o600


@needs_root
def test_the_owner_of_a_file_stays(path):
    mps().save(path)
    os.chown(path, 12345, 54321)
    mps(rank=1).save(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@kinds
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_a_link(kind, relative, path):
    made = MAKERS[kind]()
    target = path.parent / "below" / "v1.safetensors"
    target.parent.mkdir()
    mps(rank=1).save(target)
    path.symlink_to(target.relative_to(path.parent) if relative else target)
    second = path.with_name("second")
    second.symlink_to(path.name)
    save(made, second)
    assert path.is_symlink() and second.is_symlink() and not target.is_symlink()
    assert names(target.parent) == [target.name] and names(path.parent) == ["below", path.name, "second"]
    assert saved.same(state(load(kind, target)), state(made))


def test_links_that_lead_nowhere(path):
    target = path.with_name("target.safetensors")
    path.symlink_to(target)
    mps().save(path)
    assert path.is_symlink() and MPSEmbedding.load(target).num_embeddings == 24
    target.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        MPSEmbedding.load(path)
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "file")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        mps().save(path)
    path.unlink()
    circle = path.with_name("circle")
    path.symlink_to(circle)
    circle.symlink_to(path)
    with pytest.raises(OSError, match="leads in a circle"):
        mps().save(path)
    assert path.is_symlink() and names(path.parent) == ["circle", path.name]


# Names and messages


@pytest.mark.parametrize("name", ["z" * 255, "é" * 127, "張" * 85, "z" * 222, ".", "a b\n%s{}[x].*", "-", "x.part"])
def test_every_name_that_a_file_may_have(name, path):
    if name == ".":
        with pytest.raises(IsADirectoryError, match="this is a folder; name a file in it"):
            mps().save(path.parent / name)
        return
    place = path.with_name(name)
    for table in (mps(rank=1), mps(rank=2)):
        table.save(place)
    assert names(path.parent) == [name] and saved.same(state(MPSEmbedding.load(place)), state(table))


def test_names_longer_than_that(path):
    with pytest.raises(OSError) as error:
        mps().save(path.with_name("z" * 256))
    assert error.value.errno == errno.ENAMETOOLONG and "z" * 256 in str(error.value)
    assert names(path.parent) == []


def test_a_relative_name(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    mps().save(path.name)
    mps().save(Path(path.name))
    assert MPSEmbedding.load(path.name).num_embeddings == 24 and names(path.parent) == [path.name]


def fills_the_disk(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        mps().save(path)
    except OSError as error:
        os._exit(0 if str(path) in str(error) and ".part" not in str(error) and error.errno == errno.EFBIG else 1)
    os._exit(2)


def test_a_full_disk_is_said_of_the_file(path):
    assert in_child(fills_the_disk, path) == 0 and names(path.parent) == []
    ttm().save(path)
    before = path.read_bytes()
    assert in_child(fills_the_disk, path) == 0
    assert path.read_bytes() == before and names(path.parent) == [path.name]


def without_rights(path):
    os.setuid(65534)
    for work, error, text in (
        (lambda: MPSEmbedding.load(path), PermissionError, str(path)),
        (lambda: mps().save(path), PermissionError, str(path)),
    ):
        try:
            work()
        except error as refusal:
            if text in str(refusal) and ".part" not in str(refusal):
                continue
        os._exit(1)
    os._exit(0)


@needs_root
def test_missing_rights_are_said(path):
    mps().save(path)
    path.chmod(0)
    for folder in (path.parent, *path.parent.parents[:3]):
        if folder != Path(folder.root) and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    assert in_child(without_rights, path) == 0


@pytest.mark.parametrize("kind", [MPSEmbedding, TTMEmbedding])
def test_what_is_no_file(kind, path):
    with pytest.raises(IsADirectoryError, match="this is a folder.*" + path.parent.name):
        kind.load(path.parent)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        kind.load(path / "below")
    os.mkfifo(path)
    with pytest.raises(OSError, match="this is no ordinary file"):
        kind.load(path)


@kinds
@pytest.mark.parametrize("name", ["file", "folder/", "link"])
def test_what_is_no_file_is_never_replaced(kind, name, path):
    """A pipe, a folder that is not there yet, a link to a pipe."""
    made, place = MAKERS[kind](), path.with_name("file")
    os.mkfifo(place)
    path.with_name("link").symlink_to("file")
    text = "this is a folder" if name == "folder/" else "this is no ordinary file"
    with pytest.raises(OSError, match=f"{text}.*{name}"):
        save(made, f"{path.parent}/{name}")
    assert stat.S_ISFIFO(place.stat().st_mode) and names(path.parent) == ["file", "link"]
