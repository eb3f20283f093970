"""Costs of multiplying a batch of vectors by a TT-matrix, in each order. Nothing is multiplied here.

With cores ``(r_{k-1}, m_k, n_k, r_k)`` the product can be taken core by core from either end, or after some merging::

    left-to-right    x meets G_1, the result meets G_2, ...; cheap when output modes grow
    right-to-left    x meets G_d, the result meets G_{d-1}, ...; cheap when they shrink
    two-gemm         merge the cores into two halves, then two matrix products
    dense            rebuild the matrix, block by block, then one matrix product

Which is cheapest depends on the modes, the ranks and the batch; the numbers that come out agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .checks import check_matrix_train, whole
from .costs import WORKING_BYTES, Plan, cheaper, cost, price
from .modules import listed
from .steps import Shape
from .tracing import exported

__all__ = ["plan_contraction"]

# Of two equal costs the first is taken: a walk from the right reads the cores in their own memory order.
ORDERS = ("right-to-left", "left-to-right", "two-gemm", "dense")

WORKING_BYTES_CUDA = 256 << 20
NOMINAL_BATCH = 32  # while a tracing compiler works, and the batch may be no number yet


def plan_contraction(cores: Sequence[Tensor], batch: int, order: str = "auto") -> Plan:
    """The cost of multiplying ``batch`` vectors by a TT-matrix: in the cheapest order, or in the one you name.

    Orders are compared by multiply-adds plus float32 numbers moved; merging cores first must be an eighth cheaper. If
    cores and peak bytes of the cheapest exceed a dense layer's by more than a tenth, one that stays within is taken, if
    there is one that costs at most a tenth more.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        batch: Number of vectors.
        order: "auto" for the cheapest, or one of "left-to-right", "right-to-left", "two-gemm", "dense".

    Returns:
        A :class:`Plan`; print it to see what was chosen and what it costs beside the dense matrix.

    Raises:
        TypeError, ValueError: ``batch`` not an integer or below 1, no such order, or cores that are no TT-matrix.

    Cost:
        O(d); nothing is contracted.

    Source:
        Gray and Kourtis (2021), Hyper-optimized tensor network contraction: flops and the largest intermediate as the
        two costs of an order.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd
        >>> cores = ttm_svd(torch.randn(64, 64), (8, 8), (8, 8), rank=2)
        >>> plan_contraction(cores, 1).macs, plan_contraction(cores, 1, "dense").macs
        (2048, 12288)
        >>> print(plan_contraction(cores, 1))
        right-to-left, 1 of 1 vectors at a time
                                 TT   dense
        multiply-adds         2,048   4,096
        bytes moved           2,560  16,896
        peak bytes, forward     768     256
        peak bytes, training  2,048  16,896
        bytes of weights      1,024  16,384
    """
    cores = listed(cores)
    check_matrix_train(cores)
    batch = whole("batch", batch, least=1)
    if order != "auto" and order not in ORDERS:
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    shapes = tuple(tuple(core.shape) for core in cores)
    return cheapest(shapes, batch, working_bytes(cores[0].device.type), order)


def working_bytes(device: str) -> int:
    """Bytes that an intermediate result may take on a device of this type."""
    return WORKING_BYTES_CUDA if device == "cuda" else WORKING_BYTES


def plan_for(shapes: Sequence[Shape], batch: int, device: str, order: str = "auto", recompute: bool = False) -> Plan:
    """The plan of a module for a batch of vectors on a device of this type: the cheapest order, or the named one.

    While a compiler traces, a named order is planned for a nominal batch: only the order and the cut are used there,
    and a symbolic batch size must stay symbolic. So is any order while ``torch.export`` leaves the batch size open.
    """
    if order not in ("auto", *ORDERS):
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    if torch.compiler.is_compiling():  # it follows the arithmetic itself, and cannot look into a cache
        batch = max(batch, 1) if order == "auto" and not exported(batch) else NOMINAL_BATCH
        return cheapest.__wrapped__(shapes, batch, working_bytes(device), order)
    return cheapest(shapes, max(int(batch), 1), working_bytes(device), order, recompute)  # to a tracer, a tensor


@lru_cache(maxsize=4096)
def cheapest(
    shapes: Sequence[Shape], batch: int, working: int = WORKING_BYTES, order: str = "auto", recompute: bool = False
) -> Plan:
    """The cheapest of all orders for cores of these shapes, or the plan of the one named.

    Among orders that cost at most a tenth more, one that takes at most a tenth more memory than a dense layer is
    preferred. With recomputation two-gemm
    is left out: its merged cores would get a gradient from every chunk.
    """
    orders = (order,) if order != "auto" else (*ORDERS[:2], "dense") if recompute else ORDERS
    plans = [cost(way, shapes, batch, working, recompute) for way in orders]
    best = cheaper(plans)
    if torch.compiler.is_compiling() or _modest(best):
        return best
    return cheaper([plan for plan in plans if _modest(plan) and 10 * price(plan) <= 11 * price(best)] or plans)


def _modest(plan: Plan) -> bool:
    """True if cores and peak take at most a tenth more than a dense layer; with recomputation, than its training."""
    dense, weights = plan.dense, plan.dense["weights"]
    if plan.recompute:
        return plan.training + plan.weights <= dense["training"] + weights
    return 10 * (plan.forward + plan.weights) <= 11 * (dense["forward"] + weights)
