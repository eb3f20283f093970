"""Cores as parameters of a module, read with masks, parametrizations, hooks and replicas respected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_NAMES = tuple(str(k) for k in range(64))


class Cores(nn.ParameterList):
    """A ``ParameterList`` that can be called and returns its tensors.

    Tools attach to the call of the module that owns a parameter: pruning and weight norm compute it in a hook before
    the call, offloading loads it there and drops it afterwards. A plain ``ParameterList`` cannot be called, so its
    hooks would never run. ``state_dict`` and ``print`` are those of a ``ParameterList``.
    """

    __call__ = nn.Module.__call__

    def forward(self) -> list[Tensor]:
        """The tensors as they are now."""
        return list(self)

    def _get_name(self) -> str:
        return "ParameterList"


def cores_of(held: nn.ParameterList) -> list[Tensor]:
    """The current tensors of a :class:`Cores`: masked, parametrized, loaded, replicated.

    A module makes its list by ``Cores(tensors)`` and reads it by this function in every computation, each core once.
    Correct under ``nn.utils.prune``, ``nn.utils.parametrize``, weight and spectral norm of either kind,
    ``functional_call``, in the replicas of ``nn.DataParallel`` and under the offloading of accelerate, whose tensors
    are on the meta device before and after a call.

    Args:
        held: The list; a plain ``ParameterList`` if it has no hooks.

    Cost:
        A microsecond at most, a fraction of ``list(held)``; more where hooks run.

    Example:
        >>> import torch
        >>> held = Cores([torch.ones(1, 2, 2), torch.ones(2, 2, 1)])
        >>> _ = nn.utils.prune.ln_structured(held, "0", amount=1, n=2, dim=1)
        >>> [core.sum().item() for core in cores_of(held)]
        [2.0, 4.0]
    """
    if held._forward_pre_hooks or "forward" in held.__dict__:  # accelerate replaces forward on the instance
        return held()
    parameters = held._parameters
    names = _NAMES[: len(held)] if len(held) <= len(_NAMES) else map(str, range(len(held)))
    try:
        return [parameters[name] for name in names]  # not .values(): a parameter removed and set again comes last there
    except KeyError:  # parametrized, or the plain attributes of a replica
        return list(held)


def listed(cores: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors of a ``ParameterList``, such as ``layer.cores``; any other sequence as it is."""
    return cores_of(cores) if isinstance(cores, nn.ParameterList) else cores


def owned(tensor: Tensor) -> nn.Parameter:
    """A parameter with a copy of these numbers. A frozen parameter stays frozen.

    Example:
        >>> import torch
        >>> frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        >>> owned(torch.ones(2)).requires_grad, owned(frozen).requires_grad
        (True, False)
    """
    keep = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=keep)
