"""The nearest documents of a batch of queries: integer products block by block, then floating point for the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .grid import Grid

QUERIES = 256  # carried and scored together
DOCUMENTS = 16384  # scored together, unless they have many coordinates
UNPACKED = 4 << 20  # coordinates unpacked together; the three bound the working memory to some 50 MB

Candidates = Callable[[Tensor, int], Tensor]  # from queries in the order of the grid, and how many, to positions


def spare(k: int, count: int) -> int:
    """Candidates for the k best of ``count``: enough that rounding a query to int8 loses none of them."""
    return min(4 * k + 32, count)


def nearest(grid: Grid, codes: Tensor, scales: Tensor, q: Tensor, k: int, find: Candidates) -> tuple[Tensor, Tensor]:
    """The k best documents of each query, best first, ties in the order of the documents.

    Args:
        grid: Turns codes into coordinates.
        codes: The documents, as :meth:`Grid.encode` gives them.
        scales: Theirs.
        q: Carried queries float32 ``(b, r)``.
        k: At most the number of documents.
        find: Gives candidates; :func:`scanned` or FAISS.

    Returns:
        Scores float32 and positions int64, ``(b, k)``. A score is the inner product of the query with the document's
        decoded coordinates, computed in float32 for each pair alone: it does not depend on what is scored beside it.
    """
    turned = grid.queries(q)
    positions = find(turned, k).sort(1).values
    scores = rescored(grid, codes, scales, turned, positions)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), positions.gather(1, order)


def rescored(grid: Grid, codes: Tensor, scales: Tensor, turned: Tensor, positions: Tensor) -> Tensor:
    """Scores ``(b, c)`` of candidates at ``positions``, one dot product each."""
    step = max(1, UNPACKED // max(1, positions.shape[1] * turned.shape[1]))
    found = []
    for part, at in zip(turned.split(step), positions.split(step), strict=True):
        scores = (grid.levels(codes[at]) * part.unsqueeze(1)).sum(2)
        found.append(scores if grid.bits == 32 else scores * grid.factors(scales[at]))
    return torch.cat(found)


def scanned(grid: Grid, codes: Tensor, scales: Tensor, *, integers: bool) -> Candidates:
    """Candidates by scanning all documents, in int8 or in float32."""

    def find(turned: Tensor, k: int) -> Tensor:
        wanted = spare(k, len(codes))
        sides = _rounded(grid, turned) if integers else None
        best = at = None
        step = min(DOCUMENTS, max(1, UNPACKED // max(1, turned.shape[1])))
        for start in range(0, len(codes), step):
            block = codes[start : start + step]
            if sides is not None:
                rounded, shift = sides
                scores = int_product(rounded, grid.unpacked(block)).float().add_(shift)
            else:
                scores = turned @ grid.levels(block).mT
            if grid.bits != 32:
                scores *= grid.factors(scales[start : start + step])
            top = scores.topk(min(wanted, len(block)), dim=1, sorted=False)
            top_at = top.indices + start
            if best is None:
                best, at = top.values, top_at
            else:
                best, at = torch.cat((best, top.values), 1), torch.cat((at, top_at), 1)
            if best.shape[1] > wanted:
                keep = best.topk(wanted, dim=1, sorted=False)
                best, at = keep.values, at.gather(1, keep.indices)
        return at

    return find


def _rounded(grid: Grid, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Queries as int8, and what the middle of the levels adds to every document, ``(b, 1)``.

    Each query has a scale of its own, so that one alone is rounded as it is in a batch. No score needs it.
    """
    scale = (turned.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (turned / scale).round_()
    return rounded.to(torch.int8), grid.middle * rounded.sum(1, keepdim=True)


def int_product(queries: Tensor, codes: Tensor) -> Tensor:
    """``queries (b, r) @ codes (n, r)^T`` of int8 as int32; on a GPU the sizes are padded to those that it takes."""
    b, n = len(queries), len(codes)
    if queries.device.type != "cpu":
        pad = torch.nn.functional.pad
        across = -queries.shape[1] % 8
        queries, codes = pad(queries, (0, across, 0, max(24 - b, -b % 8))), pad(codes, (0, across, 0, -n % 8))
    return torch._int_mm(queries, codes.mT)[:b, :n]
