"""torchTT: ``torchtt.TT``, a train or a TT-matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .peers import checked_cores, is_matrix, peer

__all__ = ["from_torchtt", "to_torchtt"]


def to_torchtt(cores: Sequence[Tensor]) -> Any:
    """Hand a train or a TT-matrix to torchTT, whose module is called ``torchtt``.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``torchtt.TT`` that holds the cores themselves.

    Raises:
        ModuleNotFoundError: torchTT is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, or are a batch of trains.

    Cost:
        None.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd
        >>> w = torch.kron(torch.eye(2), torch.ones(3, 4))
        >>> matrix = to_torchtt(ttm_svd(w, (2, 3), (2, 4), eps=1e-6))
        >>> matrix.is_ttm, matrix.M, matrix.N, matrix.R
        (True, [2, 3], [2, 4], [1, 1, 1])
        >>> torch.allclose(matrix.full().reshape(6, 8), w)
        True
    """
    torchtt = peer("torchtt")
    is_matrix(cores)
    return torchtt.TT(list(cores))


def from_torchtt(train: Any) -> list[Tensor]:
    """Take the cores of a ``torchtt.TT``, train or TT-matrix.

    Args:
        train: A ``torchtt.TT``.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix: the tensors that it holds.

    Raises:
        ModuleNotFoundError: torchTT is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its cores are complex or integers.
        ValueError: It is empty, or somebody put cores into it that do not chain.

    Cost:
        None.

    Example:
        >>> import torch, torchtt
        >>> from ttref import tt_to_tensor
        >>> x = torch.arange(8.0).reshape(2, 2, 2)
        >>> torch.allclose(tt_to_tensor(from_torchtt(torchtt.TT(x))), x, atol=1e-4)
        True
    """
    torchtt = peer("torchtt")
    if not isinstance(train, torchtt.TT):
        raise TypeError(f"train must be a torchtt.TT, got {type(train).__name__}")
    return checked_cores(list(train.cores), 4 if train.is_ttm else 3)
