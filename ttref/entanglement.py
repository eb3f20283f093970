"""Schmidt values and entanglement entropy: how strongly the two sides of a bond are correlated.

Cut a tensor at bond k into a matrix of (first k modes) by (the rest). Its singular values are the Schmidt values; the
entropy of their squares says how many of them matter. A tensor train needs low entropy at every bond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .canonical import canonical
from .checks import check_batch_dims, check_bond, check_input, check_rank_or_eps, check_train
from .powers import check_cast, exponents, times_power
from .precision import full_precision
from .truncation import bond_tolerance, ranks_within, singular_values

__all__ = ["entanglement_entropy", "schmidt_values", "suggest_ranks"]


@full_precision
@torch.no_grad()
def schmidt_values(x_or_cores: Tensor | Sequence[Tensor], bond: int, *, batch_dims: int = 0) -> Tensor:
    """Singular values across one bond, unsquared and unnormalized, largest first.

    Args:
        x_or_cores: A tensor ``(*batch, n_1, ..., n_d)`` in its modes, or a train of cores
            ``(*batch, r_{k-1}, n_k, r_k)``.
        bond: 1 to d-1; bond k has k modes on its left.
        batch_dims: Number of leading batch axes of a tensor; for a train they are read off the cores.

    Returns:
        ``(*batch, s)`` with s the smaller side of the cut (of a train: at most the rank of the bond). Their squares
        sum to the squared Frobenius norm.

    Raises:
        IndexError: ``bond`` outside 1 ... d-1.
        TypeError, ValueError: Not a real floating-point tensor or train, NaN or Inf, no entries; ValueError for values
            beyond the range of the dtype.

    Cost:
        A tensor of N entries cut into m x n: O(N min(m, n)) multiply-adds. A train: O(d n r^3).

    Source:
        Schollwoeck (2011), section 4.1.3; Vidal (2003).

    Example:
        >>> bell = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) / 2**0.5
        >>> [round(s, 4) for s in schmidt_values(bell, 1).tolist()]
        [0.7071, 0.7071]
    """
    values, exponent, dtype = _spectrum(x_or_cores, bond, batch_dims)
    answer = times_power(values, exponent).to(dtype)
    check_cast("the Schmidt values are", answer, values)
    return answer


@full_precision
@torch.no_grad()
def entanglement_entropy(
    x_or_cores: Tensor | Sequence[Tensor], bond: int, *, base: float = 2, batch_dims: int = 0
) -> Tensor:
    """Entropy of the normalized squared Schmidt values at a bond, in bits (``base=2``) or nats (``base=math.e``).

    0 for a product of a left and a right part; at most log(min side of the cut). ``base ** entropy`` reads as an
    effective rank.

    Args:
        x_or_cores: A tensor in its modes, or a train, as for :func:`schmidt_values`.
        bond: 1 to d-1; bond k has k modes on its left.
        base: Base of the logarithm, above 1.
        batch_dims: Number of leading batch axes of a tensor.

    Returns:
        Tensor of shape ``batch``. The zero tensor has no normalized Schmidt values; its entropy is returned as 0.

    Raises:
        IndexError, TypeError, ValueError: As :func:`schmidt_values`; ValueError for a base of 1 or less.

    Cost:
        As :func:`schmidt_values`.

    Source:
        Schollwoeck (2011), equation 22 (von Neumann entropy of a bipartition).

    Example:
        >>> ghz = torch.zeros(2, 2, 2)
        >>> ghz[0, 0, 0] = ghz[1, 1, 1] = 1.0
        >>> [round(entanglement_entropy(ghz, k).item(), 4) for k in (1, 2)]
        [1.0, 1.0]
    """
    if not base > 1:
        raise ValueError(f"base must be above 1 (2 gives bits, math.e gives nats), got {base}")
    values, _, dtype = _spectrum(x_or_cores, bond, batch_dims)
    weights = values.square()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return (torch.special.entr(weights).sum(-1).clamp(min=0) / math.log(base)).to(dtype)


@full_precision
@torch.no_grad()
def suggest_ranks(x_or_cores: Tensor | Sequence[Tensor], *, eps: float) -> tuple[int, ...]:
    """Ranks with which :func:`tt_svd` or :func:`tt_round` stays within ``eps``, read off the Schmidt values.

    Each bond may discard ``eps / sqrt(d - 1)`` of the norm. :func:`tt_svd` with ``eps`` itself can find smaller ranks,
    because every truncation also lowers the Schmidt values of later bonds; the ranks here come from each bond alone.

    Args:
        x_or_cores: A tensor in its modes, or a train without batch axes.
        eps: Relative Frobenius error allowed, in [0, 1).

    Returns:
        ``(1, r_1, ..., r_{d-1}, 1)``.

    Raises:
        TypeError, ValueError: As :func:`schmidt_values`; ValueError for eps outside [0, 1) or a batch of trains.

    Cost:
        d - 1 times :func:`schmidt_values`.

    Source:
        Oseledets (2011), theorem 2.2.

    Example:
        >>> # a ramp has rank 2
        >>> suggest_ranks(torch.linspace(0, 1, 16).reshape(2, 2, 2, 2), eps=1e-4)
        (1, 2, 2, 2, 1)
    """
    check_rank_or_eps(None, eps)
    if isinstance(x_or_cores, Tensor):
        check_input("x", x_or_cores)
        d = x_or_cores.ndim
        if d == 0:
            raise ValueError("x is a single number; give it at least one mode")
    else:
        batch, _, modes = check_train(x_or_cores)
        d = len(modes)
        if batch:
            raise ValueError(f"suggest_ranks takes one train, but the cores have batch axes {batch}")
    ranks = [1]
    for bond in range(1, d):
        values, _, dtype = _spectrum(x_or_cores, bond, 0)
        allowed = bond_tolerance(eps, d - 1, dtype) * torch.linalg.vector_norm(values)
        ranks.append(int(ranks_within(values, allowed)))
    return (*ranks, 1)


def _spectrum(x_or_cores: Tensor | Sequence[Tensor], bond: int, batch_dims: int) -> tuple[Tensor, Tensor, torch.dtype]:
    """Schmidt values in float64 divided by ``2^e``, the exponent e ``(*batch, 1)``, and the dtype to answer in.

    Ratios of Schmidt values stay exact where the values themselves leave the range of the input's dtype.
    """
    if isinstance(x_or_cores, Tensor):
        x = x_or_cores
        check_input("x", x)
        batch_dims = check_batch_dims(x, batch_dims)
        batch, modes = x.shape[:batch_dims], x.shape[batch_dims:]
        check_bond(bond, len(modes))
        matrix = x.reshape(*batch, math.prod(modes[:bond]), -1).double()
        exponent = exponents(matrix, (-2, -1))
        matrix = times_power(matrix, -exponent)
    else:
        check_train(x_or_cores)
        check_bond(bond, len(x_or_cores))
        x = x_or_cores[0]
        moved, exponent = canonical(x_or_cores, bond - 1)
        matrix, exponent = moved[bond - 1].flatten(-3, -2), exponent[..., 0]
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mT
    return singular_values(matrix, precise=x.dtype == torch.float64), exponent[..., 0], x.dtype
