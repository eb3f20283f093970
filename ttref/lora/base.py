"""The frozen layer under an adapter: which layers qualify, their weight, and what layer and update make together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..checks import whole
from .delta import TTDelta

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNBUILT = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def widths(layer: nn.Module) -> tuple[int, int]:
    """``(out_features, in_features)`` of a layer that can be adapted, or an error that says what is wrong with it."""
    if hasattr(layer, "base_layer"):
        raise TypeError(f"it is already adapted (a {type(layer).__name__}); merge that adapter first")
    if quantized(layer):
        return whole("out_features", layer.out_features, least=1), whole("in_features", layer.in_features, least=1)
    if not isinstance(layer, nn.Linear) and not _is_conv1d(layer):
        raise TypeError(
            f"TT-LoRA adapts nn.Linear and GPT-2's Conv1D, not {type(layer).__module__}.{type(layer).__qualname__}"
        )
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear":
        raise TypeError(
            "nn.MultiheadAttention reads its weight past forward, so an adapter would be ignored; leave it out"
        )
    if nn.utils.parametrize.is_parametrized(layer):
        raise TypeError("its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations comes first")
    weight = layer.weight
    if type(weight) is not nn.Parameter or weight.dtype not in _FLOATS or weight.ndim != 2:
        kind = f"{type(weight).__name__} of {getattr(weight, 'dtype', 'unknown dtype')}"
        raise TypeError(
            f"its weight is a {kind}, no plain floating-point parameter (pruned or not yet built?); "
            "load the model with plain weights"
        )
    out_features, in_features = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
    return out_features, in_features


def quantized(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight in a form of its own, as packages that quantize do.

    Such a layer is only ever called: nothing reads its weight, so nothing can be added to it either.
    """
    kept = [getattr(layer, name, None) for name in ("weight", "qweight", "W_q")]
    held = next((tensor for tensor in kept if isinstance(tensor, Tensor)), None)
    if held is None or isinstance(held, _UNBUILT) or held.is_complex() or not hasattr(layer, "in_features"):
        return False
    return not _plain(held)


def _plain(weight: Tensor) -> bool:
    """Whether arithmetic with a weight means what it says; torch's own tracers put a kind of tensor in, too."""
    own = type(weight) in (nn.Parameter, Tensor) or type(weight).__module__.startswith("torch._subclasses")
    return own and weight.dtype in _FLOATS


def delta_for(layer: nn.Module, **options: object) -> TTDelta:
    """The update for a layer: its widths, its device, and its dtype, float32 beside half precision."""
    out_features, in_features = widths(layer)
    dtype = torch.float64 if not quantized(layer) and layer.weight.dtype == torch.float64 else torch.float32
    return TTDelta(out_features, in_features, device=device_of(layer), dtype=dtype, **options)


def device_of(layer: nn.Module) -> torch.device | str | int:
    """Where the layer computes: where its numbers are, or where accelerate brings them for each call."""
    hook = getattr(layer, "_hf_hook", None)
    there = next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    place = getattr(hook, "execution_device", None)
    return place if there.type == "meta" and place is not None else there


def oriented(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix ``(out, in)`` in the orientation of the layer's own weight, or back: ``Conv1D`` keeps ``(in, out)``."""
    return matrix.mT if _is_conv1d(layer) else matrix


def check_addable(layer: nn.Module) -> None:
    """An error if nothing can be added to the layer's weight."""
    if quantized(layer):
        raise TypeError(
            f"the weight of this {type(layer).__name__} is quantized, so the update cannot be added to it; keep it "
            "beside the layer, or load the model with plain weights and merge there"
        )
    if layer.weight.is_meta and hasattr(layer, "_hf_hook"):
        raise ValueError(
            "the base weight is offloaded, so the update cannot be added to it; "
            "accelerate.hooks.remove_hook_from_submodules(model) brings the model back first"
        )


def merged_weight(layer: nn.Module, deltas: Sequence[TTDelta]) -> Tensor:
    """The layer's weight with the updates added, in its own orientation. Differentiable."""
    check_addable(layer)
    weight = oriented(layer, layer.weight)
    for delta in deltas:
        weight = delta.added_to_weight(weight)
    # Laid out as the layer has it, so that an update of zero changes no bit of any product.
    return oriented(layer, weight).clone(memory_format=torch.contiguous_format) if _is_conv1d(layer) else weight


def updated_answer(layer: nn.Module, deltas: Sequence[TTDelta], x: Tensor, order: str = "auto") -> Tensor:
    """What the frozen layer and the updates answer to ``(*batch, in)`` together."""
    if x.ndim == 0 or x.shape[-1] != deltas[0].in_features:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must hold in_features = {deltas[0].in_features}")
    batch, added = math.prod(x.shape[:-1]), one_product_does(layer, deltas)
    plans = [delta.plan(batch, order, added=added) for delta in deltas]
    if added and all([plan.order == "dense" for plan in plans]):
        weight = merged_weight(layer, deltas)
        if isinstance(layer, nn.Linear):
            return linear(x, weight, layer.bias)
        y = torch.addmm(layer.bias, x.reshape(-1, x.shape[-1]), weight)
        return y.reshape(*x.shape[:-1], weight.shape[1])
    y = layer(x)
    flat = y.reshape(-1, y.shape[-1])
    for delta, plan in zip(deltas, plans, strict=True):
        if added and plan.order == "dense":  # one product can do for all updates or for none
            plan = delta.plan(batch)
        flat = delta.added_to_answer(flat, delta.dropout(x).reshape(-1, x.shape[-1]), plan)
    return flat.reshape(y.shape)


def one_product_does(layer: nn.Module, deltas: Sequence[TTDelta]) -> bool:
    """Whether one product with the summed weight gives the same as the layer itself and then the updates.

    Not if somebody hooked into the layer's forward or replaced it, not beside a quantized weight, and not with dropout
    before an update.
    """
    plain = (type(layer) is nn.Linear or _is_conv1d(layer)) and _plain(layer.weight)
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    hooked = any(hooks) or "forward" in vars(layer)
    return plain and not hooked and not any(isinstance(d.dropout, nn.Dropout) and d.dropout.training for d in deltas)


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")  # transformers' own; its weight is (in, out)
