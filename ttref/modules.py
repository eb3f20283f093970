"""Reading the cores that a module holds as torch means them: masks, parametrizations, hooks, replicas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_NAMES = tuple(str(k) for k in range(64))


class Cores(nn.ParameterList):
    """A ``ParameterList`` that may be called, and answers with its tensors.

    Tools hang what they do to parameters on the call of the module that owns them: pruning and weight norm compute them
    in a hook before it, offloading loads them there and drops them after it. A plain ``ParameterList`` refuses to be
    called, and none of this would happen. The names in a ``state_dict`` are the same, and so is ``print``.
    """

    __call__ = nn.Module.__call__

    def forward(self) -> list[Tensor]:
        """The tensors as they are now."""
        return list(self)

    def _get_name(self) -> str:
        return "ParameterList"


def cores_of(held: nn.ParameterList) -> list[Tensor]:
    """The tensors of a :class:`Cores` as torch means them: masked, parametrized, loaded, replicated.

    A module makes its list by ``Cores(tensors)`` and reads it by this function at every computation, each core once;
    what it keeps beside them (``bias``) it reads as an attribute, as ever. Right under ``nn.utils.prune``,
    ``nn.utils.parametrize``, weight and spectral norm of either kind, ``functional_call``, in the replicas of
    ``nn.DataParallel`` and under the offloading of accelerate, whose tensors are on the meta device before and after.

    Args:
        held: The list. A plain ``ParameterList`` will do where nothing hooks into it.

    Cost:
        A microsecond at most, a fraction of ``list(held)``; some more where there is something to be done.

    Example:
        >>> import torch
        >>> held = Cores([torch.ones(1, 2, 2), torch.ones(2, 2, 1)])
        >>> _ = nn.utils.prune.ln_structured(held, "0", amount=1, n=2, dim=1)
        >>> [core.sum().item() for core in cores_of(held)]
        [2.0, 4.0]
    """
    if held._forward_pre_hooks or "forward" in held.__dict__:  # "forward": somebody put his own around it
        return held()
    parameters = held._parameters
    names = _NAMES[: len(held)] if len(held) <= len(_NAMES) else map(str, range(len(held)))
    try:
        return [parameters[name] for name in names]  # not .values(): what was taken out and put back comes last there
    except KeyError:  # parametrized, or the plain attributes of a replica
        return list(held)


def listed(cores: Sequence[Tensor]) -> Sequence[Tensor]:
    """A ``ParameterList``, which layers hand out, as the list of its tensors; anything else as it is."""
    return cores_of(cores) if isinstance(cores, nn.ParameterList) else cores


def owned(tensor: Tensor) -> nn.Parameter:
    """A parameter with a copy of these numbers, for a module to hold. A parameter that was frozen stays frozen.

    Example:
        >>> import torch
        >>> owned(torch.ones(2)).requires_grad, owned(nn.Parameter(torch.ones(2), requires_grad=False)).requires_grad
        (True, False)
    """
    keep = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=keep)
