"""The ranks for a given error: as few as fitted cores need, bond by bond.

The ranks of one tolerance, the same at every bond, are tried from few to many, each fitted. Where a train has several
bonds, two neighboring cores are then merged, solved for as one, and cut again in the norm around them, as the density
matrix renormalization group does, with the smallest rank that a fit makes up for.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..entanglement import schmidt_values
from ..matrices import ttm_svd
from ..truncation import fix_signs
from .gradients import traces
from .parts import Surrounding, paired
from .solving import solved
from .starting import better_start, kronecker_roots, plain_start, root, whitened
from .sweeping import centered, stored_error, swept
from .weighting import times_gram


def fitted_to_error(
    weight: Tensor,
    gram: Tensor,
    ridged: Tensor,
    rows: Sequence[int],
    cols: Sequence[int],
    eps: float,
    sweeps: int,
) -> list[Tensor]:
    """Cores with an output error of at most ``eps``, in the dtype of ``weight``; see :func:`fit_cores`."""
    exact = weight.double()
    allowed = eps + 10 * len(rows) * torch.finfo(weight.dtype).eps

    def met(cores: Sequence[Tensor]) -> bool:
        return stored_error(exact, [core.to(weight.dtype) for core in cores], gram) <= allowed

    def fit(start: Sequence[Tensor]) -> list[Tensor]:
        cores = list(start)
        for _ in range(sweeps):  # one at a time: the first that is good enough is
            if met(cores):
                break
            cores = swept(exact, ridged, cores, 1)
        return cores

    candidates = _candidates(exact, ridged, rows, cols)
    made = {}

    def enough(k: int) -> bool:
        made[k] = fit(better_start(weight, ridged, plain_start(weight, rows, cols, candidates[k])))
        return met(made[k])

    k = bisect.bisect_left(range(len(candidates)), True, key=enough)
    if k == len(candidates):  # eps below rounding: all ranks
        return ttm_svd(weight, rows, cols, eps=0.0)
    cores = made[k]
    if len(rows) > 2:
        for bond in range(len(rows) - 1):
            cores = _trimmed(exact, ridged, cores, bond, fit, met)
    return [core.to(weight.dtype) for core in cores]


def _candidates(weight: Tensor, gram: Tensor, rows: Sequence[int], cols: Sequence[int]) -> list[tuple[int, ...]]:
    """Ranks by falling tolerance: at each bond as many as the whitened tensor needs for it; the last are all."""
    tensor = paired(whitened(weight, gram, cols), rows, cols)
    tails = []
    for bond in range(1, len(rows)):
        energies = schmidt_values(tensor, bond).square()
        tails.append(energies.flip(0).cumsum(0).flip(0))  # tails[r] is what r values leave out
    if not tails:
        return [(1, 1)]
    found = {}
    for allowed in torch.cat(tails).unique().flip(0).tolist():
        ranks = tuple(max(1, int((tail > allowed).sum())) for tail in tails)
        found[(1, *ranks, 1)] = None
    found[(1, *(len(tail) for tail in tails), 1)] = None
    return list(found)


def _trimmed(
    weight: Tensor,
    gram: Tensor,
    cores: Sequence[Tensor],
    bond: int,
    fit: Callable[[Sequence[Tensor]], list[Tensor]],
    met: Callable[[Sequence[Tensor]], bool],
) -> list[Tensor]:
    """Merge the two cores of a bond, solve for both at once, and part them with the smallest rank that is enough."""
    most = cores[bond].shape[3]
    cores = centered(cores, bond)
    left, right = cores[bond], cores[bond + 1]
    (a, m1, n1, _), (_, m2, n2, b) = left.shape, right.shape
    both = torch.einsum("amnr,rxyb->amxnyb", left, right).reshape(a, m1 * m2, n1 * n2, b)
    merged = [*cores[:bond], both, *cores[bond + 2 :]]
    rows, cols = [core.shape[1] for core in merged], [core.shape[2] for core in merged]
    both, _ = solved(gram, paired(times_gram(weight, gram), rows, cols), merged, bond)
    on_a, on_n, on_b = traces(Surrounding(gram, merged, bond))
    within = [part.diag() if part.ndim == 1 else part for part in kronecker_roots(on_n, (n1, n2))]
    roots = [root(on_a), *within, root(on_b)]
    flat = torch.einsum("amxnyb,ac,ni,yj,bd->cmixjd", both.reshape(a, m1, m2, n1, n2, b), *roots)
    u, s, v = torch.linalg.svd(flat.reshape(a * m1 * n1, -1), full_matrices=False)
    u = fix_signs(u)
    inverses = [part.inverse() for part in roots]

    def parted(rank: int) -> list[Tensor]:
        kept = u[:, :rank]
        one = torch.einsum("cmir,ca,in->amnr", kept.reshape(a, m1, n1, -1), *inverses[:2])
        other = (kept.mT @ flat.reshape(len(u), -1)).reshape(-1, m2, n2, b)
        other = torch.einsum("rxjd,jy,db->rxyb", other, *inverses[2:])
        return [*cores[:bond], one, other, *cores[bond + 2 :]]

    tried = {}

    def enough(rank: int) -> bool:
        tried[rank] = fit(parted(rank))
        return met(tried[rank])

    ranks = range(1, most)
    k = bisect.bisect_left(ranks, True, key=enough)
    return tried[ranks[k]] if k < len(ranks) else cores
