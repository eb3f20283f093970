"""What a description of a compressed layer says, checked, and made a layer on the meta device."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..approximation import FLOATS
from ..checks import check_real, whole
from ..conv import TTConv2d
from ..embeddings.head import ScaledTable, TiedHead
from ..embeddings.mps import MPSEmbedding
from ..embeddings.row_table import padding_of
from ..embeddings.settings import checked
from ..embeddings.ttm import TTMEmbedding
from ..files import MOST_MODES, check_header
from ..integer_cores import IntegerCore, IntegerCores
from ..layers import TTLinear
from ..rows.store import RowStore
from ..ttmatrix import TTMatrix

MOST_NUMBERS = 1 << 40  # of one tensor: a description may claim any sizes
Spec = Mapping[str, Any]
_TRAIN = {"modes": (list,), "ranks": (list,), "dtype": (str,)}
_CONV = {"core_bits": (int,), "groups": (list,)}
_STATE = {"pieces": (list,), "mean": (bool,), "rotation": (bool,)}
_HEAD = {"look_up": (str,), "rows": (int, type(None)), "bias": (bool, type(None)), "dtype": (str, type(None))}
_SCALED = {"table": (dict,), "scale": (int, float), "dtype": (str, type(None))}


def allocated(made: nn.Module, device: torch.device | str) -> nn.Module:
    """The layer with room for its numbers on a device."""
    scale = getattr(made, "embed_scale", None)
    made.to_empty(device=device)
    if isinstance(scale, Tensor):
        made.embed_scale.copy_(scale)
    return made


def kind_in(spec: Any) -> str | None:
    """What a description says that it is; :func:`build` refuses what is no kind."""
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    return kind if isinstance(kind, str) else None


def _matrix(kind: type[TTMatrix], settings: Spec, dtype: torch.dtype | None) -> Any:
    """A :class:`TTLinear` or a :class:`TTMEmbedding`."""
    biased = getattr(kind, "_BIAS", {})
    check_header(settings, kind._SETTINGS | kind._OPTIONS | biased | _TRAIN)
    shapes, dtype = _shapes(settings), dtype or FLOATS[settings["dtype"]]
    cores = [_empty(shape, dtype) for shape in shapes]
    more = {name: settings[name] for name in kind._SETTINGS}
    if settings.get("padding_idx") is not None:
        whole("padding_idx", settings["padding_idx"], least=0)
    if biased:
        more["bias"] = None if settings["bias"] is None else _empty((more["out_features"],), dtype)
    return kind.from_cores(cores, **more)._configured(settings)


def _conv(settings: Spec, dtype: torch.dtype | None) -> TTConv2d:
    kind = TTConv2d
    check_header(settings, kind._SETTINGS | kind._OPTIONS | kind._BIAS | _TRAIN | _CONV)
    shapes, dtype = _shapes(settings), dtype or FLOATS[settings["dtype"]]
    bits, groups = settings["core_bits"], settings["groups"]
    if not (1 <= bits <= 8 or bits == 32) or len(groups) != (0 if bits == 32 else len(shapes)):
        raise ValueError(f"it has cores of {bits} bits, and scales in {reprlib.repr(groups)} groups")
    bias = None if settings["bias"] is None else _empty((math.prod(shape[1] for shape in shapes),), dtype)
    more = {name: settings[name] for name in kind._SETTINGS}
    made = kind.from_cores([_empty(shape, dtype) for shape in shapes], bias, **more)
    if bits < 32:
        cores = []
        for (r, m, n, q), count in zip(shapes, groups, strict=True):
            if r * n * q % whole("groups", count, least=1):
                raise ValueError(f"{count} groups do not divide the {r * n * q} columns of a core")
            cores.append(IntegerCore(_empty((r, m, n, q), torch.int8), _empty((m, count), dtype)))
        made.cores, made.core_bits = IntegerCores(cores, dtype), bits
    return made._configured(settings)


def _rows(settings: Spec, dtype: torch.dtype | None) -> MPSEmbedding:
    lacking = [name for name, types in _STATE.items() if type(settings.get(name)) not in types]
    if lacking:
        raise ValueError(f"its {lacking[0]} is {reprlib.repr(settings.get(lacking[0]))}")
    header = {name: value for name, value in settings.items() if name not in _STATE}
    coded, pieces = header.get("core_bits") == 8, settings["pieces"]
    none = torch.empty(0, device="cpu")
    written, layouts = checked(header, {f"cores.{k}": none for k in range(len(pieces))})  # a file has tensors there
    dtype, rows, width = dtype or written, header["num_embeddings"], header["embedding_dim"]
    held: dict[str, Tensor] = {}
    for k, (layout, counts) in enumerate(zip(layouts, pieces, strict=True)):
        if not isinstance(counts, list) or not 1 <= len(counts) <= MOST_MODES:
            raise ValueError(f"the pieces of bucket {k} are {reprlib.repr(counts)}")
        for j, count in enumerate(counts):
            inside, count = f"buckets.{k}.pieces.{j}", whole("pieces", count, least=1)
            packed = _empty((count, layout.numbers), torch.int8 if coded else dtype)
            held[f"{inside}.codes" if coded else f"{inside}.cores"] = packed
            if coded:
                held[f"{inside}.scales"] = _empty((count,), torch.bfloat16)
    if len(layouts) > 1:
        held |= {"bucket": _empty((rows,), torch.uint8), "place": _empty((rows,), torch.int32)}
    if settings["mean"]:
        held["frame.mean"] = _empty((width,), dtype)
    if settings["rotation"]:
        held["frame.rotation"] = _empty((width, width), dtype)
    store = RowStore(width, header["core_bits"], **{name: header[name] for name in ("sparse", "eps", "by_row")})
    made = MPSEmbedding.__new__(MPSEmbedding)
    store.filled(held, layouts, rows, dtype, header["trainable"])
    made._start(layouts[0].shape, store, dtype, padding_of(header["padding_idx"], rows))
    made._like = torch.empty(0, dtype=dtype, device="cpu")  # no part of a state, which would bring it off meta
    return made


def _head(settings: Spec, dtype: torch.dtype | None, table: nn.Module | None) -> TiedHead:
    check_header(settings, _HEAD)
    if table is None:
        raise ValueError(f"it scores with the table of {settings['look_up']}, which is to be given: table=")
    made = TiedHead(table.table if isinstance(table, ScaledTable) else table)
    if settings["bias"] is not None:
        if whole("rows", settings["rows"], least=1) > made.out_features:
            raise ValueError(f"its bias has {settings['rows']} entries, and its table {made.out_features} rows")
        empty = _empty((settings["rows"],), dtype or FLOATS[settings["dtype"]])
        made.bias = nn.Parameter(empty, requires_grad=settings["bias"])
    return made


def _scaled(settings: Spec, dtype: torch.dtype | None) -> ScaledTable:
    check_header(settings, _SCALED)
    check_real("scale", scale := settings["scale"])
    if not math.isfinite(scale):
        raise ValueError(f"its scale is {scale}")
    if settings["table"].get("kind") not in ("MPSEmbedding", "TTMEmbedding"):
        raise ValueError(f"its table is a {reprlib.repr(settings['table'].get('kind'))}")
    if settings["dtype"] is not None:
        scale = torch.full((), scale, dtype=FLOATS[settings["dtype"]], device="cpu")
    table = {name: value for name, value in settings["table"].items() if name != "kind"}
    return ScaledTable(MAKERS[settings["table"]["kind"]](table, dtype), scale)


def _shapes(settings: Spec) -> list[tuple[int, int, int, int]]:
    """Shapes ``(r_{k-1}, m_k, n_k, r_k)`` of the cores."""
    modes, ranks = settings["modes"], settings["ranks"]
    if not 1 <= len(modes) <= MOST_MODES or len(ranks) != len(modes) + 1:
        raise ValueError(f"it has {len(modes)} modes and {len(ranks)} ranks")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in modes):
        raise ValueError(f"its modes are {reprlib.repr(modes)}, no pairs")
    sizes = [*ranks, *(size for pair in modes for size in pair)]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"its modes are {reprlib.repr(modes)} and its ranks {reprlib.repr(ranks)}")
    return [(r, m, n, q) for r, (m, n), q in zip(ranks[:-1], modes, ranks[1:], strict=True)]


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the meta device; more numbers than a layer can have are refused."""
    if math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"it has a tensor of {reprlib.repr(list(shape))} numbers")
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


# From kinds to what makes a layer of settings and dtype; a head needs its table too.
MAKERS: dict[str, Callable[..., Any]] = {
    "TTLinear": functools.partial(_matrix, TTLinear),
    "TTConv2d": _conv,
    "MPSEmbedding": _rows,
    "TTMEmbedding": functools.partial(_matrix, TTMEmbedding),
    "ScaledTable": _scaled,
    "TiedHead": _head,
}
