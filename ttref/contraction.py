"""A TT-matrix times a batch of vectors. :mod:`ttref.plans` knows the orders and what each costs.

Every step is one matrix product on contiguous memory: with rank and mode adjacent, no axis of the state is transposed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import check_float, check_matrix_train
from .matrices import ttm_to_matrix
from .modules import listed
from .plans import ORDERS, Plan, block_rows, plan_contraction, way_through, working_bytes
from .precision import computable, under_autocast
from .tracing import forward_mode, recorded, transformed

__all__ = ["ttm_matvec"]


def ttm_matvec(cores: Sequence[Tensor], x: Tensor, plan: Plan | str = "auto") -> Tensor:
    """Multiply a TT-matrix by vectors, ``y = x W^T`` as ``nn.Linear`` does it. Differentiable in cores and in x.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        x: Vectors ``(*batch, n)`` in the dtype of the cores.
        plan: "auto" takes :func:`plan_contraction`, an order's name the plan of that order; a :class:`Plan` is carried
            out as it is, with its chunk and its cut, whatever batch it was made for.

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
        plan = plan_contraction(cores, max(flat.shape[0], 1), order)
    elif plan.chunk < 1 or (order == "two-gemm" and plan.cut not in (range(1, len(cores)) or [1])):
        raise ValueError(f"this plan is of other cores: {plan} for {len(cores)} cores")
    return multiply(cores, flat, plan).reshape(*x.shape[:-1], math.prod(rows))


def multiply(cores: Sequence[Tensor], x: Tensor, plan: Plan, bias: Tensor | None = None) -> Tensor:
    """:func:`ttm_matvec` for vectors ``(batch, n)`` and a plan made for them, nothing checked; ``bias`` is added."""
    for core in cores:
        if core.is_meta and not x.is_meta:  # products into memory of one's own would leave it as it was
            raise RuntimeError(
                "a core is on the meta device, where there are no numbers (offloaded and not brought back, or never "
                f"loaded), and x on {x.device}"
            )
    if under_autocast(x):  # half precision is contracted in float32 here, and so is this
        with torch.autocast(x.device.type, enabled=False):
            return multiply(cores, x, plan, bias)
    dtype = x.dtype
    x, cores = computable(x), [computable(core) for core in cores]
    if plan.order == "dense":
        y = _rebuild_and_multiply(cores, x)
    else:
        order = plan.order
        if order == "two-gemm":
            cores = [_merge(part) for part in (cores[: plan.cut], cores[plan.cut :]) if part]
            order = way_through([tuple(core.shape) for core in cores])
        way = _left_to_right if order == "left-to-right" else _right_to_left
        y = _in_chunks(way, cores, x, plan)
    if bias is not None:
        bias = computable(bias)
        # A transform may map over the bias alone, and then it has more entries than y.
        y = y + bias if torch.compiler.is_compiling() or transformed() else y.add_(bias)
    return y.to(dtype)


def _in_chunks(way: Callable, cores: Sequence[Tensor], x: Tensor, plan: Plan) -> Tensor:
    """A few vectors at a time, intermediate results in memory that the thread keeps, where no gradient is wanted."""
    if torch.compiler.is_compiling():  # every chunk would be traced anew, which takes a minute for a hundred of them
        return way(cores, x)
    if plan.temporary < WORTH_KEEPING or not _may_keep_memory(x):
        parts = [way(cores, part) for part in (x.split(plan.chunk) if x.shape[0] > plan.chunk else [x])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    y = x.new_empty(x.shape[0], math.prod(core.shape[1] for core in cores))
    scratch = _scratch(plan.temporary // 4, x.dtype)
    for part, out in zip(x.split(plan.chunk), y.split(plan.chunk), strict=True):
        way(cores, part, scratch, out)
    return y


_KEPT = threading.local()
WORTH_KEEPING, KEPT_BYTES = 1 << 19, 32 << 20


def _may_keep_memory(x: Tensor) -> bool:
    """Whether results may be written into memory used before: on a CPU, with nothing recorded or mapped."""
    return not (
        torch.is_grad_enabled()
        or forward_mode()  # records even without grad
        or x.device.type != "cpu"
        or type(x) is not Tensor  # a fake tensor's memory must not be kept
        or recorded()  # a tracer would take the memory itself into its graph
        or transformed()
    )


def _scratch(entries: int, dtype: torch.dtype) -> list[Tensor]:
    """Two buffers, which each thread keeps from call to call unless they are large.

    Fresh pages from the system would cost time that shows beside the arithmetic that fills them.
    """
    kept = getattr(_KEPT, "buffers", None)
    if kept is None or kept[0].dtype != dtype or len(kept[0]) < entries:
        with torch.inference_mode(False):  # a tensor born in inference mode could not be written to outside of it
            kept = [torch.empty(entries, dtype=dtype, device="cpu") for _ in range(2)]
        if entries * dtype.itemsize <= KEPT_BYTES:
            _KEPT.buffers = kept
    return kept


def _left_to_right(
    cores: Sequence[Tensor], x: Tensor, scratch: Sequence[Tensor] = (), out: Tensor | None = None
) -> Tensor:
    """State ``(batch m_1 ... m_{k-1}, r n_k, n_{k+1} ... n_d)``: each step turns n_k into m_k in front."""
    state, inputs, outputs = x, x.shape[1], 1
    for k, core in enumerate(cores, 1):
        r, m, n, r_next = core.shape
        inputs //= n
        step = core.transpose(1, 2).reshape(r * n, m * r_next).mT  # the last axis stays last: a cheap copy
        target = out if k == len(cores) else scratch[k % 2] if scratch else None
        state = _apply(step, state.reshape(x.shape[0] * outputs, r * n, inputs), target)
        outputs *= m
    return state.reshape(x.shape[0], outputs)


def _right_to_left(
    cores: Sequence[Tensor], x: Tensor, scratch: Sequence[Tensor] = (), out: Tensor | None = None
) -> Tensor:
    """State ``(batch n_1 ... n_{k-1}, n_k r, m_{k+1} ... m_d)``: each step turns n_k into m_k behind."""
    state, inputs, outputs = x, x.shape[1], 1
    for k, core in enumerate(reversed(cores), 1):
        r, m, n, r_next = core.shape
        inputs //= n
        step = core.reshape(r * m, n * r_next)
        target = out if k == len(cores) else scratch[k % 2] if scratch else None
        state = _apply(step, state.reshape(x.shape[0] * inputs, n * r_next, outputs), target)
        outputs *= m
    return state.reshape(x.shape[0], outputs)


def _apply(step: Tensor, state: Tensor, target: Tensor | None) -> Tensor:
    """``step (p, q)`` times every ``(q, w)`` slice of a state, into the head of ``target`` if there is one.

    For w = 1 that is one plain matrix product.
    """
    slices, _, width = state.shape
    if target is not None:
        target = target.reshape(-1)[: slices * len(step) * width].view(slices, len(step), width)
    if width == 1:
        return torch.mm(state.squeeze(2), step.mT, out=None if target is None else target.squeeze(2))
    return torch.matmul(step, state) if target is None else torch.bmm(step.expand(slices, -1, -1), state, out=target)


def _rebuild_and_multiply(cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """The matrix in blocks of rows: each is rebuilt, used while it is still in the cache, and forgotten."""
    if len(cores) == 1:
        return x @ ttm_to_matrix(cores).mT
    rest = _merge(cores[1:])
    block = block_rows([tuple(core.shape) for core in cores], working_bytes(x.device.type))
    return torch.cat([x @ ttm_to_matrix([part, rest]).mT for part in cores[0].split(block, dim=1)], dim=1)


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
