"""What one does with trains once one has them: canonical forms, rounding, sums, products, inner products, norms.

Every function takes and returns plain lists of cores ``(*batch, r_{k-1}, n_k, r_k)``. What truncates or
orthogonalises runs without gradients; :func:`tt_dot`, :func:`tt_add` and :func:`tt_hadamard` are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .shapes import tt_ranks
from .trains import check_train
from .truncation import bond_tolerance, check_input, check_rank_or_eps, computable, truncate

__all__ = ["tt_orthogonalize", "tt_round", "tt_dot", "tt_norm", "tt_add", "tt_hadamard"]


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
    if isinstance(center, bool) or not isinstance(center, int):
        raise TypeError(f"center must be an integer, got {center!r}")
    if not 0 <= center < len(cores):
        raise IndexError(f"center must be a core position from 0 to {len(cores) - 1}, got {center}")
    moved = [core.double() for core in cores]
    for k in range(center):
        _push_right(moved, k)
    for k in range(len(cores) - 1, center, -1):
        _push_left(moved, k)
    return _narrow(moved, cores[0].dtype)


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
    for k, core in enumerate(cores):
        check_input(f"cores[{k}]", core)
    dtype, d = cores[0].dtype, len(cores)
    ranks = None if rank is None else tt_ranks(modes, rank)
    moved = [core.double() for core in tt_orthogonalize([core.double() for core in cores], 0)]
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


def tt_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner product of two trains, or of two batches of trains pair by pair. Differentiable.

    ::

        a  o--o--o--o
           |  |  |  |       read as a ladder, one rung after the other
        b  o--o--o--o

    Args:
        a: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        b: d cores ``(*batch, s_{k-1}, n_k, s_k)`` with the same modes; batch axes broadcast.

    Returns:
        Tensor of shape ``batch``, in the dtype of the cores.

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
        # (r, s) with (s, n s') gives (r, n s'); read as (r n, s') it meets the other core read as (r n, r').
        half = ladder @ right.flatten(-2)
        half = half.reshape(*half.shape[:-2], -1, right.shape[-1])
        ladder = left.flatten(-3, -2).mT @ half
    return ladder[..., 0, 0].to(a[0].dtype)


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


def tt_add(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Sum of two trains, exact: the ranks add. Follow with :func:`tt_round` to bring them down again.

    Args:
        a: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        b: d cores ``(*batch, s_{k-1}, n_k, s_k)`` with the same modes; batch axes broadcast.

    Returns:
        d cores with ranks ``r_k + s_k`` inside and 1 at the ends; inner cores are block-diagonal.

    Raises:
        TypeError, ValueError: As :func:`tt_dot`.

    Cost:
        No arithmetic but at one mode (d = 1); O(d n (r + s)^2) entries are written.

    Source:
        Oseledets (2011), section 4.1.

    Example:
        >>> from ttref import tt_svd, tt_to_tensor
        >>> ones = tt_svd(torch.ones(8), (2, 2, 2), rank=1)
        >>> total = tt_add(ones, ones)
        >>> [tuple(core.shape) for core in total], round(tt_to_tensor(total).flatten()[0].item(), 4)
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
        O(d n r^2 s^2) multiplications, as many as entries are written.

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


def check_pair(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Both are trains, of one dtype, with equal modes and batch axes that broadcast."""
    batch_a, _, modes_a = check_train(a, "a")
    batch_b, _, modes_b = check_train(b, "b")
    if len(modes_a) != len(modes_b):
        raise ValueError(f"a has {len(modes_a)} cores and b has {len(modes_b)}; trains to combine need equal modes")
    for k, (n, m) in enumerate(zip(modes_a, modes_b, strict=True)):
        if n != m:
            raise ValueError(f"core {k} of a has mode {n} but core {k} of b has mode {m}; the modes must be equal")
    if a[0].dtype != b[0].dtype:
        raise TypeError(f"a is {a[0].dtype} and b is {b[0].dtype}; convert one of them")
    try:
        torch.broadcast_shapes(batch_a, batch_b)
    except RuntimeError:
        raise ValueError(f"the batch axes {batch_a} of a and {batch_b} of b do not broadcast") from None


def peak(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Largest magnitude along ``axes``, or 1 where all is zero: what to divide by before squares leave the range."""
    largest = x.abs().amax(axes, keepdim=True)
    return torch.where(largest == 0, 1.0, largest)


def _narrow(cores: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """float64 cores in ``dtype``, or an error where that would turn a norm into Inf."""
    narrow = [core.to(dtype) for core in cores]
    for k, (core, wide) in enumerate(zip(narrow, cores, strict=True)):
        if not core.isfinite().all() and wide.isfinite().all():
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
