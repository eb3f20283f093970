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


FAINT = 1e-8  # of the median power of those that were on at all: below it an input counts as never on
MANY = 1_000_000  # tokens supposed behind a matrix that does not tell and spans


def ever_on(gram: Tensor) -> Tensor:
    """Which inputs ``(width,)`` were ever on: those with more than a hundred-millionth of the median's power.

    The median, because one feature that nobody scaled would lift a mean above all others.
    """
    power = gram.diagonal()
    on = power > 0
    return on & (power > FAINT * power[on].median()) if on.any() else on


def ridged(gram: Tensor, ridge: float, tokens: int | None) -> Tensor:
    """The Gram matrix with mean eigenvalue 1, plus the ridge; less of it for inputs that were never on.

    A ridge on these makes the fit spend ranks on columns of the weight that no output shows. Of many tokens none has
    turned them on, so they get at most what one token more would give, 1 / tokens; of few tokens that is much, and
    the columns stay. Where the number is not known, inputs that span were many, and others few.
    """
    if gram.ndim == 1:
        return gram / gram.mean() + ridge
    made, on = gram / gram.diagonal().mean(), ever_on(gram)
    if on.all():
        made.diagonal().add_(ridge)
    else:
        tokens = tokens or (MANY if spans(gram, None) else 1)
        made.diagonal().add_(torch.where(on, made.new_tensor(ridge), min(ridge, 1 / tokens)))
    return made


def spans(gram: Tensor, tokens: int | None) -> bool:
    """True if the inputs have shown every direction: tokens enough, and no pivot that is rounding alone.

    Inputs that were never on (padding, dead units) do not count, and weights are what they are.
    """
    if gram.ndim == 1:
        return True
    used = ever_on(gram)
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
