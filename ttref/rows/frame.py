"""The frame of many rows: their mean, and the principal axes along which they are decomposed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..powers import peak
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
        if not (center or rotate):
            return cls()
        width = table.shape[1]
        scale = peak(table.reshape(-1), (0,)).double()  # squares of float64 extremes would leave the range
        total = table.new_zeros(width, dtype=torch.float64)
        square = table.new_zeros(width, width, dtype=torch.float64)
        for part in table.split(AT_ONCE):
            part = part.double() / scale
            total += part.sum(0)
            square.addmm_(part.mT, part)
        mean = total / len(table)
        if center:
            square -= len(table) * torch.outer(mean, mean)
        # The sign of an axis is arbitrary, but the truncated train of a rotated row depends on it.
        axes = fix_signs(torch.linalg.eigh(square)[1]).flip(1).mT.to(table.dtype).contiguous() if rotate else None
        return cls((mean * scale).to(table.dtype) if center else None, axes)

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


def _turned(inner: Tensor, rotation: Tensor) -> Tensor:
    """``inner @ rotation``, padded with rows of zeros to a multiple of ``TOGETHER``.

    So the result of a row hardly ever depends on the number of rows. Only agreement to rounding is guaranteed.
    """
    count = inner.shape[0]
    if traced() or count % TOGETHER == 0:
        return inner @ rotation
    return (F.pad(inner, (0, 0, 0, -count % TOGETHER)) @ rotation)[:count]
