"""What the jobs share before and after their tasks: a folder that is theirs, and an end without gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .engine import run
from .jobs import Record


def claim(destination: str | Path, source: str | Path | None, job: Mapping[str, Any]) -> Path:
    """The destination, now this job's: before it writes there, another's is refused, and so is the source's folder."""
    folder = Path(destination).expanduser().absolute()
    if source is not None and folder.resolve() == _around(Path(source).resolve()):
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


def lost(folder: Path, name: str) -> FileNotFoundError:
    """The error of a file that a task wrote and that is there no more."""
    return FileNotFoundError(
        f"{folder} has lost {name}, which its job had written; remove the folder, and what is in it is made again"
    )


def _around(path: Path) -> Path:
    return path if path.is_dir() else path.parent
