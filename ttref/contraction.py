"""How a TT-matrix meets a batch of vectors: the orders there are, what each costs, and the product itself.

The orders differ in cost only; every one gives the same numbers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .matrices import check_matrix_train, ttm_to_matrix
from .shapes import whole
from .trains import middle
from .truncation import check_float, computable

__all__ = ["Plan", "plan_contraction", "ttm_matvec"]

# One byte to or from memory costs about as much time as this many multiply-adds on a CPU core with wide vectors.
MACS_PER_BYTE = 4

ORDERS = ("left-to-right", "right-to-left", "two-gemm", "dense")


class Plan(NamedTuple):
    """How a TT-matrix meets a batch of vectors, and what that costs.

    ``order``: "left-to-right" or "right-to-left" (one core after the other), "two-gemm" (merge the cores into two
    halves first), "dense" (rebuild the matrix first). ``macs``: multiply-adds. ``bytes``: float32 bytes read and
    written by all steps. ``temporary``: float32 bytes of the largest intermediate result, the answer not among them.
    """

    order: str
    macs: int
    bytes: int
    temporary: int


def plan_contraction(cores: Sequence[Tensor], batch: int) -> Plan:
    """The cheapest order for multiplying ``batch`` vectors by a TT-matrix.

    Every order is costed in multiply-adds and in bytes moved; one byte counts as ``MACS_PER_BYTE`` multiply-adds.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        batch: Number of vectors.

    Returns:
        A :class:`Plan`; print it to see what was chosen and what it costs.

    Raises:
        TypeError, ValueError: ``batch`` not an integer or below 1, or cores that are no TT-matrix.

    Cost:
        O(d); nothing is contracted.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd
        >>> cores = ttm_svd(torch.randn(64, 64), (8, 8), (8, 8), rank=2)
        >>> plan_contraction(cores, 1).macs < 64 * 64
        True
    """
    check_matrix_train(cores)
    batch = whole("batch", batch, least=1)
    shapes = [tuple(core.shape) for core in cores]
    plans = [_cost(order, shapes, batch) for order in ORDERS]
    return min(plans, key=lambda plan: plan.macs + MACS_PER_BYTE * plan.bytes)


def ttm_matvec(cores: Sequence[Tensor], x: Tensor, plan: Plan | str = "auto") -> Tensor:
    """Multiply a TT-matrix by vectors, ``y = x W^T`` as ``nn.Linear`` does it. Differentiable in cores and in x.

    Every step is one matrix product on contiguous memory: with rank and mode adjacent, no axis is ever transposed.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        x: Vectors ``(*batch, n)`` in the dtype of the cores.
        plan: "auto" takes :func:`plan_contraction`; a :class:`Plan` or an order's name forces one.

    Returns:
        Tensor ``(*batch, m)``.

    Raises:
        TypeError: ``x`` differs in dtype from the cores.
        ValueError: ``x`` has the wrong width, the cores are no TT-matrix, or no such order exists.

    Cost:
        As the plan says: O(batch d r^2 m n / min(m, n)) for the one-core-at-a-time orders with equal modes.

    Source:
        Novikov et al. (2015), equation 5.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd
        >>> w, x = torch.randn(6, 4), torch.randn(10, 4)
        >>> cores = ttm_svd(w, (2, 3), (2, 2), rank=4)
        >>> torch.allclose(ttm_matvec(cores, x), x @ w.T, atol=1e-5)
        True
    """
    rows, cols, _ = check_matrix_train(cores)
    check_float("x", x)
    if x.dtype != cores[0].dtype:
        raise TypeError(f"x is {x.dtype} but the cores are {cores[0].dtype}; convert one of them")
    if x.ndim == 0 or x.shape[-1] != math.prod(cols):
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must hold {math.prod(cols)} = product of {cols}")
    batch = x.shape[:-1]
    flat = computable(x).reshape(-1, x.shape[-1])
    work = [computable(core) for core in cores]
    if isinstance(plan, str) and plan == "auto":
        plan = plan_contraction(cores, max(len(flat), 1))
    order = plan.order if isinstance(plan, Plan) else plan
    if order not in ORDERS:
        raise ValueError(f"plan must be 'auto', a Plan or one of {ORDERS}, got {order!r}")
    if order == "dense":
        y = flat @ ttm_to_matrix(work).mT
    elif order == "right-to-left":
        y = _right_to_left(work, flat)
    else:
        y = _left_to_right(work if order == "left-to-right" else _halves(work), flat)
    return y.reshape(*batch, math.prod(rows)).to(x.dtype)


def _left_to_right(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """State ``(batch m_1 ... m_{k-1}, r n_k, n_{k+1} ... n_d)``: each step turns n_k into m_k in front."""
    state, inputs, outputs = x, x.shape[1], 1
    for core in cores:
        r, m, n, r_next = core.shape
        inputs //= n
        step = core.permute(1, 3, 0, 2).reshape(m * r_next, r * n)
        state = _apply(step, state.reshape(len(x) * outputs, r * n, inputs))
        outputs *= m
    return state.reshape(len(x), outputs)


def _right_to_left(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """State ``(batch n_1 ... n_{k-1}, n_k r, m_{k+1} ... m_d)``: each step turns n_k into m_k behind."""
    state, inputs, outputs = x, x.shape[1], 1
    for core in reversed(cores):
        r, m, n, r_next = core.shape
        inputs //= n
        step = core.reshape(r * m, n * r_next)
        state = _apply(step, state.reshape(len(x) * inputs, n * r_next, outputs))
        outputs *= m
    return state.reshape(len(x), outputs)


def _apply(step: Tensor, state: Tensor) -> Tensor:
    """``step (p, q)`` times every ``(q, w)`` slice of a state; for w = 1 that is one plain matrix product."""
    return state.squeeze(2) @ step.mT if state.shape[2] == 1 else step @ state


def _halves(cores: Sequence[Tensor]) -> list[Tensor]:
    """Merge the cores into two, cut where the two merged cores are smallest together."""
    if len(cores) < 3:
        return list(cores)
    cut = _best_cut([tuple(core.shape) for core in cores])
    return [_merge(cores[:cut]), _merge(cores[cut:])]


def _merge(cores: Sequence[Tensor]) -> Tensor:
    """One TT-matrix core for several neighbours."""
    merged = cores[0]
    for core in cores[1:]:
        left, m, n, bond = merged.shape
        right = core.shape[-1]
        product = merged.reshape(-1, bond) @ core.reshape(bond, -1)
        product = product.reshape(left, m, n, core.shape[1], core.shape[2], right).transpose(2, 3)
        merged = product.reshape(left, m * core.shape[1], n * core.shape[2], right)
    return merged


def _best_cut(shapes: Sequence[tuple[int, ...]]) -> int:
    def size(part: Sequence[tuple[int, ...]]) -> int:
        return part[0][0] * math.prod(m * n for _, m, n, _ in part) * part[-1][-1]

    return min(range(1, len(shapes)), key=lambda cut: size(shapes[:cut]) + size(shapes[cut:]))


def _cost(order: str, shapes: Sequence[tuple[int, ...]], batch: int) -> Plan:
    """Multiply-adds and float32 bytes of one order, step by step as the code above takes them."""
    macs = moved = largest = 0
    if order == "dense":
        rows, cols = math.prod(s[1] for s in shapes), math.prod(s[2] for s in shapes)
        steps = _rebuild_steps(shapes)
        macs = sum(entries * inner for entries, inner in steps) + batch * rows * cols
        moved = 4 * (4 * rows * cols + batch * (rows + cols))
        return Plan(order, macs, moved, 4 * max((entries for entries, _ in steps), default=0))
    if order == "two-gemm" and len(shapes) > 2:
        cut = _best_cut(shapes)
        halves = []
        for part in (shapes[:cut], shapes[cut:]):
            m, n = 1, 1
            for k, (_, m_k, n_k, right) in enumerate(part):
                m, n = m * m_k, n * n_k
                if k:
                    merged = part[0][0] * m * n * right
                    macs += merged * part[k][0]
                    moved += 4 * 3 * merged
                    largest = max(largest, 4 * merged)
            halves.append((part[0][0], m, n, part[-1][-1]))
        shapes = halves
    inputs, outputs = math.prod(s[2] for s in shapes), 1
    steps = shapes if order != "right-to-left" else [(s[3], s[1], s[2], s[0]) for s in reversed(shapes)]
    for k, (r, m, n, r_next) in enumerate(steps, 1):
        before = batch * outputs * r * inputs
        inputs //= n
        after = batch * outputs * m * r_next * inputs
        outputs *= m
        macs += after * r * n
        moved += 4 * (before + after + r * m * n * r_next)
        if k < len(steps):
            largest = max(largest, 4 * after)
    return Plan(order, macs, moved, largest)


def _rebuild_steps(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Products inside :func:`ttm_to_matrix`, each as (entries of the result, multiply-adds for one entry).

    Both ends are folded towards the middle bond and joined there, so that bond's rank is what a rebuilding costs.
    """
    modes = [m * n for _, m, n, _ in shapes]
    half = middle(modes)
    steps = [(math.prod(modes[: k + 1]) * shapes[k][3], shapes[k][0]) for k in range(1, half)]
    steps += [(math.prod(modes[k:]) * shapes[k][0], shapes[k][3]) for k in range(half, len(shapes) - 1)]
    if half < len(shapes):
        steps.append((math.prod(modes), shapes[half][0]))
    return steps
