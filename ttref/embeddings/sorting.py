"""Which rows share their ranks: by a cap given for each row, or by the error that each row may have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..shapes import whole
from .frame import AT_ONCE, Frame
from .rows import RowLayout
from .store import Group


def check_caps(row_ranks: Sequence[int] | Tensor, count: int) -> list[int]:
    """``row_ranks`` as a list of ``count`` caps of at least 1, or an error that names the first that is wrong."""
    if not isinstance(row_ranks, Iterable):
        raise TypeError(f"row_ranks must be {count} caps, one for each row, got {row_ranks!r}; rank takes one for all")
    caps = row_ranks.tolist() if isinstance(row_ranks, Tensor) else list(row_ranks)
    if len(caps) != count:
        raise ValueError(f"row_ranks has {len(caps)} caps, but there are {count} rows")
    return [whole(f"row_ranks[{k}]", cap, least=1) for k, cap in enumerate(caps)]


def sort_by_cap(caps: Sequence[int], shape: Sequence[int], table: Tensor) -> Iterator[Group]:
    """Rows with equal caps together; caps beyond what the modes allow are the same cap."""
    layouts = {cap: RowLayout(shape, cap, table.shape[1]) for cap in sorted(set(caps))}
    by_ranks = {layout.ranks: layout for layout in layouts.values()}
    key = {ranks: k for k, ranks in enumerate(by_ranks)}
    owner = torch.tensor([key[layouts[cap].ranks] for cap in caps], device=table.device)
    for ranks, k in key.items():
        yield by_ranks[ranks], (owner == k).nonzero().squeeze(1)


@torch.no_grad()
def sort_by_error(eps: float, shape: Sequence[int], table: Tensor, frame: Frame) -> Iterator[Group]:
    """Rows by the smallest cap that keeps their relative error within ``eps``, measured on what would be stored."""
    width = table.shape[1]
    rounding = min(torch.finfo(table.dtype).eps, torch.finfo(torch.float32).eps)
    allowed = eps + 5 * len(shape) * rounding  # half of what is granted: contracting in other blocks rounds otherwise
    left, cap, before = torch.arange(len(table), device=table.device), 0, None
    while len(left):
        cap += 1
        layout = RowLayout(shape, cap, width)
        if layout.ranks == before:
            continue
        before = layout.ranks
        if layout.whole or layout.numbers >= width:  # from here on the row itself is smaller
            yield RowLayout(shape, math.prod(shape), width), left
            return
        good = torch.cat([_errors(layout, table[part], frame) <= allowed for part in left.split(AT_ONCE)])
        if good.any():
            yield layout, left[good]
        left = left[~good]


def _errors(layout: RowLayout, rows: Tensor, frame: Frame) -> Tensor:
    """Error of each row relative to its norm, 0 for a zero row that is kept."""
    packed = layout.pack(frame.inner(rows).to(rows.dtype))
    gap = frame.outer(layout.unpack(packed)).double() - rows.double()
    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    return torch.linalg.vector_norm(gap, dim=1) / norms.clamp(min=torch.finfo(torch.float64).tiny)
