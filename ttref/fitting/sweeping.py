"""Sweeps over a train: each core in turn solves its least-squares problem, the others orthonormal around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..canonical import canonical
from ..matrices import ttm_to_matrix
from ..powers import times_power
from .errors import norm, relative
from .parts import paired
from .solving import solved
from .weighting import times_gram

SETTLED = 1e-4  # a sweep that lowers the squared error by less, relative to itself, is the last


def centered(cores: Sequence[Tensor], center: int) -> list[Tensor]:
    """Matrix cores in float64 and canonical form."""
    moved, exponent = canonical([core.flatten(1, 2) for core in cores], center)
    moved[center] = times_power(moved[center], exponent)
    return [new.reshape(new.shape[0], *old.shape[1:3], new.shape[2]) for new, old in zip(moved, cores, strict=True)]


def stored_error(weight: Tensor, cores: Sequence[Tensor], gram: Tensor) -> float:
    """Relative output error of cores as they are stored."""
    return relative(weight, ttm_to_matrix([core.double() for core in cores]), gram)


def swept(weight: Tensor, gram: Tensor, first: Sequence[Tensor], sweeps: int) -> list[Tensor]:
    """At most so many sweeps there and back; the squared error never rises, whatever the number.

    Args:
        weight: float64 matrix ``(out, in)``.
        gram: float64 Gram matrix or weights, with the ridge.
        first: Cores to begin with.
        sweeps: Most sweeps.
    """
    cores = centered(first, 0)
    rows, cols = [core.shape[1] for core in cores], [core.shape[2] for core in cores]
    target = paired(times_gram(weight, gram), rows, cols)
    loss = norm(weight - ttm_to_matrix(cores), gram) ** 2
    for _ in range(sweeps):
        before = loss
        for k, step in _there_and_back(len(cores)):
            cores[k], gain = solved(gram, target, cores, k, floor=SETTLED * loss)
            loss = max(loss - gain, 0.0)
            if step:
                _move_center(cores, k, step)
        if before - loss <= SETTLED * before:
            break
    return cores


def _there_and_back(d: int) -> list[tuple[int, int]]:
    """Cores in the order of a sweep, and where the center goes next."""
    if d == 1:
        return [(0, 0)]
    return [*((k, 1) for k in range(d - 1)), *((k, -1) for k in range(d - 1, 0, -1))]


def _move_center(cores: list[Tensor], k: int, step: int) -> None:
    """Make core k orthonormal towards its neighbor, which takes the triangular factor; the train stays the same."""
    left, m, n, right = cores[k].shape
    if step == 1:
        q, r = torch.linalg.qr(cores[k].reshape(-1, right))
        cores[k] = q.reshape(left, m, n, -1)
        cores[k + 1] = (r @ cores[k + 1].flatten(1)).reshape(-1, *cores[k + 1].shape[1:])
    else:
        q, r = torch.linalg.qr(cores[k].reshape(left, -1).mT)
        cores[k] = q.mT.reshape(-1, m, n, right)
        cores[k - 1] = cores[k - 1] @ r.mT
