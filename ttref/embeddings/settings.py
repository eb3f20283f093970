"""How the rows of a table are compressed, and the header of its file; checked before memory is allocated for either."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_modes, check_rank_or_eps, whole
from ..files import MOST_MODES, check_finite, check_header
from ..rows.frame import Frame
from ..rows.packed import RowLayout
from ..rows.sorting import sorted_rows
from ..rows.store import Group, RowStore
from ..shapes import tt_ranks

_DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_LARGEST = 1 << 40  # no row is wider; products of larger modes would take time to find out
_TYPES = {
    "num_embeddings": (int,),
    "embedding_dim": (int,),
    "shape": (list,),
    "ranks": (list,),
    "dtype": (str,),
    "core_bits": (int,),
    "eps": (int, float, type(None)),
    "by_row": (bool,),
    "padding_idx": (int, type(None)),
    "sparse": (bool,),
    "trainable": (bool,),
}


def row_modes(shape: Sequence[int] | None, width: int) -> tuple[int, ...]:
    """Modes of a row: those given, if they multiply to at least the width, else the fewest twos that do."""
    if shape is None:
        return (2,) * max((width - 1).bit_length(), 1)
    modes = check_modes("shape", shape)
    if len(modes) > MOST_MODES:
        raise ValueError(f"shape has {len(modes)} modes, more than {MOST_MODES}; leave out the ones")
    if math.prod(modes) < width:
        raise ValueError(
            f"shape {modes} multiplies to {math.prod(modes)}, but a row has {width} entries; "
            "give modes that multiply to at least that (what exceeds it is filled with zeros)"
        )
    return modes


class RowSettings(NamedTuple):
    """How rows of one width are compressed: the arguments of :meth:`MPSEmbedding.from_embedding`, checked.

    Attributes:
        shape: Modes of a row.
        width: Entries of a row.
        layout: That of all rows, or None where ranks differ from row to row.
        eps: Error allowed for each row, or None.
        core_bits: 8 or 32.
    """

    shape: tuple[int, ...]
    width: int
    layout: RowLayout | None
    eps: float | None
    core_bits: int

    @classmethod
    def of(
        cls,
        width: int,
        *,
        rank: int | Sequence[int] | None,
        eps: float | None,
        row_ranks: object,
        shape: Sequence[int] | None,
        core_bits: int,
    ) -> RowSettings:
        """The settings for rows of this width; of ``row_ranks`` only whether they are given."""
        given = [name for name, value in (("rank", rank), ("eps", eps), ("row_ranks", row_ranks)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of rank, eps and row_ranks, got {' and '.join(given) or 'none'}")
        if eps is not None:
            check_rank_or_eps(None, eps)
        if core_bits not in (8, 32):
            raise ValueError(f"core_bits must be 32 (cores in the dtype of the table) or 8 (int8), got {core_bits!r}")
        if eps is not None and core_bits == 8:
            raise ValueError(
                "eps does not bound the rounding of int8 cores: give rank or row_ranks, or leave core_bits at 32"
            )
        shape = row_modes(shape, width)
        layout = None if rank is None else RowLayout(shape, rank, width)
        return cls(shape, width, layout, eps, int(core_bits))

    def store(self, frame: Frame, *, sparse: bool = False) -> RowStore:
        """A store without rows."""
        by_row = self.layout is None and self.eps is None
        return RowStore(self.width, self.core_bits, sparse=sparse, frame=frame, eps=self.eps, by_row=by_row)

    def groups(self, rows: Tensor, frame: Frame, caps: list[int] | None = None) -> Iterable[Group]:
        """What a store takes of these rows; ``caps`` if each has its own."""
        return sorted_rows(rows, self.shape, frame, self.layout, self.eps, caps)


def checked(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[torch.dtype, list[RowLayout]]:
    """The dtype of the rows and the layout of each bucket, from a header that is checked against the tensors."""
    check_header(header, _TYPES)
    check_finite(tensors)
    if header["dtype"] not in _DTYPES or header["core_bits"] not in (8, 32):
        raise ValueError(f"rows of {header['dtype']} with cores of {header['core_bits']} bits")
    whole("num_embeddings", header["num_embeddings"], least=1)
    width = whole("embedding_dim", header["embedding_dim"], least=1)
    if header["padding_idx"] is not None:
        whole("padding_idx", header["padding_idx"], least=0)
    if header["eps"] is not None:
        check_rank_or_eps(None, header["eps"])
        if header["by_row"] or header["core_bits"] == 8:
            raise ValueError("its header has eps, which goes neither with row_ranks nor with int8 cores")
    if max((n for n in header["shape"] if isinstance(n, int)), default=0) > _LARGEST:
        raise ValueError("its header has modes that no row has")
    shape = row_modes(header["shape"], width)
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"its header has modes that multiply to more than {_LARGEST}")
    stored = sum(name.startswith(("cores.", "codes.")) for name in tensors)
    most = 1 if header["eps"] is None and not header["by_row"] else 255
    if not 1 <= len(header["ranks"]) == stored <= most:
        raise ValueError(f"its header has {len(header['ranks'])} buckets, and it holds {stored}")
    layouts: list[RowLayout] = []
    for ranks in header["ranks"]:
        # The constructor clips caps that no bond can use, so ranks above those are no table's.
        if not isinstance(ranks, list) or any(type(rank) is not int for rank in ranks):
            raise TypeError(f"its header's ranks are {reprlib.repr(header['ranks'])}")
        if tt_ranks(shape, ranks) != tuple(ranks):
            raise ValueError(f"its header has ranks {reprlib.repr(ranks)}, which its modes cannot have")
        layouts.append(RowLayout(shape, ranks, width))
    if len({layout.ranks for layout in layouts}) < len(layouts):
        raise ValueError("its header has two buckets of the same ranks")
    return _DTYPES[header["dtype"]], layouts
