"""A batch shared out to as many threads as torch may use, because its batched LAPACK calls run on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK_BYTES = 16 << 20  # float64 working set of one CPU chunk: smaller ones spend their time handing over the GIL
CHUNK_BYTES_CUDA = 256 << 20  # a GPU wants large batches instead


@torch.no_grad()
def map_chunks(work: Callable[[slice], None], count: int, bytes_each: int, device: torch.device) -> None:
    """Call ``work`` on slices that cover ``range(count)``, on CPU from as many threads as torch may use.

    Batched LAPACK calls in torch run on one core, so the batch is cut into chunks of ``CHUNK_BYTES`` and the chunks
    are shared out, with torch held to one thread in each worker. Raises what ``work`` raises. torch keeps one thread
    number for the process: a thread of the caller's that starts meanwhile begins with one torch thread.
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
        # Both modes belong to a thread, so each worker must set them again.
        with torch.inference_mode(inference), torch.no_grad():
            work(chunk)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _consume(pool.map(guarded, chunks))
    finally:
        torch.set_num_threads(threads)  # the workers' setting is also what new threads would start with


def _consume(results: Iterator[None]) -> None:
    for _ in results:
        pass
