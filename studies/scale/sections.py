"""What is measured: each section yields rows with a key, and leaves out those that are there."""

from __future__ import annotations

import functools
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from book.workbook import sources
from book.workbook.scaling import audit_flops
from ttref import MPSEmbedding
from ttref.audit import audit as audit_of

from .processes import Seen, driven
from .source import WIDTH, table

RANK = 1
ONCE = f"{__package__}.once"
ENGINES = ("pool", "ray")
STARTS = 2  # how often the start of an engine is measured
ROUNDS = 3  # how often every run is
TASKS = (2, 402)  # without work: the first engine start, then what 400 more take
ROWS = 524_288  # of the table for strong scaling
SHARD = 16_384
SHARDS = (16_384, 65_536, 262_144)
MANY = {2: 4_194_304, 1: 2_097_152}  # of the table for shard sizes, by workers: eight of the largest for each


def place() -> tempfile.TemporaryDirectory:
    """A folder that is removed at the end, with room for the table."""
    return tempfile.TemporaryDirectory(prefix="scale-")


def once(source: list[Path], folder: str, **settings: object) -> Seen:
    """One run into a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(dir=folder) as destination:
        given = {"do": "rows", "source": [str(path) for path in source], "destination": f"{destination}/out"}
        return driven(ONCE, given | {"rank": RANK} | settings)


def engines(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``engines``: seconds until two tasks without work have ended, and of each further one."""
    for turn in range(STARTS):
        for engine in ENGINES:
            if (key := f"{engine} {turn}") in before:
                continue
            seconds = []
            for count in TASKS:
                with tempfile.TemporaryDirectory() as folder:
                    given = {"do": "empty", "tasks": count, "folder": folder, "engine": engine, "workers": 2}
                    seconds.append(driven(ONCE, given).found["seconds"])
            each = (seconds[1] - seconds[0]) / (TASKS[1] - TASKS[0])
            yield {"key": key, "engine": engine, "start_s": seconds[0], "task_s": each}


def core(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``core``: one core, one process: seconds of a row by rank, and bytes a second read."""
    with place() as folder:
        for rank in (1, 2, 4):
            if (key := f"rank {rank}") not in before:
                made = nn.Embedding.from_pretrained(torch.randn(SHARD, WIDTH, generator=seeded()))
                best = fastest(functools.partial(MPSEmbedding.from_embedding, made, rank=rank))
                yield {"key": key, "rank": rank, "row_s": best / SHARD}
        if "read" not in before:
            (path,) = table(Path(folder), SHARD)
            best = fastest(functools.partial(read, path))
            yield {"key": "read", "bytes_per_s": SHARD * WIDTH * 4 / best}


def seeded() -> torch.Generator:
    """The same numbers in every run."""
    return torch.Generator().manual_seed(0)


def read(path: Path) -> str:
    """The hash of the rows in a file, as a worker reads them."""
    with safe_open(path, "pt") as file:
        return hashlib.sha256(file.get_slice("rows")[:].numpy()).hexdigest()


def fastest(call: Callable[[], object], times: int = 5) -> float:
    """The least of some times in seconds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def runs(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``runs``: every setting in each round, the engines in turn."""
    left = [(turn, one) for turn in range(ROUNDS) for one in settings() if key_of(one, turn) not in before]
    if not left:
        return
    with place() as folder:
        made = {rows: table(Path(folder, str(rows)), rows) for rows in sorted({one["rows"] for _, one in left})}
        for turn, one in left:
            given = {name: value for name, value in one.items() if name != "rows"}
            seen = once(made[one["rows"]], folder, **given)
            yield {"key": key_of(one, turn)} | one | {"turn": turn} | seen.found | {"rss": seen.rss, "pss": seen.pss}


def key_of(one: dict, turn: int) -> str:
    """A run by its settings."""
    return f"{one['engine']}, {one['workers']} of {one['rows']} in {one['rows_per_shard']}, {turn}"


def settings() -> list[dict]:
    """One worker and two, the same table (strong), and half of it for one (weak)."""
    return [
        {"engine": engine, "workers": workers, "rows": rows, "rows_per_shard": SHARD}
        for workers, rows in ((1, ROWS), (1, ROWS // 2), (2, ROWS))
        for engine in ENGINES
    ]


def overhead(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``overhead``: shards of several sizes; on Ray what comes after a first job."""
    left = [one for one in shard_sizes() if about(*one) not in before]
    if not left:
        return
    with place() as folder:
        made = {rows: table(Path(folder, str(rows)), rows) for rows in sorted({MANY[one[1]] for one in left})}
        for engine, workers, size in left:
            given = {"engine": engine, "workers": workers, "rows_per_shard": size}
            found = once(made[MANY[workers]], folder, warm=engine == "ray", **given).found
            start, work = found["cluster_s"], found["work_s"]
            row = {"key": about(engine, workers, size), **given, "rows": MANY[workers]}
            yield row | {"seconds": found["seconds"] - start, "before_s": start, "work_s": work}


def shard_sizes() -> list[tuple[str, int, int]]:
    """Engine, workers, and rows in a shard; the engines in turn."""
    return [(engine, workers, size) for workers in MANY for size in SHARDS for engine in ENGINES]


def about(engine: str, workers: int, size: int) -> str:
    """Such a run in words."""
    return f"{engine}, {workers} at shards of {size}"


def audits(before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``audits``: MiniLM on one core, and the operations by its shapes."""
    if "minilm" in before:
        return
    with place() as folder:
        sources.load_encoder().model.save_pretrained(folder)
        begun = time.perf_counter()
        found = audit_of(folder, progress=False)
        seconds = time.perf_counter() - begun
    flops = sum(audit_flops(*row["shape"], noise=row["draws"]) for row in found.rows if "draws" in row)
    yield {"key": "minilm", "seconds": seconds, "flops": flops, "numbers": found.numbers, "tensors": len(found.rows)}
