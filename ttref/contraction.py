"""A TT-matrix times a batch of vectors. :mod:`ttref.plans` has the orders and their costs.

Every step is one matrix product. Without gradients it runs on contiguous memory: with rank and mode adjacent, no axis
of the state is transposed. With gradients the axes are sorted first, so that backward is matrix products too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_float, check_matrix_train
from .costs import Plan
from .modules import listed
from .plans import ORDERS, plan_for
from .precision import computable, under_autocast
from .recomputed import RebuiltTwice, Recomputed
from .scratch import may_write, plain
from .steps import halved, way_through
from .walks import by_matrix, in_blocks, in_place, merge, recorded

__all__ = ["ttm_matvec"]


def ttm_matvec(cores: Sequence[Tensor], x: Tensor, plan: Plan | str = "auto") -> Tensor:
    """Multiply a TT-matrix by vectors, ``y = x W^T`` as ``nn.Linear`` does it. Differentiable in cores and in x.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        x: Vectors ``(*batch, n)`` in the dtype of the cores.
        plan: "auto" takes the cheapest order (see :func:`plan_contraction`), an order's name that order; a
            :class:`Plan` is carried out as it is, with its chunk and its cut, whatever batch it was made for.

    Returns:
        Tensor ``(*batch, m)``.

    Raises:
        TypeError: ``x`` differs in dtype from the cores.
        ValueError: ``x`` has the wrong width, the cores are no TT-matrix, no such order exists, or the plan has a chunk
            below 1 or a cut that these cores do not have.
        RuntimeError: Cores on the meta device, where there are no numbers, and ``x`` elsewhere.

    Cost:
        As the plan says: O(batch d r^2 m n / min(m, n)) for the one-core-at-a-time orders with equal modes. Half
        precision is contracted in float32 and rounded once at the end: no faster than float32, also on a GPU. A thread
        that computes without gradients on a CPU keeps two buffers of up to 32 MB each from call to call.

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
    cores = listed(cores)
    rows, cols, _ = check_matrix_train(cores)
    check_float("x", x)
    if x.dtype != cores[0].dtype:
        raise TypeError(f"x is {x.dtype} but the cores are {cores[0].dtype}; convert one of them")
    if x.ndim == 0 or x.shape[-1] != math.prod(cols):
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must hold {math.prod(cols)} = product of {cols}")
    flat = x.reshape(-1, x.shape[-1])
    order = plan.order if isinstance(plan, Plan) else plan
    if not isinstance(order, str) or order not in (*ORDERS, "auto"):
        raise ValueError(f"plan must be 'auto', a Plan or one of {ORDERS}, got {order!r}")
    if not isinstance(plan, Plan):
        plan = plan_for(tuple([tuple(core.shape) for core in cores]), flat.shape[0], x.device.type, order)
    elif plan.chunk < 1 or (order == "two-gemm" and plan.cut not in (range(1, len(cores)) or [1])):
        raise ValueError(f"this plan is of other cores: {plan} for {len(cores)} cores")
    return multiply(cores, flat, plan).reshape(*x.shape[:-1], math.prod(rows))


def multiply(cores: Sequence[Tensor], x: Tensor, plan: Plan, bias: Tensor | None = None) -> Tensor:
    """:func:`ttm_matvec` for vectors ``(batch, n)`` and a plan made for them, without checks; ``bias`` is added."""
    for core in cores:
        if core.is_meta and not x.is_meta:  # a product with out= would leave the target as it was, without an error
            raise RuntimeError(
                "a core is on the meta device, where there are no numbers (offloaded and not brought back, or never "
                f"loaded), and x on {x.device}"
            )
    if under_autocast(x):  # as half precision, autocast is contracted in float32
        with torch.autocast(x.device.type, enabled=False):
            return multiply(cores, x, plan, bias)
    dtype = x.dtype
    x, cores = computable(x), [computable(core) for core in cores]
    own = writing = not torch.compiler.is_compiling() and may_write(x)
    recompute = not writing and plan.recompute and x.shape[0] and not torch.compiler.is_compiling() and plain(x)
    if plan.order == "dense":
        if writing:
            y = in_blocks(cores, x, plan.block)
        elif recompute and len(cores) > 1:
            y, own = RebuiltTwice.apply(plan.block, x, *cores), True
        else:
            y = by_matrix(x, *cores)
    else:
        way = plan.order
        if way == "two-gemm":
            cores = [merge(part) for part in halved(cores, plan.cut)]
            way = way_through([tuple(core.shape) for core in cores])
        if writing:
            y = in_place(way, cores, x, plan)
        elif recompute:
            y, own = Recomputed.apply(way, plan, x, *cores), True
        else:
            y = recorded(way, cores, x, x.shape[0] if torch.compiler.is_compiling() else plan.chunk)
    if bias is not None:
        # In place only where y is no view: backward copies a view that was written to.
        y = y.add_(computable(bias)) if own else y + computable(bias)
    return y.to(dtype)
