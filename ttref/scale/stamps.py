"""Files as a job found them: size and time of change, told again before and after each reading."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..shards import LISTS

Stamps = dict[str, list[int]]  # by the names of files, as JSON holds them


class Stamp(NamedTuple):
    """What changes when a file is written: bytes, and time of the last change."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """As the file is now."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def check_stamp(path: Path, planned: Stamp) -> None:
    """ValueError if a file is not as it was when the job was planned."""
    try:
        now = Stamp.of(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read any more ({error.strerror}); put it back and run again") from None
    if now != planned:
        what = f"had {planned.size} bytes and has {now.size}" if now.size != planned.size else "was written to"
        raise ValueError(f"{path} has changed since the job was planned: it {what}; run again when nobody writes to it")


def stamps(path: str | Path) -> Stamps:
    """The stamp of a file, or of each file that lies in a folder or beside a list of shards."""
    path = Path(path)
    around = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.name.endswith(LISTS[1:])
    files = [one for one in sorted(around.iterdir()) if one.is_file() and one.name[0] != "."] if whole else [path]
    return {one.name: list(Stamp.of(one)) for one in files}


def check_stamps(path: str | Path, before: Stamps) -> None:
    """ValueError if one of several files was written since the job began."""
    now = stamps(path)
    if now != before:
        name = next(name for name in [*before, *now] if before.get(name) != now.get(name))
        raise ValueError(f"{name} of {path} was written while the job ran; begin anew, in another folder")
