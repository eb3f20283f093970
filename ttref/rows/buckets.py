"""Buckets of packed rows with equal ranks, and how a look-up is distributed to several of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codes import to_codes
from ..precision import computable
from .packed import RowLayout, traced

Module = TypeVar("Module", bound=nn.Module)
Share = tuple[int, Tensor, Tensor | None]  # an owner, row indices in it, and the mask or positions of their ids


class Held(nn.Module):
    """A module whose tensors are read by :meth:`tensors`, never by its attributes alone.

    Pruning computes tensors in a hook before the call of the module that owns them, offloading loads them there and
    drops them afterwards. So a module with such a hook is called to read it.
    """

    def tensors(self) -> list[Tensor | None]:
        """The current tensors: masked, parametrized, loaded, replicated."""
        return self() if self._forward_pre_hooks or "forward" in self.__dict__ else self.forward()


class PackedRows(Held):
    """Packed rows of one addition or several merged ones: cores as a parameter, or int8 codes and scales as buffers."""

    def __init__(self, packed: Sequence[Tensor], *, trainable: bool) -> None:
        super().__init__()
        self.coded = len(packed) > 1
        if self.coded:
            self.register_buffer("codes", packed[0])
            self.register_buffer("scales", packed[1])
        else:
            self.cores = nn.Parameter(packed[0], requires_grad=trainable)
        self._count = len(packed[0])

    def __len__(self) -> int:
        return self._count

    def forward(self) -> list[Tensor]:
        """Cores, or codes and scales."""
        return [self.codes, self.scales] if self.coded else [self.cores]

    def plain(self) -> bool:
        """True if the tensors are neither masked, parametrized nor offloaded, so that a copy loses nothing."""
        return not self._forward_pre_hooks and (self.coded or "cores" in self._parameters)

    def _apply(self, fn: Callable, recurse: bool = True) -> PackedRows:
        """As in ``nn.Module``, but scales keep their dtype: float16 would lose small ones."""
        scales = self._buffers.get("scales")
        super()._apply(fn, recurse)
        if scales is not None:
            kept = self.scales if scales.is_meta else scales  # a meta tensor has no numbers to move
            self.scales = kept.to(self.scales.device, scales.dtype)
        return self


class Bucket(nn.Module):
    """Rows with equal ranks, in pieces that are merged like a binary counter: O(log rows) copies of each row."""

    def __init__(self, layout: RowLayout, bits: int, pieces: Sequence[PackedRows] = ()) -> None:
        super().__init__()
        self.layout, self.bits, self.pieces = layout, bits, nn.ModuleList(pieces)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @torch.no_grad()
    def compress(self, rows: Tensor) -> list[Tensor]:
        """Packed cores of these rows, or int8 codes and one scale for each row."""
        packed = self.layout.pack(rows)
        if self.bits == 32:
            return [packed]
        # Orthogonal cores have entries between -1 and 1 and need no scale; the last stored core carries the norm.
        values = computable(packed)
        codes, scales = to_codes(values[:, -self.layout.last_size :], 8)
        orthogonal = (values[:, : -self.layout.last_size] * 127).round_().clamp_(-127, 127).to(torch.int8)
        return [torch.cat((orthogonal, codes), 1), scales.squeeze(1)]

    def grown(self, packed: Sequence[Tensor], *, trainable: bool) -> Bucket:
        """A bucket of these rows and, behind them, of those that :meth:`compress` packed; this one stays as it is."""
        pieces, packed = list(self.pieces), list(packed)
        # Merging only pieces that are no larger than what comes makes every row move at most log2(rows) times.
        while pieces and len(pieces[-1]) <= len(packed[0]) and pieces[-1].plain():
            before = pieces.pop().tensors()
            packed = [torch.cat((old.detach(), new)) for old, new in zip(before, packed, strict=True)]
        longer = shallow_copy(self)
        longer.pieces = nn.ModuleList([*pieces, PackedRows(packed, trainable=trainable)])
        return longer

    def merged(self) -> list[Tensor]:
        """Cores, or codes and scales, of all pieces in one."""
        columns = zip(*(piece.tensors() for piece in self.pieces), strict=True)
        return [torch.cat(column) if len(column) > 1 else column[0] for column in columns]

    def rows(
        self, place: Tensor, *, padding: int | None = None, sparse: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Rows ``(count, width)`` at indices ``place``, in at least float32; row ``padding`` gets no gradient."""
        shares, starts = [(0, place, None)], [0]
        if len(self.pieces) > 1:
            starts += list(itertools.accumulate(map(len, self.pieces)))[:-1]
            owner, local = torch.zeros_like(place), place
            for piece, end in zip(self.pieces, starts[1:], strict=False):  # a tensor of ends would have to be traced
                owner, local = owner + (place >= end), local - len(piece) * (place >= end)
            shares = dispatch(owner, local, len(self.pieces), every=self.bits == 32)
        packed = []
        for k, places, _ in shares:
            held = self.pieces[k].tensors()
            if self.bits == 8:
                packed.append(self._decoded(held[0][places], held[1][places]))
                continue
            mine = padding is not None and 0 <= padding - starts[k] < len(self.pieces[k])
            row = padding - starts[k] if mine else None
            packed.append(F.embedding(places, held[0], padding_idx=row, sparse=sparse))
        return self.layout.unpack(computable(combine(packed, shares)), out)

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """All packed cores in storage order, in blocks of at most ``rows`` rows."""
        for piece in self.pieces:
            for parts in zip(*(tensor.split(rows) for tensor in piece.tensors()), strict=True):
                yield self._decoded(*parts) if self.bits == 8 else parts[0]

    def restored(self, packed: Sequence[Tensor]) -> Tensor:
        """Rows from what :meth:`compress` made of them."""
        return self.layout.unpack(self._decoded(*packed) if self.bits == 8 else computable(packed[0]))

    def _decoded(self, codes: Tensor, scales: Tensor) -> Tensor:
        values, last = codes.to(torch.float32), self.layout.last_size
        values[:, :-last].mul_(1 / 127)
        values[:, -last:].mul_(scales.to(values.dtype).unsqueeze(1))
        return values


def dispatch(owner: Tensor, place: Tensor, count: int, *, every: bool) -> list[Share]:
    """Distribute ids to the owners of their rows.

    Args:
        owner: Owner of the row of each id, int64 ``(ids,)``.
        place: Index of the row within its owner, likewise.
        count: Number of owners.
        every: With gradients, give an owner without rows an empty share: its parameters then get a gradient of zeros,
            as in a dense table, and parallel training does not wait for it.

    Returns:
        Shares for :func:`combine`.
    """
    if traced():  # no shape may depend on the number of rows of an owner: each owner gives all rows, masked
        return [(k, torch.where(owner == k, place, 0), owner == k) for k in range(count)]
    found = [(k, (owner == k).nonzero().squeeze(1)) for k in range(count)]
    asked = found if every and torch.is_grad_enabled() else [share for share in found if len(share[1])] or found[:1]
    if len(asked) == 1:
        return [(asked[0][0], place, None)]
    return [(k, place[mine], mine) for k, mine in asked]


def combine(rows: Sequence[Tensor], shares: Sequence[Share]) -> Tensor:
    """Gather the rows of all shares, in the order of the ids."""
    if len(rows) == 1:
        return rows[0]
    if traced():
        found = rows[0]
        for more, (_, _, mine) in zip(rows[1:], shares[1:], strict=True):
            found = torch.where(mine.unsqueeze(1), more, found)
        return found
    return torch.cat(list(rows)).index_select(0, torch.cat([mine for _, _, mine in shares]).argsort())


def shallow_copy(module: Module) -> Module:
    """A copy that shares settings, hooks, tensors and submodules, each of which can be replaced in the copy alone."""
    other = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        other.__dict__[name] = dict(module.__dict__[name])
    return other
