"""The norm that a fit is made in: a Gram matrix of inputs, or the weights on the diagonal of one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_input
from .gram import Gram, as_gram


def as_weighting(gram: Gram | Tensor, width: int, device: torch.device, name: str = "gram") -> Tensor:
    """A Gram matrix ``(width, width)``, or non-negative weights ``(width,)``, checked, in float64 on a device."""
    if not isinstance(gram, Tensor) or gram.ndim != 1:
        made = as_gram(gram, width, name=name)
        if not made.diagonal().max() > 0:
            raise ValueError(f"{name} is zero: no input of the layer ever differed from zero")
        return made.to(device)
    check_input(name, gram)
    if len(gram) != width:
        raise ValueError(f"{name} holds {len(gram)} weights, but weight has {width} columns; it takes one for each")
    if gram.min() < 0:
        raise ValueError(f"{name}[{int(gram.argmin())}] is {gram.min().item():.3g}; a weight is at least 0")
    if not gram.max() > 0:
        raise ValueError(f"{name} is zero; at least one column must have a weight above 0")
    return gram.to(device, torch.float64)


def spans(gram: Tensor, tokens: int | None) -> bool:
    """True if the inputs have shown every direction: tokens enough, and no pivot that is rounding alone.

    Inputs that are always zero (padding, units that never fire) do not count, and weights are what they are.
    """
    if gram.ndim == 1:
        return True
    used = gram.diagonal() > 0
    if tokens is not None and tokens < int(used.sum()):
        return False
    shifted = gram[used][:, used]
    shift = 1e-10 * shifted.diagonal().mean()
    shifted.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(shifted)
    return not info.item() and bool(factor.diagonal().square().min() > 10 * shift)


def times_gram(x: Tensor, gram: Tensor) -> Tensor:
    """``x @ G`` for a Gram matrix or for the weights on its diagonal."""
    return x * gram if gram.ndim == 1 else x @ gram
