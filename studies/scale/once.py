"""One run of a job, in a process that does nothing else: ``python -m studies.scale.once SETTINGS`` prints JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import torch

from ttref.scale import cluster, compress_rows, run


def rows(settings: dict) -> dict:
    """Compress a table: seconds of the whole, those before Ray stood, and those of its workers' work, added up.

    With ``warm`` Ray does a first job before, without work, and the seconds until that ends count as Ray's start. Also
    how often Ray's object store moved something to the disk, as its log tells; none for the pool.
    """
    on_ray, patience, warm = settings["engine"] == "ray", settings.pop("patience", 0), settings.pop("warm", False)
    begun = time.perf_counter()
    with cluster(settings["workers"]) if on_ray else contextlib.nullcontext():
        if warm:
            with tempfile.TemporaryDirectory() as folder:
                empty({"tasks": 2, "folder": folder, "engine": "ray", "workers": settings["workers"]})
        stood = time.perf_counter()
        report = compress_rows(**settings)
        ended, spills = time.perf_counter(), spills_of_ray(patience) if on_ray else 0
    if report.errors:
        raise RuntimeError(str(report))
    return {
        "seconds": ended - begun,
        "cluster_s": stood - begun,
        "work_s": sum(shard["seconds"] for shard in report.shards),
        "spills": spills,
    }


def spills_of_ray(patience: float) -> int:
    """The count in the state that Ray writes every ten seconds; waits for the next one as long as that."""
    from ray._private.worker import _global_node

    path, now = Path(_global_node.get_session_dir_path(), "logs", "debug_state.txt"), time.time()
    while time.time() < now + patience and not (path.is_file() and path.stat().st_mtime > now):
        time.sleep(0.2)
    written = path.read_text(encoding="utf-8") if path.is_file() else ""
    return sum(map(int, re.findall("cumulative spill requests: ([0-9]+)", written)))


def nothing(task: dict) -> dict:
    """A task that takes no time."""
    return {}


def empty(settings: dict) -> dict:
    """Tasks that do nothing: what an engine takes for itself."""
    tasks = [{"id": f"{k:05d}"} for k in range(settings.pop("tasks"))]
    begun = time.perf_counter()
    run(nothing, tasks, job={}, **settings)
    return {"seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    print(json.dumps({"rows": rows, "empty": empty}[given.pop("do")](given)))
