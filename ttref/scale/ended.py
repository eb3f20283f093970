"""What the jobs share before and after their tasks: a folder that is theirs, files as they were, no gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .engine import run
from .jobs import Record

INDEX = ".index.json"  # the end of the name of a list of shards, which stands for the files beside it
Stamps = dict[str, list[int]]


def claim(destination: str | Path, source: str | Path | None, job: Mapping[str, Any]) -> Path:
    """The destination, now this job's: before it writes there, another's is refused, and so is the source's folder."""
    folder = Path(destination).expanduser()
    if source is not None and folder.resolve() in (Path(source).resolve(), Path(source).resolve().parent):
        raise ValueError(f"{folder} is where the source lies; give a folder of its own to what is made of it")
    run(dict, [], folder, job=job)
    return folder


def complete(records: Sequence[Record], folder: Path, what: str) -> Sequence[Record]:
    """The records of a job of which nothing failed.

    Raises:
        RuntimeError: Some failed: the first of them by their ids, and how to go on.
    """
    failed = [record for record in records if record["error"] is not None]
    if failed:
        told = "; ".join(f"{record['id']}: {record['error']}" for record in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise RuntimeError(
            f"{len(failed)} of {len(records)} {what} failed ({told}{more}). What ended is kept in {folder}: mend the "
            "cause, call again, and only these are done"
        )
    return records


def stamps(path: str | Path) -> Stamps:
    """Size and time of a file, or of each file that lies in a folder or beside a list of shards."""
    path = Path(path)
    around = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.name.endswith(INDEX)
    files = [one for one in sorted(around.iterdir()) if one.is_file() and one.name[0] != "."] if whole else [path]
    return {one.name: [one.stat().st_size, one.stat().st_mtime_ns] for one in files}


def check_stamps(path: str | Path, before: Stamps) -> None:
    """Refuse files that were written since the job began."""
    now = stamps(path)
    if now != before:
        name = next(name for name in [*before, *now] if before.get(name) != now.get(name))
        raise ValueError(f"{name} of {path} was written while the job ran; begin anew, in another folder")
