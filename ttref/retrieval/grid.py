"""Coordinates of documents in a few bits: levels on stored ranges, one unbiased scale for each document."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..codes import pack_bits
from ..rows.frame import AT_ONCE

# The step of 2^bits equidistant levels, with least squared error for a normal variable of variance 1.
STEPS = {1: 1.5958, 2: 0.9957, 4: 0.3352, 8: 0.0308}
LEAST_RANGE = 1e-3  # of the typical range: a coordinate that the fit has never seen move


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels ``ranges * step * (code + 1/2)``, all ``2^bits`` of them.

    Documents of any length, as an inner product has them, are divided by it first. Those of a cosine are alike in
    length and are not: their scales are then alike as well, which serves a scanner that knows none.

    A document with coordinates c and levels v is stored as ``scale * v`` with ``scale = <c, c> / <v, c>``. On average
    over random rotations of the coordinates, ``scale * <q, v>`` is then ``<q, c>`` for every q.

    Attributes:
        bits: 1, 2, 4 or 8; 32 stores the coordinates themselves.
        ranges: float32 ``(r,)``: root mean square of each coordinate, from the documents of the fit.
        unit: float32 ``()``: the scale of a typical document, the unit of the stored ones.
        alike: True if documents are not divided by their length.

    Source:
        The scale is that of Gao and Long (2024), RaBitQ, arXiv:2405.12497; the steps are those of Max (1960),
        Quantizing for minimum distortion.
    """

    bits: int
    ranges: Tensor
    unit: Tensor
    alike: bool

    @classmethod
    def of(cls, coordinates: Tensor, bits: int, *, alike: bool) -> Grid:
        """The grid for documents like these, float32 ``(n, r)``."""
        r = coordinates.shape[1]
        if bits == 32:
            return cls(bits, coordinates.new_ones(r), coordinates.new_ones(()), alike)
        one, total = coordinates.new_ones(()), coordinates.new_zeros(r, dtype=torch.float64)
        for part in coordinates.split(AT_ONCE):
            total += (part.double() if alike else _normed(part)).square().sum(0)
        ranges = (total / len(coordinates)).sqrt()
        typical = ranges.square().mean().sqrt()
        ranges = ranges.clamp(min=LEAST_RANGE * typical) if typical > 0 else torch.ones_like(ranges)
        grid = cls(bits, ranges.float(), one, alike)
        scales = torch.cat([grid._coded(part)[1] for part in coordinates.split(AT_ONCE)])
        unit = scales.square().mean().sqrt().float()
        return cls(bits, grid.ranges, unit if unit > 0 else one, alike)

    @property
    def together(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    @property
    def bytes_each(self) -> int:
        """Bytes of a document's codes; of 32 bits, numbers."""
        r = len(self.ranges)
        return r if self.bits == 32 else -(-r // self.together)

    @property
    def middle(self) -> float:
        """What is added to a code, so that levels are symmetric; codes of less than a byte count from 0."""
        return 0.5 if self.bits == 8 else 0.5 - 2 ** (self.bits - 1)

    def encode(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of documents ``(n, r)``.

        Returns:
            ``codes`` uint8 ``(n, bytes)`` (int8 for 8 bits) and ``scales`` float16 ``(n,)``; of 32 bits the coordinates
            and no scales.

        Raises:
            ValueError: A document so much larger than those of the fit that its scale leaves float16.
        """
        if self.bits == 32:
            return coordinates, coordinates.new_empty(0, dtype=torch.float16)
        held = []
        for start, part in zip(itertools.count(0, AT_ONCE), coordinates.split(AT_ONCE), strict=False):
            codes, exact = self._coded(part)
            scales = (exact / self.unit.double()).half()
            if not scales.isfinite().all():
                which = int((~scales.isfinite()).nonzero()[0])
                raise ValueError(
                    f"document {start + which} is {float(exact[which] / self.unit):.3g} times "
                    "as long as the typical one of the fit, more than its scale can say; fit again with such documents"
                )
            held.append((self._packed(codes), scales))
        return torch.cat([codes for codes, _ in held]), torch.cat([scales for _, scales in held])

    def _coded(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Codes from ``-2^(bits-1)`` on, float64 ``(n, r)``, and exact scales ``(n,)``."""
        normed = part.double() if self.alike else _normed(part)
        step, top = self.ranges.double() * STEPS[self.bits], 2 ** (self.bits - 1)
        codes = (normed / step).floor_().clamp_(-top, top - 1)
        exact, levels = part.double(), (codes + 0.5) * step
        along = (levels * exact).sum(1)
        # Every level has the sign of its coordinate, so that a document that is not zero has a positive product.
        return codes, torch.where(along > 0, exact.square().sum(1) / along.where(along > 0, 1), 0)

    def _packed(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes.to(torch.int8)
        counted = F.pad((codes + 2 ** (self.bits - 1)).to(torch.uint8), (0, -codes.shape[1] % self.together))
        return pack_bits(counted, self.bits).view(len(codes), self.bytes_each)

    def unpacked(self, codes: Tensor, room: Tensor | None = None) -> Tensor:
        """Codes int8 ``(..., bytes * together)``, in the order of :meth:`queries`; into ``room`` if there is some."""
        if self.together == 1:
            return codes
        size, mask = codes.shape[-1], 2**self.bits - 1
        room = codes.new_empty(*codes.shape[:-1], size * self.together) if room is None else room[: len(codes)]
        made = room.view(torch.int8)
        if size % 8 == 0:  # eight bytes at once; what a shift carries from one to the next is masked
            codes, room, size = codes.view(torch.int64), room.view(torch.int64), size // 8
            mask = int.from_bytes(bytes([mask] * 8), "little")
        torch.bitwise_and(codes, mask, out=room[..., :size])
        for plane in range(1, self.together):
            part = room[..., plane * size : (plane + 1) * size]
            torch.bitwise_right_shift(codes, plane * self.bits, out=part).bitwise_and_(mask)
        return made

    def levels(self, codes: Tensor) -> Tensor:
        """Levels in steps, float32, in the order of :meth:`queries`; of 32 bits the coordinates."""
        return codes if self.bits == 32 else self.unpacked(codes).float() + self.middle

    def factors(self, scales: Tensor) -> Tensor:
        """What the levels of a document are multiplied by, float32."""
        return scales.float() * self.unit

    def queries(self, q: Tensor) -> Tensor:
        """Queries ``(b, r)`` times ranges and steps, their coordinates in the order in which codes are unpacked.

        The first code of every byte comes first, then the second of every byte: no code has to be moved.
        """
        if self.bits == 32:
            return q
        return self.planes(q * (self.ranges * STEPS[self.bits]))

    def planes(self, x: Tensor) -> Tensor:
        """The last axis of x, padded with zeros, in the order in which codes are unpacked."""
        x = F.pad(x, (0, -x.shape[-1] % self.together))
        return x.unflatten(-1, (-1, self.together)).mT.flatten(-2)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Coordinates ``(n, r)`` that the codes stand for, float32."""
        if self.bits == 32:
            return codes
        r = len(self.ranges)
        levels = self.levels(codes).unflatten(-1, (self.together, -1)).mT.flatten(-2)[..., :r]
        return levels * (self.ranges * STEPS[self.bits]) * self.factors(scales).unsqueeze(1)


def _normed(part: Tensor) -> Tensor:
    """Documents with a root mean square of 1, float64; a zero document stays zero."""
    exact = part.double()
    norms = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    return exact * part.shape[1] ** 0.5 / norms.where(norms > 0, 1)
