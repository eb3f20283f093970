"""Tasks done by processes of this machine: the same job without Ray."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from .jobs import Record, Task, attempted, failed

TRIES = 4  # a task whose worker died is tried again three times


def cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_this_process(work: Callable[[Task], Mapping[str, Any]], tasks: list[Task]) -> Iterator[Record]:
    """The records of tasks done in this process, one after the other, with one thread of torch."""
    threads = torch.get_num_threads()
    try:
        for task in tasks:
            torch.set_num_threads(1)
            yield attempted(work, task)
    finally:
        torch.set_num_threads(threads)


def pooled(work: Callable[[Task], Mapping[str, Any]], tasks: list[Task], workers: int) -> Iterator[Record]:
    """The records of tasks done by processes, in the order in which they end. A worker that dies is replaced."""
    try:
        payload = pickle.dumps(work)
    except Exception as error:  # pickle raises what it likes
        raise TypeError(
            f"work must be a function of a module, or a functools.partial of one, to be sent to other processes "
            f"({type(error).__name__}: {error}); with workers=1 it stays in this one"
        ) from error
    waiting, deaths = deque(tasks), Counter[str]()
    staff: list[Worker] = []
    unborn = 0
    try:
        while waiting or any(worker.task for worker in staff):
            for worker in staff:
                if waiting and worker.started and worker.task is None:
                    worker.give(waiting.popleft())
            starting = sum(not worker.started for worker in staff)
            for _ in range(min(workers - len(staff), len(waiting) - starting)):
                staff.append(Worker(payload))
            for pipe in wait([worker.pipe for worker in staff]):
                worker = next(worker for worker in staff if worker.pipe is pipe)
                task = worker.task
                try:
                    record = worker.answer()
                except (EOFError, OSError):
                    staff.remove(worker)
                    how = worker.ended()
                    if not worker.started:
                        unborn += 1
                        if worker.process.exitcode < 0 and unborn < TRIES:  # killed while it started, as any may be
                            continue
                        raise RuntimeError(
                            f"a worker could not start ({how}); a script that uses more than one must make its calls "
                            'under `if __name__ == "__main__":`'
                        ) from None
                    if task is None:
                        continue
                    deaths[task["id"]] += 1
                    if deaths[task["id"]] < TRIES:
                        waiting.appendleft(task)
                        continue
                    record = failed(task, f"RuntimeError: its worker died {TRIES} times, at last by {how}")
                if record is not None:
                    yield record
    finally:
        for worker in staff:
            worker.process.kill()
        for worker in staff:
            worker.ended()


class Worker:
    """A process that does one task at a time."""

    def __init__(self, payload: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(payload, theirs), daemon=True)
        self.process.start()
        theirs.close()  # or its death would not be seen here
        self.started = False
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Send a task; if the worker has died, its pipe tells."""
        self.task = task
        try:
            self.pipe.send(task)
        except OSError:
            pass

    def answer(self) -> Record | None:
        """The record of its task, or None from a worker that has started."""
        found = self.pipe.recv()
        if not self.started:
            if found is not None:
                raise RuntimeError(f"a worker could not read the work that it was sent: {found}")
            self.started = True
        self.task = None
        return found

    def ended(self) -> str:
        """Wait for its end, and say how it ended."""
        self.pipe.close()
        self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(payload: bytes, pipe: Connection) -> None:
    """A worker's life: tasks in, records out, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the driver decides
    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(1)
    try:
        work = pickle.loads(payload)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(attempted(work, task))


def follow() -> None:
    """End this process with the driver, in the middle of a task too."""
    multiprocessing.parent_process().join()
    os._exit(1)
