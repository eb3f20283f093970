"""Rows in buckets of equal ranks, an index that says where each row lies, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..precision import computable
from .frame import AT_ONCE, Frame
from .packed import Held, Piece, RowLayout, RowTrains, by_owner, traced, twin

Group = tuple[RowLayout, Tensor, list[Tensor] | None]  # a layout, the rows that take it, int64, and what is stored
BLOCK = 2048  # rows rebuilt at once to score vectors with them


class RowStore(Held):
    """The rows of a table, each as a train in the bucket of its ranks.

    With one bucket, row i lies at place i. With more, an index holds the bucket (uint8) and the place (int32) of each
    row. Rows that are kept whole are kept as they are, outside of the frame.

    Attributes:
        width, bits, sparse: Entries of a row; 8 for int8 cores or 32; whether gradients are sparse.
        buckets: ``ModuleList`` of :class:`RowTrains`.
        frame: Mean row and axes.
        bucket, place: The index, or None.
        count: How many rows there are.
    """

    def __init__(self, width: int, bits: int, *, sparse: bool, frame: Frame | None = None) -> None:
        super().__init__()
        self.width, self.bits, self.sparse = width, bits, sparse
        self.buckets, self.frame = nn.ModuleList(), frame or Frame()
        self.register_buffer("bucket", None)
        self.register_buffer("place", None)
        self.count = 0

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    def forward(self) -> list[Tensor | None]:
        """The index."""
        return [self.bucket, self.place]

    @torch.no_grad()
    def grown(self, table: Tensor, groups: Iterable[Group], *, trainable: bool = True) -> RowStore:
        """A store of these rows and of more, compressed into the buckets they belong to. This one stays as it is.

        What does not change is shared by both. So whoever holds a store always holds a whole one, whatever happens
        on the way to the next.
        """
        grown, found = list(self.buckets), []
        if grown and self.bits == 32:  # new rows are frozen if the old ones are
            trainable = self.first().requires_grad
        for layout, mine, stored in groups:
            k = next((k for k, trains in enumerate(grown) if trains.layout.ranks == layout.ranks), len(grown))
            if k == len(grown):
                grown.append(RowTrains(layout, self.bits))
            found.append((k, mine, stored or self._compressed(grown[k], table, mine)))
        if len(grown) > 255:
            raise ValueError(f"the rows have {len(grown)} different ranks; at most 255 can be kept apart")
        index = self._grown_index(grown, found, len(table), table.device) if len(grown) > 1 else (None, None)
        for k, _, stored in found:
            grown[k] = grown[k].grown(stored, trainable=trainable)
        longer = twin(self)
        longer.buckets = nn.ModuleList(grown).train(self.training)
        longer.bucket, longer.place = index
        longer.count = self.count + len(table)
        return longer

    def rows(self, ids: Tensor, *, padding: int | None = None, out: Tensor | None = None) -> Tensor:
        """Rows ``(count, width)``, computed in at least float32; into ``out`` where that saves a copy."""
        bucket, place = self.stored()
        if place is None:
            alone = self.frame.empty or self.buckets[0].layout.whole
            rows = self.buckets[0](ids, padding=padding, sparse=self.sparse, out=out if alone else None)
            return rows if alone else self.frame.outer(rows)
        home = None if padding is None else (int(bucket[padding]), int(place[padding]))

        def part(k: int, places: Tensor) -> Tensor:
            where = home[1] if home is not None and home[0] == k else None
            rows = self.buckets[k](places, padding=where, sparse=self.sparse)
            return rows if self.buckets[k].layout.whole else self.frame.outer(rows)

        return by_owner(bucket[ids], place[ids].long(), len(self.buckets), part, every=self.bits == 32)

    def scores(self, hidden: Tensor) -> Tensor:
        """``hidden @ rows^T`` for vectors ``(count, width)``, a block of rows at a time, as they are stored.

        A rotation turns the vectors once instead of every row, and the mean adds one number to each vector.
        """
        turned, shift, (mean, rotation) = hidden, 0.0, self.frame.stored()
        if rotation is not None:
            turned = hidden @ rotation.to(hidden.dtype).mT
        if mean is not None:
            shift = (hidden @ mean.to(hidden.dtype)).unsqueeze(1)
        recorded = torch.is_grad_enabled() and (hidden.requires_grad or self.first().requires_grad) and not traced()
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
        return scores if self.stored()[1] is None else scores.index_select(1, self._slots())

    def tensors(self) -> dict[str, Tensor]:
        """Everything held, by name, the pieces of each bucket in one."""
        names = "frame.mean", "frame.rotation", "bucket", "place"
        named = zip(names, [*self.frame.stored(), *self.stored()], strict=True)
        found = {name: tensor for name, tensor in named if tensor is not None}
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
        self.count = len(self)
        if self.count != rows:
            raise ValueError(f"it holds {self.count} rows, and {rows} are announced")
        if len(layouts) > 1:
            self.bucket, self.place = (take("bucket", (rows,), torch.uint8), take("place", (rows,), torch.int32))
            if not self._whole_index():
                raise ValueError("the index does not name every row once")
        self.frame = Frame(
            take("frame.mean", (self.width,), dtype) if "frame.mean" in tensors else None,
            take("frame.rotation", (self.width, self.width), dtype) if "frame.rotation" in tensors else None,
        )
        if tensors:
            raise ValueError(f"it holds {', '.join(sorted(tensors))} too")

    @torch.no_grad()
    def draw(self, padding: int | None, dtype: torch.dtype) -> None:
        """Put Gaussian rows in place of those there are, which may be no numbers yet, nor may the index be one."""
        if self.first().is_meta:  # no numbers yet: to_empty and another call make them
            return
        for held, of in ((self.frame.mean, torch.zeros), (self.frame.rotation, torch.eye)):
            if held is not None:
                held.copy_(of(self.width))
        if self.place is not None and not self._whole_index():
            sizes = torch.tensor([*map(len, self.buckets)], device=self.place.device)
            self.bucket.copy_(torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes))
            self.place.copy_(torch.cat([torch.arange(len(trains), device=sizes.device) for trains in self.buckets]))
        slot = None if padding is None else padding if self.place is None else int(self._slots()[padding])
        for trains in self.buckets:
            for piece in trains.pieces:
                held = piece.stored()
                here = slot is not None and 0 <= slot < len(piece)
                rows = torch.empty(len(piece), self.width, dtype=dtype, device=held[0].device)
                for old, new in zip(held, trains.compress(gaussian(rows, slot if here else None)), strict=True):
                    old.copy_(new)
                slot = None if slot is None else slot - len(piece)

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
            if not rows.is_meta:
                self._check_range(trains, rows, found, mine[start : start + AT_ONCE])
        return stored

    def _check_range(self, trains: RowTrains, rows: Tensor, stored: list[Tensor], mine: Tensor) -> None:
        """A ValueError that names a row which a look-up could not give back: infinite, or lost below all scales."""
        kind = torch.float32 if self.bits == 8 else rows.dtype
        largest = rows.abs().amax(1)
        doubtful = largest > torch.finfo(kind).max / 16  # below that, no cut and no rounding reaches the end
        if self.bits == 8:
            doubtful |= largest > torch.finfo(rows.dtype).max / 16
            lost = (stored[1] < torch.finfo(torch.float32).tiny) & (stored[0][:, -trains.layout.carrier :] != 0).any(1)
            lost |= (largest > 0) & (largest < torch.finfo(torch.float32).tiny)
            if lost.any():
                row = int(mine[lost.nonzero()[0]])
                raise ValueError(
                    f"row {row} has no entry above {float(largest[lost][0]):.3g}, too small for int8 cores, whose "
                    "scales have the range of float32; scale the table up, or leave core_bits at 32"
                )
        if not doubtful.any():
            return
        packed = Piece([part[doubtful] for part in stored], trains.layout.carrier, trainable=False)
        found = trains.layout.unpack(computable(next(packed.blocks(len(rows)))))
        found = (found if trains.layout.whole else self.frame.outer(found)).to(rows.dtype)
        if not found.isfinite().all():
            wrong = (~found.isfinite().all(1)).nonzero()[0]
            raise ValueError(
                f"row {int(mine[doubtful.nonzero()[wrong]])} has entries up to {float(largest[doubtful][wrong]):.3g}; "
                f"compressed, it leaves the range of {rows.dtype if kind != torch.float32 else kind}; scale the table "
                "down, or keep it in a wider dtype" + " with core_bits=32" * (self.bits == 8)
            )

    def _grown_index(
        self, grown: list[RowTrains], found: list[tuple[int, Tensor, Any]], count: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Bucket and place of the old rows and of ``count`` new ones, before these are adopted."""
        old, (old_bucket, old_place) = self.count, self.stored()
        bucket = torch.zeros(old + count, dtype=torch.uint8, device=device)
        place = torch.arange(old + count, dtype=torch.int32, device=device)
        if old_place is not None:
            bucket[:old], place[:old] = old_bucket, old_place
        for k, mine, _ in found:
            bucket[old + mine] = k
            places = torch.arange(len(grown[k]), len(grown[k]) + len(mine), dtype=torch.int32, device=device)
            place[old + mine] = places
        return bucket, place

    def _whole_index(self) -> bool:
        """Whether the index names every row once."""
        sizes = torch.tensor([*map(len, self.buckets)], device=self.place.device)
        beyond = (self.place < 0) | (self.bucket >= len(sizes))
        beyond |= self.place >= sizes[self.bucket.long().clamp(max=len(sizes) - 1)]
        return not beyond.any() and bool((torch.bincount(self._slots(), minlength=self.count) == 1).all())

    def _slots(self) -> Tensor:
        """Where each row lies when the buckets stand in a line."""
        bucket, place = self.stored()
        starts = torch.tensor([0, *map(len, self.buckets)], device=place.device).cumsum(0)
        return starts[bucket.long()] + place


def gaussian(table: Tensor, padding: int | None) -> Tensor:
    """Rows as those of a new ``nn.Embedding``, drawn in place."""
    table.normal_()
    if padding is not None:
        table[padding] = 0
    return table
