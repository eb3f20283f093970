"""Milliseconds of a search among 1,000, 10,000 and 100,000 vectors: contenders in turn, ratios within one run.

Each number of threads has a process of its own, because some libraries read it only once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import repeated
from book.tools import results
from ttref.retrieval import TTIndex

from . import data
from .methods import available, axes_of
from .metrics import overlap
from .peers import faiss_index, turbo

SIZES, BATCHES, THREADS = (1_000, 10_000, 100_000), (1, 32, 256), (1, 2)
K, ROUNDS, BLOCK = 10, 7, 16_384
DENSE = ("torch, dense", "torch, dense, in blocks", "FAISS Flat")  # exact in float32; the fastest is the measure
FACTORIES = ("SQ8", "SQ4", "PQ192x4fs", "OPQ192,PQ192x4fs", "RaBitQfs", "RaBitQfs4")
INDEXES = ((384, 8, "torch"), (192, 8, "torch"), (384, 4, "torch"), (192, 4, "torch"))
HANDED = ((384, 8, "faiss"), (192, 8, "faiss"), (384, 4, "faiss"), (192, 4, "faiss"))
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

Search = Callable[[Tensor], Tensor]  # from queries (b, dim) to the places of the K best, (b, K)


class Contender(NamedTuple):
    """An index that is filled, the bytes that each document brings, and those that all share."""

    name: str
    search: Search
    document: float
    shared: int


@cache
def real(folder: Path) -> tuple[Tensor, Tensor]:
    """Vectors to mix documents from, and 256 queries: all of both collections, and a sentence that is not mixed."""
    found = [data.collection(name, folder) for name in data.READERS]
    sentences = data.sentences(folder)
    documents = torch.cat([*(each.documents[:, -1] for each in found), sentences[:-1]])
    return documents, torch.cat([*(each.queries[:, -1] for each in found), sentences[-1:]])


def in_blocks(x: Tensor, q: Tensor) -> Tensor:
    """The K best of each block, then of all."""
    best, at = [], []
    for start in range(0, len(x), BLOCK):
        values, places = (q @ x[start : start + BLOCK].mT).topk(min(K, len(x) - start), dim=1)
        best.append(values)
        at.append(places + start)
    order = torch.cat(best, 1).topk(K, dim=1).indices
    return torch.cat(at, 1).gather(1, order)


def by_usearch(x: Tensor, threads: int) -> Search:
    """The exact search of int8 by usearch, one scale for all."""
    from usearch.index import MetricKind, search

    unit = 127 / x.abs().max()
    kept = (x * unit).round().to(torch.int8).numpy()

    def find(q: Tensor) -> Tensor:
        asked = (q * unit).round().clamp(-127, 127).to(torch.int8).numpy()
        keys = search(kept, asked, K, MetricKind.Cos, exact=True, threads=threads).keys
        return torch.from_numpy(keys.reshape(len(q), K).astype("int64"))

    return find


def projected_turbo(x: Tensor, count: int) -> Contender:
    """Principal coordinates in turbovec, which rotates them: what our index holds, scanned by its kernel."""
    mean, axes = axes_of(x, count)
    index, shared, document = turbo((x - mean) @ axes, 4)
    find = by_numpy(index.search)
    bytes_shared = shared + 2 * axes.numel() + 4 * len(mean)
    return Contender(f"turbovec 4 bit, {count} coordinates", lambda q: find(q @ axes), document, bytes_shared)


def by_numpy(search: Callable) -> Search:
    """A library's search of arrays."""
    return lambda q: torch.from_numpy(search(q.numpy(), K)[1].astype("int64"))


def contenders(x: Tensor, threads: int) -> Iterator[Contender]:
    """All of them, filled with documents ``(n, dim)``."""
    width = x.shape[1]
    yield Contender(DENSE[0], lambda q: (q @ x.mT).topk(K, dim=1).indices, 4 * width, 0)
    yield Contender(DENSE[1], lambda q: in_blocks(x, q), 4 * width, 0)
    for factory in ("Flat", *FACTORIES):
        index, shared, document = faiss_index(x, factory)
        yield Contender(f"FAISS {factory}", by_numpy(index.search), document, shared)
    for count, bits, backend in (*INDEXES, *HANDED):
        made = TTIndex(count, bits=bits, backend=backend).fit(x)
        shared = round(made.nbytes - made.code_nbytes * len(x))
        name = f"TTIndex {count} x {bits} bit" + (", scanned by FAISS" if backend == "faiss" else "")
        search = made.kneighbors
        yield Contender(name, lambda q, search=search: search(q, K, return_distance=False), made.code_nbytes, shared)
    if available("turbovec"):
        index, shared, document = turbo(x, 4)
        yield Contender("turbovec 4 bit", by_numpy(index.search), document, shared)
        yield projected_turbo(x, 192)
    if available("usearch"):
        yield Contender("usearch exact int8", by_usearch(x, threads), width, 0)


def timed(found: list[Contender], q: Tensor, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of a batch for each contender, one number a round; in a round all have their turn."""
    calls = [repeated(each.name, lambda search=each.search: search(q)) for each in found]
    times: dict[str, list[float]] = {each.name: [] for each in found}
    for _ in range(rounds):
        for call in calls:
            start = time.perf_counter()
            call.call()
            times[call.name].append(1e3 * (time.perf_counter() - start) / call.items)
    return times


def compared(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median milliseconds, and how many times as fast as the fastest dense search: medians of ratios in a round."""
    fastest = min(DENSE, key=lambda name: median(times[name]))
    return {
        name: {
            "ms": median(mine),
            "ratio": median(base / own for base, own in zip(times[fastest], mine, strict=True)),
        }
        for name, mine in times.items()
    }


def measured(x: Tensor, q: Tensor, threads: int, rounds: int = ROUNDS) -> list[dict]:
    """A row for each contender: bytes, recall, and times at each size of a batch."""
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    found = list(contenders(x, threads))
    exact = found[0].search(q)
    rows = [
        {
            "name": each.name,
            "document": each.document,
            "shared": each.shared,
            "recall_10_of_dense": overlap(each.search(q), exact).mean().item(),
        }
        for each in found
    ]
    for batch in BATCHES:
        seen = compared(timed(found, q[:batch].contiguous(), rounds))
        for row in rows:
            row[f"ms_{batch}"], row[f"ratio_{batch}"] = seen[row["name"]]["ms"], seen[row["name"]]["ratio"]
    return rows


def one(threads: int, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``speed`` for one number of threads, in this process."""
    for size in SIZES:
        key = f"{size} documents, {threads} threads"
        if key not in before:
            documents, q = real(folder)
            rows = measured(data.mixtures(documents, size), q, threads)
            yield {
                "key": key,
                "documents": size,
                "threads": threads,
                "processor": results.here()["processor"],
                "load": os.getloadavg()[0],
                "contenders": rows,
            }


def all_threads() -> None:
    """Each number of threads in a process of its own, one after the other."""
    for threads in THREADS:
        told = os.environ | dict.fromkeys(VARIABLES, str(threads))
        subprocess.run([sys.executable, "-m", "studies.retrieval", f"speed:{threads}"], env=told, check=True)
