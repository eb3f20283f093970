"""What an index keeps: shared cores, grid, codes, scales and ids; its counts, and its tensors in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..files import MOST_MODES, check_finite
from .grid import STEPS, Grid
from .inputs import LARGEST_ID, to_ids
from .scanning import longest
from .shared import SharedCores

METRICS = ("cosine", "inner_product")


@dataclass(frozen=True, eq=False)
class Stored:
    """Everything that is stored, never changed in place: an index replaces it in one step.

    Attributes:
        shared: The cores that all documents share.
        grid: Ranges and bits of the codes.
        codes, scales: The documents, as :meth:`Grid.encode` gives them.
        ids: int64 or int32 ``(n,)``; None if they are 0, 1, ..., n - 1, which takes no bytes.
        next_id: The next id that the index would choose; one that was removed does not come back.
        shape: Of a document as it came, ``(width,)`` or ``(views, dim)``.
        metric: That of the fit: what is stored was divided by its norm, or was not.
    """

    shared: SharedCores
    grid: Grid
    codes: Tensor
    scales: Tensor
    ids: Tensor | None
    next_id: int
    shape: tuple[int, ...]
    metric: str

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.codes)

    @cached_property
    def reach(self) -> float:
        """The largest norm of a document as the scan sees it, found once, O(n r)."""
        return longest(self.grid, self.codes, self.scales)

    def all_ids(self) -> Tensor:
        """The id of each document, int64 ``(n,)``."""
        return torch.arange(self.count) if self.ids is None else self.ids.long()

    def with_documents(self, x: Tensor, ids: Tensor | None) -> tuple[Stored, Tensor]:
        """The same with documents ``(m, width)`` at the end, and their ids. Codes of the old ones are copied."""
        if ids is None:
            if self.next_id + len(x) - 1 > LARGEST_ID:
                raise ValueError(f"there are no ids after {self.next_id - 1} for {len(x)} more documents; give ids")
            ids = torch.arange(self.next_id, self.next_id + len(x))
        old = self.all_ids()
        known = torch.isin(ids, old)
        if known.any():
            raise ValueError(
                f"ids has {int(ids[known][0])}, which the index holds already; remove([{int(ids[known][0])}]) first, "
                "or leave ids out for new ones"
            )
        codes, scales = self.grid.encode(self.shared.projected(x))
        grown = replace(
            self,
            codes=torch.cat((self.codes, codes)),
            scales=torch.cat((self.scales, scales)),
            ids=narrow_ids(torch.cat((old, ids))),
            next_id=max(self.next_id, int(ids.max()) + 1),
        )
        return grown, ids

    def without(self, ids: Tensor) -> Stored:
        """The same without these documents.

        Raises:
            KeyError: An id that is not there.
        """
        old = self.all_ids()
        missing = ids[~torch.isin(ids, old)]
        if len(missing):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise KeyError(f"the index has no document {int(missing[0])}{more}; nothing was removed")
        kept = ~torch.isin(old, ids)
        scales = self.scales if self.grid.bits == 32 else self.scales[kept.to(self.scales.device)]
        codes = self.codes[kept.to(self.codes.device)]
        return replace(self, codes=codes, scales=scales, ids=narrow_ids(old[kept]))

    def documents(self) -> Tensor:
        """The documents that the codes stand for, float32 ``(n, width)``."""
        return self.shared.rebuilt(self.grid.decode(self.codes, self.scales))

    def tensors(self) -> dict[str, Tensor]:
        """All that is stored, by name."""
        held = {"mean": self.shared.mean, "codes": self.codes}
        held |= {f"cores.{k}": core for k, core in enumerate(self.shared.cores)}
        held |= {f"core_scales.{k}": scale for k, scale in enumerate(self.shared.scales)}
        if self.grid.bits != 32:
            held |= {"scales": self.scales, "ranges": self.grid.ranges, "unit": self.grid.unit}
        if self.ids is not None:
            held["ids"] = self.ids
        return held

    @property
    def params(self) -> int:
        """Numbers stored: coordinates, whatever their bits, scales, ids, and the shared tables."""
        packed = self.codes.numel()
        return sum(x.numel() for x in self.tensors().values()) - packed + self.count * self.shared.rank

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def header(self) -> dict[str, Any]:
        """What a file says beside the tensors."""
        return {"bits": self.grid.bits, "metric": self.metric, "next_id": self.next_id, "shape": list(self.shape)}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], *, bits: int, metric: str, next_id: int, shape: list[int]) -> Stored:
        """What :meth:`tensors` and :meth:`header` say, checked."""
        check_finite(tensors)
        held = dict(tensors)
        shared = _shared(held)
        if metric not in METRICS:
            raise ValueError(f"its metric is {metric}")
        axes = [type(size) for size in shape]
        if axes not in ([int], [int] * 2) or min(shape) < 1 or math.prod(shape) != shared.width:
            raise ValueError(f"documents of shape {shape} beside cores for a width of {shared.width}")
        if bits not in (*STEPS, 32):
            raise ValueError(f"its codes have {bits} bits")
        codes, r, alike = held.pop("codes"), shared.rank, metric == "cosine"
        if bits == 32:
            grid = Grid(32, torch.ones(r), torch.ones(()), alike)
            scales, wanted = torch.empty(0, dtype=torch.float16), torch.float32
        else:
            grid, scales = Grid(bits, held.pop("ranges"), held.pop("unit"), alike), held.pop("scales")
            wanted = torch.int8 if bits == 8 else torch.uint8
            for name, x, dtype, size in (
                ("ranges", grid.ranges, torch.float32, (r,)),
                ("unit", grid.unit, torch.float32, ()),
                ("scales", scales, torch.float16, (len(codes),)),
            ):
                if x.dtype != dtype or x.shape != size:
                    raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}, not {dtype} {size}")
                if (x < 0).any() or (name != "scales" and (x == 0).any()):  # a zero document has a scale of 0
                    raise ValueError(f"{name} has entries that are not positive")
        if codes.dtype != wanted or codes.ndim != 2 or codes.shape[1] != grid.bytes_each:
            raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)} of {bits} bits for rank {r}")
        ids = held.pop("ids", None)
        if ids is not None:
            ids = narrow_ids(to_ids(ids, len(codes)))
        if held:
            raise ValueError(f"it holds {', '.join(held)} too")
        made = cls(shared, grid, codes, scales, ids, next_id, tuple(shape), metric)
        if not 0 <= next_id <= LARGEST_ID + 1 or (made.count and next_id <= int(made.all_ids().max())):
            raise ValueError(f"the next id is {next_id}, which is taken or none")
        return made


def narrow_ids(ids: Tensor) -> Tensor | None:
    """None for 0, 1, ..., n - 1; int32 where that holds them."""
    if torch.equal(ids, torch.arange(len(ids))):
        return None
    return ids.int() if int(ids.max()) <= torch.iinfo(torch.int32).max else ids


def _shared(held: dict[str, Tensor]) -> SharedCores:
    """The shared cores, taken out of the tensors and checked: shapes that chain, dtypes that belong together."""
    mean = held.pop("mean")
    count = sum(name.startswith("cores.") for name in held)
    if not 1 <= count <= MOST_MODES:
        raise ValueError(f"it holds {count} shared cores")
    cores = tuple(held.pop(f"cores.{k}") for k in range(count))
    scales = tuple(held.pop(f"core_scales.{k}") for k in range(count)) if "core_scales.0" in held else ()
    right = len(cores[0])
    for k, core in enumerate(cores):
        if core.ndim != 3 or core.dtype != (torch.int8 if scales else torch.float32) or core.shape[0] != right:
            raise ValueError(f"cores.{k} is {core.dtype} {tuple(core.shape)} behind a bond of {right}")
        if scales and (scales[k].dtype != torch.bfloat16 or scales[k].shape != (right, 1, 1)):
            raise ValueError(f"core_scales.{k} is {scales[k].dtype} {tuple(scales[k].shape)}")
        if (scales and (scales[k] < 0).any()) or not (core.bool() & (scales[k] != 0) if scales else core != 0).any():
            raise ValueError(f"cores.{k} is zero, or has negative scales")
        right = core.shape[2]
    width = math.prod(core.shape[1] for core in cores)
    if right != 1 or mean.dtype != torch.float32 or mean.shape != (width,) or not len(cores[0]):
        raise ValueError(f"mean is {mean.dtype} {tuple(mean.shape)} beside cores for a width of {width}")
    return SharedCores(mean, cores, scales)
