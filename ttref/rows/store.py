"""Rows in buckets of equal ranks, an index with bucket and place of each row, and the frame of all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..precision import computable
from .buckets import Bucket, Held, PackedRows, combine, dispatch, shallow_copy
from .frame import AT_ONCE, Frame
from .packed import RowLayout, traced

Group = tuple[RowLayout, Tensor, list[Tensor] | None]  # a layout, indices of its rows, int64, their packed cores
BLOCK = 2048  # rows rebuilt at once to score vectors with them


class RowStore(Held):
    """The rows of a table, each as a train in the bucket of its ranks.

    With one bucket, row i is at place i. With more, an index holds the bucket (uint8) and the place (int32) of each
    row. A dense row, whose ranks truncate nothing, is stored as it is: without subtracting the mean, not rotated.

    Attributes:
        width, bits, sparse: Entries of a row; 8 for int8 cores or 32; True for sparse gradients.
        eps, by_row: How new rows are compressed: the bound on their error or None; True if each has a cap of its own.
        buckets: ``ModuleList`` of :class:`Bucket`.
        frame: Mean row and axes.
        bucket, place: The index, or None.
        count: Number of rows.
    """

    def __init__(
        self,
        width: int,
        bits: int,
        *,
        sparse: bool,
        frame: Frame | None = None,
        eps: float | None = None,
        by_row: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.bits, self.sparse, self.eps, self.by_row = width, bits, sparse, eps, by_row
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
        """A store of these rows and of more, compressed into the buckets of their ranks. This one stays as it is.

        Both share the pieces that do not change, so an error on the way leaves this store complete.
        """
        grown, found = list(self.buckets), []
        if grown and self.bits == 32:  # new rows are frozen if the old ones are
            trainable = self.first().requires_grad
        for layout, mine, packed in groups:
            k = next((k for k, bucket in enumerate(grown) if bucket.layout.ranks == layout.ranks), len(grown))
            if k == len(grown):
                grown.append(Bucket(layout, self.bits))
            found.append((k, mine, packed or self._compressed(grown[k], table, mine)))
        if len(grown) > 255:
            raise ValueError(f"the rows have {len(grown)} different ranks; at most 255 can be kept apart")
        index = self._grown_index(grown, found, len(table), table.device) if len(grown) > 1 else (None, None)
        for k, _, packed in found:
            grown[k] = grown[k].grown(packed, trainable=trainable)
        longer = shallow_copy(self)
        longer.buckets = nn.ModuleList(grown).train(self.training)
        longer.bucket, longer.place = index
        longer.count = self.count + len(table)
        return longer

    def rows(self, ids: Tensor, part: slice, out: Tensor | None, *, padding: int | None, dtype: torch.dtype) -> Tensor:
        """Rows of ``ids[part]`` in ``dtype``, into ``out`` if given; row ``padding`` gets no gradient."""
        ids, (bucket, place) = ids[part], self.tensors()
        stopped = padding if traced() else None  # no branch may depend on the numbers of a traced index
        padding = None if traced() else padding
        exact = dtype in (torch.float32, torch.float64) and (self.bits == 32 or dtype == torch.float32)
        shares, home = [(0, ids, None)], 0
        if place is not None:
            if padding is not None:
                home, padding = int(bucket[padding]), int(place[padding])
            shares = dispatch(bucket[ids], place[ids].long(), len(self.buckets), every=self.bits == 32)
        found = []
        for k, places, _ in shares:
            alone = self.frame.empty or self.buckets[k].layout.dense
            into = out if alone and exact and len(shares) == 1 else None
            here = padding if k == home else None
            rows = self.buckets[k].rows(places, padding=here, sparse=self.sparse, out=into)
            found.append(rows if alone else self.frame.outer(rows))
        rows = combine(found, shares)
        if stopped is not None:
            rows = torch.where((ids == stopped).unsqueeze(1), rows.detach(), rows)
        return rows.to(dtype) if out is None else rows if rows is out else out.copy_(rows)

    def scores(self, hidden: Tensor) -> Tensor:
        """``hidden @ rows^T`` for vectors ``(count, width)``, rebuilt a block of rows at a time.

        A rotation is applied once to the vectors instead of to every row, and the mean adds one number to each vector.
        """
        turned, shift, (mean, rotation) = hidden, 0.0, self.frame.tensors()
        if rotation is not None:
            turned = hidden @ rotation.to(hidden.dtype).mT
        if mean is not None:
            shift = (hidden @ mean.to(hidden.dtype)).unsqueeze(1)
        recorded = torch.is_grad_enabled() and (hidden.requires_grad or self.first().requires_grad) and not traced()
        parts = []
        for bucket in self.buckets:
            vectors, offset = (hidden, 0.0) if bucket.layout.dense else (turned, shift)
            for packed in bucket.blocks(BLOCK):

                def block(vectors: Tensor, packed: Tensor, layout: RowLayout = bucket.layout) -> Tensor:
                    return vectors @ layout.unpack(computable(packed)).to(vectors.dtype).mT

                # Rows are not kept for the backward pass, but rebuilt in it.
                keep = checkpoint if recorded else lambda function, *of, **_: function(*of)
                scores = keep(block, vectors, packed, use_reentrant=False, preserve_rng_state=False)
                parts.append(scores + offset)
        scores = torch.cat(parts, dim=1)
        bucket, place = self.tensors()
        return scores if place is None else scores.index_select(1, self._slots(bucket, place))

    def named(self) -> dict[str, Tensor]:
        """All tensors by their names in a file, the pieces of each bucket concatenated."""
        names = "frame.mean", "frame.rotation", "bucket", "place"
        named = zip(names, [*self.frame.tensors(), *self.tensors()], strict=True)
        found = {name: tensor for name, tensor in named if tensor is not None}
        for k, bucket in enumerate(self.buckets):
            names = ("cores",) if self.bits == 32 else ("codes", "scales")
            found |= {f"{name}.{k}": x.detach() for name, x in zip(names, bucket.merged(), strict=True)}
        return found

    def filled(
        self, held: dict[str, Tensor], layouts: Sequence[RowLayout], rows: int, dtype: torch.dtype, trainable: bool
    ) -> RowStore:
        """Fill this empty store with tensors by their names in a state; ValueError if they do not fit."""

        def take(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            tensor = held.pop(name)
            if tensor.shape != shape or tensor.dtype != kind:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {kind} {shape}")
            return tensor

        name, kind = ("cores", dtype) if self.bits == 32 else ("codes", torch.int8)
        for k, layout in enumerate(layouts):
            pieces, inside = [], f"buckets.{k}.pieces.{{}}.{{}}".format
            while (first := inside(len(pieces), name)) in held or not pieces:
                count = len(held[first])
                packed = [take(first, (count, layout.numbers), kind)]
                if self.bits == 8:
                    packed.append(take(inside(len(pieces), "scales"), (count,), torch.bfloat16))
                pieces.append(PackedRows(packed, trainable=trainable))
            self.buckets.append(Bucket(layout, self.bits, pieces))
            if not len(self.buckets[k]):
                raise ValueError(f"bucket {k} has no rows")
        self.count = len(self)
        if self.count != rows:
            raise ValueError(f"it holds {self.count} rows, and {rows} are announced")
        if len(layouts) > 1:
            self.bucket, self.place = (take("bucket", (rows,), torch.uint8), take("place", (rows,), torch.int32))
            if not (self.place.is_meta or self.names_every_row_once(self.bucket, self.place)):
                raise ValueError("the index does not name every row once")
        self.frame = Frame(
            take("frame.mean", (self.width,), dtype) if "frame.mean" in held else None,
            take("frame.rotation", (self.width, self.width), dtype) if "frame.rotation" in held else None,
        )
        if held:
            raise ValueError(f"it holds {', '.join(sorted(held))} too")
        return self

    @torch.no_grad()
    def draw(self, padding: int | None, dtype: torch.dtype) -> None:
        """Replace all rows by Gaussian ones, in place; also the index, if ``to_empty`` has left it without numbers."""
        if self.first().is_meta:  # no numbers yet: to_empty and another call make them
            return
        for held, of in ((self.frame.mean, torch.zeros), (self.frame.rotation, torch.eye)):
            if held is not None:
                held.copy_(of(self.width))
        if self.place is not None and not self.names_every_row_once(self.bucket, self.place):
            sizes = torch.tensor([*map(len, self.buckets)], device=self.place.device)
            self.bucket.copy_(torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes))
            self.place.copy_(torch.cat([torch.arange(len(bucket), device=sizes.device) for bucket in self.buckets]))
        slot = padding
        if padding is not None and self.place is not None:
            slot = int(self._slots(self.bucket, self.place)[padding])
        for bucket in self.buckets:
            for piece in bucket.pieces:
                held = piece.tensors()
                here = slot is not None and 0 <= slot < len(piece)
                rows = torch.empty(len(piece), self.width, dtype=dtype, device=held[0].device)
                for old, new in zip(held, bucket.compress(gaussian(rows, slot if here else None)), strict=True):
                    old.copy_(new)
                slot = None if slot is None else slot - len(piece)

    def first(self) -> Tensor:
        """Cores or codes of the first piece, for their dtype and device."""
        return self.buckets[0].pieces[0].tensors()[0]

    def _compressed(self, bucket: Bucket, table: Tensor, mine: Tensor) -> list[Tensor]:
        """Rows ``mine`` of the table, packed by :meth:`Bucket.compress` in blocks."""
        packed: list[Tensor] = []
        for start in range(0, len(mine), AT_ONCE):
            rows = table[mine[start : start + AT_ONCE]]
            found = bucket.compress(rows if bucket.layout.dense else self.frame.inner(rows).to(rows.dtype))
            packed = packed or [x.new_empty(len(mine), *x.shape[1:]) for x in found]
            for target, part in zip(packed, found, strict=True):
                target[start : start + AT_ONCE] = part
            if not rows.is_meta:
                self._check_range(bucket, rows, found, mine[start : start + AT_ONCE])
        return packed

    def _check_range(self, bucket: Bucket, rows: Tensor, packed: list[Tensor], mine: Tensor) -> None:
        """ValueError with the id of a row that a look-up would rebuild as infinite, or that underflows its scale."""
        kind = torch.float32 if self.bits == 8 else rows.dtype
        largest = rows.abs().amax(1)
        doubtful = largest > torch.finfo(kind).max / 16  # below that, truncation and rounding cannot overflow
        if self.bits == 8:
            doubtful |= largest > torch.finfo(rows.dtype).max / 16
            lost = packed[1] < torch.finfo(torch.float32).tiny
            lost &= (packed[0][:, -bucket.layout.last_size :] != 0).any(1)
            lost |= (largest > 0) & (largest < torch.finfo(torch.float32).tiny)
            if lost.any():
                row = int(mine[lost.nonzero()[0]])
                raise ValueError(
                    f"row {row} has no entry above {float(largest[lost][0]):.3g}, too small for int8 cores, whose "
                    "scales have the range of float32; scale the table up, or leave core_bits at 32"
                )
        if not doubtful.any():
            return
        found = bucket.restored([part[doubtful] for part in packed])
        found = (found if bucket.layout.dense else self.frame.outer(found)).to(rows.dtype)
        if not found.isfinite().all():
            wrong = (~found.isfinite().all(1)).nonzero()[0]
            raise ValueError(
                f"row {int(mine[doubtful.nonzero()[wrong]])} has entries up to {float(largest[doubtful][wrong]):.3g}; "
                f"compressed, it leaves the range of {rows.dtype if kind != torch.float32 else kind}; scale the table "
                "down, or keep it in a wider dtype" + " with core_bits=32" * (self.bits == 8)
            )

    def _grown_index(
        self, grown: list[Bucket], found: list[tuple[int, Tensor, list[Tensor]]], count: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Bucket and place of the old rows and of ``count`` new ones, before the buckets are extended."""
        old, (old_bucket, old_place) = self.count, self.tensors()
        bucket = torch.zeros(old + count, dtype=torch.uint8, device=device)
        place = torch.arange(old + count, dtype=torch.int32, device=device)
        if old_place is not None:
            bucket[:old], place[:old] = old_bucket, old_place
        for k, mine, _ in found:
            bucket[old + mine] = k
            places = torch.arange(len(grown[k]), len(grown[k]) + len(mine), dtype=torch.int32, device=device)
            place[old + mine] = places
        return bucket, place

    def names_every_row_once(self, bucket: Tensor, place: Tensor) -> bool:
        """True if the index maps the rows one to one to the places of all buckets."""
        sizes = torch.tensor([*map(len, self.buckets)], device=place.device)
        beyond = (place < 0) | (bucket >= len(sizes))
        beyond |= place >= sizes[bucket.long().clamp(max=len(sizes) - 1)]
        return not beyond.any() and bool((torch.bincount(self._slots(bucket, place), minlength=len(self)) == 1).all())

    def _slots(self, bucket: Tensor, place: Tensor) -> Tensor:
        """Row index in the concatenation of all buckets."""
        starts = torch.tensor([0, *map(len, self.buckets)], device=place.device).cumsum(0)
        return starts[bucket.long()] + place


def gaussian(table: Tensor, padding: int | None) -> Tensor:
    """Draw rows in place, as a new ``nn.Embedding``: Gaussian, zeros at ``padding``."""
    table.normal_()
    if padding is not None:
        table[padding] = 0
    return table
