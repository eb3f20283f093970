"""Tasks done by Ray Data: tasks read, worked on and written as records, with its checkpoints of the ids that ended.

Ray does the scheduling, the second tries and the checkpoints. A task and its record are a few hundred bytes, so that
nothing large passes through its object store: files are read and written by the work itself.
"""

from __future__ import annotations

import functools
import json
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle
from ray._private.log import PlainRayHandler
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask, read_datasource
from ray.data.block import BlockAccessor, BlockMetadata
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager
from ray.data.datasource import BlockBasedFileDatasink

from ..bars import bar
from .jobs import Job, Record, Task, attempted, failed, read_records

RETRIES = 3  # of a task whose worker died
RECORDS = "jsonl"


class Tasks(Datasource):
    """The tasks as a source with a block for each, as checkpoints ask for a source."""

    def __init__(self, tasks: list[Task]) -> None:
        super().__init__()
        self.tasks = tasks

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all tasks."""
        return sum(len(json.dumps(task)) for task in self.tasks)

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """One a task."""
        return [ReadTask(functools.partial(block_of, task), METADATA) for task in self.tasks]


class Records(BlockBasedFileDatasink):
    """Files with a line of JSON for each record."""

    def write_block_to_file(self, block: BlockAccessor, file: pyarrow.NativeFile) -> None:
        """Write the records of a block."""
        for row in block.iter_rows(public_row_format=False):
            file.write(row["record"].encode() + b"\n")


class Commits(IdColumnCheckpointManager):
    """Ray's checkpoints: takes back what a driver that died has left half written.

    Ended ids are not among the tasks any more. Ray would filter them out by an actor that holds a CPU and 1 GiB, and on
    one CPU the work would wait for it, and it for the work.
    """

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        """Delete what was not committed; there is nothing to filter."""
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0


METADATA = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)


def block_of(task: Task) -> list[pyarrow.Table]:
    """A task as a block of one row."""
    return [pyarrow.table({"id": [task["id"]], "task": [json.dumps(task)]})]


def record_of(row: dict[str, Any], payload: bytes) -> dict[str, str]:
    """A row with a task as a row with its record; on a worker."""
    torch.set_num_threads(1)
    record = attempted(lambda task: read_work(payload)(task), json.loads(row["task"]))
    return {"id": row["id"], "record": json.dumps(record)}


@functools.lru_cache(maxsize=1)
def read_work(payload: bytes) -> Callable[[Task], Mapping[str, Any]]:
    """The work, read once in each process: it may hold batches."""
    return pickle.loads(payload)


def on_ray(
    work: Callable[[Task], Mapping[str, Any]], tasks: list[Task], job: Job, workers: int | None, description: str
) -> dict[str, Record]:
    """The records of tasks done by the Ray that this process is connected to."""
    checkpoint = job.state / "checkpoint"
    forget(checkpoint, job.written)
    # Alike in all three, and without a `concurrency` of their own, so that Ray makes one task of them: reads and writes
    # that are tasks of their own keep a CPU from the work.
    options = {"num_cpus": 1, "max_retries": RETRIES}
    with settings(checkpoint, workers), Heard() as heard, watched(job.written, len(tasks), description):
        data = read_datasource(Tasks(tasks), override_num_blocks=len(tasks), ray_remote_args=options)
        data = data.map(record_of, fn_kwargs={"payload": cloudpickle.dumps(work)}, **options)
        records = Records(str(job.written), file_format=RECORDS, filesystem=LocalFileSystem())
        data.write_datasink(records, ray_remote_args=options)
    found = job.records()
    says = " | ".join(heard.errors) or "nothing"
    lost = f"RuntimeError: there is no record of it, after {RETRIES + 1} tries if its worker died; Ray says: {says}"
    return {task["id"]: found.get(task["id"]) or failed(task, lost) for task in tasks}


def forget(checkpoint: Path, records: Path) -> None:
    """Take back the checkpoints of tasks that failed, and of those whose record is not whole."""
    for path in checkpoint.glob("*.parquet"):
        written = records / f"{path.name.partition('.')[0]}.{RECORDS}"
        found = read_records(written)
        if not found or any(record["error"] for record in found):
            path.unlink()
            written.unlink(missing_ok=True)


@contextmanager
def settings(checkpoint: Path, workers: int | None) -> Iterator[None]:
    """Ray Data's settings for one job: its checkpoints, and how many CPUs it may use of a cluster's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = DataContext.get_current().copy()
        context.checkpoint_config = CheckpointConfig(
            "id",
            str(checkpoint),
            delete_checkpoint_on_success=False,
            override_filesystem=LocalFileSystem(),
            checkpoint_manager_cls=Commits,
        )
        if workers is not None:
            context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=workers)
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = -1  # a task whose workers died stops no other
        with DataContext.current(context):
            yield


class Heard(logging.Handler):
    """What Ray Data says of tasks without a record; its console is silent meanwhile, its log file is not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the last line of an error: before it stands the traceback of a worker."""
        error = record.exc_info and record.exc_info[1]
        if error and (lines := str(error).split("\n\n")[0].strip().splitlines() or [type(error).__name__]):
            self.errors[lines[-1].strip()] = None

    def __enter__(self) -> Heard:
        logger = logging.getLogger("ray.data")
        consoles = [handler for handler in logger.handlers if isinstance(handler, PlainRayHandler)]
        self.levels = [(handler, handler.level) for handler in consoles]
        for handler in consoles:
            handler.setLevel(logging.CRITICAL)
        logger.addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        logging.getLogger("ray.data").removeHandler(self)
        for handler, level in self.levels:
            handler.setLevel(level)


@contextmanager
def watched(records: Path, total: int, description: str) -> Iterator[None]:
    """A bar that counts the files of records as they appear."""
    begun, done = count(records), threading.Event()

    def watch() -> None:
        for k in bar(range(total), True, description):
            while count(records) - begun <= k and not done.wait(0.5):
                pass

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def count(folder: Path) -> int:
    """The number of files in a folder."""
    return sum(1 for _ in folder.iterdir())
