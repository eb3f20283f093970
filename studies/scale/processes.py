"""A driver in a process of its own, its memory together with that of all its descendants, and its death (Linux)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.2  # seconds between two looks
SHARED_EVERY = 5  # looks between two of the kind that takes longer


class Seen(NamedTuple):
    """What a driver printed last, and how it went: seconds, the most bytes, whether it was killed."""

    found: dict | None
    seconds: float
    rss: int
    pss: int
    processes: int
    killed: bool


def driven(module: str, settings: dict, *, kill_when: Callable[[], bool] = lambda: False) -> Seen:
    """Run ``python -m module SETTINGS`` and watch it; killed with all its descendants as soon as that is asked for.

    The resident memory of all processes is added up, so that a page which several share counts several times; the
    proportional one counts it once.
    """
    command = [sys.executable, "-m", module, json.dumps(settings)]
    begun, looks, rss, pss, count, killed = time.perf_counter(), 0, 0, 0, 0, False
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            family = descendants(process.pid)
            rss, count = max(rss, sum(map(resident, family))), max(count, len(family))
            if looks % SHARED_EVERY == 0:
                pss = max(pss, sum(map(proportional, family)))
            looks += 1
            if not killed and kill_when():
                killed = True
                process.kill()
            time.sleep(EVERY)
        seconds = time.perf_counter() - begun
        printed = process.stdout.read()
    if killed:
        wait_for_end(family)
    elif process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Seen(None if killed else json.loads(printed.splitlines()[-1]), seconds, rss, pss, count, killed)


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            children.setdefault(parent(int(path.name)), []).append(int(path.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def parent(pid: int) -> int:
    """The process that started this one; -1 if there is no such process any more."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return -1


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 if it has ended."""
    try:
        return PAGE * int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0


def proportional(pid: int) -> int:
    """Bytes of memory of a process, a page that several have divided among them; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def alive(pids: list[int]) -> list[int]:
    """Those that still run; one that has ended and was not yet fetched by its parent does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def wait_for_end(pids: list[int], patience: float = 30) -> None:
    """Wait until none of these processes runs any more, and kill those that outlive their driver for too long."""
    until = time.monotonic() + patience
    while alive(pids) and time.monotonic() < until:
        time.sleep(EVERY)
    for pid in alive(pids):
        os.kill(pid, signal.SIGKILL)
