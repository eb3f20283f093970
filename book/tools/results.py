"""Recorded results, ``book/results/<name>.json``: written whole, with their origin, and checked when read."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ttref.atomic import replace

RESULTS = Path(__file__).resolve().parents[1] / "results"


def write(
    name: str,
    values: dict,
    *,
    command: str,
    models: Iterable[str] = (),
    data: Iterable[str] = (),
    packages: Iterable[str] = ("torch", "transformers", "scikit-learn", "numpy"),
) -> Path:
    """Write ``book/results/<name>.json`` whole or not at all.

    Args:
        name: the result's name.
        values: the measured values. A ``machine`` among them replaces ``here()``.
        command: the command that measures them again.
        models: the measured models, in words.
        data: the data of the measurement, in words.
        packages: the distributions whose versions are recorded, beside Python's.
    """
    record = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "models": list(models),
        "data": list(data),
        "seed": 0,
        "machine": here(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        **values,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    replace(path, [(json.dumps(record, indent=1) + "\n").encode()])
    return path


def read(name: str) -> dict:
    """The content of ``book/results/<name>.json``; empty if there is no such file. A damaged one is a ValueError."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it to measure all anew") from error
    return found


def here() -> dict:
    """This machine: its processor, and torch's number of threads."""
    return {"processor": processor(), "threads": torch.get_num_threads()}


def processor() -> str:
    """The processor's name, family, model, stepping and torch's vector extension: virtual machines often hide the name.

    Example: "Intel(R) Xeon(R) Processor (GenuineIntel family 6 model 207 stepping 2; torch: AVX512, mkl)".
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            first = itertools.takewhile(str.strip, lines)  # one block of lines for each core
            known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    except OSError:
        known = {}
    name = known.get("model name") or platform.processor() or platform.machine()
    told = {"vendor_id": "", "cpu family": "family ", "model": "model ", "stepping": "stepping "}
    parts = " ".join(word + known[key] for key, word in told.items() if key in known)
    library = "mkl" if torch.backends.mkl.is_available() else "no mkl"
    torch_uses = f"torch: {torch.backends.cpu.get_cpu_capability()}, {library}"
    return f"{name} ({parts}; {torch_uses})" if parts else f"{name} ({torch_uses})"
