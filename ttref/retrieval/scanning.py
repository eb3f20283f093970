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
ROUNDING = 1e-6  # what float32 shifts a score by, of the norms of query and document

Candidates = Callable[[Tensor, int], Tensor]  # from queries in the order of the grid, and how many, to positions


def nearest(grid: Grid, codes: Tensor, scales: Tensor, q: Tensor, k: int, find: Candidates) -> tuple[Tensor, Tensor]:
    """The k best documents of each query, best first, ties among the candidates in the order of the documents.

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
    return ordered(grid, codes, scales, turned, find(turned, k), k)


def ordered(
    grid: Grid, codes: Tensor, scales: Tensor, turned: Tensor, positions: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Scores and positions ``(b, k)`` of the best of these candidates, best first, ties in the order of documents."""
    positions = positions.sort(1).values
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


def scanned(grid: Grid, codes: Tensor, scales: Tensor, *, reach: float | None = None) -> Candidates:
    """Candidates by scanning all documents: in int8 if :func:`longest` of them is given as ``reach``, else in float32.

    Rounding a query to int8 shifts a score by at most the norm of what it takes from the query times that of the
    document. Where a document beyond the candidates could be among the k best by so much, the query gets four times as
    many, and if these leave a doubt as well, a scan in float32.
    """
    count = len(codes)

    def find(turned: Tensor, k: int) -> Tensor:
        wanted = min(2 * k + 16, count)
        if reach is None or wanted == count:
            return scan(turned, wanted, reach is not None)[1]
        found = torch.empty(len(turned), k, dtype=torch.int64, device=turned.device)
        left = torch.arange(len(turned), device=turned.device)
        for tried in (wanted, min(4 * wanted, count)):
            part = turned[left]
            rough, at = scan(part, tried, True)
            exact, found[left] = ordered(grid, codes, scales, part, at, k)
            scale, shift = _shifts(part)
            beyond = rough.amin(1).double() * scale + shift * reach
            left = left[(beyond > exact[:, -1]) & (tried < count)]
            if not len(left):
                return found
        part = turned[left]
        found[left] = ordered(grid, codes, scales, part, scan(part, wanted, False)[1], k)[1]
        return found

    def scan(turned: Tensor, wanted: int, integers: bool) -> tuple[Tensor, Tensor]:
        """The scores of the ``wanted`` best of each query as they are scanned, and their positions."""
        b = len(turned)
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
        return best, at

    return find


def longest(grid: Grid, codes: Tensor, scales: Tensor) -> float:
    """The largest norm of a document's levels times its factor, looked at piece by piece; 0 of no documents."""
    most, piece = 0.0, max(1, PIECE // max(1, codes.shape[1] * grid.together))
    for part, factors in zip(codes.split(piece), grid.factors(scales).split(piece), strict=True):
        norms = torch.linalg.vector_norm(grid.levels(part), dim=1) * factors
        most = max(most, float(norms.max())) if len(norms) else most
    return most


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

    Each query has a scale of its own, so that one alone is rounded as it is in a batch.
    """
    rounded = (turned / _scales(turned)).round_()
    return rounded.to(torch.int8), grid.middle * rounded.sum(1)


def _scales(turned: Tensor) -> Tensor:
    return (turned.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)


def _shifts(turned: Tensor) -> tuple[Tensor, Tensor]:
    """Scales ``(b,)`` of rounded queries, and the norms of what rounding takes from them, float64."""
    scale = _scales(turned)
    rest = turned.double() - (turned / scale).round_().double() * scale
    norms = torch.linalg.vector_norm(rest, dim=1) + ROUNDING * torch.linalg.vector_norm(turned.double(), dim=1)
    return scale[:, 0].double(), norms


def int_product(codes: Tensor, queries: Tensor, room: Tensor) -> Tensor:
    """``codes (n, r) @ queries (b, r)^T`` of int8 as int32, into ``room`` where the processor takes these sizes.

    A GPU takes more than 16 rows and multiples of eight columns; it gets zeros as well.
    """
    if queries.device.type == "cpu":
        return torch._int_mm(codes, queries.mT, out=room)
    (n, r), b = codes.shape, len(queries)
    queries, codes = F.pad(queries, (0, -r % 8, 0, -b % 8)), F.pad(codes, (0, -r % 8, 0, max(24 - n, 0)))
    return torch._int_mm(codes, queries.mT)[:n, :b]
