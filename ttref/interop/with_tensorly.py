"""TensorLy: ``TTTensor`` and ``TTMatrix``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .peers import as_tensor, checked_cores, is_matrix, peer

__all__ = ["from_tensorly", "to_tensorly"]


def to_tensorly(cores: Sequence[Tensor]) -> Any:
    """Hand a train or a TT-matrix to TensorLy.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``TTTensor`` or ``TTMatrix``, in arrays of TensorLy's backend as it is set now: with ``"pytorch"`` the cores
        themselves, with ``"numpy"``, TensorLy's default, arrays on the same memory, without gradients.

    Raises:
        ModuleNotFoundError: TensorLy is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, a batch of trains, or bfloat16, which NumPy lacks.
        RuntimeError: TensorLy's backend is another one.

    Cost:
        None; a copy of cores that are not on the CPU, for NumPy.

    Example:
        >>> import tensorly
        >>> from ttref import tt_svd
        >>> cores = tt_svd(torch.arange(8.0), (2, 2, 2), eps=1e-6)
        >>> train = to_tensorly(cores)
        >>> train.shape, tuple(train.rank)
        ((2, 2, 2), (1, 2, 2, 1))
        >>> [round(float(x)) for x in tensorly.tt_to_tensor(train).reshape(-1)]
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    tensorly = peer("tensorly")
    matrix = is_matrix(cores)
    factors = list(cores)
    backend = tensorly.get_backend()
    if backend not in ("numpy", "pytorch"):
        raise RuntimeError(
            f"TensorLy's backend is {backend!r}; choose one by tensorly.set_backend('pytorch') or 'numpy'"
        )
    if backend == "numpy":
        if cores[0].dtype == torch.bfloat16:
            way_out = "call tensorly.set_backend('pytorch'), or convert the cores with .float()"
            raise TypeError(f"NumPy, TensorLy's backend now, has no bfloat16; {way_out}")
        factors = [core.detach().cpu().numpy() for core in factors]
    kind = tensorly.tt_matrix.TTMatrix if matrix else tensorly.tt_tensor.TTTensor
    return kind(factors)


def from_tensorly(train: Any) -> list[Tensor]:
    """Take the cores of a TensorLy ``TTTensor`` or ``TTMatrix``.

    Args:
        train: What ``tensorly.decomposition.tensor_train`` or ``tensor_train_matrix`` returns, in torch or NumPy.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix, of the dtype of the factors.

    Raises:
        ModuleNotFoundError: TensorLy is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its factors are complex or integers.
        ValueError: The factors do not chain, or the end ranks are not 1: a tensor ring is no train.

    Cost:
        None.

    Example:
        >>> import numpy, tensorly
        >>> from tensorly.decomposition import tensor_train
        >>> from ttref import tt_to_tensor
        >>> array = tensorly.tensor(numpy.arange(8.0).reshape(2, 2, 2))
        >>> cores = from_tensorly(tensor_train(array, rank=2))
        >>> torch.allclose(tt_to_tensor(cores).reshape(-1), torch.arange(8.0, dtype=torch.float64))
        True
    """
    tensorly = peer("tensorly")
    kinds = {tensorly.tt_tensor.TTTensor: 3, tensorly.tt_matrix.TTMatrix: 4}
    axes = next((axes for kind, axes in kinds.items() if isinstance(train, kind)), None)
    if axes is None:
        raise TypeError(f"train must be a TTTensor or a TTMatrix of TensorLy, got {type(train).__name__}")
    return checked_cores([as_tensor(factor) for factor in train.factors], axes)
