"""The nearest documents of a batch of queries: integer products block by block, then floating point for the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .grid import Grid

QUERIES = 256  # carried and scored together
SCORED = 1 << 21  # scores looked at together, of at most DOCUMENTS documents
DOCUMENTS = 65536
PIECE = 1 << 18  # scores, and of one query codes, computed together: what the processor's second cache holds
UNPACKED = 4 << 20  # coordinates unpacked together when candidates are scored again; all this bounds the working memory
GROUP = 16  # documents of which the best is looked at first

Candidates = Callable[[Tensor, int], Tensor]  # from queries in the order of the grid, and how many, to positions


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
    pairs = max(1, UNPACKED // turned.shape[1])
    across = min(positions.shape[1], pairs)
    scores = turned.new_empty(positions.shape)
    for into, part, at in zip(*(x.split(pairs // across) for x in (scores, turned, positions)), strict=True):
        for some, where in zip(into.split(across, 1), at.split(across, 1), strict=True):
            torch.sum(grid.levels(codes[where]) * part.unsqueeze(1), 2, out=some)
    return scores if grid.bits == 32 else scores.mul_(grid.factors(scales[positions]))


def scanned(grid: Grid, codes: Tensor, scales: Tensor, *, integers: bool) -> Candidates:
    """Candidates by scanning all documents, in int8 or in float32.

    Of the k best, rounding a query to int8 shifts each by a thousandth; there are enough candidates to lose none.
    """
    count = len(codes)

    def find(turned: Tensor, k: int) -> Tensor:
        wanted, b = min(2 * k + 16, count), len(turned)
        step = min(max(SCORED // b, GROUP), DOCUMENTS, count)
        fill = _filling(grid, turned, integers)
        room = turned.new_empty(step, b)
        best, at = turned.new_empty(b, 0), turned.new_empty(b, 0).long()
        for start in range(0, count, step):
            block = slice(start, min(start + step, count))
            scores = room[: block.stop - start]
            fill(codes[block], scales[block], scores)
            values, rows = _promising(scores, wanted, best.amin(1) if best.shape[1] == wanted else None)
            best, at = torch.cat((best, values), 1), torch.cat((at, rows + start), 1)
            if best.shape[1] > wanted:
                best, order = best.topk(wanted, dim=1, sorted=False)
                at = at.gather(1, order)
        return at

    return find


def _filling(grid: Grid, turned: Tensor, integers: bool) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What writes the scores of a block of documents into ``(n, b)``, piece by piece."""
    b, width = turned.shape
    queries, middles = _rounded(grid, turned) if integers else (turned, None)
    piece = max(1, PIECE // max(b, width))
    room = torch.empty(piece, width, dtype=torch.uint8, device=turned.device)
    whole = torch.empty(piece, b, dtype=torch.int32, device=turned.device)

    def fill(codes: Tensor, scales: Tensor, scores: Tensor) -> None:
        factors = None if grid.bits == 32 else grid.factors(scales).unsqueeze(1)
        for start in range(0, len(codes), piece):
            part = slice(start, start + piece)
            into = scores[part]
            if middles is not None:
                into.copy_(int_product(grid.unpacked(codes[part], room), queries, whole[: len(into)])).add_(middles)
            else:
                torch.mm(grid.levels(codes[part]), queries.mT, out=into)
            if factors is not None:
                into.mul_(factors[part])

    return fill


def _promising(scores: Tensor, wanted: int, least: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores of each column of ``(n, b)``, and their rows, among which are the ``wanted`` best: ``(b, m)`` both.

    They lie in the groups whose own best are best, and above ``least``, if that many are known: most scores are looked
    at only once.
    """
    count, b = scores.shape
    groups = count // GROUP
    if groups < 2 * wanted:
        return scores.mT.topk(min(wanted, count), dim=1, sorted=False)
    members = torch.arange(0, groups * GROUP, groups, device=scores.device)
    heads = scores[: groups * GROUP].view(GROUP, groups, b).amax(0)
    enough = wanted if least is None else min(wanted, int((heads > least).sum(0).max()))
    chosen = heads.mT.topk(enough, dim=1, sorted=False).indices
    rows = (chosen.unsqueeze(1) + members.unsqueeze(1)).flatten(1)
    left = torch.arange(groups * GROUP, count, device=scores.device).expand(b, -1)
    rows = torch.cat((rows, left), 1)
    return scores.mT.gather(1, rows), rows


def _rounded(grid: Grid, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Queries as int8, and what the middle of the levels adds to every document, ``(b,)``.

    Each query has a scale of its own, so that one alone is rounded as it is in a batch. No score needs it.
    """
    scale = (turned.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (turned / scale).round_()
    return rounded.to(torch.int8), grid.middle * rounded.sum(1)


def int_product(codes: Tensor, queries: Tensor, room: Tensor) -> Tensor:
    """``codes (n, r) @ queries (b, r)^T`` of int8 as int32, into ``room`` where the processor takes these sizes.

    A GPU takes more than 16 rows and multiples of eight columns; it gets zeros as well.
    """
    if queries.device.type == "cpu":
        return torch._int_mm(codes, queries.mT, out=room)
    (n, r), b = codes.shape, len(queries)
    queries, codes = F.pad(queries, (0, -r % 8, 0, -b % 8)), F.pad(codes, (0, -r % 8, 0, max(24 - n, 0)))
    return torch._int_mm(codes, queries.mT)[:n, :b]
