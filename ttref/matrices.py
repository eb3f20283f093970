"""Matrices as tensor trains (TT-matrices, matrix product operators).

Core k has shape ``(r_{k-1}, m_k, n_k, r_k)``, m for rows (outputs) and n for columns (inputs), as in ``nn.Linear``::

    m_1  m_2  m_3
     |    |    |
     o----o----o     W[(i_1 i_2 i_3), (j_1 j_2 j_3)]
     |    |    |         = G_1[i_1, j_1] G_2[i_2, j_2] G_3[i_3, j_3]
    n_1  n_2  n_3
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_input, check_matrix_train, check_modes, paired_modes
from .precision import full_precision
from .trains import tt_svd, tt_to_tensor

__all__ = ["ttm_svd", "ttm_to_matrix"]


@full_precision
@torch.no_grad()
def ttm_svd(
    w: Tensor,
    row_shape: Sequence[int],
    col_shape: Sequence[int],
    *,
    rank: int | Sequence[int] | None = None,
    eps: float | None = None,
) -> list[Tensor]:
    """Decompose a matrix into a TT-matrix: pair row mode k with column mode k, then :func:`tt_svd`.

    Args:
        w: Matrix ``(m, n)``, rows first, as ``nn.Linear.weight``.
        row_shape: Modes ``(m_1, ..., m_d)`` with product m.
        col_shape: Modes ``(n_1, ..., n_d)`` with product n.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends.
        eps: Relative Frobenius error allowed, in [0, 1).

    Returns:
        d cores ``(r_{k-1}, m_k, n_k, r_k)`` in the dtype of ``w``.

    Raises:
        TypeError, ValueError: As :func:`tt_svd`; ValueError when the shapes do not fit the matrix or each other.

    Guarantee:
        As :func:`tt_svd`: with ``eps``, the relative Frobenius error of the whole matrix is at most eps.

    Cost:
        As :func:`tt_svd` with modes ``m_k n_k``.

    Source:
        Novikov et al. (2015), Tensorizing Neural Networks, section 3; Oseledets (2010) for the pairing of modes.

    Example:
        >>> import torch
        >>> # a Kronecker product has rank 1
        >>> w = torch.kron(torch.randn(4, 2), torch.randn(3, 5))
        >>> [tuple(core.shape) for core in ttm_svd(w, (4, 3), (2, 5), eps=1e-5)]
        [(1, 4, 2, 1), (1, 3, 5, 1)]
    """
    check_input("w", w)  # tt_svd checks again, but would name an index of the folded tensor
    modes = paired_modes(row_shape, col_shape)
    rows, cols = check_modes("row_shape", row_shape), check_modes("col_shape", col_shape)
    if w.ndim != 2 or w.shape != (math.prod(rows), math.prod(cols)):
        raise ValueError(
            f"w has shape {tuple(w.shape)}, but row_shape {rows} and col_shape {cols} make a "
            f"{math.prod(rows)} x {math.prod(cols)} matrix"
        )
    d = len(modes)
    paired = w.reshape(*rows, *cols).permute([axis for k in range(d) for axis in (k, d + k)])
    cores = tt_svd(paired.reshape(modes), rank=rank, eps=eps)
    return [core.reshape(core.shape[0], m, n, core.shape[-1]) for core, m, n in zip(cores, rows, cols, strict=True)]


@full_precision
def ttm_to_matrix(cores: Sequence[Tensor]) -> Tensor:
    """Rebuild the dense matrix ``(m, n)`` of a TT-matrix. Differentiable.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.

    Returns:
        Matrix ``(m_1 ... m_d, n_1 ... n_d)``, dtype of the cores.

    Raises:
        TypeError, ValueError: Cores that are no TT-matrix; the message names the core.

    Cost:
        O(m n r) multiply-adds.

    Example:
        >>> import torch
        >>> w = torch.randn(6, 4)
        >>> torch.allclose(ttm_to_matrix(ttm_svd(w, (2, 3), (2, 2), rank=4)), w, atol=1e-5)
        True
    """
    rows, cols, _ = check_matrix_train(cores)
    d = len(cores)
    tensor = tt_to_tensor([core.flatten(1, 2) for core in cores])
    paired = tensor.reshape([size for pair in zip(rows, cols, strict=True) for size in pair])
    return paired.permute([*range(0, 2 * d, 2), *range(1, 2 * d, 2)]).reshape(math.prod(rows), math.prod(cols))
