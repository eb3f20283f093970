"""Dense layers and tables of torch and other packages: reading their parameters, and refusing those that do more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_PLAIN = (Tensor, nn.Parameter)
_UNBUILT = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The matrix ``(out, in)`` and the bias that a layer computes with now, masks and parametrizations applied.

    Raises:
        TypeError: Another kind of layer, one that computes more than ``x W^T + b``, a weight that is no plain tensor.
        ValueError: Parameters on the meta device.
    """
    conv1d = conv1d_of(layer)
    if not isinstance(layer, nn.Linear) and conv1d is None:
        raise TypeError(f"layer must be an nn.Linear or GPT-2's Conv1D, got {type(layer).__name__}")
    weight, bias = numbers_of(layer, conv1d or nn.Linear, "weight", "bias")
    return (weight.mT if conv1d else weight), bias


def numbers_of(layer: nn.Module, kind: type[nn.Module], *names: str) -> list[Any]:
    """The parameters that a layer computes with now, masks and parametrizations applied.

    Their ``requires_grad`` is right under ``no_grad`` too.

    Args:
        layer: The layer, of this kind or a subclass.
        kind: The class whose ``forward`` the layer must not go beyond.
        names: Its parameters; any but the first may be None.

    Raises:
        TypeError: A layer that computes more than its kind, one whose weight is no plain tensor.
        ValueError: Parameters on the meta device.

    Example:
        >>> [weight] = numbers_of(nn.Embedding(3, 2), nn.Embedding, "weight")
        >>> weight.shape, weight.requires_grad
        (torch.Size([3, 2]), True)
    """
    own = type(layer).__name__
    if any(isinstance(getattr(layer, name, None), _UNBUILT) for name in names):
        raise TypeError(f"this {own} has no weight yet: call it once with a batch, which tells it its width")
    with torch.enable_grad():  # a parametrized tensor is computed here, and would look frozen otherwise
        found = [computed(layer, name) for name in names]
    if type(found[0]) not in _PLAIN:
        raise TypeError(
            f"the weight of this {own} is a {type(found[0]).__name__}, no plain tensor (quantized or distributed?); "
            "load the model with plain weights and compress those"
        )
    if more := computes_more(layer, kind.forward):
        raise TypeError(
            f"this {own} {more}, which would be lost; compress a plain {kind.__name__} with the same "
            f"{' and '.join(names)}, and do the rest around the result"
        )
    if any(tensor is not None and tensor.is_meta for tensor in found):
        raise ValueError(
            f"the numbers of this {own} are not here but on the meta device (offloaded, or never loaded); "
            "accelerate.hooks.remove_hook_from_submodules(model) brings back what was offloaded"
        )
    return found


def conv1d_of(layer: nn.Module) -> type | None:
    """The class of GPT-2's ``Conv1D`` in a layer's ancestry, None for other layers; its weight is ``(in, out)``.

    By name: importing the class would load transformers.
    """
    kinds = [kind for kind in type(layer).__mro__ if kind.__name__ == "Conv1D"]
    return kinds[-1] if kinds and hasattr(layer, "nf") else None


def computes_more(layer: nn.Module, forward: Callable) -> str | None:
    """The reason, for a message, why a call computes more than the class with this ``forward``; None if it does not.

    Hooks of torch that compute a layer's parameters (pruning, weight and spectral norm) do not count, because
    :func:`computed` applies them. Nor does accelerate's wrapper of a forward, which only moves tensors.

    Example:
        >>> computes_more(nn.Linear(2, 2), nn.Linear.forward) is None
        True
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.register_forward_hook(lambda layer, given, y: 3 * y)
        >>> computes_more(layer, nn.Linear.forward)
        'has forward hooks'
    """
    own = vars(layer)
    patched = own.get("_old_forward", own.get("forward")) if "_hf_hook" in own else own.get("forward")
    if type(layer).forward is not forward or type(layer).__call__ is not nn.Module.__call__:
        return "has a forward of its own"
    if patched is not None and getattr(patched, "__func__", None) is not forward:
        return "had its forward replaced"
    if layer._forward_hooks:
        return "has forward hooks"
    if any(not _computes_parameter(hook) for hook in layer._forward_pre_hooks.values()):
        return "has forward pre-hooks"
    return None


def computed(layer: nn.Module, name: str) -> Any:
    """The parameter ``name`` as the layer's next call would compute it; the layer stays as it is."""
    for hook in layer._forward_pre_hooks.values():  # those of torch leave what the last call computed as the attribute
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(layer)
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(layer)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(layer, do_power_iteration=False)
    return getattr(layer, name)


def _computes_parameter(hook: Callable) -> bool:
    return isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm))
