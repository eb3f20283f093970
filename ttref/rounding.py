"""Rows of numbers rounded to integers in the norm of a matrix, each error fed into the columns that follow (GPTQ).

A grid is a rule ``level(values, scales)``: the levels, in units of the scale, nearest to some numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 1e-3  # of the mean of the diagonal: what no input has shown stays close to its number
BLOCK = 64  # columns whose errors reach the columns behind them in one product

Level = Callable[[Tensor, Tensor], Tensor]


def round_rows(x: Tensor, matrix: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor]:
    """Codes and scales for rows x, so that the rows e of the error cost little in ``e matrix e^T``.

    Two passes of GPTQ, the scales fitted to the codes after each by least squares; then one of coordinate descent.

    Args:
        x: float64 ``(m, n)``.
        matrix: float64 ``(n, n)``, positive semidefinite; it is damped in place.
        bits: Width of a code, 1 to 8.
        size: Columns that share a scale, a divisor of n.

    Returns:
        Codes int8 ``(m, n)`` from ``-2^(bits-1)`` to ``2^(bits-1) - 1`` and scales bfloat16 ``(m, n / size)``, for
        ``scale (code + 1/2)``.
    """
    matrix, top = damped(matrix, DAMPING), 2 ** (bits - 1)
    scales, (order, spread) = _first_scales(x, top, size), spreading(matrix)
    for _ in range(2):
        levels = fed_forward(x, scales, order, spread, lambda values, grid: _levels(values, grid, top))
        scales = fitted_scales(x, matrix, levels, size)
    levels = _descended(x, matrix, levels, scales.double().repeat_interleave(size, 1), top)
    return (levels - 0.5).to(torch.int8), fitted_scales(x, matrix, levels, size)


def damped(matrix: Tensor, share: float) -> Tensor:
    """The matrix with a share of its mean diagonal added to the diagonal, in place."""
    matrix.diagonal().add_(share * matrix.diagonal().mean() + torch.finfo(matrix.dtype).tiny)
    return matrix


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of n that is nearest to ``wanted`` as a ratio, the smaller of two."""
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(math.log(d / wanted)), d))


def _levels(values: Tensor, scales: Tensor, top: int) -> Tensor:
    """The nearest of the levels -top + 1/2, ..., top - 1/2, times a scale."""
    steps = scales.where(scales > 0, 1)
    return (values / steps - 0.5).round().clamp(-top, top - 1) + 0.5


def _first_scales(x: Tensor, top: int, size: int) -> Tensor:
    """Of 33 scales for each group, from a fifth of the largest entry's to all of it, the one of least squared error."""
    groups = x.reshape(len(x), -1, size)
    largest = groups.abs().amax(2, keepdim=True) / (top - 0.5)
    best, least = largest.bfloat16(), torch.full_like(largest, torch.inf)
    for step in range(33):
        tried = (largest * (1 - 0.025 * step)).bfloat16()
        wide = tried.double()
        error = (_levels(groups, wide, top) * wide - groups).square().sum(2, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best.squeeze(2)


def spreading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which columns are rounded, and how an error spreads: row k over its diagonal, for column k."""
    order = matrix.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix[order][:, order]))
    return order, torch.linalg.cholesky(inverse, upper=True)


def fed_forward(x: Tensor, scales: Tensor, order: Tensor, spread: Tensor, level: Level) -> Tensor:
    """Levels ``(m, n)`` of x by GPTQ on a grid, for scales ``(m, groups)``."""
    size = x.shape[1] // scales.shape[1]
    # Columns lie in rows here, where they are read fast.
    left, grid = x.mT[order], scales.double().repeat_interleave(size, 1).mT[order]
    levels, pivots = torch.empty_like(left), spread.diagonal().tolist()
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = torch.empty_like(left[start:stop])
        for k in range(start, stop):
            values = left[k] if k == start else left[k] - spread[start:k, k] @ errors[: k - start]
            levels[k] = level(values, grid[k])
            torch.addcmul(values, levels[k], grid[k], value=-1, out=errors[k - start]).div_(pivots[k])
        left[stop:].addmm_(spread[start:stop, stop:].mT, errors, alpha=-1)
    return torch.empty_like(levels).index_copy_(0, order, levels).mT


def _descended(x: Tensor, matrix: Tensor, levels: Tensor, scales: Tensor, top: int) -> Tensor:
    """One pass of coordinate descent: each column takes its best levels, all others as they are."""
    now, grid, slope = levels.mT.clone(), scales.mT.contiguous(), matrix @ (levels * scales - x).mT
    inverse, weights = 1 / grid.where(grid > 0, 1), matrix.diagonal().tolist()
    for k in range(len(now)):
        best = torch.addcmul(now[k] - 0.5, slope[k], inverse[k], value=-1 / weights[k])
        best.round_().clamp_(-top, top - 1).add_(0.5)
        slope.addr_(matrix[k], (best - now[k]).mul_(grid[k]))
        now[k] = best
    return now.mT


def fitted_scales(x: Tensor, matrix: Tensor, levels: Tensor, size: int) -> Tensor:
    """The scales of least error for these levels: a small least-squares problem for each row."""
    m, n = x.shape
    groups = n // size
    cut, seen = levels.reshape(m, groups, size), matrix.reshape(groups, size, n)
    square = torch.stack([((cut[:, k] @ seen[k]).reshape(m, groups, size) * cut).sum(2) for k in range(groups)], 1)
    wanted = ((x @ matrix).reshape(m, groups, size) * cut).sum(2)
    diagonal = square.diagonal(dim1=1, dim2=2)
    diagonal.add_(1e-9 * diagonal.amax(1, keepdim=True) + torch.finfo(x.dtype).tiny)
    return torch.linalg.solve(square, wanted).clamp(min=0).bfloat16()
