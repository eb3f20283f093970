"""One core of a train as a linear least-squares problem in a weighted norm.

With all cores but one fixed, and ``L`` and ``R`` the parts of the train on its left and right, the loss
``tr((W - W') G (W - W')^T)`` is quadratic in core C. Its rows ``C[:, i, :, :]`` do not mix: each solves ``A x = b_i``,
all with one matrix, in which the sums over the rows of L and R are done once::

    A[(a j b), (a' j' b')] = LL[s a, s' a'] G[(s j r), (s' j' r')] RR[r b, r' b']     LL = sum over rows of L L

A diagonal Gram matrix does not mix the column indices j of the core either: there is one small system for each j. Small
systems are factorized. Large ones are solved by conjugate gradients, which never form A: about ten steps do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .gradients import conjugate_gradients
from .parts import Surrounding, right_side

STEPS = 12  # of conjugate gradients, typically: what a factorization is compared with
ENTRIES = 1 << 24  # float64 numbers of a temporary at most: 128 MB


def solved(
    gram: Tensor, target: Tensor, cores: Sequence[Tensor], k: int, *, tol: float = 1e-2, floor: float = 0.0
) -> tuple[Tensor, float]:
    """Core k that minimizes the loss, the others fixed, and by how much the loss falls; never a worse core.

    It solves for the change of the core, so that a core which is right already stays as it is to rounding. The last
    step of conjugate gradients brings less than ``tol`` of that fall, or less than ``floor``.
    """
    around, core, wanted = Surrounding(gram, cores, k), cores[k], right_side(target, cores, k)
    dense = gram.ndim == 2
    if not (_dense_pays(around) if dense else _diagonal_pays(around)):
        missing = wanted - around(core)
        change = conjugate_gradients(around, wanted, missing, tol, floor)
        gain = ((2 * missing - around(change)) * change).sum().item()  # what the steps add up to is less exact
    else:
        change, gain = _dense(around, core, wanted) if dense else _diagonal(around, core, wanted)
    return (core + change, gain) if gain > 0 and math.isfinite(gain) else (core, 0.0)


def _dense_pays(around: Surrounding) -> bool:
    """True if forming and factorizing A is cheaper than conjugate gradients, and its temporaries are small."""
    p, m, q, s, n, r, a, b = around.sizes
    unknowns, width = a * n * b, s * n * r
    forming = min((a * width) ** 2 + (unknowns * r) ** 2, (b * width) ** 2 + (unknowns * s) ** 2)
    factoring = unknowns**3 / 3 + 2 * m * unknowns**2
    step = p * m * q * width * (width + 2 * min(a, b))
    largest = max(unknowns**2, (s * a) ** 2, (r * b) ** 2, min((a * n * r) ** 2, (b * n * s) ** 2))
    return largest <= ENTRIES and forming + factoring <= STEPS * step


def _diagonal_pays(around: Surrounding) -> bool:
    """The same for weights on a diagonal, whose systems are made a few at a time."""
    p, m, q, s, n, r, a, b = around.sizes
    forming = a * a * s * n * r + (a * b) ** 2 * n * r
    factoring = n * ((a * b) ** 3 / 3 + 2 * m * (a * b) ** 2)
    step = 2 * p * m * q * s * n * r * min(a, b)
    return (a * b) ** 2 <= ENTRIES and forming + factoring <= STEPS * step


def _dense(around: Surrounding, core: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """The change of a core and what it gains, by a factorization, for a Gram matrix."""
    _, m, _, s, n, r, a, b = around.sizes
    left, right = _squares(around.left), _squares(around.right)
    gram = around.gram.reshape(s, n, r, s, n, r).permute(0, 3, 1, 4, 2, 5)
    if (a * s * n * r) ** 2 + (a * n * b * r) ** 2 <= (b * s * n * r) ** 2 + (a * n * b * s) ** 2:
        made = (left.mT @ gram.reshape(s * s, -1)).reshape(-1, r * r) @ right
    else:
        made = left.mT @ (gram.reshape(-1, r * r) @ right).reshape(s * s, -1)
    matrix = made.reshape(a, a, n, n, b, b).permute(0, 2, 4, 1, 3, 5).reshape(a * n * b, a * n * b)
    now, then = (x.permute(0, 2, 3, 1).reshape(a * n * b, m) for x in (core, wanted))
    change, gain = _changed(matrix, now, then)
    return change.reshape(a, n, b, m).permute(0, 3, 1, 2), gain


def _diagonal(around: Surrounding, core: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """The same for weights: one system ``(a b, a b)`` for each j, as many at a time as fit."""
    _, m, _, s, n, r, a, b = around.sizes
    weights = around.gram.reshape(s, n, r)
    changes, gains = [], 0.0
    for js in torch.arange(n, device=weights.device).split(max(1, ENTRIES // (a * b) ** 2)):
        matrices = weights.new_zeros(a * a * len(js), b * b)
        for ls, on_left in _squares_by_column(around.left):
            for rs, on_right in _squares_by_column(around.right):
                half = on_left.mT @ weights[ls][:, js][:, :, rs].flatten(1)
                matrices += half.reshape(a * a * len(js), -1) @ on_right
        matrices = matrices.reshape(a, a, len(js), b, b).permute(2, 0, 3, 1, 4).reshape(len(js), a * b, a * b)
        now, then = (x[:, :, js].permute(2, 0, 3, 1).reshape(len(js), a * b, m) for x in (core, wanted))
        change, gain = _changed(matrices, now, then)
        changes.append(change.reshape(len(js), a, b, m).permute(1, 3, 0, 2))
        gains += gain
    return torch.cat(changes, 2), gains


def _changed(matrix: Tensor, now: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """``x`` with ``A (now + x) = wanted``, and by how much the loss falls."""
    missing = wanted - matrix @ now
    change = solve(matrix, missing)
    return change, ((2 * missing - matrix @ change) * change).sum().item()


def _squares(part: Tensor) -> Tensor:
    """``(columns columns', bond bond')``: a part of the train times itself, summed over its rows."""
    rows, cols, bond = part.shape
    flat = part.reshape(rows, cols * bond)
    return (flat.mT @ flat).reshape(cols, bond, cols, bond).transpose(1, 2).reshape(cols * cols, bond * bond)


def _squares_by_column(part: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The diagonal of :func:`_squares` in ``columns = columns'``, ``(columns, bond bond')``, a slice at a time."""
    rows, cols, bond = part.shape
    at_once = max(1, ENTRIES // bond**2)
    for first in range(0, cols, at_once):
        piece = part[:, first : first + at_once].transpose(0, 1)
        yield slice(first, first + at_once), (piece.mT @ piece).flatten(1)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Least-squares solution of one or several positive semidefinite systems: Cholesky, or the shortest one."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        if (pivots.amin(-1) > 1e-7 * pivots.amax(-1)).all():
            return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(matrix)
    noise = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values[..., -1:].clamp(min=0)
    inverse = torch.where(values > noise, values, torch.inf).reciprocal()
    return vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right))
