"""The error of a compressed layer's outputs, measured on its inputs' Gram matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import check_matrix
from ..precision import full_precision
from .weighting import as_weighting, times_gram

if TYPE_CHECKING:
    from .gram import Gram

__all__ = ["output_error"]


@full_precision
@torch.no_grad()
def output_error(weight: Tensor, approximation: Tensor, gram: Gram | Tensor) -> float:
    """Relative error of a layer's outputs over all inputs behind a Gram matrix.

    With the inputs as columns of X and ``G = X X^T`` this is ``||(W - W') X|| / ||W X||`` in the Frobenius norm,
    computed from G alone.

    Args:
        weight: The layer's matrix W ``(out, in)``.
        approximation: W' of the same shape.
        gram: Gram matrix of the inputs, ``(in, in)``; or non-negative weights ``(in,)``, a diagonal one.

    Returns:
        The error, without unit: 0 for equal outputs, 1 for ``W' = 0``. Where ``W X`` is zero, 0 if ``W' X`` is zero
        too and infinity if not.

    Raises:
        TypeError: A matrix that is not a real floating-point tensor.
        ValueError: Shapes that differ, NaN or Inf, a Gram matrix of another width, asymmetric or with a negative
            eigenvalue.

    Cost:
        O(out in^2 + in^3) in float64.

    Example:
        >>> w = torch.tensor([[1.0, 1.0]])
        >>> output_error(w, torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 1.0]))   # the second input is rare
        0.5
    """
    check_matrix("weight", weight)
    check_matrix("approximation", approximation)
    if weight.shape != approximation.shape:
        raise ValueError(
            f"approximation has shape {tuple(approximation.shape)}, weight {tuple(weight.shape)}; both are (out, in)"
        )
    matrix = as_weighting(gram, weight.shape[1], weight.device)
    return relative(weight.double(), approximation.double(), matrix)


def relative(weight: Tensor, approximation: Tensor, gram: Tensor) -> float:
    """:func:`output_error` of checked float64 matrices."""
    lost, whole = norm(weight - approximation, gram), norm(weight, gram)
    if whole == 0:
        return 0.0 if lost == 0 else math.inf
    return lost / whole


def norm(matrix: Tensor, gram: Tensor) -> float:
    """``sqrt(tr(M G M^T))``; rounding that leaves a negative sum counts as zero."""
    return math.sqrt(max((times_gram(matrix, gram) * matrix).sum().item(), 0.0))
