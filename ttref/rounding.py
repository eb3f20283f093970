"""Rows of numbers rounded to integers in the norm of a matrix, each error fed into the columns that follow (GPTQ).

A grid is a rule ``level(values, scales)``: the levels, in units of the scale, nearest to some numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of the diagonal, as GPTQ has it: what no input has shown stays close to its number
TRACE = 1e-6  # the same share where scales are fitted
BLOCK = 64  # columns whose errors reach the columns behind them in one product

Level = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]  # levels float64 ``(m, n)`` and scales bfloat16 ``(m, groups)``


def round_rows(x: Tensor, matrix: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor]:
    """Codes and scales for rows x, so that the rows e of the error cost little in ``e matrix e^T``.

    Args:
        x: float64 ``(m, n)``.
        matrix: float64 ``(n, n)``, positive semidefinite.
        bits: Width of a code, 1 to 8.
        size: Columns that share a scale, a divisor of n.

    Returns:
        Codes int8 ``(m, n)`` from ``-2^(bits-1)`` to ``2^(bits-1) - 1`` and scales bfloat16 ``(m, n / size)``, for
        ``scale (code + 1/2)``.
    """
    level = half_levels(bits)
    levels, scales, _ = best_rounding(x, matrix, level, [nearest_half(x, bits, size)])
    return (levels - 0.5).to(torch.int8), scales


def best_rounding(x: Tensor, matrix: Tensor, level: Level, starts: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """The levels and scales of each row that cost least of all that is tried.

    Tried are the starts; two passes of GPTQ, each with the scales so far and with those fitted to its levels; and a
    pass of coordinate descent from the best.

    Args:
        x: float64 ``(m, n)``.
        matrix: float64 ``(n, n)``, positive semidefinite.
        level: The grid.
        starts: Levels and scales to begin with.

    Returns:
        Levels float64 ``(m, n)`` in units of the scales, scales bfloat16 ``(m, groups)``, and the cost
        ``e matrix e^T`` of each row, float64 ``(m,)``.
    """
    best = _Best(x, matrix, starts[0])
    for start in starts[1:]:
        best.try_(*start)
    wide = damped(matrix.clone(), DAMPING)
    order, spread = spreading(wide)
    for _ in range(2):
        best.with_scales(fed_forward(x, best.scales, order, spread, level))
    best.with_scales(descended(x, wide, best.levels, best.scales, level))
    return best.levels, best.scales, best.cost


class _Best:
    """Levels and scales of least cost in each row, of those tried."""

    def __init__(self, x: Tensor, matrix: Tensor, first: Pair) -> None:
        self.x, self.matrix, (self.levels, self.scales) = x, matrix, first
        self.cost = self._cost(*first)

    def _cost(self, levels: Tensor, scales: Tensor) -> Tensor:
        lost = levels * _wide(self.x, scales) - self.x
        return ((lost @ self.matrix) * lost).sum(1)

    def try_(self, levels: Tensor, scales: Tensor) -> None:
        """Keep what is better."""
        cost = self._cost(levels, scales)
        better = cost < self.cost
        self.cost, better = torch.where(better, cost, self.cost), better[:, None]
        self.levels, self.scales = torch.where(better, levels, self.levels), torch.where(better, scales, self.scales)

    def with_scales(self, levels: Tensor) -> None:
        """Try levels with the scales so far, and with their own."""
        self.try_(levels, self.scales)
        self.try_(levels, fitted_scales(self.x, self.matrix, levels, self.x.shape[1] // self.scales.shape[1]))


def _wide(x: Tensor, scales: Tensor) -> Tensor:
    """The scale of each entry of x."""
    return scales.double().repeat_interleave(x.shape[1] // scales.shape[1], 1)


def damped(matrix: Tensor, share: float) -> Tensor:
    """The matrix with a share of its mean diagonal added to the diagonal, in place."""
    matrix.diagonal().add_(share * matrix.diagonal().mean() + torch.finfo(matrix.dtype).tiny)
    return matrix


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of n that is nearest to ``wanted`` as a ratio, the smaller of two."""
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(math.log(d / wanted)), d))


def half_levels(bits: int) -> Level:
    """The grid of all ``2^bits`` levels -top + 1/2, ..., top - 1/2; zero is not among them."""
    top = 2 ** (bits - 1)

    def level(values: Tensor, scales: Tensor) -> Tensor:
        return (values / scales.where(scales > 0, 1) - 0.5).round_().clamp_(-top, top - 1).add_(0.5)

    return level


def nearest_half(x: Tensor, bits: int, size: int) -> Pair:
    """The nearest of these levels, with the scale of least squared error of 33 for each group.

    They reach from a fifth of the largest entry's to all of it.
    """
    groups, level = x.reshape(len(x), -1, size), half_levels(bits)
    largest = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    best, least = largest.bfloat16(), torch.full_like(largest, torch.inf)
    for step in range(33):
        tried = (largest * (1 - 0.025 * step)).bfloat16()
        wide = tried.double()
        error = (level(groups, wide) * wide - groups).square().sum(2, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return level(groups, best.double()).flatten(1), best.squeeze(2)


def spreading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which columns are rounded, and how an error spreads: row k over its diagonal, for column k."""
    order = matrix.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix[order][:, order]))
    return order, torch.linalg.cholesky(inverse, upper=True)


def fed_forward(x: Tensor, scales: Tensor, order: Tensor, spread: Tensor, level: Level) -> Tensor:
    """Levels ``(m, n)`` of x by GPTQ on a grid, for scales ``(m, groups)``."""
    # Columns lie in rows here, where they are read fast.
    left, grid = x.mT[order], _wide(x, scales).mT[order]
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


def descended(x: Tensor, matrix: Tensor, levels: Tensor, scales: Tensor, level: Level) -> Tensor:
    """One pass of coordinate descent: each column takes its best levels, all others as they are."""
    wide = _wide(x, scales)
    now, grid, slope = levels.mT.clone(), wide.mT.contiguous(), matrix @ (levels * wide - x).mT
    weights = matrix.diagonal().tolist()
    for k in range(len(now)):
        best = level(torch.mul(now[k], grid[k]).sub_(slope[k], alpha=1 / weights[k]), grid[k])
        slope.addr_(matrix[k], (best - now[k]).mul_(grid[k]))
        now[k] = best
    return now.mT


def fitted_scales(x: Tensor, matrix: Tensor, levels: Tensor, size: int) -> Tensor:
    """The scales of least error for these levels: a small least-squares problem for each row.

    A trace of the plain error is added, so that a group that no input has shown keeps its size.
    """
    m, n = x.shape
    groups, trace = n // size, TRACE * matrix.diagonal().mean()
    cut, seen = levels.reshape(m, groups, size), matrix.reshape(groups, size, n)
    square = torch.stack([((cut[:, k] @ seen[k]).reshape(m, groups, size) * cut).sum(2) for k in range(groups)], 1)
    wanted = (((x @ matrix).add_(x, alpha=trace.item())).reshape(m, groups, size) * cut).sum(2)
    diagonal = square.diagonal(dim1=1, dim2=2)
    diagonal.add_(trace * cut.square().sum(2))
    diagonal.add_(1e-9 * diagonal.amax(1, keepdim=True) + torch.finfo(x.dtype).tiny)
    return torch.linalg.solve(square, wanted).clamp(min=0).bfloat16()
