"""What every recorded result carries: command, machine, versions, and the values themselves, written in one go."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measure import processor
from ttref.atomic import replace

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"


def write(name: str, values: dict, *, models: list[str], data: list[str], seed: int) -> Path:
    """Write ``book/results/<name>.json`` whole or not at all."""
    record = {
        "command": f"python -m studies.{name}",
        "date": datetime.now(UTC).date().isoformat(),
        "models": models,
        "data": data,
        "seed": seed,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")},
        **values,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    replace(path, [(json.dumps(record, indent=1) + "\n").encode()])
    return path


def read(name: str) -> dict:
    """What ``book/results/<name>.json`` holds; nothing if it is not there. A damaged one is a ValueError."""
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
