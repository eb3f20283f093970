"""Choice of the ranks of each row: by a cap for each row, or by a bound on the error of each row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..powers import peak
from ..precision import computable
from .frame import AT_ONCE, Frame
from .packed import RowLayout
from .store import Group


def sort_by_cap(caps: Sequence[int], shape: Sequence[int], table: Tensor) -> Iterator[Group]:
    """Groups of rows with equal caps; caps beyond the largest useful rank count as equal."""
    layouts = {cap: RowLayout(shape, cap, table.shape[1]) for cap in sorted(set(caps))}
    by_ranks = {layout.ranks: layout for layout in layouts.values()}
    key = {ranks: k for k, ranks in enumerate(by_ranks)}
    owner = torch.tensor([key[layouts[cap].ranks] for cap in caps], device=table.device)
    for ranks, k in key.items():
        yield by_ranks[ranks], (owner == k).nonzero().squeeze(1), None


@torch.no_grad()
def sort_by_error(eps: float, shape: Sequence[int], table: Tensor, frame: Frame) -> Iterator[Group]:
    """Rows by the smallest cap that keeps their relative error within ``eps``, measured on the packed cores."""
    width = table.shape[1]
    rounding = min(torch.finfo(table.dtype).eps, torch.finfo(torch.float32).eps)
    allowed = eps + 5 * len(shape) * rounding  # half of the guarantee: contracting in other blocks rounds differently
    left, cap, before = torch.arange(len(table), device=table.device), 0, None
    while len(left):
        cap += 1
        layout = RowLayout(shape, cap, width)
        if layout.ranks == before:
            continue
        before = layout.ranks
        if layout.dense or layout.numbers >= width:  # from this cap on the row itself takes no more numbers
            yield RowLayout(shape, math.prod(shape), width), left, None
            return
        kept, good = [], []
        for part in left.split(AT_ONCE):
            packed = layout.pack(frame.inner(table[part]).to(table.dtype))
            good.append(_errors(layout, packed, table[part], frame) <= allowed)
            kept.append(packed[good[-1]])
        mine = torch.cat(good)
        if mine.any():
            yield layout, left[mine], [torch.cat(kept)]  # the cores that were measured are the ones stored
        left = left[~mine]


def _errors(layout: RowLayout, packed: Tensor, rows: Tensor, frame: Frame) -> Tensor:
    """Relative error of each row as a look-up rebuilds it; 0 for a zero row that is rebuilt as zeros."""
    found = frame.outer(layout.unpack(computable(packed)))
    scale = peak(rows, (1,)).double()  # squares of float64 extremes would leave the range
    wanted, looked_up = rows.double() / scale, [found]
    if rows.dtype != found.dtype:  # between two halves, another order of summing may round to either
        slack = 4 * torch.finfo(found.dtype).eps * found.abs().amax(1, keepdim=True)
        looked_up = [found - slack, found + slack]
    gap = torch.stack([(one.to(rows.dtype).double() / scale - wanted).abs() for one in looked_up]).amax(0)
    norms, gaps = torch.linalg.vector_norm(wanted, dim=1), torch.linalg.vector_norm(gap, dim=1)
    return torch.where(norms > 0, gaps / norms, torch.where(gaps > 0, torch.inf, 0.0))


def sorted_rows(
    rows: Tensor,
    shape: Sequence[int],
    frame: Frame,
    layout: RowLayout | None,
    eps: float | None,
    caps: list[int] | None,
) -> Iterable[Group]:
    """Groups of rows with equal ranks: by caps if given, else by eps if given, else all in ``layout``."""
    if caps is not None:
        return sort_by_cap(caps, shape, rows)
    if eps is not None:
        return sort_by_error(eps, shape, rows, frame)
    return [(layout, torch.arange(len(rows), device=rows.device), None)]


def layouts_by_size(
    sizes: Sequence[int], shape: Sequence[int], width: int, known: Iterable[RowLayout]
) -> list[RowLayout]:
    """The layout of each bucket from its count of numbers per row: a known one, or that of a cap on the ranks."""
    caps: list[RowLayout] = []
    while not caps or not caps[-1].dense:
        caps.append(RowLayout(shape, len(caps) + 1, width))
    known, found = list(known), []
    for k, size in enumerate(sizes):
        fits = [layout for layout in (*known, *caps) if layout.numbers == size]
        kinds = {(layout.dense, *layout.cores) for layout in fits}  # what numbers mean
        if len(kinds) != 1:
            raise ValueError(
                f"bucket {k} has {size} numbers a row, which {len(kinds)} layouts of modes {tuple(shape)} have; the "
                "metadata of a state_dict, which a plain dict has not, tell which"
            )
        found.append(fits[0])
    return found
