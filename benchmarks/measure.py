"""Measurement of the tables: contenders in turn, ratios within a round, and the machine's limits beside them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from book.tools.results import here


@dataclass(frozen=True)
class Contender:
    """A call to time, which processes ``items`` items at once."""

    name: str
    call: Callable[[], object]
    items: int


@dataclass(frozen=True)
class Case:
    """One group of table rows: the first contender is ttref; ``flops`` and ``bytes`` are the lower bounds per item."""

    name: str
    unit: str
    contenders: list[Contender]
    flops: float
    bytes: float
    arithmetic: str = "flops_per_s"  # the machine's limit for the flops: this one for float64, or "flops32_per_s"


LEAST_SECONDS = 0.02  # a short call is repeated until it takes at least this long


def repeated(name: str, call: Callable[[], object], items: int = 1) -> Contender:
    """A contender whose call is too short to time alone; every result is freed before the next, as in use."""
    call()
    start = time.perf_counter()
    call()
    times = max(1, math.ceil(LEAST_SECONDS / (time.perf_counter() - start)))

    def again() -> None:
        for _ in range(times):
            call()

    return Contender(name, again, times * items)


def run(case: Case, limits: dict[str, float], rounds: int = 7, threads: int | None = None) -> dict:
    """Time the contenders in turn, ``rounds`` times; medians, spreads, and the median of the ratios within a round."""
    threads = {c.name: threads or _best_threads(c) for c in case.contenders}
    seconds: dict[str, list[float]] = {c.name: [] for c in case.contenders}
    for _ in range(rounds):
        for contender in case.contenders:
            torch.set_num_threads(threads[contender.name])
            seconds[contender.name].append(_once(contender) / contender.items)
    torch.set_num_threads(limits["threads"])
    ours = seconds[case.contenders[0].name]
    floor = max(case.flops / limits[case.arithmetic], case.bytes / limits["bytes_per_s"])
    rows = []
    for contender in case.contenders:
        times = seconds[contender.name]
        ratios = [peer / own for peer, own in zip(times, ours, strict=True)]
        rows.append(
            {
                "name": contender.name,
                "threads": threads[contender.name],
                "items": contender.items,
                "median_us": 1e6 * statistics.median(times),
                "low_us": 1e6 * min(times),
                "high_us": 1e6 * max(times),
                "ratio": statistics.median(ratios),
            }
        )
    return {
        "case": case.name,
        "unit": case.unit,
        "flops": case.flops,
        "bytes": case.bytes,
        "floor_us": 1e6 * floor,
        "rows": rows,
    }


def machine() -> dict:
    """Limits of this machine on all threads, measured now: float64 and float32 GEMM, copy bandwidth."""
    a = torch.randn(1024, 1024, dtype=torch.float64)
    gemm = _best(lambda: a @ a)
    b = torch.randn(2048, 2048)
    gemm32 = _best(lambda: b @ b)
    big = torch.empty(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(big)
    copy = _best(lambda: target.copy_(big))
    return here() | {
        "flops_per_s": 2 * 1024**3 / gemm,
        "flops32_per_s": 2 * 2048**3 / gemm32,
        "bytes_per_s": 2 * big.numel() / copy,
    }


def _best_threads(contender: Contender) -> int:
    """The fastest number of threads: a loop over small matrices can be slower on two threads than on one."""
    most = torch.get_num_threads()
    timings = {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        _once(contender)
        timings[threads] = min(_once(contender) for _ in range(2))
    torch.set_num_threads(most)
    return min(timings, key=timings.get)


def _once(contender: Contender) -> float:
    gc.collect()
    start = time.perf_counter()
    contender.call()
    return time.perf_counter() - start


def _best(call: Callable[[], object]) -> float:
    contender = Contender("", call, 1)
    return min(_once(contender) for _ in range(8))
