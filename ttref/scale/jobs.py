"""A job's folder: whose it is, who works on it, and what has ended; all of it in ``folder/.job``.

``job.json`` holds the settings, ``lock`` is locked while a driver works on the job, to its end, and ``records/`` holds
a line of JSON for every task that ended. What is needed until the end lies beside them. A line that a kill has cut
short is no record: its task is done again, which changes nothing, as the same task writes the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..atomic import replace

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

STATE = ".job"
POOL = "pool.jsonl"  # the records of tasks done without Ray, which writes a file for each
Task = dict[str, Any]
Record = dict[str, Any]


def checked_tasks(tasks: Sequence[Mapping[str, Any]]) -> list[Task]:
    """The tasks as JSON gives them back, so that every engine hands the same to ``work``."""
    found = [plain("a task", task) for task in tasks]
    seen = set()
    for task in found:
        name = task.get("id")
        if not isinstance(name, str) or not name:
            raise ValueError(f"every task needs an id, a str that is not empty, not {name!r}")
        if name in seen:
            raise ValueError(f"two tasks have the id {name!r}; an id says what has ended, so it must be one task's")
        seen.add(name)
    return found


def plain(name: str, value: Any) -> dict[str, Any]:
    """A dict as JSON gives it back."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict of JSON values, not {type(value).__name__}")
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold JSON values only ({error}): {short(value)}") from error


def short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def attempted(work: Any, task: Task) -> Record:
    """The record of a task: what ``work`` returned, or the error that it raised."""
    try:
        return {"id": task["id"], **plain("what work returns", work(dict(task))), "error": None}
    except Exception as error:
        return failed(task, told(error))


def told(error: BaseException) -> str:
    """An error in a line: its kind, and its text if it has one."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def failed(task: Task, error: str) -> Record:
    """The record of a task without a result."""
    return {"id": task["id"], "error": error}


class Job:
    """A job in its folder, while a driver has it; made by :func:`opened`.

    Attributes:
        folder: The destination, for what is left at the end. Nobody else's files are touched there.
        state: The job's own folder in it.
        written: The folder of the records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / STATE
        self.written = self.state / "records"

    def space(self, name: str) -> Path:
        """A folder of the job's own, made if it is not there, for what is needed until its end."""
        (self.state / name).mkdir(exist_ok=True)
        return self.state / name

    def clear(self, name: str) -> None:
        """Remove such a folder, if it is there."""
        shutil.rmtree(self.state / name, ignore_errors=True)

    def records(self) -> dict[str, Record]:
        """The records by their ids; one of a task that failed gives way to one without an error."""
        found = [record for path in sorted(self.written.iterdir()) for record in read_records(path)]
        return {record["id"]: record for record in sorted(found, key=lambda record: record["error"] is None)}

    def ended(self) -> dict[str, Record]:
        """The records of tasks that ended well."""
        return {name: record for name, record in self.records().items() if record["error"] is None}

    @contextmanager
    def appending(self) -> Iterator[Any]:
        """A function that writes a record of a task that ended well."""
        with open(self.written / POOL, "a+b") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # a kill has cut the last line short

            def append(record: Record) -> None:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()

            yield append


def read_records(path: Path) -> list[Record]:
    """The records in a file, without lines that are none."""
    found = []
    with suppress(FileNotFoundError):
        for line in path.read_bytes().split(b"\n"):
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("id"), str) and "error" in record:
                    found.append(record)
    return found


@contextmanager
def opened(
    folder: str | os.PathLike[str], settings: Mapping[str, Any] | None, *sources: str | Path | None
) -> Iterator[Job]:
    """The job in a folder, made if there is none, for this driver alone until the context ends.

    Args:
        folder: The destination.
        settings: A dict of JSON values.
        sources: What the job is made of, files or folders, or None; no folder of theirs is taken for a destination.

    Raises:
        BlockingIOError: Another driver has the folder.
        OSError: It cannot be written.
        ValueError: It holds another job, or a source.
    """
    folder = Path(folder).expanduser().absolute()  # workers may stand elsewhere
    settings = plain("job", settings)
    if any(folder.resolve() == around(Path(source).resolve()) for source in sources if source is not None):
        raise ValueError(f"{folder} is where the source lies; give a folder of its own to what is made of it")
    job = Job(folder)
    try:
        job.written.mkdir(parents=True, exist_ok=True)
        file = open(job.state / "lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; nothing was started", str(folder)) from error
    with file:
        lock(file, folder)
        check_settings(job.state / "job.json", settings, folder)
        yield job


def around(path: Path) -> Path:
    """A folder itself, or that of a file."""
    return path if path.is_dir() else path.parent


def lock(file: Any, folder: Path) -> None:
    """Lock a file until it is closed; the system frees the lock when this process dies."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, "no such locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "another run works on this folder now; wait for its end, or stop it", str(folder)
        ) from None
    except OSError as error:  # a folder on a server may know no locks
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): take care that no second run works on it",
            RuntimeWarning,
            stacklevel=2,
        )


def check_settings(path: Path, settings: dict[str, Any], folder: Path) -> None:
    """Write the settings into a new folder, or compare them with those of the job that is in it."""
    if not path.exists():
        replace(path, [json.dumps(settings, indent=1).encode()])
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(f"{path} is damaged; remove {path.parent} to start anew")
    for name in [*settings, *before]:
        if settings.get(name, "left out") != before.get(name, "left out"):
            raise ValueError(
                f"{folder} holds a job with {name} {short(before.get(name, 'left out'))}, and this one has "
                f"{short(settings.get(name, 'left out'))}; give the same settings, another folder, or remove it"
            )
