"""What surrounds one core of a train: the product of the cores on its left, of those on its right, and ``W G`` on both.

A part has shape ``(rows, columns, bond)``. Only sums over its rows ever count, so a part with more rows than columns
times bond is replaced by the triangular factor of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .weighting import times_gram


def paired(matrix: Tensor, rows: Sequence[int], cols: Sequence[int]) -> Tensor:
    """A matrix ``(out, in)`` as a tensor with one axis ``m_k n_k`` for each core."""
    d = len(rows)
    split = matrix.reshape(*rows, *cols).permute([axis for k in range(d) for axis in (k, d + k)])
    return split.reshape([m * n for m, n in zip(rows, cols, strict=True)])


def right_side(target: Tensor, cores: Sequence[Tensor], k: int) -> Tensor:
    """The paired ``W G`` contracted with all cores but core k, whose shape it gets."""
    made = target.reshape(1, -1)
    for core in cores[:k]:
        made = core.reshape(-1, core.shape[-1]).mT @ made.reshape(math.prod(core.shape[:3]), -1)
    for core in reversed(cores[k + 1 :]):
        made = made.reshape(-1, math.prod(core.shape[1:])) @ core.reshape(core.shape[0], -1).mT
    return made.reshape(cores[k].shape)


class Surrounding:
    """The linear map from core k to the rows of W' that matter, and back: the least-squares problem without its matrix.

    Args:
        gram: Gram matrix ``(in, in)`` or weights ``(in,)``.
        cores: float64 cores ``(r_{k-1}, m_k, n_k, r_k)``; all but core k are read.
        k: The core that is solved for.
    """

    def __init__(self, gram: Tensor, cores: Sequence[Tensor], k: int) -> None:
        self.gram, self.shape = gram, tuple(cores[k].shape)
        self.left = _part(cores[:k], cores[k])
        mirrored = [core.permute(3, 1, 2, 0) for core in reversed(cores[k + 1 :])]
        self.right = _part(mirrored, cores[k], mirrored=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows that matter ``p m q`` and columns ``s n r``, by left part, core and right part; bonds a and b."""
        p, s, a = self.left.shape
        q, r, b = self.right.shape
        return p, self.shape[1], q, s, self.shape[2], r, a, b

    def forward(self, core: Tensor) -> Tensor:
        """``(p m q, s n r)``: the rows of W' of which all others are combinations."""
        p, m, q, s, n, r, a, b = self.sizes
        made = self.left.reshape(p * s, a) @ core.reshape(a, -1)
        made = (made.reshape(-1, b) @ self.right.reshape(q * r, b).mT).reshape(p, s, m, n, q, r)
        return made.permute(0, 2, 4, 1, 3, 5).reshape(p * m * q, s * n * r)

    def back(self, rows: Tensor) -> Tensor:
        """The transpose of :meth:`forward`, a core."""
        p, m, q, s, n, r, a, b = self.sizes
        made = rows.reshape(p, m, q, s, n, r).permute(0, 3, 1, 4, 2, 5).reshape(p * s, -1)
        made = self.left.reshape(p * s, a).mT @ made
        return (made.reshape(-1, q * r) @ self.right.reshape(q * r, b)).reshape(self.shape)

    def __call__(self, core: Tensor) -> Tensor:
        """The matrix of the problem times a core."""
        return self.back(times_gram(self.forward(core), self.gram))


def _part(cores: Sequence[Tensor], like: Tensor, *, mirrored: bool = False) -> Tensor:
    """The product of cores read from one end to the core solved for; ``mirrored`` from the right end."""
    made = like.new_ones(1, 1, 1)
    for core in cores:
        bond, m, n, following = core.shape
        rows, cols, _ = made.shape
        made = (made.reshape(-1, bond) @ core.reshape(bond, -1)).reshape(rows, cols, m, n, following)
        order = (2, 0, 3, 1, 4) if mirrored else (0, 2, 1, 3, 4)  # the mode read last is the most significant
        made = made.permute(order).reshape(rows * m, cols * n, following)
    rows, cols, bond = made.shape
    if rows <= cols * bond:
        return made
    return torch.linalg.qr(made.reshape(rows, -1), mode="r").R.reshape(-1, cols, bond)
