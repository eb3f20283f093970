"""The walks of a contraction: core after core with gradients or without, or by the matrix rebuilt in blocks.

Every step is one matrix product. Without gradients it runs on contiguous memory: with rank and mode adjacent, no axis
of the state is transposed. With gradients the axes are sorted first, so that backward is matrix products too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from .costs import Plan
from .scratch import product, scratch, worth_keeping
from .steps import buffers, from_right, steps


def _left_to_right(matrices: Sequence[Tensor], cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """State ``(batch, n_k ... n_d, m_1 ... m_{k-1}, r_{k-1})``: each step turns n_k into m_k behind."""
    state, batch, inputs, outputs = x, *x.shape, 1
    for matrix, core in zip(matrices, cores, strict=True):
        r, m, n, _ = core.shape
        inputs //= n
        state = state.reshape(batch, n, inputs, outputs, r).permute(0, 2, 3, 4, 1)
        state = state.reshape(batch * inputs * outputs, r * n) @ matrix.mT
        outputs *= m
    return state.reshape(batch, outputs)


def _right_to_left(matrices: Sequence[Tensor], cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """State ``(batch, n_1 ... n_k, m_{k+2} ... m_d, r_k, m_{k+1})``: each step turns n_k into m_k in front."""
    state, batch, inputs, outputs, last = x, *x.shape, 1, 1
    for matrix, core in zip(reversed(matrices), reversed(cores), strict=True):
        _, m, n, r = core.shape
        inputs //= n
        state = state.reshape(batch, inputs, n, outputs, r, last).permute(0, 1, 5, 3, 2, 4)
        state = state.reshape(batch * inputs * last * outputs, n * r) @ matrix.mT
        outputs, last = outputs * last, m
    return state.reshape(batch, outputs, last).mT.reshape(batch, outputs * last)


def recorded(way: str, cores: Sequence[Tensor], x: Tensor, chunk: int) -> Tensor:
    """One core after the other. The state's axes are sorted at each step, so that backward is plain matrix products."""
    walk, matrices = _left_to_right if way == "left-to-right" else _right_to_left, _matrices(way, cores)
    if chunk >= x.shape[0]:
        return walk(matrices, cores, x)
    return torch.cat([walk(matrices, cores, part) for part in x.split(chunk)])


_sizes = lru_cache(maxsize=4096)(steps)


def in_place(way: str, cores: Sequence[Tensor], x: Tensor, plan: Plan) -> Tensor:
    """The same without gradients: no axis is sorted, because a core multiplies slices of the state.

    State ``(batch m_1 ... m_{k-1}, r n_k, n_{k+1} ... n_d)`` from the left, ``(batch n_1 ... n_{k-1}, n_k r, m_{k+1}
    ... m_d)`` from the right. One chunk of vectors at a time, with two buffers for the intermediate results.
    """
    shapes = tuple([tuple(core.shape) for core in cores])
    matrices = _matrices(way, cores)
    walk = list(zip(matrices if way == "left-to-right" else matrices[::-1], _sizes(way, shapes), strict=True))
    if plan.chunk >= x.shape[0] and not (plan.recompute or worth_keeping(plan.temporary)):
        return _walked(walk, x, [None] * len(walk))
    y = x.new_empty(x.shape[0], math.prod([m for _, m, _, _ in shapes]))
    between = scratch([plan.chunk * entries for entries in buffers(way, shapes)], x, keep=not plan.recompute)
    for part, out in zip(x.split(plan.chunk), y.split(plan.chunk), strict=True):
        _walked(walk, part, [*(between[k % 2] for k in range(len(walk) - 1)), out])
    return y


def _matrices(way: str, cores: Sequence[Tensor]) -> list[Tensor]:
    """Each core as the matrix of its step: ``(m r_k, r_{k-1} n)``, from the right ``(r_{k-1} m, n r_k)``."""
    shapes = [core.shape for core in cores]
    if way == "right-to-left":
        return [core.reshape(r * m, n * q) for core, (r, m, n, q) in zip(cores, shapes, strict=True)]
    # The last axis stays last: a cheap copy.
    return [core.transpose(1, 2).reshape(r * n, m * q).mT for core, (r, m, n, q) in zip(cores, shapes, strict=True)]


def _walked(walk: Sequence[tuple], x: Tensor, targets: Sequence[Tensor | None]) -> Tensor:
    """Multiply by one matrix after the other, each result into its target."""
    state = x
    for (matrix, (slices, _, q, width)), target in zip(walk, targets, strict=True):
        state = product(matrix, state.reshape(x.shape[0] * slices, q, width), target)
    return state.reshape(x.shape[0], slices * len(matrix) * width)


def by_matrix(x: Tensor, *cores: Tensor) -> Tensor:
    """Multiply by the rebuilt matrix."""
    return x @ matrix_of(cores).mT


def in_blocks(cores: Sequence[Tensor], x: Tensor, block: int) -> Tensor:
    """Multiply by the matrix in blocks of rows: each is rebuilt, used while it is in the cache, and dropped."""
    if not 0 < block < cores[0].shape[1]:
        return x @ matrix_of(cores).mT
    rest, rows = merge(cores[1:]), math.prod([core.shape[1] for core in cores[1:]])
    y = x.new_empty(x.shape[0], cores[0].shape[1] * rows)
    parts = zip(cores[0].split(block, dim=1), y.split(block * rows, dim=1), strict=True)
    for part, out in parts:
        torch.mm(x, matrix_of([part, rest]).mT, out=out)
    return y


def matrix_of(cores: Sequence[Tensor]) -> Tensor:
    """The dense matrix."""
    whole = _join(cores[0], merge(cores[1:])) if len(cores) > 1 else cores[0]
    return whole.flatten(0, 1).flatten(1)


def merge(cores: Sequence[Tensor]) -> Tensor:
    """Several neighboring cores merged into one, from the side with fewer multiply-adds."""
    if from_right([tuple(core.shape) for core in cores]):
        return reduce(lambda right, core: _join(core, right), cores[-2::-1], cores[-1])
    return reduce(_join, cores)


def _join(left: Tensor, right: Tensor) -> Tensor:
    """Two neighboring cores merged into one."""
    r, m, n, bond = left.shape
    _, m_next, n_next, r_next = right.shape
    product = left.reshape(r * m * n, bond) @ right.reshape(bond, -1)
    product = product.reshape(r, m, n, m_next, n_next, r_next).transpose(2, 3)
    return product.reshape(r, m * m_next, n * n_next, r_next)
