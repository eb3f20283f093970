"""Sums, entrywise products and inner products of trains, without building a tensor.

Every function takes plain lists of cores ``(*batch, r_{k-1}, n_k, r_k)`` and is differentiable. Ranks grow with every
sum and product; :func:`tt_round` reduces them again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_pair
from .precision import computable, full_precision

__all__ = ["tt_add", "tt_dot", "tt_hadamard"]


@full_precision
def tt_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product of two trains, or of two batches of trains pair by pair. Differentiable.

    ::

        a  o--o--o--o
           |  |  |  |       contracted from left to right, mode by mode
        b  o--o--o--o

    Args:
        a: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        b: d cores ``(*batch, s_{k-1}, n_k, s_k)`` with the same modes; batch axes broadcast.

    Returns:
        Tensor of shape ``batch``, in the dtype of the cores. Products of the leading cores must be in its range too
        (not so for :func:`tt_norm`); beyond it they become Inf or zero, as in any product of torch.

    Raises:
        TypeError: A core is no real floating-point tensor, or the two trains differ in dtype.
        ValueError: Cores that do not chain, or modes that differ; the message names the first core.

    Cost:
        O(d n r s (r + s)) multiply-adds for each pair.

    Source:
        Oseledets (2011), algorithm 4.

    Example:
        >>> from ttref import tt_svd
        >>> cores = tt_svd(torch.ones(8), (2, 2, 2), rank=1)
        >>> round(tt_dot(cores, cores).item(), 4)
        8.0
    """
    check_pair(a, b)
    ladder = None
    for left, right in zip(a, b, strict=True):
        left, right = computable(left), computable(right)
        if ladder is None:
            ladder = left.squeeze(-3).mT @ right.squeeze(-3)
            continue
        # (r, s) times (s, n s') is (r, n s'); as (r n, s') it is multiplied by the other core as (r n, r').
        half = ladder @ right.flatten(-2)
        half = half.reshape(*half.shape[:-2], -1, right.shape[-1])
        ladder = left.flatten(-3, -2).mT @ half
    return ladder[..., 0, 0].to(a[0].dtype)


@full_precision
def tt_add(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Sum of two trains, exact: the ranks add. :func:`tt_round` reduces them again.

    Args:
        a: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        b: d cores ``(*batch, s_{k-1}, n_k, s_k)`` with the same modes; batch axes broadcast.

    Returns:
        d cores with ranks ``r_k + s_k`` inside and 1 at the ends; inner cores are block-diagonal.

    Raises:
        TypeError, ValueError: As :func:`tt_dot`.

    Cost:
        O(d n (r + s)^2) entries are written; no arithmetic, except one addition at d = 1.

    Source:
        Oseledets (2011), section 4.1.

    Example:
        >>> from ttref import tt_svd, tt_to_tensor
        >>> ones = tt_svd(torch.ones(8), (2, 2, 2), rank=1)
        >>> total = tt_add(ones, ones)
        >>> first = tt_to_tensor(total).flatten()[0].item()
        >>> [tuple(core.shape) for core in total], round(first, 4)
        ([(1, 2, 2), (2, 2, 2), (2, 2, 1)], 2.0)
    """
    check_pair(a, b)
    d = len(a)
    if d == 1:
        return [a[0] + b[0]]
    total = []
    for k, (left, right) in enumerate(zip(a, b, strict=True)):
        batch = torch.broadcast_shapes(left.shape[:-3], right.shape[:-3])
        left, right = left.expand(*batch, *left.shape[-3:]), right.expand(*batch, *right.shape[-3:])
        if k == 0:
            total.append(torch.cat((left, right), -1))
        elif k == d - 1:
            total.append(torch.cat((left, right), -3))
        else:
            n, (r, r_next), (s, s_next) = left.shape[-2], left.shape[-3::2], right.shape[-3::2]
            upper = torch.cat((left, left.new_zeros(*batch, r, n, s_next)), -1)
            lower = torch.cat((right.new_zeros(*batch, s, n, r_next), right), -1)
            total.append(torch.cat((upper, lower), -3))
    return total


@full_precision
def tt_hadamard(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Entrywise product of two trains, exact: the ranks multiply.

    Args:
        a: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        b: d cores ``(*batch, s_{k-1}, n_k, s_k)`` with the same modes; batch axes broadcast.

    Returns:
        d cores with ranks ``r_k * s_k``: each slice is the Kronecker product of the two slices.

    Raises:
        TypeError, ValueError: As :func:`tt_dot`.

    Cost:
        O(d n r^2 s^2) multiplications, one for each entry written.

    Source:
        Oseledets (2011), section 4.2.

    Example:
        >>> from ttref import tt_entry, tt_svd
        >>> ramp = tt_svd(torch.arange(8.0), (2, 2, 2), rank=2)
        >>> square = tt_hadamard(ramp, ramp)
        >>> [core.shape[-1] for core in square], round(tt_entry(square, (1, 0, 1)).item(), 3)
        ([4, 4, 1], 25.0)
    """
    check_pair(a, b)
    product = []
    for left, right in zip(a, b, strict=True):
        core = left[..., :, None, :, :, None] * right[..., None, :, :, None, :]  # (*batch, r, s, n, r', s')
        product.append(core.flatten(-2).flatten(-4, -3))
    return product
