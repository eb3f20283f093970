"""Descriptions of compressed layers in plain JSON, and layers made of them whose numbers are still to come.

A description is the header of the layer's file, with the modes and ranks that a file's tensors tell by themselves. So a
model can be put together on the meta device, and its numbers read straight into place::

    layer --describe--> {"kind": "TTLinear", "modes": [[4, 8], [4, 8]], "ranks": [1, 3, 1], ...} --build--> layer
"""

from __future__ import annotations

import json
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

__all__ = ["build", "describe"]

MOST_NUMBERS = 1 << 40  # of one tensor: a description may claim any sizes
Spec = Mapping[str, Any]
_TRAIN = {"modes": (list,), "ranks": (list,), "dtype": (str,)}
_CONV = {"core_bits": (int,), "groups": (list,)}
_STATE = {"pieces": (list,), "mean": (bool,), "rotation": (bool,)}
_HEAD = {"look_up": (str,), "rows": (int, type(None)), "bias": (bool, type(None)), "dtype": (str, type(None))}
_SCALED = {"table": (dict,), "scale": (int, float), "dtype": (str, type(None))}


def describe(layer: nn.Module, look_up: str | None = None) -> dict[str, Any]:
    """The description of a compressed layer, from which :func:`build` makes one like it, without its numbers.

    Args:
        layer: A :class:`TTLinear` (the factors of an SVD are one of two cores), :class:`TTConv2d` with cores of floats
            or of integers, :class:`MPSEmbedding`, :class:`TTMEmbedding`, one of these in a scaled look-up, or a
            :class:`TiedHead`.
        look_up: For a :class:`TiedHead`, the name of the look-up whose table it scores with.

    Returns:
        Plain JSON. ``kind`` names the class; the other entries are what a file of the layer has in its header, and
        ``modes`` and ``ranks``, or for rows ``pieces``: the number of rows in each piece of each bucket.

    Raises:
        TypeError: Another class, subclasses included, because nothing would say what they do.
        ValueError: A layer whose numbers are computed from others (pruned, parametrized); a head without ``look_up``.

    Cost:
        O(number of tensors); integer cores are packed once.

    Example:
        >>> described = describe(TTLinear((4, 8), (4, 4), rank=3))
        >>> described["kind"], described["modes"], described["ranks"], described["bias"]
        ('TTLinear', [[4, 4], [4, 8]], [1, 3, 1], True)
    """
    if type(layer) not in _KINDS:
        raise TypeError(
            f"a {type(layer).__name__} cannot be described, only {', '.join(kind.__name__ for kind in _KINDS)}"
        )
    if isinstance(layer, TiedHead):
        if look_up is None:
            raise ValueError("a TiedHead is described with the name of its look-up: look_up=name")
        spec = _of_head(layer, look_up)
    else:
        spec = _KINDS[type(layer)][0](layer)
    spec = json.loads(json.dumps({"kind": type(layer).__name__, **spec}))  # lists for tuples, as they are read back
    if _sizes(layer) != _sizes(build(spec, table=layer.table if isinstance(layer, TiedHead) else None)):
        raise ValueError(
            f"this {type(layer).__name__} holds other tensors than its settings tell (pruned or parametrized?); make "
            "that permanent first, with torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
        )
    return spec


def build(
    spec: Spec,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
    *,
    table: nn.Module | None = None,
) -> nn.Module:
    """The layer of a description, with parameters and buffers of the right names, shapes and dtypes, and any values.

    Args:
        spec: What :func:`describe` returned.
        device: The meta device, which takes no memory whatever the description claims, or another.
        dtype: Of the numbers; left out, the dtype that the layer had. Codes, indices and the scales of rows keep
            theirs.
        table: For a head, the look-up whose table it scores with.

    Returns:
        The layer, in training mode. ``load_state_dict(state, assign=True)`` gives it its numbers. What is no part of a
        state, such as the factor of a scaled look-up, is set.

    Raises:
        ValueError: Another kind, or settings that contradict each other or that no layer has: the message names them.

    Cost:
        O(number of tensors) on the meta device.

    Example:
        >>> layer = TTLinear((4, 8), (4, 4), rank=3)
        >>> made = build(describe(layer))
        >>> _ = made.load_state_dict(layer.state_dict(), assign=True)
        >>> torch.equal(made.weight, layer.weight)
        True
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    makers = {known.__name__: maker for known, (_, maker) in _KINDS.items()}
    if not isinstance(kind, str) or kind not in makers:
        raise ValueError(f"{reprlib.repr(kind)} is no kind of compressed layer; known are {', '.join(makers)}")
    if dtype is not None and dtype not in FLOATS.values():
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    settings = {name: value for name, value in spec.items() if name != "kind"}
    try:
        made = _head(settings, dtype, table) if kind == "TiedHead" else makers[kind](settings, dtype)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"no {kind} is like that: {str(text).replace('its header', 'its description')}") from error
    return made if torch.device(device).type == "meta" else _allocated(made, device)


def _sizes(layer: nn.Module) -> dict[str, tuple]:
    """Shape and dtype of every tensor in a layer's state."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()}


def _allocated(made: nn.Module, device: torch.device | str) -> nn.Module:
    scale = getattr(made, "embed_scale", None)
    made.to_empty(device=device)
    if isinstance(scale, Tensor):
        made.embed_scale.copy_(scale)
    return made


def _of_matrix(layer: TTMatrix) -> dict[str, Any]:
    """Modes, ranks, and the header of the layer's file."""
    header = layer._content()[1]
    header.pop("shapes", None)  # the same as modes and ranks
    return header | {"modes": layer.modes, "ranks": layer.ranks, "dtype": str(layer.dtype)[6:]}


def _of_conv(layer: TTConv2d) -> dict[str, Any]:
    groups = [] if layer.core_bits == 32 else [part.scales.shape[1] for part in layer.cores.parts()]
    return _of_matrix(layer) | {"groups": groups}


def _of_rows(table: MPSEmbedding) -> dict[str, Any]:
    frame = table.store.frame
    return table._content()[1] | {
        "pieces": [[len(piece) for piece in bucket.pieces] for bucket in table.store.buckets],
        "mean": frame.mean is not None,
        "rotation": frame.rotation is not None,
    }


def _of_head(head: TiedHead, look_up: str) -> dict[str, Any]:
    if (bias := head.bias) is None:
        return {"look_up": look_up, "rows": None, "bias": None, "dtype": None}
    return {"look_up": look_up, "rows": len(bias), "bias": bias.requires_grad, "dtype": str(bias.dtype)[6:]}


def _of_scaled(look_up: ScaledTable) -> dict[str, Any]:
    scale = look_up.embed_scale
    dtype = str(scale.dtype)[6:] if isinstance(scale, Tensor) else None
    return {"table": describe(look_up.table), "scale": float(scale), "dtype": dtype}


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
    return ScaledTable(build(settings["table"], dtype=dtype), scale)


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


# How each class is described, and made of a description; a head needs more than itself.
_KINDS: dict[type[nn.Module], tuple[Callable[..., Any], Callable[..., Any]]] = {
    TTLinear: (_of_matrix, lambda settings, dtype: _matrix(TTLinear, settings, dtype)),
    TTConv2d: (_of_conv, _conv),
    MPSEmbedding: (_of_rows, _rows),
    TTMEmbedding: (_of_matrix, lambda settings, dtype: _matrix(TTMEmbedding, settings, dtype)),
    ScaledTable: (_of_scaled, _scaled),
    TiedHead: (_of_head, _head),
}
