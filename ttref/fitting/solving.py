"""One core of a train as a linear least-squares problem in a weighted norm.

With all cores but one fixed, and ``L`` and ``R`` the parts of the train on its left and right, the loss
``tr((W - W') G (W - W')^T)`` is quadratic in core C. Its rows ``C[:, i, :, :]`` do not mix: each solves ``A x = b_i``,
all with one matrix, in which the sums over the row indices of L and R are done once::

    A[(a j b), (a' j' b')] = LL[l a, l' a'] G[(l j r), (l' j' r')] RR[r b, r' b']     LL = sum over rows of L L

A diagonal Gram matrix does not mix the column indices j of the core either: there is one small system for each j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def paired(matrix: Tensor, rows: Sequence[int], cols: Sequence[int]) -> Tensor:
    """A matrix ``(out, in)`` as a tensor with one axis ``m_k n_k`` for each core."""
    d = len(rows)
    split = matrix.reshape(*rows, *cols).permute([axis for k in range(d) for axis in (k, d + k)])
    return split.reshape([m * n for m, n in zip(rows, cols, strict=True)])


def left_part(cores: Sequence[Tensor]) -> Tensor:
    """The product of the cores on the left: ``(rows, columns, bond)``; of none, a one."""
    made = torch.ones(1, 1, 1, dtype=torch.float64, device=cores[0].device if cores else None)
    for core in cores:
        _, m, n, right = core.shape
        rows, cols, left = made.shape
        made = (made.reshape(-1, left) @ core.reshape(left, -1)).reshape(rows, cols, m, n, right)
        made = made.transpose(1, 2).reshape(rows * m, cols * n, right)
    return made


def right_part(cores: Sequence[Tensor]) -> Tensor:
    """The product of the cores on the right: ``(rows, columns, bond)``."""
    mirrored = [core.permute(3, 1, 2, 0) for core in reversed(cores)]
    made = torch.ones(1, 1, 1, dtype=torch.float64, device=cores[0].device if cores else None)
    for core in mirrored:
        right, m, n, left = core.shape
        rows, cols, _ = made.shape
        made = (core.permute(1, 2, 3, 0).reshape(-1, right) @ made.reshape(-1, right).mT).reshape(
            m, n, left, rows, cols
        )
        made = made.permute(0, 3, 1, 4, 2).reshape(m * rows, n * cols, left)
    return made


def right_side(target: Tensor, cores: Sequence[Tensor], k: int) -> Tensor:
    """``b``, shape of core k: the paired ``W G`` contracted with all the other cores."""
    left, m, n, right = cores[k].shape
    made = target.reshape(1, -1)
    for core in cores[:k]:
        made = core.reshape(-1, core.shape[-1]).mT @ made.reshape(math.prod(core.shape[:3]), -1)
    for core in reversed(cores[k + 1 :]):
        made = made.reshape(-1, math.prod(core.shape[1:])) @ core.reshape(core.shape[0], -1).mT
    return made.reshape(left, m, n, right)


def system(gram: Tensor, cores: Sequence[Tensor], k: int) -> Tensor:
    """``A``: ``(a j b, a j b)`` for a Gram matrix, ``(j, a b, a b)`` for the weights on a diagonal."""
    lefts, rights = left_part(cores[:k]), right_part(cores[k + 1 :])
    n, a, b = cores[k].shape[2], lefts.shape[2], rights.shape[2]
    nl, nr = lefts.shape[1], rights.shape[1]
    if gram.ndim == 1:
        on_left = torch.einsum("ija,ijc->jac", lefts, lefts).reshape(nl, a * a)
        on_right = torch.einsum("ija,ijc->jac", rights, rights).reshape(nr, b * b)
        made = (on_left.mT @ gram.reshape(nl, n * nr)).reshape(a * a * n, nr) @ on_right
        return made.reshape(a, a, n, b, b).permute(2, 0, 3, 1, 4).reshape(n, a * b, a * b)
    on_left, on_right = _squares(lefts), _squares(rights)
    sixfold = gram.reshape(nl, n, nr, nl, n, nr)
    if a * a * (n * nr) ** 2 <= b * b * (nl * n) ** 2:  # the smaller of the two on the way
        made = on_left.mT @ sixfold.permute(0, 3, 1, 4, 2, 5).reshape(nl * nl, -1)
        made = made.reshape(-1, nr * nr) @ on_right
    else:
        made = sixfold.permute(0, 3, 1, 4, 2, 5).reshape(-1, nr * nr) @ on_right
        made = on_left.mT @ made.reshape(nl * nl, -1)
    return made.reshape(a, a, n, n, b, b).permute(0, 2, 4, 1, 3, 5).reshape(a * n * b, a * n * b)


def _squares(part: Tensor) -> Tensor:
    """``(columns columns', bond bond')``: a part of the train times itself, summed over its rows."""
    rows, cols, bond = part.shape
    flat = part.reshape(rows, cols * bond)
    return (flat.mT @ flat).reshape(cols, bond, cols, bond).transpose(1, 2).reshape(cols * cols, bond * bond)


def solved(gram: Tensor, target: Tensor, cores: Sequence[Tensor], k: int) -> tuple[Tensor, float]:
    """Core k that minimises the loss, the others fixed, and by how much the loss falls; never a worse core.

    It solves for the change of the core, so that a core which is right already stays as it is to rounding.
    """
    old = cores[k]
    left, m, n, right = old.shape
    matrix = system(gram, cores, k)
    unknowns = (lambda x: x.permute(2, 0, 3, 1)) if gram.ndim == 1 else (lambda x: x.permute(0, 2, 3, 1))
    shape = (n, left * right, m) if gram.ndim == 1 else (left * n * right, m)
    now = unknowns(old).reshape(shape)
    missing = unknowns(right_side(target, cores, k)).reshape(shape) - matrix @ now
    change = solve(matrix, missing)
    gain = (change * missing).sum().item()
    if not (gain > 0 and math.isfinite(gain)):
        return old, 0.0
    if gram.ndim == 1:
        return (now + change).reshape(n, left, right, m).permute(1, 3, 0, 2).contiguous(), gain
    return (now + change).reshape(left, n, right, m).permute(0, 3, 1, 2).contiguous(), gain


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Least-squares solution of one or several positive semidefinite systems: Cholesky, or the shortest one."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        found = torch.cholesky_solve(right, factor)
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        if (pivots.amin(-1) > 1e-7 * pivots.amax(-1)).all():
            return found
    values, vectors = torch.linalg.eigh(matrix)
    noise = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values[..., -1:].clamp(min=0)
    inverse = torch.where(values > noise, 1 / values.clamp(min=torch.finfo(matrix.dtype).tiny), 0.0)
    return vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right))
