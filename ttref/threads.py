"""A batch split over all CPU threads of torch, whose batched LAPACK calls run on one core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK_BYTES = 16 << 20  # float64 working set of one CPU chunk; with smaller chunks the GIL limits the speed
CHUNK_BYTES_CUDA = 256 << 20  # a GPU needs large batches instead


@torch.no_grad()
def map_chunks(work: Callable[[slice], None], count: int, bytes_each: int, device: torch.device) -> None:
    """Call ``work`` on slices that cover ``range(count)``, on CPU in parallel with one torch thread in each worker.

    Raises any exception of ``work``. torch has one thread count for the process: a thread that the caller starts
    meanwhile begins with one torch thread.
    """
    budget = CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES_CUDA
    step = max(1, budget // max(bytes_each, 1))
    chunks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    threads = torch.get_num_threads()
    if device.type != "cpu" or len(chunks) == 1 or threads == 1:
        for chunk in chunks:
            work(chunk)
        return

    inference = torch.is_inference_mode_enabled()

    def guarded(chunk: slice) -> None:
        # Both modes are thread-local, so each worker must set them again.
        with torch.inference_mode(inference), torch.no_grad():
            work(chunk)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(guarded, chunks))  # reading the results raises a worker's exception
    finally:
        torch.set_num_threads(threads)  # new threads start with the workers' setting otherwise
