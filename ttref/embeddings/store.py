"""Rows in buckets of equal ranks, an index that says where each row lies, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..precision import computable
from .frame import AT_ONCE, Frame
from .rows import RowLayout, RowTrains, by_owner

Group = tuple[RowLayout, Tensor]  # a layout, and the rows that take it, int64
BLOCK = 2048  # rows rebuilt at once to score vectors with them


class RowStore(nn.Module):
    """The rows of a table, each as a train in the bucket of its ranks.

    With one bucket, row i lies at place i. With more, an index holds the bucket (uint8) and the place (int32) of each
    row. Rows that are kept whole are kept as they are, outside of the frame.

    Attributes:
        width, bits, sparse: Entries of a row; 8 for int8 cores or 32; whether gradients are sparse.
        buckets: ``ModuleList`` of :class:`RowTrains`.
        frame: Mean row and axes.
        bucket, place: The index, or None.
    """

    def __init__(self, width: int, bits: int, *, sparse: bool, frame: Frame | None = None) -> None:
        super().__init__()
        self.width, self.bits, self.sparse = width, bits, sparse
        self.buckets, self.frame = nn.ModuleList(), frame or Frame()
        self.register_buffer("bucket", None)
        self.register_buffer("place", None)

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @torch.no_grad()
    def add(self, table: Tensor, groups: Iterable[Group], *, trainable: bool = True) -> None:
        """Compress rows into the buckets they belong to. Nothing changes before all of them are compressed."""
        grown, found = list(self.buckets), []
        if grown and self.bits == 32:  # new rows are frozen if the old ones are
            trainable = next(grown[0].parameters()).requires_grad
        for layout, mine in groups:
            k = next((k for k, trains in enumerate(grown) if trains.layout.ranks == layout.ranks), len(grown))
            if k == len(grown):
                grown.append(RowTrains(layout, self.bits))
            found.append((k, mine, self._compressed(grown[k], table, mine)))
        if len(grown) > 255:
            raise ValueError(f"the rows have {len(grown)} different ranks; at most 255 can be kept apart")
        index = self._grown_index(grown, found, len(table), table.device) if len(grown) > 1 else (None, None)
        for k, _, stored in found:
            grown[k].adopt(stored, trainable=trainable)
        self.buckets = nn.ModuleList(grown)
        self.bucket, self.place = index

    def rows(self, ids: Tensor, *, padding: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows ``(count, width)``, computed in at least float32; into ``out`` where that saves a copy."""
        if self.place is None:
            alone = self.frame.empty or self.buckets[0].layout.whole
            rows = self.buckets[0](ids, padding=padding, sparse=self.sparse, out=out if alone else None)
            return rows if alone else self.frame.outer(rows)
        owner, place = self.bucket[ids], self.place[ids].long()
        home = None if padding is None else (int(self.bucket[padding]), int(self.place[padding]))

        def part(k: int, mine: Tensor) -> Tensor:
            where = home[1] if home is not None and home[0] == k else None
            rows = self.buckets[k](place[mine], padding=where, sparse=self.sparse)
            return rows if self.buckets[k].layout.whole else self.frame.outer(rows)

        return by_owner(owner, len(self.buckets), part)

    def scores(self, hidden: Tensor) -> Tensor:
        """``hidden @ rows^T`` for vectors ``(count, width)``, a block of rows at a time, as they are stored.

        A rotation turns the vectors once instead of every row, and the mean adds one number to each vector.
        """
        turned, shift = hidden, 0.0
        if self.frame.rotation is not None:
            turned = hidden @ self.frame.rotation.to(hidden.dtype).mT
        if self.frame.mean is not None:
            shift = (hidden @ self.frame.mean.to(hidden.dtype)).unsqueeze(1)
        recorded = torch.is_grad_enabled() and (hidden.requires_grad or any(p.requires_grad for p in self.parameters()))
        parts = []
        for trains in self.buckets:
            vectors, offset = (hidden, 0.0) if trains.layout.whole else (turned, shift)
            for packed in trains.blocks(BLOCK):

                def block(vectors: Tensor, packed: Tensor, layout: RowLayout = trains.layout) -> Tensor:
                    return vectors @ layout.unpack(computable(packed)).to(vectors.dtype).mT

                # A block's rows are forgotten, and rebuilt in the backward pass.
                keep = checkpoint if recorded else lambda function, *of, **_: function(*of)
                scores = keep(block, vectors, packed, use_reentrant=False, preserve_rng_state=False)
                parts.append(scores + offset)
        scores = torch.cat(parts, dim=1)
        return scores if self.place is None else scores.index_select(1, self._slots())

    def tensors(self) -> dict[str, Tensor]:
        """Everything held, by name, the pieces of each bucket in one."""
        found = {f"frame.{name}": tensor for name, tensor in self.frame.state_dict().items()}
        if self.place is not None:
            found |= {"bucket": self.bucket, "place": self.place}
        for k, trains in enumerate(self.buckets):
            names = ("cores",) if self.bits == 32 else ("codes", "scales")
            found |= {f"{name}.{k}": x.detach() for name, x in zip(names, trains.stored(), strict=True)}
        return found

    def restore(self, tensors: dict[str, Tensor], layouts: list[RowLayout], rows: int, dtype: torch.dtype) -> None:
        """Take :meth:`tensors` back; a ValueError or KeyError where they do not fit each other."""

        def take(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            tensor = tensors.pop(name)
            if tensor.shape != shape or tensor.dtype != kind:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {kind} {shape}")
            return tensor

        for k, layout in enumerate(layouts):
            name, kind = ("cores", dtype) if self.bits == 32 else ("codes", torch.int8)
            if not (count := len(tensors[f"{name}.{k}"])):
                raise ValueError(f"{name}.{k} has no rows")
            stored = [take(f"{name}.{k}", (count, layout.numbers), kind)]
            if self.bits == 8:
                stored.append(take(f"scales.{k}", (count,), torch.bfloat16))
            trains = RowTrains(layout, self.bits)
            trains.adopt(stored, trainable=True)
            self.buckets.append(trains)
        if len(self) != rows:
            raise ValueError(f"it holds {len(self)} rows, and {rows} are announced")
        if len(layouts) > 1:
            self.bucket, self.place = (take("bucket", (rows,), torch.uint8), take("place", (rows,), torch.int32))
            sizes = torch.tensor([*map(len, self.buckets)], device=self.place.device)
            beyond = (self.place < 0) | (self.bucket >= len(sizes))
            beyond |= self.place >= sizes[self.bucket.long().clamp(max=len(sizes) - 1)]
            if beyond.any() or (torch.bincount(self._slots(), minlength=rows) != 1).any():
                raise ValueError("the index does not name every row once")
        self.frame = Frame(
            take("frame.mean", (self.width,), dtype) if "frame.mean" in tensors else None,
            take("frame.rotation", (self.width, self.width), dtype) if "frame.rotation" in tensors else None,
        )
        if tensors:
            raise ValueError(f"it holds {', '.join(sorted(tensors))} too")

    def first(self) -> Tensor:
        """Some stored cores or codes: they know dtype and device."""
        return self.buckets[0].pieces[0].stored()[0]

    def _compressed(self, trains: RowTrains, table: Tensor, mine: Tensor) -> list[Tensor]:
        """A few rows at a time, written where they stay."""
        stored: list[Tensor] = []
        for start in range(0, len(mine), AT_ONCE):
            rows = table[mine[start : start + AT_ONCE]]
            found = trains.compress(rows if trains.layout.whole else self.frame.inner(rows).to(rows.dtype))
            stored = stored or [x.new_empty(len(mine), *x.shape[1:]) for x in found]
            for whole, part in zip(stored, found, strict=True):
                whole[start : start + AT_ONCE] = part
        return stored

    def _grown_index(
        self, grown: list[RowTrains], found: list[tuple[int, Tensor, Any]], count: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Bucket and place of the old rows and of ``count`` new ones, before these are adopted."""
        old = len(self)
        bucket = torch.zeros(old + count, dtype=torch.uint8, device=device)
        place = torch.arange(old + count, dtype=torch.int32, device=device)
        if self.place is not None:
            bucket[:old], place[:old] = self.bucket, self.place
        for k, mine, _ in found:
            bucket[old + mine] = k
            places = torch.arange(len(grown[k]), len(grown[k]) + len(mine), dtype=torch.int32, device=device)
            place[old + mine] = places
        return bucket, place

    def _slots(self) -> Tensor:
        """Where each row lies when the buckets stand in a line."""
        starts = torch.tensor([0, *map(len, self.buckets)], device=self.place.device).cumsum(0)
        return starts[self.bucket.long()] + self.place
