"""One run of a job, in a process that does nothing else: ``python -m studies.scale.once SETTINGS`` prints JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time

import torch

from ttref.scale import cluster, compress_rows, run


def rows(settings: dict) -> dict:
    """Compress a table: seconds of the whole, those before Ray stood, and those of its workers' work, added up."""
    begun = time.perf_counter()
    on_ray = settings["engine"] == "ray"
    with cluster(settings["workers"]) if on_ray else contextlib.nullcontext():
        stood = time.perf_counter()
        report = compress_rows(**settings)
        spilled = spilled_bytes() if on_ray else 0
    seconds = time.perf_counter() - begun
    if report.errors:
        raise RuntimeError(str(report))
    return {
        "seconds": seconds,
        "cluster_s": stood - begun,
        "work_s": sum(shard["seconds"] for shard in report.shards),
        "spilled_bytes": spilled,
    }


def spilled_bytes() -> int:
    """Bytes that Ray's object store has moved to the disk since it was started."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    from ray._private.worker import global_worker

    state = get_state_from_address(global_worker.node.gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


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
