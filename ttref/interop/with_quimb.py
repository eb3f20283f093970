"""quimb: matrix product states and operators with open ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .peers import as_tensor, checked_cores, is_matrix, peer

__all__ = ["from_quimb", "to_quimb"]


def to_quimb(cores: Sequence[Tensor]) -> Any:
    """Hand a train to quimb as a matrix product state, a TT-matrix as a matrix product operator.

    Args:
        cores: d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for a matrix.

    Returns:
        ``MatrixProductState`` or ``MatrixProductOperator`` with open ends, its data torch tensors. quimb has no bonds
        at the ends, so these axes are dropped. The state keeps its norm, whatever that is.

    Raises:
        ModuleNotFoundError: quimb is not installed; the message holds the install line.
        TypeError, ValueError: The cores are no train, or are a batch of trains.

    Cost:
        None: the data are views of the cores.

    Example:
        >>> import torch
        >>> from ttref import tt_svd
        >>> state = to_quimb(tt_svd(torch.arange(8.0), (2, 2, 2), eps=1e-6))
        >>> state.L, state.bond_sizes()
        (3, [2, 2])
        >>> [round(float(x)) for x in state.to_dense().reshape(-1)]
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    quimb = peer("quimb")
    matrix = is_matrix(cores)
    arrays = list(cores)
    arrays[-1] = arrays[-1].squeeze(-1)
    arrays[0] = arrays[0].squeeze(0)
    if matrix:
        return quimb.tensor.MatrixProductOperator(arrays, shape="ludr")
    return quimb.tensor.MatrixProductState(arrays, shape="lpr")


def from_quimb(train: Any) -> list[Tensor]:
    """Take the cores of a matrix product state or operator of quimb, whatever the order of its axes.

    Args:
        train: A ``MatrixProductState`` or ``MatrixProductOperator`` with open ends, data of torch or NumPy.

    Returns:
        d cores ``(r_{k-1}, n_k, r_k)``, or ``(r_{k-1}, m_k, n_k, r_k)`` for an operator, the upper indices as rows.
        Between neighbors that no bond joins the rank is 1.

    Raises:
        ModuleNotFoundError: quimb is not installed; the message holds the install line.
        TypeError: ``train`` is something else, or its data are complex or integers.
        ValueError: The train is a ring, two sites share several bonds, or sites that are no neighbors share one.

    Cost:
        None but for a train with an exponent of its own, which is multiplied into copies of the data.

    Example:
        >>> import quimb.tensor, torch
        >>> from ttref import tt_to_tensor
        >>> x = torch.arange(8.0, dtype=torch.float64)
        >>> state = quimb.tensor.MatrixProductState.from_dense(x.numpy(), dims=[2, 2, 2])
        >>> torch.allclose(tt_to_tensor(from_quimb(state)).reshape(-1), x)
        True
    """
    quimb = peer("quimb")
    kinds = quimb.tensor.MatrixProductState, quimb.tensor.MatrixProductOperator
    if not isinstance(train, kinds):
        raise TypeError(f"train must be a MatrixProductState or -Operator of quimb, got {type(train).__name__}")
    if getattr(train, "exponent", 0):
        train = train.copy()
        train.distribute_exponent()
    matrix, sites = isinstance(train, kinds[1]), list(train.sites)
    tensors = [train[site] for site in sites]
    own = [(train.upper_ind(s), train.lower_ind(s)) if matrix else (train.site_ind(s),) for s in sites]
    cores = []
    for k, (here, free) in enumerate(zip(tensors, own, strict=True)):
        left = set(here.inds) & set(tensors[k - 1].inds) if k else set()
        right = set(here.inds) & set(tensors[k + 1].inds) if k + 1 < len(tensors) else set()
        if len(left) > 1 or len(right) > 1:
            raise ValueError(f"site {sites[k]} shares several bonds with a neighbor; fuse_multibonds_() makes them one")
        if odd := set(here.inds) - left - right - set(free):
            raise ValueError(
                f"site {sites[k]} has the indices {sorted(odd)} beyond its own and those of its neighbors: a ring or a "
                "network is no train; its ends must be open"
            )
        core = as_tensor(here.transpose(*left, *free, *right).data)
        core = core if left else core.unsqueeze(0)
        cores.append(core if right else core.unsqueeze(-1))
    return checked_cores(cores, 4 if matrix else 3)
