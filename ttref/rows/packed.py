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

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codes import to_codes
from ..precision import computable
from ..shapes import tt_ranks
from ..trains import tt_svd

Module = TypeVar("Module", bound=nn.Module)


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
        self._parts, self.cores = ([], [])  # positions of the cores that make up a stored one
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
        if len(self.cores) == 1 or self.whole:
            rows = packed[:, : self.width]
            return rows if out is None else out.copy_(rows)
        parts = packed.split([math.prod(core) for core in self.cores], dim=1)
        train = [part.unflatten(1, core) for part, core in zip(parts, self.cores, strict=True)]
        front, back = train[0].flatten(1, 2), train[-1].flatten(2)
        count = packed.shape[0]  # not len, which tracing would take for a constant
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


class Held(nn.Module):
    """A module that is read by :meth:`stored`, never by its attributes alone.

    Tools hang what they do to tensors on the call of the module that owns them: pruning masks them in a hook before it,
    offloading loads them there and drops them after it. So where there is such a hook, reading is a call.
    """

    def stored(self) -> list[Tensor | None]:
        """The tensors as torch means them: masked, parametrised, loaded, replicated."""
        return self() if self._forward_pre_hooks or "forward" in self.__dict__ else self.forward()


class Piece(Held):
    """Packed rows that were added together: cores as a parameter, or int8 codes and scales as buffers."""

    def __init__(self, stored: Sequence[Tensor], carrier: int, *, trainable: bool) -> None:
        super().__init__()
        self.carrier, self.coded = carrier, len(stored) > 1
        if self.coded:
            self.register_buffer("codes", stored[0])
            self.register_buffer("scales", stored[1])
        else:
            self.cores = nn.Parameter(stored[0], requires_grad=trainable)
        self._count = len(stored[0])

    def __len__(self) -> int:
        return self._count

    def forward(self) -> list[Tensor]:
        """The tensors."""
        return [self.codes, self.scales] if self.coded else [self.cores]

    def plain(self) -> bool:
        """Whether nothing hangs on these tensors that a copy of their numbers would lose."""
        return not self._forward_pre_hooks and (self.coded or "cores" in self._parameters)

    def take(self, place: Tensor, *, padding: int | None, sparse: bool) -> Tensor:
        """Packed cores ``(count, numbers)`` at ``place``; no gradient reaches row ``padding``."""
        held = self.stored()
        if self.coded:
            return self._decoded(*[tensor[place] for tensor in held])
        return F.embedding(place, held[0], padding_idx=padding, sparse=sparse)

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """All packed cores in order, ``rows`` at a time."""
        for parts in zip(*(tensor.split(rows) for tensor in self.stored()), strict=True):
            yield self._decoded(*parts) if self.coded else parts[0]

    def _decoded(self, codes: Tensor, scales: Tensor) -> Tensor:
        values = codes.to(torch.float32)
        values[:, : -self.carrier].mul_(1 / 127)
        values[:, -self.carrier :].mul_(scales.to(values.dtype).unsqueeze(1))
        return values

    def _apply(self, fn: Callable, recurse: bool = True) -> Piece:
        """Scales keep their dtype when the model changes its own: float16 would lose small ones."""
        scales = self._buffers.get("scales")
        super()._apply(fn, recurse)
        if scales is not None:
            kept = self.scales if scales.is_meta else scales  # from there, no numbers come along
            self.scales = kept.to(self.scales.device, scales.dtype)
        return self


class RowTrains(nn.Module):
    """Rows of one layout, in pieces of falling size: adding rows copies no more than as many old ones, on average."""

    def __init__(self, layout: RowLayout, bits: int) -> None:
        super().__init__()
        self.layout, self.bits = layout, bits
        self.pieces = nn.ModuleList()

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @torch.no_grad()
    def compress(self, rows: Tensor) -> list[Tensor]:
        """What is stored for these rows: packed cores, or int8 codes and one scale for each row."""
        packed = self.layout.pack(rows)
        if self.bits == 32:
            return [packed]
        # Orthogonal cores have entries between -1 and 1 and need no scale; the last stored core carries the norm.
        values = computable(packed)
        codes, scales = to_codes(values[:, -self.layout.carrier :], 8)
        orthogonal = (values[:, : -self.layout.carrier] * 127).round_().clamp_(-127, 127).to(torch.int8)
        return [torch.cat((orthogonal, codes), 1), scales.squeeze(1)]

    def grown(self, stored: Sequence[Tensor], *, trainable: bool) -> RowTrains:
        """These rows and those that :meth:`compress` made, at the end; this one stays as it is."""
        longer = twin(self)
        longer.adopt(stored, trainable=trainable)
        return longer

    def adopt(self, stored: Sequence[Tensor], *, trainable: bool) -> None:
        """Append rows that :meth:`compress` made, at the end."""
        pieces, stored = list(self.pieces), list(stored)
        # Merging only pieces that are no larger than what comes makes every row move at most log2(rows) times.
        while pieces and len(pieces[-1]) <= len(stored[0]) and pieces[-1].plain():
            before = pieces.pop().stored()
            stored = [torch.cat((old.detach(), new)) for old, new in zip(before, stored, strict=True)]
        self.pieces = nn.ModuleList([*pieces, Piece(stored, self.layout.carrier, trainable=trainable)])

    def stored(self) -> list[Tensor]:
        """What is stored, all pieces in one."""
        columns = zip(*(piece.stored() for piece in self.pieces), strict=True)
        return [torch.cat(column) if len(column) > 1 else column[0] for column in columns]

    def forward(
        self, place: Tensor, *, padding: int | None = None, sparse: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Rows ``(count, width)`` at ``place``, computed in at least float32; into ``out``, of that dtype, if given."""
        if len(self.pieces) == 1:
            packed = self.pieces[0].take(place, padding=padding, sparse=sparse)
        else:
            ends = list(itertools.accumulate(map(len, self.pieces)))
            starts = [0, *ends[:-1]]
            owner = torch.zeros_like(place)  # a few comparisons: no table of ends has to be traced or moved
            for end in ends[:-1]:
                owner += place >= end
            local = place
            for size, end in zip(map(len, self.pieces), ends[:-1], strict=False):
                local = local - size * (place >= end)

            def part(k: int, places: Tensor) -> Tensor:
                here = padding is not None and 0 <= padding - starts[k] < len(self.pieces[k])
                return self.pieces[k].take(places, padding=padding - starts[k] if here else None, sparse=sparse)

            packed = by_owner(owner, local, len(self.pieces), part, every=self.bits == 32)
        return self.layout.unpack(computable(packed), out)

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """All packed cores in the order stored, at most ``rows`` at a time."""
        for piece in self.pieces:
            yield from piece.blocks(rows)


def by_owner(
    owner: Tensor, place: Tensor, owners: int, part: Callable[[int, Tensor], Tensor], *, every: bool
) -> Tensor:
    """Gather rows from several owners, in the order of the ids.

    Args:
        owner: Who owns each row, int64 ``(count,)``.
        place: Where its owner has it, likewise.
        owners: How many there are.
        part: ``part(k, places)`` gives rows of owner k.
        every: While gradients are recorded, ask owners of no row as well, for none: their parameters then get a
            gradient of zeros, as in a dense table, and parallel training does not wait for them.
    """
    if traced():  # nothing may depend on how many rows somebody owns: everybody gives as many, and the right one counts
        rows = part(0, torch.where(owner == 0, place, 0))
        for k in range(1, owners):
            mine = owner == k
            rows = torch.where(mine.unsqueeze(1), part(k, torch.where(mine, place, 0)), rows)
        return rows
    found = [(k, (owner == k).nonzero().squeeze(1)) for k in range(owners)]
    asked = [(k, mine) for k, mine in found if len(mine)]
    owning = len(asked)
    if every and torch.is_grad_enabled():
        asked = found
    elif not asked:
        asked = found[:1]
    if len(asked) == 1:
        return part(asked[0][0], place)
    gathered = torch.cat([part(k, place[mine]) for k, mine in asked])
    return gathered if owning < 2 else gathered.index_select(0, torch.cat([mine for _, mine in asked]).argsort())


def traced() -> bool:
    """Whether a compiler or an exporter follows this call: then no branch may depend on numbers or on their count."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def twin(module: Module) -> Module:
    """A module of the same settings and hooks around the same tensors and parts, of which each can be replaced."""
    other = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        other.__dict__[name] = dict(module.__dict__[name])
    return other
