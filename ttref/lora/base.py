"""The frozen layer under an adapter: which layers qualify, their weight, and the sum of layer and update."""

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
    """``(out_features, in_features)`` of a layer that can be adapted; TypeError for another one, with the reason."""
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
    """True for a linear layer whose weight is no plain floating-point tensor, as those of quantizing packages.

    Such a layer is only called: its weight is never read, so no update can be added to it.
    """
    kept = [getattr(layer, name, None) for name in ("weight", "qweight", "W_q")]
    held = next((tensor for tensor in kept if isinstance(tensor, Tensor)), None)
    if held is None or isinstance(held, _UNBUILT) or held.is_complex() or not hasattr(layer, "in_features"):
        return False
    return not _plain(held)


def _plain(weight: Tensor) -> bool:
    """True for a plain floating-point tensor, or one of torch's tracers, with which arithmetic can be done."""
    own = type(weight) in (nn.Parameter, Tensor) or type(weight).__module__.startswith("torch._subclasses")
    return own and weight.dtype in _FLOATS


def delta_for(layer: nn.Module, **options: object) -> TTDelta:
    """A new update for a layer, with its widths, device and dtype; float32 beside half precision."""
    out_features, in_features = widths(layer)
    dtype = torch.float64 if not quantized(layer) and layer.weight.dtype == torch.float64 else torch.float32
    return TTDelta(out_features, in_features, device=device_of(layer), dtype=dtype, **options)


def device_of(layer: nn.Module) -> torch.device | str | int:
    """The device of the layer's parameters, or the one to which accelerate brings them for each call."""
    hook = getattr(layer, "_hf_hook", None)
    there = next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    place = getattr(hook, "execution_device", None)
    return place if there.type == "meta" and place is not None else there


def oriented(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix ``(out, in)`` in the orientation of the layer's weight, or back: that of ``Conv1D`` is ``(in, out)``."""
    return matrix.mT if _is_conv1d(layer) else matrix


def check_addable(layer: nn.Module) -> None:
    """Refuse a layer whose weight cannot be changed: quantized or offloaded."""
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
    """The layer's weight plus the updates, in the weight's orientation. Differentiable."""
    check_addable(layer)
    weight = oriented(layer, layer.weight)
    for delta in deltas:
        weight = delta.added_to_weight(weight)
    # In the memory layout of the layer's weight, so that an update of zero changes no bit of any product.
    return oriented(layer, weight).clone(memory_format=torch.contiguous_format) if _is_conv1d(layer) else weight


def updated_answer(layer: nn.Module, deltas: Sequence[TTDelta], x: Tensor, order: str = "auto") -> Tensor:
    """The output of the frozen layer plus the updates for x ``(*batch, in)``."""
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
        if added and plan.order == "dense":  # the summed weight serves all updates or none
            plan = delta.plan(batch)
        flat = delta.added_to_answer(flat, delta.dropout(x).reshape(-1, x.shape[-1]), plan)
    return flat.reshape(y.shape)


def one_product_does(layer: nn.Module, deltas: Sequence[TTDelta]) -> bool:
    """True if one product with the summed weight gives the same as the layer plus the updates.

    False if the layer has hooks or a replaced forward, if its weight is quantized, and with dropout before an update.
    """
    plain = (type(layer) is nn.Linear or _is_conv1d(layer)) and _plain(layer.weight)
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    hooked = any(hooks) or "forward" in vars(layer)
    return plain and not hooked and not any(isinstance(d.dropout, nn.Dropout) and d.dropout.training for d in deltas)


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")  # transformers' own; its weight is (in, out)
