"""The order of hidden units and of heads is free: another one lets trains fit better, and changes no output."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..checks import check_input, whole
from ..linears import conv1d_of
from ..precision import computable, full_precision
from .edit import edit
from .ties import check_unshared
from .wrappers import bare_modules, named

__all__ = ["order_units"]


@full_precision
@torch.no_grad()
def order_units(
    model: nn.Module,
    writers: str | Iterable[str],
    reader: str,
    *,
    blocks: int | None = None,
    by: str | Tensor = "nearest",
) -> Tensor:
    """Put the hidden units between layers into another order, without changing what the model computes.

    The units are the outputs of the ``writers`` and the inputs of the ``reader``; what lies between must treat all of
    them alike, as activation functions and attention over heads do. Rows and biases of the writers and columns of the
    reader are moved, in place. Truncated SVD does not care about the order; a train does, because the modes fold it::

        feed-forward     order_units(model, "layer.0.intermediate.dense", "layer.0.output.dense")
        gated            order_units(model, ["gate_proj", "up_proj"], "down_proj")
        attention        order_units(model, ["query", "key", "value"], "output.dense", blocks=heads)

    Args:
        model: The model, changed in place.
        writers: Names of one or more ``nn.Linear``, ``Conv1D`` or ``nn.MultiheadAttention`` (its fused matrix), each
            naming one module. A layer with k times as many rows as its share writes k equal parts one behind another,
            as GPT-2's fused query, key and value. Unequal parts, as of a fused layer with fewer heads of keys than of
            queries, cannot be told from its shape: take such a layer apart first, or the outputs change.
        reader: Name of the ``nn.Linear`` or ``Conv1D`` that reads them.
        blocks: How many blocks are moved as wholes: heads, or groups of heads that share keys and values. Left out,
            every unit.
        by: ``"nearest"``: a chain that begins with the largest unit and goes on to the nearest one that is left;
            ``"norm"``: by the norm of all weights of a unit; or an order ``(blocks,)``, the old place of each new one.

    Returns:
        The order, int64 ``(blocks,)``: ``by=order.argsort()`` takes it back, to the bit.

    Raises:
        TypeError: A layer of another kind, an order that is no integer tensor.
        ValueError: No such module or several; widths that do not fit each other or the blocks; an order that is no
            permutation; tied weights, which would change elsewhere. The model is then as it was.

    Gain:
        Little. In MiniLM's feed-forward layers 0 and 3, four times smaller with three balanced modes, "nearest" lowers
        the relative error of TT-SVD from 0.83 to 0.77 and 0.78 in the first matrix, from 0.82 and 0.83 to 0.80 in the
        second. Truncated SVD, which needs no order, is at 0.65 and 0.70, 0.72 and 0.69. Fitted cores gain less: in
        layer 0 the error of held-out outputs falls from 0.390 to 0.367, and from 0.1345 to 0.1329.

    Cost:
        O(blocks^2) steps and O(blocks^2) numbers for "nearest": half a second for 1,536 units.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(5, 8)
        >>> before = model(x)
        >>> order = order_units(model, "0", "2")
        >>> torch.allclose(model(x), before, atol=1e-6), sorted(order.tolist()) == list(range(32))
        (True, True)
    """
    there = bare_modules(model, remove_duplicate=False)
    listed = [writers] if isinstance(writers, str) else list(writers)
    if not listed:
        raise ValueError("writers is empty; name the layers whose outputs are to be put into another order")
    names = [named(model, name, one=True)[0] for name in (*listed, reader)]
    if len(set(names)) < len(names):
        raise ValueError(f"a layer is named twice: {', '.join(names)}")
    reading = _reading(names[-1], there[names[-1]])
    width = reading[0].shape[reading[1]]
    blocks = width if blocks is None else whole("blocks", blocks, least=1)
    if width % blocks:
        raise ValueError(f"{blocks} blocks do not divide the {width} inputs of {names[-1]}")
    moved = [(*part, _parts(name, part, width, blocks)) for name in names[:-1] for part in _writing(name, there[name])]
    moved.append((*reading, 1))
    used = {name: list(there[name]._parameters.values()) for name in names}
    check_unshared(there, used)
    order = _checked(by, blocks) if isinstance(by, Tensor) else _order(by, blocks, moved)
    with edit(model) as change:
        for tensor, axis, parts in moved:
            pieces = tensor.unflatten(axis, (parts, blocks, -1))
            change.fill(tensor, pieces.index_select(axis + 1, order.to(tensor.device)).flatten(axis, axis + 2))
    return order


def _parameter(name: str, layer: nn.Module, leaf: str) -> Tensor:
    tensor = layer._parameters.get(leaf)
    if tensor is None:
        raise TypeError(
            f"{name} is a {type(layer).__name__} without a plain {leaf} (compressed, parametrized or pruned); "
            "order the units of the dense layers first"
        )
    return tensor


def _writing(name: str, layer: nn.Module) -> list[tuple[Tensor, int]]:
    """The tensors of a layer along one axis of which its outputs lie, with that axis."""
    if isinstance(layer, nn.MultiheadAttention):
        if layer.bias_k is not None:
            raise TypeError(f"{name} adds a key and a value of its own (add_bias_kv), which is not handled")
        own = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
        return [(layer._parameters[leaf], 0) for leaf in own if layer._parameters.get(leaf) is not None]
    weight, axis = _reading(name, layer)
    return [(weight, 1 - axis), *([(layer.bias, 0)] if layer.bias is not None else [])]


def _reading(name: str, layer: nn.Module) -> tuple[Tensor, int]:
    """The weight of a layer and the axis along which its inputs lie."""
    if not isinstance(layer, nn.Linear) and not conv1d_of(layer) and "cores" not in layer._modules:
        raise TypeError(f"{name} must be an nn.Linear or Conv1D, got {type(layer).__name__}")
    return _parameter(name, layer, "weight"), 0 if conv1d_of(layer) else 1


def _parts(name: str, part: tuple[Tensor, int], width: int, blocks: int) -> int:
    """How many times all blocks lie in a tensor one behind another."""
    rows = part[0].shape[part[1]]
    parts = max(1, rows // width)
    if (rows > width and rows % width) or rows % (parts * blocks):
        raise ValueError(
            f"{name} has {rows} outputs, which are neither the {width} inputs of the reader, nor some times as many, "
            f"nor fewer in {blocks} equal blocks"
        )
    return parts


def _order(by: str, blocks: int, moved: Iterable[tuple[Tensor, int, int]]) -> Tensor:
    features = []
    for tensor, axis, parts in moved:
        if tensor.ndim == 2:
            check_input("a weight", tensor.detach())
            pieces = computable(tensor.detach()).movedim(axis, 0).unflatten(0, (parts, blocks, -1))
            features.append(pieces.movedim(1, 0).flatten(1).cpu() / max(pieces.norm().item(), 1e-30))
    units = torch.cat(features, dim=1)
    if by == "norm":
        return units.norm(dim=1).argsort(stable=True)
    if by != "nearest":
        raise ValueError(f"by must be 'nearest', 'norm' or an order, got {by!r}")
    products = units @ units.mT
    squares = products.diagonal().clone()
    left, order = squares.clone(), [int(squares.argmax())]
    left[order[0]] = torch.inf  # infinite where the unit is taken
    for _ in range(blocks - 1):
        order.append(int((left - 2 * products[order[-1]]).argmin()))
        left[order[-1]] = torch.inf
    return torch.tensor(order)


def _checked(order: Tensor, blocks: int) -> Tensor:
    if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool:
        raise TypeError(f"an order holds integers, got {order.dtype}")
    order = order.detach().cpu().long()
    if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(blocks)):
        raise ValueError(f"an order of {blocks} blocks holds each of 0 to {blocks - 1} once")
    return order
