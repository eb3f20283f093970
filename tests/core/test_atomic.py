"""What a save leaves: the old file whole and nothing beside it, whatever ends it and wherever."""

import errno
import os
import signal
import sys
import threading
import time

import pytest
import saved
from saved import MAKERS, mps, save, state, ttm
from saved_beside import (
    forks,
    in_child,
    names,
)

from ttref import MPSEmbedding, atomic, files


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


# Interruptions


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
        f"{path.name}.{digits[::-1].upper()}.part",  # reversed: to some systems capitals are the same name
        f"x{path.name}.{digits}.part",
        f"{path.name}.old.{digits}.part",
        f"{path.name}.backup",
    ]
    for name in [*stay, f"{path.name}.{digits}.part"]:
        path.with_name(name).write_bytes(b"left")
        os.utime(path.with_name(name), (time.time() - 2 * atomic.FORGOTTEN,) * 2)
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
    context = forks()
    barrier = context.Barrier(3)
    processes = [context.Process(target=save_often, args=(path, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert names(path.parent) == [path.name] and MPSEmbedding.load(path).num_embeddings == 24


@pytest.mark.skipif(atomic.fcntl is None, reason="this system has no such locks at all")
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
    killed, running = (path.with_name(f"{path.name}.{one * 16}.part") for one in "01")
    for left in (killed, running):
        left.write_bytes(b"")
    os.utime(killed, (time.time() - 2 * atomic.FORGOTTEN,) * 2)
    mps().save(path)
    mps(rank=1).save(path)
    assert names(path.parent) == sorted([path.name, running.name])  # closed a moment ago, to be renamed in the next
    assert MPSEmbedding.load(path).num_embeddings == 24
