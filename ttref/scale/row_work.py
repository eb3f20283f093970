"""What a worker does with a shard of rows: compress it and write its file, or add its rows up."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embeddings import MPSEmbedding
from ..embeddings.settings import RowSettings
from ..files import write
from ..precision import full_precision
from ..rows.frame import AT_ONCE, Frame, summed
from ..rows.joining import joined
from ..threads import CHUNK_BYTES
from .jobs import Record, Task
from .sources import read_pieces, where
from .table import seal_of

BLOCK_BYTES = 128 << 20  # of a block of padded rows in float64: the most that is decomposed at once
MOST_NAMED = 10
SUMS = "RowSums"  # the kind of a file with the sums of a shard


@full_precision
@torch.no_grad()
def compress(task: Task, *, folder: str, about: dict[str, Any]) -> Record:
    """Compress the rows of a shard and write its file."""
    started = time.perf_counter()
    width, dtype = about["width"], getattr(torch, about["dtype"])
    how = RowSettings.of(
        width,
        rank=about["rank"],
        eps=about["eps"],
        row_ranks=None,
        shape=about["shape"],
        core_bits=about["core_bits"],
    )
    frame = Frame(torch.tensor(about["mean"], dtype=torch.float64).to(dtype) if about["center"] else None)
    stores, hashed = [], hashlib.sha256()
    for before, block in _blocks(task, width, dtype, _at_once(how)):
        hashed.update(block.view(-1).view(torch.uint8).numpy())
        try:
            stores.append(how.store(frame).grown(block, how.groups(block, frame), trainable=False))
        except ValueError as error:
            at = task["start"] + before
            raise ValueError(f"{task['name']}, rows counted from row {at} of the table: {error}") from error
    table = MPSEmbedding._holding(how.shape, joined(stores), dtype)
    del stores  # as writing takes the memory of the shard twice more
    path = Path(folder) / task["name"]
    table.save(path)
    return {
        "name": task["name"],
        "rows": table.num_embeddings,
        "ranks": list(table.ranks),
        "params": table.params,
        "nbytes": table.nbytes,
        "file_nbytes": path.stat().st_size,
        "sha256": seal_of(path),
        "source_sha256": hashed.hexdigest(),
        "seconds": time.perf_counter() - started,
    }


@torch.no_grad()
def add_up(task: Task, *, folder: str, about: dict[str, Any]) -> Record:
    """Sum the rows of a shard, block by block, and write the sums."""
    parts = [summed(block) for _, block in _blocks(task, about["width"], getattr(torch, about["dtype"]), AT_ONCE)]
    sums = {name: torch.stack(part) for name, part in zip(("sums", "exponents"), zip(*parts, strict=True), strict=True)}
    path = Path(folder) / task["name"].replace("rows", "sums")
    write(path, SUMS, sums, {}, held_sums)
    return {"name": path.name, "file_nbytes": path.stat().st_size, "sha256": seal_of(path)}


def held_sums(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Sums and exponents of blocks, from the tensors of their file."""
    return tensors["sums"], tensors["exponents"]


def _blocks(task: Task, width: int, dtype: torch.dtype, most: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the rows of a shard; after the last, a ValueError that names the rows that are no numbers."""
    wrong: dict[int, str] = {}
    for before, block, reasons in read_pieces(task["pieces"], width, dtype, most):
        if not block.sum().isfinite():  # as in check_input: finite entries may overflow the sum
            rows = (~block.isfinite().all(1)).nonzero().flatten().tolist()
            wrong |= {before + row: reasons.get(row, "NaN or Inf") for row in rows}
        if not wrong:
            yield before, block
    if wrong:
        named = [f"row {task['start'] + row} ({where(task['pieces'], row)}): {why}" for row, why in wrong.items()]
        more = f"; and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        raise ValueError(
            f"{task['name']} has {len(named)} rows that cannot be compressed: {'; '.join(named[:MOST_NAMED])}{more}. "
            "Mend them in the source and run again: what is done stays"
        )


def _at_once(how: RowSettings) -> int:
    """Rows of a block: a chunk of the decomposition, in memory that the cache holds and that is used again.

    Where chunks do not fill one process's blocks, or where rows are sorted by their ranks first, the block of one
    process, or a part of it where rows are wide.
    """
    entries, most = math.prod(how.shape), AT_ONCE
    chunk = CHUNK_BYTES // (8 * entries)
    if how.eps is None and chunk and AT_ONCE % chunk == 0:
        return chunk
    while most > 1 and most * entries * 8 > BLOCK_BYTES:
        most //= 2
    return most
