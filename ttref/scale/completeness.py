"""What the jobs share: files that are what their records say, tasks that are done again, and nothing that failed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .engine import run
from .jobs import Job, Record, Task


def written(path: Path) -> dict[str, Any]:
    """Size and hash of a file, for the record of the task that wrote it."""
    with path.open("rb") as file:
        return {"file_nbytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def intact(path: Path, record: Mapping[str, Any]) -> bool:
    """True if a file is there, and is the one of :func:`written`, all of it."""
    with suppress(OSError):
        found = record.get("file_nbytes"), record.get("sha256")
        return path.stat().st_size == found[0] and tuple(written(path).values()) == found
    return False


def done(
    work: Callable[[Task], Mapping[str, Any]],
    tasks: Sequence[Task],
    state: Job,
    whole: Callable[[Record], bool],
    result: Path,
    *,
    engine: str | None,
    workers: int | None,
    description: str,
) -> list[Record]:
    """The records of all tasks, as of ``run``. One whose file is gone, or is another now, is done again.

    Args:
        work: As for ``run``. A task that is done again has another id, so the names of files that stay do not depend
            on it.
        tasks: Likewise.
        state: The job.
        whole: Of the record of a task that ended, whether its files are those that it says.
        result: What is written at the end. If anything has to be done it goes first: what is not complete must not
            look so.
        engine: As for ``run``.
        workers: Likewise.
        description: Likewise.
    """
    ended, given, ids = state.ended(), {task["id"] for task in tasks}, []
    for task in tasks:
        name, turn = task["id"], 1
        while (turn > 1 and name in given) or (name in ended and not whole(ended[name])):
            turn += 1
            name = f"{task['id']}-{turn}"
        ids.append(name)
    if not ended.keys() >= set(ids):
        result.unlink(missing_ok=True)
    again = [task | {"id": name} for task, name in zip(tasks, ids, strict=True)]
    records = run(work, again, state, engine=engine, workers=workers, description=description)
    return [record | {"id": task["id"]} for record, task in zip(records, tasks, strict=True)]


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
