"""Files written whole or not at all: under a temporary name beside the target, then renamed."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where a file that is open can be neither removed nor renamed
    fcntl = None
FORGOTTEN = 3600  # seconds after which a temporary file is taken for a killed save's, where there are no such locks


def replace(path: str | Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whole or not at all: under a temporary name, then renamed. It is on the disk when this returns.

    The permissions of an existing file stay, and a link stays a link: its target is replaced. Temporary files that
    killed saves of this name have left in the folder are removed, on Windows when they are an hour old.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: No such folder; a folder; a pipe or a device, a full disk,
            missing permissions. They name the file, which is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir() or os.fspath(path).endswith(("/", os.sep)):
        raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into")
    fresh = target.with_name(f"{_stem(target.name)}.{uuid.uuid4().hex[:16]}.part")
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, "this link leads in a circle")
        before = target.stat() if target.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):  # a pipe or a device would be gone afterwards
            raise OSError(errno.EINVAL, "this is no ordinary file")
        _sweep(target)
        # Private until it is complete, if the old file may be private. A new one gets the permissions of the umask.
        with _begun(fresh, 0o666 if before is None else 0o600) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if before is not None:
                _as_before(fresh, before)
            if fcntl is None:
                file.close()
            os.replace(fresh, target)
        settle(target.parent)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; nothing was saved", str(path)) from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def _stem(name: str) -> str:
    """The beginning of a temporary file's name, cut so that the whole is no longer than file systems allow."""
    return os.fsencode(name)[:100].decode("utf-8", "ignore")


def _begun(fresh: Path, mode: int) -> BinaryIO:
    """A new file, locked while it is open: the system frees the lock when this process dies."""
    while True:
        file = open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        if fcntl is None:
            return file
        with suppress(OSError):  # a folder on a server may know no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another save swept it away before it was locked


def _sweep(target: Path) -> None:
    """Remove temporary files of killed saves; running saves hold a lock. No error here may fail the save."""
    left = re.compile(re.escape(_stem(target.name)) + r"\.[0-9a-f]{16}\.part")
    with suppress(OSError):
        for path in [target.with_name(name) for name in os.listdir(target.parent) if left.fullmatch(name)]:
            with suppress(OSError):
                if fcntl is None:  # a running save's file is closed for a moment before it is renamed
                    if time.time() - path.stat().st_mtime > FORGOTTEN:
                        path.unlink()
                    continue
                with open(path, "r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _as_before(fresh: Path, before: os.stat_result) -> None:
    """Give the new file the permissions, and as far as allowed the owner, of the old one."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(fresh, before.st_uid, before.st_gid)
    os.chmod(fresh, stat.S_IMODE(before.st_mode))


def settle(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if fcntl is not None:
        with suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
