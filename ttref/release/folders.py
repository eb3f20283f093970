"""Folders written whole or not at all: beside the target under another name, then renamed; files, opened safely.

A folder that exists is moved aside, the new one into its place, and only then the old one is removed. A process that
dies between the two renames leaves no folder of that name; :func:`recovered` then puts the old one back.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..atomic import settle

try:
    import fcntl
except ModuleNotFoundError:  # Windows, which knows no locks of folders
    fcntl = None

PART, OLD = "part", "old"  # a folder that is being written or removed; a whole one that was moved aside
MOST_WAIT = 5.0  # seconds for another save's renames


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """A new folder to write files into; it takes the place of ``folder`` when the block ends, and is gone if it raises.

    The files are on the disk when this returns. Folders that killed saves of this name have left are removed.

    Raises:
        FileNotFoundError, OSError: No folder to write into; missing permissions, a full disk. The old folder stays.
    """
    target = Path(os.path.realpath(folder))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into")
    fresh, lock = _beside(target, PART), None
    try:
        with _turn(target.parent):
            _tidy(target)
            fresh.mkdir()
            with suppress(OSError):
                lock = _locked(fresh)
        yield fresh
        for file in sorted(fresh.iterdir()):
            flush(file)
        settle(fresh)
        with _turn(target.parent):
            _swap(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def recovered(folder: str | Path) -> Path:
    """The folder; where a save was killed between its two renames, the old folder is put back first."""
    target = Path(os.path.realpath(folder))
    if not target.exists() and target.parent.is_dir():
        with _turn(target.parent):  # waits for a save that is just between its renames
            _put_back(target)
    return target


def flush(file: Path) -> None:
    """Have the content of a file on the disk, before it gets the name that others read."""
    with file.open("r+b") as held:  # Windows flushes only what is open for writing
        os.fsync(held.fileno())


def opened(folder: Path, name: str) -> BinaryIO:
    """A file of the folder for reading; ValueError for links, folders, pipes and devices."""
    linked = f"{name} is a link, and a release has none; copy the file itself"
    if (folder / name).is_symlink():  # Windows cannot refuse it while it opens it
        raise ValueError(linked)
    try:
        number = os.open(folder / name, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _FLAGS))
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(linked) from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"{name} is no ordinary file")
    return os.fdopen(number, "rb")


_FLAGS = "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"  # no links; no waiting for a pipe; no newlines changed on Windows


def _swap(fresh: Path, target: Path) -> None:
    """The two renames, and the removal of the old folder."""
    old = _beside(target, OLD)
    try:
        if target.exists():
            with suppress(OSError):
                os.chmod(fresh, stat.S_IMODE(target.stat().st_mode))
            os.rename(target, old)
        os.rename(fresh, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    settle(target.parent)
    _discard(old, target)


def _tidy(target: Path) -> None:
    """Put a whole release back if there is none; remove what killed saves have left. Running saves hold a lock."""
    _put_back(target)
    for old in _left(target, OLD):
        _discard(old, target)
    for part in _left(target, PART):
        with suppress(OSError):
            lock = _locked(part)
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)


def _put_back(target: Path) -> None:
    for old in _left(target, OLD):
        if not target.exists():
            os.rename(old, target)


def _discard(old: Path, target: Path) -> None:
    """Remove a folder under the name of a part first: one that is half removed must never be put back."""
    if old.exists():
        gone = _beside(target, PART)
        os.rename(old, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _beside(target: Path, kind: str) -> Path:
    """A new hidden name beside the target."""
    return target.with_name(f"{_stem(target)}.{uuid.uuid4().hex[:16]}.{kind}")


def _left(target: Path, kind: str) -> list[Path]:
    """Folders beside the target with such names."""
    name = re.compile(re.escape(_stem(target)) + rf"\.[0-9a-f]{{16}}\.{kind}")
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def _stem(target: Path) -> str:
    """The beginning of a hidden name, cut so that the whole is no longer than file systems allow."""
    return "." + os.fsencode(target.name)[:100].decode("utf-8", "ignore")


@contextmanager
def _turn(parent: Path) -> Iterator[None]:
    """One process after another, for the renames in a folder, which take milliseconds."""
    lock, until = None, time.monotonic() + MOST_WAIT
    try:
        while lock is None:
            try:
                lock = _locked(parent)
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int:
    """A lock on a folder, which the system frees when this process dies.

    Raises:
        BlockingIOError: Another holds it.
        OSError: There are no locks here.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no locks of folders")
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(number)
        raise
    return number
