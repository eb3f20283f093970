"""First cores for a fit: TT-SVD, and TT-SVD in coordinates where a Kronecker product stands in for the Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..matrices import ttm_svd
from ..precision import computable
from .sweeping import stored_error

LEAST = 1e-6  # of the largest eigenvalue: no direction is divided by less


def plain_start(weight: Tensor, rows: Sequence[int], cols: Sequence[int], rank: int | Sequence[int]) -> list[Tensor]:
    """TT-SVD in float64 of a matrix in its own dtype: below float64 its SVD takes a shorter way (ttref.truncation)."""
    return [core.double() for core in ttm_svd(computable(weight), rows, cols, rank=rank)]


def better_start(weight: Tensor, gram: Tensor, plain: Sequence[Tensor]) -> list[Tensor]:
    """The cores of :func:`plain_start`, or whitened TT-SVD with the same modes and ranks where that is better."""
    rows, cols = [core.shape[1] for core in plain], [core.shape[2] for core in plain]
    exact, roots = weight.double(), kronecker_roots(gram, cols)
    turned = _turned(exact, roots, cols).to(computable(weight).dtype)
    ranks = (1, *(core.shape[3] for core in plain))
    other = [
        core / part[:, None] if part.ndim == 1 else torch.einsum("amnb,nc->amcb", core, part.inverse())
        for core, part in zip(plain_start(turned, rows, cols, ranks), roots, strict=True)
    ]
    return min((list(plain), other), key=lambda cores: stored_error(exact, cores, gram))


def whitened(weight: Tensor, gram: Tensor, cols: Sequence[int]) -> Tensor:
    """``W S``, S the Kronecker product of :func:`kronecker_roots`.

    Where only one column mode is above 1, S is the root of the Gram matrix itself, and for two cores the truncated SVD
    of ``W S`` is the best there is.
    """
    return _turned(weight, kronecker_roots(gram, cols), cols)


def _turned(weight: Tensor, roots: Sequence[Tensor], cols: Sequence[int]) -> Tensor:
    """``W S`` for the Kronecker product S of the roots."""
    tensor, before = weight, weight.shape[0]
    for n, part in zip(cols, roots, strict=True):
        tensor = tensor.reshape(before, n, -1)
        tensor = part[:, None] * tensor if part.ndim == 1 else part @ tensor  # the roots are symmetric
        before *= n
    return tensor.reshape(weight.shape)


def kronecker_roots(gram: Tensor, cols: Sequence[int]) -> list[Tensor]:
    """Square roots ``(n_k, n_k)`` of the partial traces of a Gram matrix, or of weights ``(n_k,)``; of mean 1."""
    roots = []
    for k, n in enumerate(cols):
        before, after = math.prod(cols[:k]), math.prod(cols[k + 1 :])
        if gram.ndim == 1:
            weights = gram.reshape(before, n, after).sum((0, 2))
            weights = weights / weights.mean()
            roots.append(weights.clamp(min=LEAST * weights.max()).sqrt())
        else:
            six = gram.reshape(before, n, after, before, n, after)
            part = six.diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3).sum((-1, -2))
            roots.append(root(part))
    return roots


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a positive semidefinite matrix, scaled to mean eigenvalue 1 and made invertible."""
    values, vectors = torch.linalg.eigh(matrix / matrix.diagonal().mean())
    return (vectors * values.clamp(min=LEAST * values[-1].item()).sqrt()) @ vectors.mT
