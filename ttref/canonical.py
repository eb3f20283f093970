"""Canonical forms of a train and what rests on them: rounding to smaller ranks, and an accurate norm.

Every function takes and returns plain lists of cores ``(*batch, r_{k-1}, n_k, r_k)`` and runs without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import full_precision
from .shapes import tt_ranks, whole
from .trains import check_train
from .truncation import bond_tolerance, check_input, check_rank_or_eps, peak, truncate

__all__ = ["tt_norm", "tt_orthogonalize", "tt_round"]


@full_precision
@torch.no_grad()
def tt_orthogonalize(cores: Sequence[Tensor], center: int) -> list[Tensor]:
    """Bring a train into the canonical form with orthogonality center ``center``; the tensor stays the same.

    ::

        >--( )--<        > left-orthogonal:  sum over (r_{k-1}, n_k) of G* G = 1
        |   |   |        < right-orthogonal: sum over (n_k, r_k) of G G* = 1
             center      the center alone carries the norm

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        center: Position of the center, 0 to d-1.

    Returns:
        New cores; a bond that was larger than its neighbours can fill becomes smaller.

    Raises:
        IndexError: ``center`` outside 0 ... d-1.
        TypeError: ``center`` is no integer; else as :func:`tt_to_tensor`.
        ValueError: As :func:`tt_to_tensor`, or the norm is beyond the range of the dtype, so no core can carry it.

    Cost:
        O(d n r^3) multiply-adds (one QR of an ``r n x r`` matrix for each core).

    Source:
        Schollwoeck (2011), The density-matrix renormalization group in the age of matrix product states, section 4.4.

    Example:
        >>> from ttref import tt_svd
        >>> cores = tt_orthogonalize(tt_svd(torch.randn(4, 4, 4), rank=4), 1)
        >>> left = cores[0].reshape(4, 4)
        >>> torch.allclose(left.T @ left, torch.eye(4), atol=1e-5)
        True
    """
    check_train(cores)
    center = whole("center", center, least=-(2**31))
    if not 0 <= center < len(cores):
        raise IndexError(f"center must be a core position from 0 to {len(cores) - 1}, got {center}")
    moved, exponents = [], 0.0
    for k, core in enumerate(cores):
        check_input(f"cores[{k}]", core)
        # Powers of two round nothing, and keep a product of extremes in range where the train itself is.
        exponent = torch.frexp(peak(core.double(), (-1, -2, -3))).exponent.clamp(min=-1000).double()
        moved.append(core.double() * 2.0**-exponent)
        exponents = exponents + exponent
    for k in range(center):
        _push_right(moved, k)
    for k in range(len(cores) - 1, center, -1):
        _push_left(moved, k)
    moved[center] = moved[center] * 2.0**exponents
    return _narrow(moved, cores[0].dtype)


@full_precision
@torch.no_grad()
def tt_round(
    cores: Sequence[Tensor], *, rank: int | Sequence[int] | None = None, eps: float | None = None
) -> list[Tensor]:
    """Recompress a train to smaller ranks without ever building the tensor.

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        rank: Cap on the new ranks, as in :func:`tt_svd`.
        eps: Relative Frobenius error allowed, in [0, 1), for each train of the batch.

    Returns:
        New cores, left-orthogonal but for the last, which carries the norm. In a batch they share the largest rank.

    Raises:
        TypeError, ValueError: As :func:`tt_svd` and :func:`tt_orthogonalize`.

    Guarantee:
        As :func:`tt_svd`, with the train's own tensor in place of ``x``.

    Cost:
        O(d n r^3) multiply-adds.

    Source:
        Oseledets (2011), algorithm 2.

    Example:
        >>> from ttref import tt_svd
        >>> cores = tt_svd(torch.linspace(0, 1, 16), (2,) * 4, rank=4)
        >>> [core.shape[-1] for core in tt_round(cores, eps=1e-5)]   # a ramp has rank 2
        [2, 2, 2, 1]
    """
    check_rank_or_eps(rank, eps)
    batch, _, modes = check_train(cores)
    dtype, d = cores[0].dtype, len(cores)
    moved = tt_orthogonalize([core.double() for core in cores], 0)
    ranks = None if rank is None else tt_ranks(modes, rank)
    scale = peak(moved[0], (-1, -2, -3))
    moved[0] = moved[0] / scale
    allowed = None
    if eps is not None:
        allowed = bond_tolerance(eps, d - 1, dtype) * torch.linalg.vector_norm(moved[0], dim=(-1, -2, -3))
    for k in range(d - 1):
        left, n, right = moved[k].shape[-3:]
        matrix = moved[k].reshape(*batch, left * n, right)
        cap = None if ranks is None else ranks[k + 1]
        u, carried = truncate(matrix, cap, allowed, precise=dtype == torch.float64)
        moved[k] = u.reshape(*batch, left, n, -1)
        following = moved[k + 1]
        moved[k + 1] = (carried @ following.reshape(*batch, right, -1)).reshape(*batch, -1, *following.shape[-2:])
    moved[-1] = moved[-1] * scale
    return _narrow(moved, dtype)


@full_precision
@torch.no_grad()
def tt_norm(cores: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of a train, accurate even where ``sqrt(tt_dot(a, a))`` would cancel.

    The train is made left-orthogonal and the norm read off the last core, so the norm of a difference of two nearly
    equal trains is right to rounding in their size, not to its square root. For a gradient take
    ``tt_dot(a, a).sqrt()``.

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.

    Returns:
        Tensor of shape ``batch``.

    Raises:
        TypeError, ValueError: As :func:`tt_to_tensor`.

    Cost:
        O(d n r^3) multiply-adds.

    Example:
        >>> from ttref import tt_svd
        >>> round(tt_norm(tt_svd(torch.ones(16), (4, 4), rank=1)).item(), 4)
        4.0
    """
    check_train(cores)
    last = tt_orthogonalize([core.double() for core in cores], len(cores) - 1)[-1]
    scale = peak(last, (-1, -2, -3))
    norm = torch.linalg.vector_norm(last / scale, dim=(-1, -2, -3)) * scale[..., 0, 0, 0]
    return norm.to(cores[0].dtype)


def _narrow(cores: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """float64 cores in ``dtype``, or an error where that would turn a norm into Inf."""
    narrow = [core.to(dtype, memory_format=torch.contiguous_format) for core in cores]
    for k, core in enumerate(narrow):
        if not core.isfinite().all():
            raise ValueError(
                f"core {k} would have to carry the norm of the train, beyond the range of {dtype}; "
                "convert the cores with .float() or .double()"
            )
    return narrow


def _push_right(cores: list[Tensor], k: int) -> None:
    """Make core k left-orthogonal in place; the triangular factor moves into core k+1. float64 cores."""
    *batch, left, n, right = cores[k].shape
    q, r = torch.linalg.qr(cores[k].reshape(*batch, left * n, right))
    q, r = _positive_diagonal(q, r)
    following = cores[k + 1]
    cores[k] = q.reshape(*batch, left, n, -1)
    cores[k + 1] = (r @ following.reshape(*batch, right, -1)).reshape(*batch, -1, *following.shape[-2:])


def _push_left(cores: list[Tensor], k: int) -> None:
    """Make core k right-orthogonal in place; the triangular factor moves into core k-1. float64 cores."""
    *batch, left, n, right = cores[k].shape
    q, r = torch.linalg.qr(cores[k].reshape(*batch, left, n * right).mT)
    q, r = _positive_diagonal(q, r)
    previous = cores[k - 1]
    cores[k] = q.mT.reshape(*batch, -1, n, right)
    cores[k - 1] = (previous.reshape(*batch, -1, left) @ r.mT).reshape(*batch, *previous.shape[-3:-1], -1)


def _positive_diagonal(q: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """QR is unique up to signs; a non-negative diagonal of R picks one."""
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)
