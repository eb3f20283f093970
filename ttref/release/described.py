"""Descriptions of compressed layers in plain JSON, and layers made of them whose numbers are still to come.

A description is the header of the layer's file, with the modes and ranks that a file's tensors tell by themselves. So a
model can be put together on the meta device, and its numbers read straight into place::

    layer --describe--> {"kind": "TTLinear", "modes": [[4, 8], [4, 8]], "ranks": [1, 3, 1], ...} --build--> layer
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..approximation import FLOATS
from ..conv import TTConv2d
from ..embeddings.head import ScaledTable, TiedHead
from ..embeddings.mps import MPSEmbedding
from ..embeddings.ttm import TTMEmbedding
from ..layers import TTLinear
from ..ttmatrix import TTMatrix
from .makers import MAKERS, Spec, allocated, kind_in

__all__ = ["build", "describe"]


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
    if type(layer) not in _DESCRIBERS:
        raise TypeError(
            f"a {type(layer).__name__} cannot be described, only {', '.join(kind.__name__ for kind in _DESCRIBERS)}"
        )
    if isinstance(layer, TiedHead):
        if look_up is None:
            raise ValueError("a TiedHead is described with the name of its look-up: look_up=name")
        spec = _of_head(layer, look_up)
    else:
        spec = _DESCRIBERS[type(layer)](layer)
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
    if (kind := kind_in(spec)) not in MAKERS:
        said = spec.get("kind") if isinstance(spec, Mapping) else None
        raise ValueError(f"{reprlib.repr(said)} is no kind of compressed layer; known are {', '.join(MAKERS)}")
    if dtype is not None and dtype not in FLOATS.values():
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    settings = {name: value for name, value in spec.items() if name != "kind"}
    try:
        made = MAKERS[kind](settings, dtype, *([table] if kind == "TiedHead" else []))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"no {kind} is like that: {str(text).replace('its header', 'its description')}") from error
    return made if torch.device(device).type == "meta" else allocated(made, device)


def _sizes(layer: nn.Module) -> dict[str, tuple]:
    """Shape and dtype of every tensor in a layer's state."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()}


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


_DESCRIBERS: dict[type[nn.Module], Callable[..., dict[str, Any]]] = {
    TTLinear: _of_matrix,
    TTConv2d: _of_conv,
    MPSEmbedding: _of_rows,
    TTMEmbedding: _of_matrix,
    ScaledTable: _of_scaled,
    TiedHead: _of_head,
}
