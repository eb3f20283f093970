"""The frame of many rows: their mean, and the principal axes along which they are decomposed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..powers import exponents, times_power
from ..precision import computable
from ..truncation import fix_signs
from .buckets import Held
from .packed import traced

AT_ONCE = 16384  # rows decomposed together: bounds the working memory, and keeps the threads busy
TOGETHER = 16  # on many processors a row is rounded differently in a product of fewer rows


class Frame(Held):
    """``row = inner @ rotation + mean``, either of them optional. Both are buffers: stored and counted, not trained."""

    def __init__(self, mean: Tensor | None = None, rotation: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("rotation", rotation)

    def forward(self) -> list[Tensor | None]:
        """Mean and rotation."""
        return [self.mean, self.rotation]

    @classmethod
    @torch.no_grad()
    def of(cls, table: Tensor, *, center: bool, rotate: bool) -> Frame:
        """The frame of a table: mean and principal axes (largest variance first), accumulated in float64 by blocks."""
        mean = axes = None
        if center:
            total, exponent = added(map(summed, table.split(AT_ONCE)))
            mean = total / len(table)
        if rotate:
            square = table.new_zeros(table.shape[1], table.shape[1], dtype=torch.float64)
            unit = _exponent(table)
            for part in table.split(AT_ONCE):
                part = _scaled(part, unit)
                square.addmm_(part.mT, part)
            if center:
                inner = times_power(mean, exponent - unit)
                square -= len(table) * torch.outer(inner, inner)
            # The sign of an axis is arbitrary, but the truncated train of a rotated row depends on it.
            axes = fix_signs(torch.linalg.eigh(square)[1]).flip(1).mT.to(table.dtype).contiguous()
        return cls(times_power(mean, exponent).to(table.dtype) if center else None, axes)

    def inner(self, rows: Tensor) -> Tensor:
        """Coordinates of rows minus the mean along the axes, in at least float32."""
        rows, (mean, rotation) = computable(rows), self.tensors()
        if mean is not None:
            rows = rows - mean
        if rotation is None:
            return rows
        back = rotation.mT
        if back.dtype in (torch.float16, torch.bfloat16):  # rounded axes are not quite orthogonal
            back = torch.linalg.inv(rotation.double())
        return rows @ back.to(rows.dtype)

    def outer(self, inner: Tensor) -> Tensor:
        """Rows from their coordinates: the inverse of :meth:`inner`."""
        mean, rotation = self.tensors()
        if rotation is not None:
            inner = _turned(inner, rotation.to(inner.dtype))
        return inner if mean is None else inner + mean

    @property
    def empty(self) -> bool:
        """True if there is neither mean nor rotation."""
        return self.mean is None and self.rotation is None


def summed(block: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the rows of a block, float64 ``(width,)``, divided by a power of two, and its exponent."""
    exponent = _exponent(block)
    return _scaled(block, exponent).sum(0), exponent


def added(sums: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One :func:`summed` after the other. In this order it gives the same bits wherever the blocks were summed."""
    sums = iter(sums)
    total, largest = next(sums)
    total = total + 0.0  # as if added to zeros, which have no sign
    for part, power in sums:  # one at a time: a billion rows have as many sums as a small table has rows
        above = torch.maximum(largest, power)
        total = times_power(total, largest - above) + times_power(part, power - above)
        largest = above
    return total, largest


def _exponent(table: Tensor) -> Tensor:
    """The power of two that keeps squares in range, which float64 alone could leave; powers of two cost no digits."""
    if table.dtype != torch.float64:
        return torch.zeros((), dtype=torch.int64, device=table.device)
    return exponents(table.reshape(-1), (0,)).squeeze(0)


def _scaled(block: Tensor, exponent: Tensor) -> Tensor:
    """``block / 2^exponent`` in float64; only float64 has an exponent other than 0."""
    return times_power(block, -exponent) if block.dtype == torch.float64 else block.double()


def _turned(inner: Tensor, rotation: Tensor) -> Tensor:
    """``inner @ rotation``, padded with rows of zeros to a multiple of ``TOGETHER``.

    So the result of a row hardly ever depends on the number of rows. Only agreement to rounding is guaranteed.
    """
    count = inner.shape[0]
    if traced() or count % TOGETHER == 0:
        return inner @ rotation
    return (F.pad(inner, (0, 0, 0, -count % TOGETHER)) @ rotation)[:count]
