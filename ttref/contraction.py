"""A TT-matrix times a batch of vectors. :mod:`ttref.plans` has the orders and their costs.

Every step is one matrix product. Without gradients it runs on contiguous memory: with rank and mode adjacent, no axis
of the state is transposed. With gradients the axes are sorted first, so that backward is matrix products too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor

from .checks import check_float, check_matrix_train
from .modules import listed
from .plans import ORDERS, Plan, plan_contraction
from .precision import computable, full_precision, under_autocast
from .scratch import may_write, plain, product, scratch, worth_keeping
from .steps import buffers, from_right, halved, steps, way_through

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
        plan = plan_contraction(cores, max(flat.shape[0], 1), order)
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
    if plan.order == "dense":
        y = _in_blocks(cores, x, plan.block) if writing else x @ _matrix(cores).mT
    else:
        way = plan.order
        if way == "two-gemm":
            cores = [_merge(part) for part in halved(cores, plan.cut)]
            way = way_through([tuple(core.shape) for core in cores])
        if writing:
            y = _in_place(way, cores, x, plan)
        elif plan.recompute and x.shape[0] and not torch.compiler.is_compiling() and plain(x):
            y, own = _Recomputed.apply(way, plan, x, *cores), True
        else:
            y = _recorded(way, cores, x, x.shape[0] if torch.compiler.is_compiling() else plan.chunk)
    if bias is not None:
        # In place only where y is no view: backward copies a view that was written to.
        y = y.add_(computable(bias)) if own else y + computable(bias)
    return y.to(dtype)


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


def _recorded(way: str, cores: Sequence[Tensor], x: Tensor, chunk: int) -> Tensor:
    """One core after the other. The state's axes are sorted at each step, so that backward is plain matrix products."""
    walk, matrices = _left_to_right if way == "left-to-right" else _right_to_left, _matrices(way, cores)
    if chunk >= x.shape[0]:
        return walk(matrices, cores, x)
    return torch.cat([walk(matrices, cores, part) for part in x.split(chunk)])


_sizes = lru_cache(maxsize=4096)(steps)


def _in_place(way: str, cores: Sequence[Tensor], x: Tensor, plan: Plan) -> Tensor:
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


class _Recomputed(torch.autograd.Function):
    """A contraction that keeps no intermediate result: backward computes each chunk again.

    ``torch.utils.checkpoint`` around the chunks would hold the answer and the gradient of x twice where the chunks are
    concatenated; that alone can exceed the dense layer's memory.
    """

    @staticmethod
    def forward(ctx: Any, way: str, plan: Plan, x: Tensor, *cores: Tensor) -> Tensor:
        ctx.way, ctx.plan = way, plan
        ctx.save_for_backward(x, *cores)
        return _in_place(way, cores, x, plan)

    @staticmethod
    @full_precision
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted, (x, *cores) = ctx.needs_input_grad[2:], ctx.saved_tensors
        if torch.is_grad_enabled():  # a double backward: the gradients must be differentiable
            return None, None, *_gradients(ctx.way, [x, *cores], wanted, upstream, create_graph=True)
        found = [torch.zeros_like(tensor) if want else None for tensor, want in zip((x, *cores), wanted, strict=True)]
        for k in range(0, len(x), ctx.plan.chunk):
            part = slice(k, k + ctx.plan.chunk)
            inputs = [one.detach().requires_grad_(want) for one, want in zip((x[part], *cores), wanted, strict=True)]
            _add(found, part, _gradients(ctx.way, inputs, wanted, upstream[part]))
        return None, None, *found


def _add(found: Sequence[Tensor | None], part: slice, more: Sequence[Tensor | None]) -> None:
    """Add the gradients of one chunk: that of x to its rows, those of the cores to their sums."""
    for whole, one in zip([None if found[0] is None else found[0][part], *found[1:]], more, strict=True):
        if one is not None:
            whole.add_(one)


def _gradients(
    way: str, inputs: Sequence[Tensor], wanted: Sequence[bool], upstream: Tensor, create_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of x and the cores, None where none is wanted."""
    with torch.enable_grad():
        y = _recorded(way, inputs[1:], inputs[0], len(inputs[0]))
    of = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(y, of, upstream, create_graph=create_graph))
    return [next(found) if want else None for want in wanted]


def _in_blocks(cores: Sequence[Tensor], x: Tensor, block: int) -> Tensor:
    """Multiply by the matrix in blocks of rows: each is rebuilt, used while it is in the cache, and dropped."""
    if not 0 < block < cores[0].shape[1]:
        return x @ _matrix(cores).mT
    rest, rows = _merge(cores[1:]), math.prod([core.shape[1] for core in cores[1:]])
    y = x.new_empty(x.shape[0], cores[0].shape[1] * rows)
    parts = zip(cores[0].split(block, dim=1), y.split(block * rows, dim=1), strict=True)
    for part, out in parts:
        torch.mm(x, _matrix([part, rest]).mT, out=out)
    return y


def _matrix(cores: Sequence[Tensor]) -> Tensor:
    """The dense matrix."""
    whole = _join(cores[0], _merge(cores[1:])) if len(cores) > 1 else cores[0]
    return whole.flatten(0, 1).flatten(1)


def _merge(cores: Sequence[Tensor]) -> Tensor:
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
