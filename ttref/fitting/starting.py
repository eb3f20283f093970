"""First cores for a fit: TT-SVD, and TT-SVD in coordinates where a Kronecker product stands in for the Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..matrices import ttm_svd


def kronecker_factors(gram: Tensor, cols: Sequence[int]) -> list[Tensor]:
    """Square roots ``(n_k, n_k)`` of the partial traces of a Gram matrix, each with mean eigenvalue 1."""
    d = len(cols)
    roots = []
    for k in range(d):
        if gram.ndim == 1:
            part = gram.reshape(tuple(cols)).sum([axis for axis in range(d) if axis != k]).diag()
        else:
            before, after = 1, 1
            for n in cols[:k]:
                before *= n
            for n in cols[k + 1 :]:
                after *= n
            split = gram.reshape(before, cols[k], after, before, cols[k], after)
            part = split.diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3).sum((-1, -2))
        values, vectors = torch.linalg.eigh(part / part.diagonal().mean())
        values = values.clamp(min=1e-6)  # an unseen direction must not divide by zero
        roots.append((vectors * values.sqrt()) @ vectors.mT)
    return roots


def whitened_svd(
    weight: Tensor, gram: Tensor, rows: Sequence[int], cols: Sequence[int], rank: int | Sequence[int]
) -> list[Tensor]:
    """TT-SVD of ``W S``, S the Kronecker product of :func:`kronecker_factors`, and S taken out of the cores again.

    Where only one column mode is above 1, S is the Gram matrix's root and the train is the best for two cores.
    """
    roots = kronecker_factors(gram, cols)
    tensor = weight
    for k, root in enumerate(roots):
        before = weight.shape[0]
        for n in cols[:k]:
            before *= n
        tensor = torch.einsum("anb,nc->acb", tensor.reshape(before, cols[k], -1), root)
    cores = ttm_svd(tensor.reshape(weight.shape), rows, cols, rank=rank)
    return [torch.einsum("amnb,nc->amcb", core, root.inverse()) for core, root in zip(cores, roots, strict=True)]
