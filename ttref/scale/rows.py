"""Tables of rows larger than memory, compressed shard by shard: a folder of files of :class:`MPSEmbedding`."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import replace
from ..checks import check_rank_or_eps, whole
from ..embeddings.settings import RowSettings
from ..files import TABLE, read
from ..powers import times_power
from ..rows.frame import added
from .completeness import done
from .engine import placed
from .jobs import Job, Record, Task, opened
from .row_report import Report
from .row_work import SUMS, add_up, compress, held_sums
from .sources import Source, open_source
from .table import FORMAT, SHARD, VERSION, seal_of, shard_name

__all__ = ["compress_rows"]

MEANS = "means"  # the space of the job for the sums that a mean is made of


def compress_rows(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    rank: int | Sequence[int] | None = None,
    eps: float | None = None,
    shape: Sequence[int] | None = None,
    center: bool = False,
    core_bits: int = 32,
    tensor: str | None = None,
    rows_per_shard: int = 65_536,
    engine: str | None = None,
    workers: int | None = None,
) -> Report:
    """Compress the rows of files, each by TT-SVD, into a folder that :class:`Table` opens.

    It does what :meth:`MPSEmbedding.from_embedding` does, a shard at a time and several shards at once, so neither the
    source nor the result has to fit into memory. What was interrupted goes on when it is called again; what is
    complete is not repeated, only read, and made again where it is damaged. When a file of the source changes, the
    shards with rows of it are made anew; all may be if its number of rows changes, and all are with ``center``, as they
    share the mean.

    Args:
        source: A file of safetensors, ``.npy`` or Parquet; a list of shards (``model.safetensors.index.json``), which
            stands for the one of them with the tensor; a folder with one of these, or with several files of one kind,
            in the order of their names; or a sequence of files. An ``.npy`` or a tensor is a matrix ``(rows, width)``.
            In Parquet the rows are a column of lists, or else all columns, side by side.
        destination: The folder, made if it is not there. It gets a file for each shard, ``table.json`` when all are
            done, and the state of the job in ``.job``.
        rank: Cap on the TT-ranks of all rows, as in :meth:`MPSEmbedding.from_embedding`.
        eps: Error allowed for each row, relative to its norm. Give exactly one of rank and eps. Caps for single rows
            and a rotation are not offered here.
        shape: Modes of a row; left out, modes of 2.
        center: Subtract the mean of all rows first. With rows that are no numbers there is no mean, and no shard.
        core_bits: 8 rounds the cores to int8.
        tensor: Name of the tensor, or of the Parquet column of lists; needed if there are several matrices.
        rows_per_shard: Rows in a file of the result. Multiples of 16,384 decompose the rows in the same blocks as one
            process does, where the modes multiply to at most 1,024 or, with ``rank``, to a power of two.
        engine: Where the shards are compressed, as in :func:`run`. On several machines, source and destination lie
            under the same paths on all of them.
        workers: How many at a time, as in :func:`run`.

    Returns:
        A :class:`Report`: for each shard rows, seconds, bytes, hash or error; ``report.table`` opens the table. With an
        error in one shard the others are done, and there is no ``table.json`` until a later call has done it.

    Raises:
        FileNotFoundError, ModuleNotFoundError, TypeError: No such file; safetensors or pyarrow missing; rows that are
            no floating-point numbers. As in :meth:`MPSEmbedding.from_embedding` for the options.
        ValueError: Files of differing width, dtype or columns, truncated or foreign ones, several tensors to choose
            from, no rows; ranks or modes that do not fit; a destination where a file of the source lies, or that holds
            another job. Nothing was started.
        BlockingIOError, ConnectionError, OSError: As :func:`run`.

    Guarantee:
        Each row is stored as :meth:`MPSEmbedding.from_embedding` stores it, on the whole table, with one thread: bit
        for bit where the rows stand in the same blocks, else to rounding. The files are the same bits for every
        engine, number of workers, and way of being interrupted, on processors of one kind with one version of torch.

    Cost:
        One TT-SVD for each row, which is nearly all of the time; with ``eps`` one for each cap tried. ``center`` reads
        the source twice, and a call on what is complete reads the result once. A row of Parquet is reached by decoding
        its row group up to it, so groups should be no larger than shards. Memory in each worker: some times 16 MB; with
        ``eps``, or modes that multiply to no power of two, some times 16,384 rows in float64, but 128 MB of them at
        most; with ``center`` 16,384 rows as they are and in float64; and three times its shard of the result.

    Example:
        >>> import tempfile, numpy, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numpy.save(f"{folder}/rows.npy", torch.randn(1000, 48).numpy())
        ...     report = compress_rows(
        ...         f"{folder}/rows.npy", f"{folder}/small", rank=2, rows_per_shard=400, engine="pool", workers=1
        ...     )
        ...     table = report.table
        ...     len(report.shards), len(table), table.rows([3, 999]).shape
        (3, 1000, torch.Size([2, 48]))
    """
    started = time.perf_counter()
    check_rank_or_eps(rank, eps)
    count = whole("rows_per_shard", rows_per_shard, least=1)
    found = open_source(source, tensor)
    how = RowSettings.of(found.width, rank=rank, eps=eps, row_ranks=None, shape=shape, core_bits=core_bits)
    about = {
        "shape": list(how.shape),
        "rank": None if how.layout is None else list(how.layout.ranks),
        "eps": eps,
        "center": bool(center),
        "core_bits": how.core_bits,
        "width": found.width,
        "dtype": str(found.dtype).removeprefix("torch."),
        "rows_per_shard": count,
    }
    job = {"job": "compress_rows", "version": VERSION, **about}
    job |= {"source": str(found.folder or [str(file.path) for file in found.files]), "tensor": tensor}
    engine, workers = placed(engine, workers)
    places = {"engine": engine, "workers": workers, "description": "shards"}
    tasks = _planned(found, count)
    lies_in = [path for file in found.files for path in (file.path, file.path.parent)]  # of a link, both folders
    with opened(destination, job, *lies_in) as state:
        if center:
            folder = state.space(MEANS)
            work = functools.partial(add_up, folder=str(folder), about=about)
            sums = done(work, tasks, state, functools.partial(_there, folder), state.folder / TABLE, **places)
            if wrong := [task["name"] for task, record in zip(tasks, sums, strict=True) if record["error"]]:
                missing = f"ValueError: there is no mean: {len(wrong)} shards could not be summed, first {wrong[0]}"
                lost = [{"error": record["error"] or missing} for record in sums]
                return Report.of(state.folder, tasks, lost, started)
            about["mean"] = _mean(folder, sums, found).tolist()
            tasks = [task | {"id": _id(task, about["mean"])} for task in tasks]
        work = functools.partial(compress, folder=str(state.folder), about=about)
        there = functools.partial(_there, state.folder)
        records = done(work, tasks, state, there, state.folder / TABLE, **places)
        report = Report.of(state.folder, tasks, records, started)
        if not report.errors:
            _gather(state, found, job, records)
        return report


def _planned(found: Source, count: int) -> list[Task]:
    """A task for each shard; its id changes with the files that it has rows of."""
    total = math.ceil(found.rows / count)
    tasks = []
    for k in range(total):
        start, stop = k * count, min((k + 1) * count, found.rows)
        task = {"name": shard_name(k, total), "start": start, "pieces": found.pieces(start, stop)}
        tasks.append({"id": _id(task, None), **task})
    return tasks


def _id(task: Task, more: Any) -> str:
    text = json.dumps([task["name"], task["start"], task["pieces"], more], sort_keys=True)
    return f"{task['name'].partition('.')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _there(folder: Path, record: Record) -> bool:
    """True if the file of a task is the one that its record says, all of it."""
    path = folder / record["name"]
    with suppress(OSError, ValueError, KeyError):
        return (path.stat().st_size, seal_of(path)) == (record["file_nbytes"], record["sha256"]) and read(
            path, None, lambda tensors, header: True
        )
    return False


def _mean(folder: Path, records: list[Record], found: Source) -> Tensor:
    """The mean row as one process finds it, in the dtype of the table."""

    def sums() -> Iterator[tuple[Tensor, Tensor]]:
        for record in records:
            yield from zip(*read(folder / record["name"], SUMS, held_sums), strict=True)

    total, exponent = added(sums())
    return times_power(total / found.rows, exponent).to(found.dtype)


def _gather(state: Job, found: Source, job: dict[str, Any], records: list[Record]) -> None:
    """Write ``table.json``, then remove shards of an earlier source, which it does not name."""
    kept = ("name", "rows", "params", "nbytes", "sha256", "source_sha256")
    ranks = [max(bond) for bond in zip(*(record["ranks"] for record in records), strict=True)]
    about = {
        "format": FORMAT,
        "version": VERSION,
        "rows": found.rows,
        **{name: job[name] for name in ("width", "dtype", "shape", "eps", "center", "core_bits")},
        "ranks": ranks,
        "source": [{"name": file.path.name, "rows": file.rows, "nbytes": file.stamp.size} for file in found.files],
        "shards": [{name: record[name] for name in kept} for record in records],
    }
    text = json.dumps(about, indent=1).encode()
    path = state.folder / TABLE
    if not path.exists() or path.read_bytes() != text:
        replace(path, [text])
    names = {record["name"] for record in records}
    made = {str(record.get("name")) for record in state.ended().values()}
    for name in filter(SHARD.fullmatch, made - names):  # a file that no record names is somebody else's
        (state.folder / name).unlink(missing_ok=True)
