"""Truncated singular value decompositions of batches of small matrices, on which every truncation in ``ttref`` stands.

**Accuracy rule.** Singular values read off a Gram matrix lose half the digits of the arithmetic. So the Gram matrix is
only ever formed in float64 from data of at most float32: half of 16 digits still covers all of float32. Data that is
float64 itself takes the precise route, a true SVD. Either way the result is as good as an SVD in the data's own
precision, and both routes are tested against that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bond_tolerance(eps: float, bonds: int, dtype: torch.dtype) -> float:
    """Relative error allowed for each of ``bonds`` truncations, for a total of ``eps``.

    The discarded parts are orthogonal to each other, so their squares add: each bond gets 1 / sqrt(bonds). Half of the
    rounding allowance of 10 d machine epsilons is added here, so that eps = 0 drops singular values that are only
    rounding noise; the other half is for the rounding of the cores. Half-precision data gets float32's allowance: ten
    times its own machine epsilon would exceed most eps.
    """
    noise = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return (eps + 5 * (bonds + 1) * noise) / max(bonds, 1) ** 0.5


def left_subspace(matrix: Tensor, *, precise: bool, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors and all singular values of a float64 batch ``(*batch, m, n)``.

    Returns:
        ``u`` of shape ``(*batch, m, min(k, most))`` with orthonormal columns, and ``s`` of shape ``(*batch, k)``,
        descending, with k = min(m, n). ``precise=False`` squares the matrix: see the accuracy rule of this module.

    Cost:
        O(m n k) multiply-adds and one k x k (fast: at most 2n x 2n) eigenproblem for each matrix.
    """
    m, n = matrix.shape[-2:]
    keep = min(m, n) if most is None else min(m, n, most)
    basis = None
    if m > 2 * n:  # the singular values of a tall matrix are those of its small triangular factor
        basis, matrix = torch.linalg.qr(matrix)
        m = n
    if precise:
        if n > 2 * m:  # a wide one too: the right singular vectors are not needed
            matrix = torch.linalg.qr(matrix.mT, mode="r").R.mT
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        u = u[..., :keep]
    else:
        gram = matrix @ matrix.mT
        energies, u = _eigh_2x2(gram) if m == 2 else torch.linalg.eigh(gram)
        s = energies.flip(-1)[..., : min(m, n)].clamp(min=0).sqrt()
        u = u[..., -keep:].flip(-1)  # eigh sorts in ascending order
    return (u if basis is None else basis @ u), s


def singular_values(matrix: Tensor, *, precise: bool) -> Tensor:
    """All singular values of a float64 batch ``(*batch, m, n)`` with m <= n, descending, without any vectors.

    Cost:
        O(m^2 n) multiply-adds for each matrix.
    """
    if precise:
        return torch.linalg.svdvals(matrix)
    return torch.linalg.eigvalsh(matrix @ matrix.mT).flip(-1).clamp(min=0).sqrt()


def _eigh_2x2(gram: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` in closed form: rank-one trains with binary modes need only 2 x 2 matrices."""
    a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    mean, half = (a + c) / 2, (a - c) / 2
    radius = torch.hypot(half, b)
    # Of the two formulas for the leading eigenvector, take the one without cancellation.
    x = torch.where(half >= 0, radius + half, b)
    y = torch.where(half >= 0, b, radius - half)
    length = torch.hypot(x, y)
    x = torch.where(length > 0, x / length, 1.0)  # length 0: a multiple of the identity, any basis is right
    y = torch.where(length > 0, y / length, 0.0)
    vectors = torch.stack((torch.stack((-y, x), -1), torch.stack((x, y), -1)), -2)
    return torch.stack((mean - radius, mean + radius), -1), vectors


def fix_signs(u: Tensor) -> Tensor:
    """Flip the signs of columns, in place, so that a weighted sum of each column is positive; returns ``u``.

    The weights 1 / (i + sqrt 2) decrease slowly and are irrational, so the sum is far from zero also for balanced
    columns such as (1, -1) or (1, -2), where rounding would decide the sign of a plain sum or of the largest entry.
    Printed cores then agree between machines.
    """
    weights = 1 / (torch.arange(u.shape[-2], dtype=u.dtype, device=u.device) + 2**0.5)
    return u.mul_(torch.copysign(torch.ones_like(weights[0]), weights @ u).unsqueeze(-2))


def ranks_within(s: Tensor, allowed: Tensor) -> Tensor:
    """Smallest rank of each matrix whose discarded singular values have norm at most ``allowed``; at least 1."""
    tails = s.square().flip(-1).cumsum(-1).flip(-1)  # tails[r] is the energy lost by keeping r values
    return (tails > allowed.square().unsqueeze(-1)).sum(-1).clamp(min=1)


def truncate(matrix: Tensor, cap: int | None, allowed: Tensor | None, *, precise: bool) -> tuple[Tensor, Tensor]:
    """Orthonormal basis ``u`` of the kept subspace, and ``u^T matrix``; by rank cap or by discarded norm."""
    u, s = left_subspace(matrix, precise=precise, most=cap)
    if cap is None:
        kept = ranks_within(s, allowed)
        u = u[..., : int(kept.max())]
        needed = torch.arange(u.shape[-1], device=u.device) < kept.unsqueeze(-1)
        u = u * needed.unsqueeze(-2)  # the other columns of a matrix are padding to the largest rank of the batch
    u = fix_signs(u)
    return u, u.mT @ matrix
