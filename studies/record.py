"""What every recorded result carries: command, machine, versions, and the values themselves, written in one go."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measure import processor

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
    fresh = path.with_suffix(".json.new")
    fresh.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return path
