"""What a job costs on more than one machine: time by its parts, euros, bytes, and how far off the estimate may be.

Constants are numbers, or arrays of draws: the formulas are plain arithmetic and take both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ttref.audit.forms import forms_of
from ttref.audit.looking import DRAWS
from ttref.rows.packed import RowLayout

__all__ = [
    "LLAMA_405B",
    "QUOTED",
    "Job",
    "Place",
    "Quote",
    "audit_flops",
    "break_even",
    "draws",
    "euros",
    "median_of",
    "middle",
    "overheads",
    "row_work",
    "terms",
    "waits",
]

# Shape of one matrix and how many of it: Llama 3.1 405B. 126 blocks, width 16,384, feed-forward 53,248, 128 heads of
# 128 for queries and 8 for keys and values, 128,256 tokens, an output head of its own (arXiv:2407.21783, table 3).
LLAMA_405B = {
    "queries and outputs": ((16384, 16384), 2 * 126),
    "keys and values": ((1024, 16384), 2 * 126),
    "gate and up": ((53248, 16384), 2 * 126),
    "down": ((16384, 53248), 126),
    "tokens and head": ((128256, 16384), 2),
    "norms": ((16384,), 2 * 126 + 1),
}


class Quote(NamedTuple):
    """A constant that is not measured here: the least and the most of it, and who says so, with the day."""

    low: float
    high: float
    unit: str
    sources: str


# Where the sources are found: see the references of the chapter.
QUOTED = {
    "a core, an hour": Quote(
        0.0026, 0.0351, "€", "Hetzner, a shared core, 27 May 2026; AWS, half of an m7g.large, 17 June 2026"
    ),
    "a GB, a month": Quote(0.020, 0.0572, "€", "AWS, S3 Standard, $0.023; Hetzner, a volume, 27 May 2026"),
    "a GB that leaves the cloud": Quote(
        0.001, 0.077, "€", "Hetzner, a TB for €1, 27 May 2026; AWS, $0.05 to $0.09, 6 May 2026"
    ),
    "network, a core": Quote(
        16, 110, "MB/s", "assumed, eight cores on one gigabit a second; S3 to 72 cores, 8,003 MB/s, 2019"
    ),
    "until a cluster stands": Quote(60, 600, "s", "assumed: machines boot, take the packages and join"),
    "speed of a rented core": Quote(0.5, 1.5, "times ours", "assumed: shared cores, or newer ones"),
}
DOLLARS = 1.1637  # for a euro: reference rate of the European Central Bank of 27 May 2026


class Job(NamedTuple):
    """What a job has to do, wherever it runs.

    Attributes:
        core_seconds: Seconds of one core of the machine that was measured.
        bytes_in, bytes_out: Bytes that it reads and writes.
        tasks: Pieces that it is cut into.
    """

    core_seconds: Any
    bytes_in: Any
    bytes_out: Any
    tasks: Any


class Place(NamedTuple):
    """Where a job runs.

    Attributes:
        start: Seconds before the first task begins.
        task: Seconds that each task keeps the engine's driver busy; tasks take turns there.
        speed: Of a core, as a multiple of the one that was measured.
        network: Bytes a second between the store and **each** worker.
        storage: Bytes a second of the store, for all workers **together**.
        wait: Seconds that a worker waits at each of its own tasks, besides.
    """

    start: Any
    task: Any
    speed: Any = 1.0
    network: Any = np.inf
    storage: Any = np.inf
    wait: Any = 0.0


def terms(job: Job, place: Place, workers: int) -> dict[str, Any]:
    """The seconds of a job by what they are spent on; their sum is its time if nothing overlaps.

    Args:
        job: What has to be done.
        place: Where.
        workers: How many cores do it.

    Returns:
        ``start``, ``tasks``, ``compute``, ``network`` and ``storage`` in seconds.

    Example:
        >>> terms(Job(100, 1e9, 0, 10), Place(2, 0.1, network=1e8), workers=4)
        {'start': 2, 'tasks': 1.0, 'compute': 25.0, 'network': 2.5, 'storage': 0.0}
    """
    moved = job.bytes_in + job.bytes_out
    return {
        "start": place.start,
        "tasks": job.tasks * (place.task + place.wait / workers),
        "compute": job.core_seconds / (place.speed * workers),
        "network": moved / (place.network * workers),
        "storage": moved / place.storage,
    }


def break_even(row: Job, here: Place, there: Place, workers: int, more: int) -> Any:
    """From how many rows on ``more`` workers there end before ``workers`` here; infinite if they never do.

    Args:
        row: What one row has to do, its share of a task included.
        here: The place at hand.
        there: The other place.
        workers: Cores here.
        more: Cores there.

    Example:
        >>> rows = break_even(Job(1e-4, 0, 0, 0), Place(1, 0), Place(61, 0), workers=2, more=8)
        >>> print(f"{rows / 1e6:.1f} million rows")
        1.6 million rows
    """
    rates = []
    for place, count in ((here, workers), (there, more)):
        spent = terms(row, place, count)
        rates.append(sum(spent.values()) - spent["start"])
    gained = np.asarray(rates[0] - rates[1], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(gained > 0, (there.start - here.start) / gained, np.inf)
    return rows[()]


def euros(seconds: Any, workers: int, core_hour: Any) -> Any:
    """What it costs to hold so many cores for so long.

    Example:
        >>> euros(7200, 10, 0.02)
        0.4
    """
    return seconds / 3600 * workers * core_hour


def draws(ranges: Mapping[str, Quote | Sequence[float]], count: int = 10_000, seed: int = 0) -> dict[str, np.ndarray]:
    """Independent draws of each constant between its least and its most, evenly on a logarithmic scale.

    Example:
        >>> drawn = draws({"price": (0.01, 0.1)}, count=4)["price"]
        >>> bool((0.01 <= drawn).all() and (drawn <= 0.1).all())
        True
    """
    source = np.random.default_rng(seed)
    return {name: np.exp(source.uniform(*np.log(tuple(found)[:2]), count)) for name, found in ranges.items()}


def middle(drawn: Any) -> tuple[float, float, float]:
    """The median of draws, and the bounds of the nine tenths in the middle.

    Example:
        >>> middle(np.arange(101))
        (50.0, 5.0, 95.0)
    """
    return tuple(float(value) for value in np.percentile(drawn, (50, 5, 95)))


def row_work(shape: Sequence[int], rank: int, width: int, itemsize: int = 4) -> dict[str, int]:
    """Arithmetic and memory traffic of the TT-SVD of one row, and the bytes that it is read and written in.

    At bond k the rest of the row is a matrix of ``r_{k-1} n_k`` rows. Its Gram matrix and the projection on the kept
    vectors are two products; the eigenproblem is counted as 9 m^3. All of it in float64, each operand moved once.

    Example:
        >>> row_work((2,) * 10, 1, 768)["bytes_out"]  # 20 numbers of four bytes
        80
    """
    layout = RowLayout(shape, rank, width)
    entries, left, flops = int(np.prod(shape)), 1, 0
    moved = itemsize * width + 12 * entries + 8 * entries  # read, padded and read again, as float64
    for n, kept in zip(layout.shape[:-1], layout.ranks[1:-1], strict=True):
        m, columns = left * n, entries // n
        if kept < m:  # a bond that truncates nothing is not computed
            flops += 2 * m * m * columns + 9 * m**3 + 2 * kept * m * columns
            moved += 8 * (2 * m * columns + kept * columns)
            entries, left = columns, kept
        else:
            entries, left = columns, m
    return {"flops": flops, "moved": moved, "bytes_in": itemsize * width, "bytes_out": itemsize * layout.numbers}


def audit_flops(m: int, n: int, noise: int = DRAWS) -> float:
    """Floating point operations of the audit of one matrix: a Gram matrix and its eigenvalues for each cut.

    For the matrix and for the draws of ``noise`` beside it. The Gram matrix of a side s against l would take 2 s^2 l;
    in four strips, without what is above the diagonal, it takes 5/8 of that. Its eigenvalues take 4/3 s^3 (Golub and
    Van Loan 2013, section 8.3).

    Example:
        >>> print(f"{audit_flops(384, 384) / 1e9:.1f} billion")
        1.0 billion
    """
    total = 0.0
    for cut in {cut for form in forms_of(m, n) for cut in form.cuts()}:
        side = min(cut[0] * cut[1], m * n // (cut[0] * cut[1]))
        total += 5 / 4 * side * m * n + 4 / 3 * side**3
    return (1 + noise) * total


def median_of(rows: Sequence[Mapping[str, Any]], value: str, /, **wanted: Any) -> float:
    """The median of a value over the rows of a record that have these settings; ValueError if there are none.

    Example:
        >>> median_of([{"of": "ray", "s": 2}, {"of": "ray", "s": 4}, {"of": "pool", "s": 1}], "s", of="ray")
        3.0
    """
    found = [row[value] for row in rows if all(row.get(name) == one for name, one in wanted.items())]
    if not found:
        raise ValueError(f"the record has no row with {wanted}")
    return float(np.median(found))


def overheads(runs: Sequence[Mapping[str, Any]], start: float, workers: int) -> dict[int, float]:
    """How much longer Ray takes than the pool, by rows in a shard, both without their starts.

    Args:
        runs: Rows with ``engine``, ``workers``, ``rows_per_shard`` and ``seconds``; those of Ray are without its start.
        start: Seconds that the pool takes to start, as it does in each run with more than one worker.
        workers: Of these runs.

    Example:
        >>> runs = [{"engine": of, "workers": 2, "rows_per_shard": 1000, "seconds": s}
        ...         for of, s in (("pool", 12), ("ray", 11))]
        >>> overheads(runs, start=2, workers=2)
        {1000: 0.1}
    """
    found, start = {}, start if workers > 1 else 0.0
    for size in sorted({row["rows_per_shard"] for row in runs}):
        wanted = {"workers": workers, "rows_per_shard": size}
        ray, pool = (median_of(runs, "seconds", engine=engine, **wanted) for engine in ("ray", "pool"))
        found[size] = round(ray / (pool - start) - 1, 4)
    return found


def waits(runs: Sequence[Mapping[str, Any]], engine: str, task: float, workers: int = 2) -> float:
    """Seconds that a worker waits at each of its tasks, besides its turn at the driver.

    From shards of several sizes: the slope of the seconds in which workers did not work over the number of tasks. A
    start is the same for all sizes and does not count.

    Args:
        runs: Rows with ``engine``, ``workers``, ``rows``, ``rows_per_shard``, ``seconds`` and ``work_s``.
        engine: Of these runs.
        task: Seconds that each task keeps the driver busy.
        workers: Of these runs.

    Example:
        >>> runs = [{"engine": "ray", "workers": 2, "rows": 1000, "rows_per_shard": size, "seconds": s, "work_s": 100}
        ...         for size, s in ((10, 65), (20, 60))]
        >>> round(waits(runs, "ray", task=0.05), 6)
        0.1
    """
    rows = [row for row in runs if (row["engine"], row["workers"]) == (engine, workers)]
    tasks = [-(-row["rows"] // row["rows_per_shard"]) for row in rows]
    idle = [workers * row["seconds"] - row["work_s"] for row in rows]
    return max(0.0, float(np.polyfit(tasks, idle, 1)[0]) - workers * task)
