"""What the jobs share when their tasks have ended: nothing failed, and nothing is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .jobs import Record


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
