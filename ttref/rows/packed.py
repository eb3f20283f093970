"""Many short vectors as tensor trains of equal ranks, packed row by row: the storage format of :class:`MPSEmbedding`.

Two facts make rows smaller and faster than the ten cores of a binary train, without changing the vectors. A bond with
the full rank of its side truncates nothing, and the cores beyond it are slices of the identity, the same for every row:
they are not stored. And two neighboring cores of mode 2 between equal ranks hold as many numbers as their product, so
the product is stored. A row of rank 4 over ten binary modes then takes::

    4 x [2] - [2] - [2] - [2] - [2] - [2] x 4        six cores of 4 x 2 x 4
    4 x [ 4 ] - [ 4 ] - [ 4 ] x 4                    three of 4 x 4 x 4, 192 numbers

The free index at either end runs over the modes whose cores are slices of the identity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..precision import computable
from ..shapes import tt_ranks
from ..trains import tt_svd


class RowLayout:
    """The stored cores of a train with these modes and ranks, and their layout in a packed row.

    Attributes:
        shape, ranks: Modes and ranks of the train.
        width: Entries of a row; if the modes multiply to more, the row is padded with zeros.
        cores: Stored cores ``(left, n, right)``, neighbors merged; the first left and the last right index are free.
        dense: True if these ranks truncate nothing: then the row itself is stored, without the padding.
        numbers: Numbers stored for one row, ``last_size`` of them in the last core, which carries the norm.
    """

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int], width: int) -> None:
        self.shape, self.ranks, self.width = tuple(shape), tt_ranks(shape, rank), width
        # Bonds of full rank, from either end; the core that carries the norm is always stored.
        last = len(self.shape) - 1
        while last and self.ranks[last] == math.prod(self.shape[last:]):
            last -= 1
        first = 0
        while first < last and self.ranks[first + 1] == math.prod(self.shape[: first + 1]):
            first += 1
        self.dense = first == last
        self._parts, self.cores = ([], [])  # for each stored core, the positions of the cores merged into it
        for k in range(first, last + 1):
            core = self.ranks[k], self.shape[k], self.ranks[k + 1]
            left, n, right = self.cores[-1] if self.cores else core
            merged = left, n * core[1], core[2]
            if self.cores and math.prod(merged) <= math.prod(core) + left * n * right:
                self._parts[-1].append(k)
                self.cores[-1] = merged
            else:
                self._parts.append([k])
                self.cores.append(core)
        self.numbers = width if self.dense else sum(math.prod(core) for core in self.cores)
        self.last_size = width if self.dense else math.prod(self.cores[-1])
        self._half = 0 if self.dense else min(range(1, max(len(self.cores), 2)), key=self._macs)

    @torch.no_grad()
    def pack(self, rows: Tensor) -> Tensor:
        """TT-SVD of rows ``(count, width)``; the stored cores as one matrix ``(count, numbers)``."""
        if self.dense:
            return rows.clone()
        if rows.is_meta:  # no numbers to decompose
            return rows.new_empty(len(rows), self.numbers)
        padded = F.pad(rows, (0, math.prod(self.shape) - self.width))
        train = tt_svd(padded, self.shape, rank=self.ranks, batch_dims=1)
        packed = []
        for first, *behind in self._parts:
            merged = computable(train[first])
            for k in behind:
                core = computable(train[k])
                product = torch.bmm(merged.flatten(1, 2), core.flatten(2))
                merged = product.view(len(rows), merged.shape[1], -1, core.shape[3])
            packed.append(merged.flatten(1))
        return torch.cat(packed, dim=1).to(rows.dtype)

    def unpack(self, packed: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows ``(count, width)`` from packed cores, both ends contracted towards the middle, into ``out`` if given."""
        if len(self.cores) == 1 or self.dense:
            rows = packed[:, : self.width]
            return rows if out is None else out.copy_(rows)
        parts = packed.split([math.prod(core) for core in self.cores], dim=1)
        train = [part.unflatten(1, core) for part, core in zip(parts, self.cores, strict=True)]
        front, back = train[0].flatten(1, 2), train[-1].flatten(2)
        count = packed.shape[0]  # not len, which a tracer would make a constant
        for core, (_, n, right) in zip(train[1 : self._half], self.cores[1 : self._half], strict=True):
            front = torch.bmm(front, core.flatten(2)).view(count, front.shape[1] * n, right)
        for core, (left, n, _) in zip(train[self._half : -1][::-1], self.cores[self._half : -1][::-1], strict=True):
            back = torch.bmm(core.flatten(1, 2), back).view(count, left, n * back.shape[2])
        return meet(front, back, self.width, out)

    def _macs(self, half: int) -> int:
        """Multiply-adds of one row when the two ends meet before stored core ``half``."""
        total, rows, columns = (0, math.prod(self.cores[0][:2]), math.prod(self.cores[-1][1:]))
        for left, n, right in self.cores[1:half]:
            total, rows = total + rows * left * n * right, rows * n
        for left, n, right in reversed(self.cores[half:-1]):
            total, columns = total + left * n * right * columns, columns * n
        return total + rows * self.cores[half - 1][2] * columns


def meet(front: Tensor, back: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """The first ``width`` entries of ``front @ back``, ``(count, p, r)`` and ``(count, r, q)``; into ``out``."""
    needed = -(-width // back.shape[2])
    front = front[:, :needed]
    if out is not None and needed * back.shape[2] == width:
        torch.bmm(front, back, out=out.view(len(out), needed, back.shape[2]))
        return out
    rows = torch.bmm(front, back).flatten(1)[:, :width]
    return rows if out is None else out.copy_(rows)


def traced() -> bool:
    """True under a compiler or an exporter: then no branch may depend on numbers or on their count."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
