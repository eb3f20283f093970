"""Many short vectors as tensor trains of equal ranks, packed row by row: what :class:`MPSEmbedding` keeps its rows in.

Two facts make rows smaller and faster than the ten cores of a binary train, without changing what they stand for.
A bond that is as large as its side can fill truncates nothing, and the cores beyond it are slices of the identity, the
same for every row: they are not stored. And two neighbouring cores of mode 2 between equal ranks hold as many numbers
as their product, so the product is stored. What remains of a row at rank 4 over ten binary modes::

    4 x [2] - [2] - [2] - [2] - [2] - [2] x 4        six cores of 4 x 2 x 4
    4 x [ 4 ] - [ 4 ] - [ 4 ] x 4                    three of 4 x 4 x 4, 192 numbers

The free index at either end runs over the modes that the identity stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rounding import to_codes
from ..shapes import tt_ranks
from ..trains import tt_svd
from ..truncation import computable
from .frame import AT_ONCE, Frame


class RowLayout:
    """Which cores of a train with these modes and ranks are stored, and where they lie in a packed row.

    Attributes:
        shape, ranks: Modes and ranks of the whole train.
        width: Entries of a row; modes that multiply to more mean zeros behind it.
        cores: Stored cores ``(left, n, right)``, neighbours merged; the first left and the last right index are free.
        whole: Whether nothing is cut: then the row itself is stored, without the zeros.
        numbers: Numbers stored for one row, ``carrier`` of them in the last core, which carries the norm.
    """

    def __init__(self, shape: Sequence[int], rank: int | Sequence[int], width: int) -> None:
        self.shape, self.ranks, self.width = tuple(shape), tt_ranks(shape, rank), width
        # Bonds that a side fills by itself, counted from either end; the core that carries the norm is always stored.
        last = len(self.shape) - 1
        while last and self.ranks[last] == math.prod(self.shape[last:]):
            last -= 1
        first = 0
        while first < last and self.ranks[first + 1] == math.prod(self.shape[: first + 1]):
            first += 1
        self.whole = first == last
        self._parts, self.cores = [], []  # positions of the cores that make up a stored one
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
        self.numbers = width if self.whole else sum(math.prod(core) for core in self.cores)
        self.carrier = width if self.whole else math.prod(self.cores[-1])
        self._half = 0 if self.whole else min(range(1, max(len(self.cores), 2)), key=self._macs)

    @torch.no_grad()
    def pack(self, rows: Tensor) -> Tensor:
        """TT-SVD of rows ``(count, width)``; the stored cores as one matrix ``(count, numbers)``."""
        if self.whole:
            return rows.clone()
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
        if len(self.cores) == 1 or self.whole:
            rows = packed[:, : self.width]
            return rows if out is None else out.copy_(rows)
        parts = packed.split([math.prod(core) for core in self.cores], dim=1)
        train = [part.unflatten(1, core) for part, core in zip(parts, self.cores, strict=True)]
        front, back = train[0].flatten(1, 2), train[-1].flatten(2)
        for core in train[1 : self._half]:
            front = torch.bmm(front, core.flatten(2)).view(len(packed), -1, core.shape[3])
        for core in reversed(train[self._half : -1]):
            back = torch.bmm(core.flatten(1, 2), back).view(len(packed), core.shape[1], -1)
        return meet(front, back, self.width, out)

    def _macs(self, half: int) -> int:
        """Multiply-adds of one row when the two ends meet before stored core ``half``."""
        total, rows, columns = 0, math.prod(self.cores[0][:2]), math.prod(self.cores[-1][1:])
        for left, n, right in self.cores[1:half]:
            total, rows = total + rows * left * n * right, rows * n
        for left, n, right in reversed(self.cores[half:-1]):
            total, columns = total + left * n * right * columns, columns * n
        return total + rows * self.cores[half - 1][2] * columns


def meet(front: Tensor, back: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """The first ``width`` entries of ``front @ back``, ``(count, p, r)`` and ``(count, r, q)``."""
    needed = -(-width // back.shape[2])
    front = front[:, :needed]
    if out is not None and needed * back.shape[2] == width:
        torch.bmm(front, back, out=out.view(len(out), needed, -1))
        return out
    rows = torch.bmm(front, back).flatten(1)[:, :width]
    return rows if out is None else out.copy_(rows)


class RowTrains(nn.Module):
    """Rows of one layout, with int8 cores or cores in the dtype of the rows.

    New rows are kept in pieces of their own, so that adding some copies little; pieces of like size are merged.
    """

    def __init__(self, layout: RowLayout, bits: int, *, sparse: bool = False, trainable: bool = True) -> None:
        super().__init__()
        self.layout, self.bits, self.sparse, self.trainable = layout, bits, sparse, trainable
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return sum(self.sizes)

    @torch.no_grad()
    def compress(self, table: Tensor, mine: Tensor, frame: Frame) -> list[Tensor]:
        """What is stored for the rows ``mine`` of a table: packed cores, or int8 codes and one scale for each row."""
        parts = []
        for part in mine.split(AT_ONCE):
            rows = table[part]
            parts.append(self._compress(rows if self.layout.whole else frame.inner(rows).to(rows.dtype)))
        return [torch.cat(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)]

    def _compress(self, rows: Tensor) -> list[Tensor]:
        packed = self.layout.pack(rows)
        if self.bits == 32:
            return [packed]
        # Orthogonal cores have entries between -1 and 1 and need no scale; the last stored core carries the norm.
        values = computable(packed)
        codes, scales = to_codes(values[:, -self.layout.carrier :], 8)
        orthogonal = (values[:, : -self.layout.carrier] * 127).round_().clamp_(-127, 127).to(torch.int8)
        return [torch.cat((orthogonal, codes), 1), scales.squeeze(1)]

    def adopt(self, stored: Sequence[Tensor]) -> None:
        """Append rows that :meth:`compress` made, at the end."""
        stored = list(stored)
        self.sizes.append(len(stored[0]))
        # Merging only pieces that are no larger than what comes makes every row move at most log2(rows) times.
        while len(self.sizes) > 1 and self.sizes[-2] <= self.sizes[-1]:
            before = self._pop(len(self.sizes) - 2)
            stored = [torch.cat(pair) for pair in zip(before, stored, strict=True)]
            self.sizes[-2:] = [len(stored[0])]
        self._push(len(self.sizes) - 1, stored)

    def _push(self, piece: int, stored: Sequence[Tensor]) -> None:
        if self.bits == 32:
            self.register_parameter(f"cores{piece}", nn.Parameter(stored[0], requires_grad=self.trainable))
        else:
            self.register_buffer(f"codes{piece}", stored[0])
            self.register_buffer(f"scales{piece}", stored[1])

    def _pop(self, piece: int) -> list[Tensor]:
        stored = self.piece(piece)
        for name in self._names(piece):
            delattr(self, name)
        return [tensor.detach() for tensor in stored]

    def piece(self, piece: int) -> list[Tensor]:
        """What is stored of one piece."""
        return [getattr(self, name) for name in self._names(piece)]

    def _names(self, piece: int) -> list[str]:
        return [f"cores{piece}"] if self.bits == 32 else [f"codes{piece}", f"scales{piece}"]

    def _apply(self, fn: Callable, recurse: bool = True) -> RowTrains:
        """Scales keep their dtype when the model changes its own: float16 would lose small ones."""
        scales = {name: value for name, value in self._buffers.items() if name.startswith("scales")}
        super()._apply(fn, recurse)
        for name, value in scales.items():
            self._buffers[name] = value.to(self._buffers[name].device)
        return self

    def stored(self) -> list[Tensor]:
        """What is stored, all pieces in one."""
        pieces = [self.piece(k) for k in range(len(self.sizes))]
        return [torch.cat(column) if len(pieces) > 1 else column[0] for column in zip(*pieces, strict=True)]

    def packed(self, place: Tensor, padding: int | None = None) -> Tensor:
        """Packed cores ``(count, numbers)`` of rows at ``place``; no gradient reaches row ``padding``."""
        if len(self.sizes) == 1:
            return self._packed(0, place, padding)
        ends = torch.tensor(self.sizes, device=place.device).cumsum(0)
        starts = [int(end) - size for end, size in zip(ends, self.sizes, strict=True)]

        def part(k: int, mine: Tensor) -> Tensor:
            here = padding is not None and 0 <= padding - starts[k] < self.sizes[k]
            return self._packed(k, place[mine] - starts[k], padding - starts[k] if here else None)

        return by_owner(torch.bucketize(place, ends, right=True), len(self.sizes), part)

    def _packed(self, piece: int, place: Tensor, padding: int | None) -> Tensor:
        stored = self.piece(piece)
        if self.bits == 32:
            return F.embedding(place, stored[0], padding_idx=padding, sparse=self.sparse)
        values = stored[0][place].to(torch.float32)
        values[:, : -self.layout.carrier].mul_(1 / 127)
        values[:, -self.layout.carrier :].mul_(stored[1][place].to(values.dtype).unsqueeze(1))
        return values

    def forward(self, place: Tensor, padding: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows ``(count, width)`` at ``place``, computed in at least float32; into ``out``, of that dtype, if given."""
        return self.layout.unpack(computable(self.packed(place, padding)), out)


def by_owner(owner: Tensor, owners: int, part: Callable[[int, Tensor], Tensor], dim: int = 0) -> Tensor:
    """What lies in several places, in order along ``dim``: ``part(k, mine)`` gives what k owns, at ``mine``."""
    found = [(k, (owner == k).nonzero().squeeze(1)) for k in range(owners)]
    found = [(k, mine) for k, mine in found if len(mine)]
    if len(found) == 1:
        return part(*found[0])
    gathered = torch.cat([part(k, mine) for k, mine in found], dim)
    return gathered.index_select(dim, torch.cat([mine for _, mine in found]).argsort())
