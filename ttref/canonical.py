"""Canonical forms of a train, and two uses of them: rounding to smaller ranks, and an accurate norm.

Every function takes and returns plain lists of cores ``(*batch, r_{k-1}, n_k, r_k)`` and runs without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_input, check_rank_or_eps, check_train, whole
from .powers import check_cast, exponents, peak, times_power
from .precision import full_precision
from .shapes import tt_ranks
from .truncation import bond_tolerance, truncate
from .wide import Pair, orthonormal, product

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
        New cores; a bond that was larger than its neighbors can fill becomes smaller. Products of some of the cores
        may leave the range of the dtype, as long as the norm of the train does not.

    Raises:
        IndexError: ``center`` outside 0 ... d-1.
        TypeError: ``center`` is no integer; else as :func:`tt_to_tensor`.
        ValueError: As :func:`tt_to_tensor`, NaN or Inf, or a norm beyond the range of the dtype, above or below, which
            the center cannot carry.

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
    center = whole("center", center)
    if not 0 <= center < len(cores):
        raise IndexError(f"center must be a core position from 0 to {len(cores) - 1}, got {center}")
    moved, exponent = canonical(cores, center)
    nothing = torch.zeros_like(exponent)
    return _narrow(moved, [exponent if k == center else nothing for k in range(len(cores))], cores[0].dtype)


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
        A train can represent numbers beyond the range of its dtype: where the last core could not carry the norm (above
        the largest number of the dtype, or below the smallest normal one), every core carries an equal part of it, a
        power of two, and is left-orthogonal but for that factor.

    Raises:
        TypeError, ValueError: As :func:`tt_svd`; NaN or Inf in a core, or a norm of which even an equal part is beyond
            the range of the dtype.

    Guarantee:
        As :func:`tt_svd`, with the train's own tensor in place of ``x``. With ``eps`` this holds under any
        cancellation: a difference of two nearly equal trains is rounded in double-double arithmetic where float64 has
        too few digits for ``eps``. With ``rank``, rounding errors are relative to the norm that the train would have
        without cancellation.

    Cost:
        O(d n r^3) multiply-adds; more than a hundred times the time in double-double arithmetic.

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
    ranks = None if rank is None else tt_ranks(modes, rank)
    moved, exponent = canonical(cores, 0)
    allowed = None
    if eps is not None:
        tolerance = bond_tolerance(eps, d - 1, dtype)
        if _cancels(cores, moved[0], exponent, tolerance):
            moved, exponent = _right_orthogonal_wide(cores)
        allowed = tolerance * torch.linalg.vector_norm(moved[0], dim=(-1, -2, -3))
    for k in range(d - 1):
        left, n, right = moved[k].shape[-3:]
        matrix = moved[k].reshape(*batch, left * n, right)
        cap = None if ranks is None else ranks[k + 1]
        u, carried = truncate(matrix, cap, allowed, precise=dtype == torch.float64)
        moved[k] = u.reshape(*batch, left, n, -1)
        following = moved[k + 1]
        moved[k + 1] = (carried @ following.reshape(*batch, right, -1)).reshape(*batch, -1, *following.shape[-2:])
    return _narrow(moved, _shared(moved, exponent, dtype), dtype)


@full_precision
@torch.no_grad()
def tt_norm(cores: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of a train, accurate even where ``sqrt(tt_dot(a, a))`` would cancel.

    The train is made left-orthogonal and the norm read off the last core. So the absolute error for a difference of two
    nearly equal trains is about u times their norm, u the machine epsilon of float64, and not sqrt(u) times. For a
    gradient take ``tt_dot(a, a).sqrt()``.

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.

    Returns:
        Tensor of shape ``batch``, in the dtype of the cores.

    Raises:
        TypeError, ValueError: As :func:`tt_to_tensor`; ValueError for NaN or Inf, and for a norm beyond the range of
            the dtype, above or below.

    Cost:
        O(d n r^3) multiply-adds.

    Example:
        >>> from ttref import tt_svd
        >>> round(tt_norm(tt_svd(torch.ones(16), (4, 4), rank=1)).item(), 4)
        4.0
    """
    check_train(cores)
    moved, exponent = canonical(cores, len(cores) - 1)
    norm = torch.linalg.vector_norm(moved[-1], dim=(-1, -2, -3))
    answer = times_power(norm, exponent[..., 0, 0, 0]).to(cores[0].dtype)
    check_cast("the norm of the train is", answer[..., None], norm[..., None])
    return answer


def canonical(cores: Sequence[Tensor], center: int) -> tuple[list[Tensor], Tensor]:
    """Canonical form of a checked train in float64, without the limits of the range of a dtype.

    Returns:
        The cores, and the exponent e ``(*batch, 1, 1, 1)``, int64, of a factor ``2^e`` that the center lacks. The
        largest magnitude in the center is in [1/2, 1), or zero.
    """
    moved, exponent = _unscaled(cores)
    for k in range(center):
        _push_right(moved, k)
        exponent = exponent + _rescale(moved, k + 1)
    for k in range(len(cores) - 1, center, -1):
        _push_left(moved, k)
        exponent = exponent + _rescale(moved, k - 1)
    return moved, exponent


def _unscaled(cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The cores in float64, each divided by a power of two, which is exact; and the sum of the exponents."""
    moved = []
    for k, core in enumerate(cores):
        check_input(f"cores[{k}]", core)
        moved.append(core.double())
    return moved, sum(_rescale(moved, k) for k in range(len(cores)))


def _rescale(cores: list[Tensor], k: int) -> Tensor:
    """Divide core k in place by a power of two, so that no product leaves the range; returns the exponent."""
    exponent = exponents(cores[k], (-1, -2, -3))
    cores[k] = times_power(cores[k], -exponent)
    return exponent


def _cancels(cores: Sequence[Tensor], center: Tensor, exponent: Tensor, tolerance: float) -> bool:
    """True if cancellation makes the rounding errors of float64 larger than the tolerance.

    They are relative to the norm that the train would have without cancellation, if the terms of the sums over the
    bonds had random signs. The mean square of that norm is the product over the cores of the matrices of squared norms
    of ``G[i, :, j]``.
    """
    moved, size = _unscaled(cores)
    squares = torch.ones_like(size, dtype=torch.float64)[..., 0]
    for core in moved:
        squares = squares @ core.square().sum(-2)
        grown = exponents(squares, (-1, -2))
        squares, size = times_power(squares, -grown), size + grown[..., None] / 2
    terms = squares[..., 0, 0].log2() / 2 + size[..., 0, 0, 0]  # log2 of that norm; -inf for a zero train
    norm = torch.linalg.vector_norm(center, dim=(-1, -2, -3)).log2() + exponent[..., 0, 0, 0]
    rounding = len(cores) * torch.finfo(torch.float64).eps
    return bool(((terms > -torch.inf) & (terms + math.log2(rounding) > norm + math.log2(tolerance))).any())


def _right_orthogonal_wide(cores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """:func:`canonical` with center 0, in double-double arithmetic; bonds keep their size, dependent rows are zero."""
    moved, exponent = _unscaled(cores)
    carried: Pair = moved[-1], torch.zeros_like(moved[-1])
    for k in range(len(cores) - 1, 0, -1):
        *batch, left, n, right = carried[0].shape
        q, r = orthonormal(tuple(part.reshape(*batch, left, n * right).mT for part in carried))
        moved[k] = q[0].mT.reshape(*batch, left, n, right)
        previous = moved[k - 1]
        flat = previous.reshape(*batch, -1, left)
        merged = product((flat, torch.zeros_like(flat)), (r[0].mT, r[1].mT))
        grown = exponents(merged[0], (-1, -2))
        carried = tuple(times_power(part, -grown).reshape(previous.shape) for part in merged)
        exponent = exponent + grown[..., None]
    moved[0] = carried[0]
    return moved, exponent


def _shared(cores: Sequence[Tensor], exponent: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Exponents that sum to ``exponent``: all of it in the last core, or equal parts if ``dtype`` cannot hold that."""
    size, info = times_power(peak(cores[-1], (-1, -2, -3)), exponent), torch.finfo(dtype)
    fits = (size <= info.max) & (size >= info.tiny)
    each = exponent.div(len(cores), rounding_mode="floor")
    parts = []
    for k in range(len(cores)):
        equal = each + (exponent - each * len(cores) > k).long()
        alone = exponent if k == len(cores) - 1 else torch.zeros_like(exponent)
        parts.append(torch.where(fits, alone, equal))
    return parts


def _narrow(cores: Sequence[Tensor], parts: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """float64 cores times ``2^part``, cast to ``dtype``; ValueError where the norm would become Inf or zero."""
    narrow = []
    for k, (core, part) in enumerate(zip(cores, parts, strict=True)):
        narrow.append(times_power(core, part).to(dtype, memory_format=torch.contiguous_format))
        check_cast(f"core {k} would have to carry the norm of the train,", narrow[k].flatten(-3), core.flatten(-3))
    return narrow


def _push_right(cores: list[Tensor], k: int) -> None:
    """Make core k left-orthogonal in place; the triangular factor moves into core k+1. float64 cores."""
    *batch, left, n, right = cores[k].shape
    q, r = _positive_diagonal(*torch.linalg.qr(cores[k].reshape(*batch, left * n, right)))
    following = cores[k + 1]
    cores[k] = q.reshape(*batch, left, n, -1)
    cores[k + 1] = (r @ following.reshape(*batch, right, -1)).reshape(*batch, -1, *following.shape[-2:])


def _push_left(cores: list[Tensor], k: int) -> None:
    """Make core k right-orthogonal in place; the triangular factor moves into core k-1. float64 cores."""
    *batch, left, n, right = cores[k].shape
    q, r = _positive_diagonal(*torch.linalg.qr(cores[k].reshape(*batch, left, n * right).mT))
    previous = cores[k - 1]
    cores[k] = q.mT.reshape(*batch, -1, n, right)
    cores[k - 1] = (previous.reshape(*batch, -1, left) @ r.mT).reshape(*batch, *previous.shape[-3:-1], -1)


def _positive_diagonal(q: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """QR with a non-negative diagonal of R, which makes it unique."""
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return q * sign.unsqueeze(-2), r * sign.unsqueeze(-1)
