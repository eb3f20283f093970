"""One way to run a job of many tasks: on this machine's processes or on Ray, with the same results, and resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

from ..bars import bar
from ..checks import whole
from .jobs import Job, Record, Task, checked_tasks, opened
from .pool import cpus, in_this_process, pooled
from .ray_cluster import cluster

__all__ = ["run"]

ENGINES = ("pool", "ray")


def run(
    work: Callable[[Task], Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str] | Job,
    *,
    job: Mapping[str, Any] | None = None,
    engine: str | None = None,
    workers: int | None = None,
    description: str = "tasks",
) -> list[Record]:
    """Do every task once, wherever there is room, and go on from here after any interruption.

    The state lives in ``folder/.job``. A task that ended well is not repeated by a later run with the same folder and
    job; one that failed is tried again. A driver that was killed is simply started again.

    Args:
        work: ``work(task)`` does a task and returns a dict of JSON values. torch has one thread in it, with every
            engine. It may write files: whole or not at all, and for the same task the same bytes, as a task whose
            worker dies is done again. For other processes it must be picklable: a function of a module, or a
            ``functools.partial`` of one.
        tasks: dicts of JSON values, each with an ``"id"``, a str of its own. An id names all that a result depends on
            and ``job`` does not hold.
        folder: where the job keeps its state, made if it is not there; or a job that ``ttref.scale.jobs.opened`` holds
            open, which runs several times, and reads and writes between, before another may.
        job: the settings of the job, a dict of JSON values, which an open job has. A folder with another job's state is
            refused.
        engine: "pool" for processes of this machine, "ray" for Ray: the cluster of ``RAY_ADDRESS``, or one that is
            started here and stopped again. By default Ray if ``RAY_ADDRESS`` is set, else the pool.
        workers: tasks at a time; by default as many as there are CPUs. With the pool, 1 works in this process.
        description: text in front of the bar.

    Returns:
        A record for each task, in the order of the tasks: its ``"id"``, what ``work`` returned, and ``"error"``, which
        is None or says what went wrong, as ``"ValueError: row 3 is NaN"``. Of a task that failed there is nothing else.
        A task whose worker died is tried three times more.

    Raises:
        BlockingIOError: Another run works on this folder.
        ConnectionError: No Ray answers at ``RAY_ADDRESS``.
        ModuleNotFoundError: The engine is "ray", and Ray is not installed; the message holds the install line.
        OSError: The folder cannot be written; nothing was started.
        TypeError: A task or ``job`` holds what JSON does not; ``work`` cannot be sent to other processes.
        ValueError: The folder holds another job, or its state is damaged; two tasks with one id; no such engine.

    Cost:
        That of the work, and for each task a record of a few hundred bytes.

    Example:
        >>> import tempfile
        >>> def squared(task):
        ...     return {"square": task["x"] ** 2}
        >>> tasks = [{"id": f"x{x}", "x": x} for x in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = run(squared, tasks, folder, job={"of": "squares"}, engine="pool", workers=1)
        >>> records[2]
        {'id': 'x2', 'square': 4, 'error': None}
    """
    engine, workers = placed(engine, workers)
    tasks = checked_tasks(tasks)
    if isinstance(folder, Job) and job is not None:
        raise TypeError("job was given when the job was opened; leave it out here")
    with nullcontext(folder) if isinstance(folder, Job) else opened(folder, job) as state:
        found = state.ended()
        left = [task for task in tasks if task["id"] not in found]
        if left and engine == "ray":
            with cluster(workers):
                from .ray_data import on_ray

                found |= on_ray(work, left, state, workers, description)
        elif left:
            found |= on_pool(work, left, state, workers or cpus(), description)
    return [found[task["id"]] for task in tasks]


def placed(engine: str | None, workers: int | None) -> tuple[str, int | None]:
    """Engine and workers of :func:`run`, checked, with the default of the engine."""
    engine = engine or ("ray" if os.environ.get("RAY_ADDRESS") else "pool")
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}")
    return engine, None if workers is None else whole("workers", workers, least=1)


def on_pool(
    work: Callable[[Task], Mapping[str, Any]], tasks: list[Task], state: Job, workers: int, description: str
) -> dict[str, Record]:
    """The records of tasks done on this machine; those of tasks that ended well are written as they come."""
    found = {}
    ended = in_this_process(work, tasks) if workers == 1 else pooled(work, tasks, workers)
    with state.appending() as append, closing(ended):
        for _ in bar(range(len(tasks)), True, description):
            record = next(ended)
            if record["error"] is None:
                append(record)
            found[record["id"]] = record
    return found
