"""Synthetic tables in safetensors files, each file drawn from a seed of its own, several written at a time."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import save

from ttref.atomic import replace
from ttref.scale import run

WIDTH = 768
PER_FILE = 125_000  # rows: 384 MB in float32


def drawn(task: dict, folder: str) -> dict:
    """Write one file of Gaussian rows."""
    rows = torch.randn(task["rows"], WIDTH, generator=torch.Generator().manual_seed(task["seed"]))
    replace(Path(folder, task["id"]), [save({"rows": rows})])
    return {"rows": task["rows"]}


def table(folder: Path, rows: int, per_file: int = PER_FILE) -> list[Path]:
    """The files of a table of so many rows; those that are there already are kept."""
    counts = [min(per_file, rows - start) for start in range(0, rows, per_file)]
    tasks = [{"id": f"rows-{seed:03d}.safetensors", "seed": seed, "rows": count} for seed, count in enumerate(counts)]
    work, job = functools.partial(drawn, folder=str(folder)), {"rows": rows, "per_file": per_file}
    for record in run(work, tasks, folder, job=job, engine="pool", workers=2, description="source"):
        if record["error"]:
            raise OSError(f"{folder / record['id']} could not be written: {record['error']}")
    return [folder / task["id"] for task in tasks]
