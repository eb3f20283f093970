"""Contractions that keep no intermediate result for backward, and compute it again there: memory for time.

``torch.utils.checkpoint`` around chunks of vectors would hold the answer and the gradient of x twice where the chunks
are concatenated; that alone can exceed a dense layer's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .costs import Plan
from .precision import full_precision
from .walks import by_matrix, in_blocks, in_place, matrix_of, merge, recorded


class Recomputed(torch.autograd.Function):
    """One core after the other; backward walks each chunk of vectors again."""

    @staticmethod
    def forward(ctx: Any, way: str, plan: Plan, x: Tensor, *cores: Tensor) -> Tensor:
        """The product, computed as without gradients."""
        ctx.way, ctx.plan = way, plan
        ctx.save_for_backward(x, *cores)
        return in_place(way, cores, x, plan)

    @staticmethod
    @full_precision
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and the cores."""
        wanted, (x, *cores) = ctx.needs_input_grad[2:], ctx.saved_tensors
        if torch.is_grad_enabled():  # a double backward: the gradients must be differentiable
            return None, None, *_gradients(partial(_once, ctx.way), [x, *cores], wanted, upstream, create_graph=True)
        found = [torch.zeros_like(tensor) if want else None for tensor, want in zip((x, *cores), wanted, strict=True)]
        for k in range(0, len(x), ctx.plan.chunk):
            part = slice(k, k + ctx.plan.chunk)
            inputs = [one.detach().requires_grad_(want) for one, want in zip((x[part], *cores), wanted, strict=True)]
            _add(found, part, _gradients(partial(_once, ctx.way), inputs, wanted, upstream[part]))
        return None, None, *found


class RebuiltTwice(torch.autograd.Function):
    """A product with the rebuilt matrix that keeps no part of it: backward rebuilds each block of rows again.

    The gradient of the matrix is never whole either: each block's is carried back to the cores at once.
    """

    @staticmethod
    def forward(ctx: Any, block: int, x: Tensor, *cores: Tensor) -> Tensor:
        """The product, computed as without gradients."""
        ctx.block = block
        ctx.save_for_backward(x, *cores)
        return in_blocks(cores, x, block)

    @staticmethod
    @full_precision
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and the cores."""
        wanted, (x, *cores) = ctx.needs_input_grad[1:], ctx.saved_tensors
        if torch.is_grad_enabled():  # a double backward: the gradients must be differentiable
            return None, *_gradients(by_matrix, [x, *cores], wanted, upstream, create_graph=True)
        first, *others = [core.detach().requires_grad_() for core in cores]
        with torch.enable_grad():
            rest = merge(others)
        ends, rows = rest.detach().requires_grad_(), rest.shape[1]
        found = [torch.zeros_like(x) if wanted[0] else None, torch.zeros_like(first), torch.zeros_like(rest)]
        for k in range(0, first.shape[1], ctx.block):
            part, upper = first[:, k : k + ctx.block].detach().requires_grad_(), upstream[:, k * rows :]
            upper = upper[:, : part.shape[1] * rows]
            with torch.enable_grad():
                built = matrix_of([part, ends])
            if wanted[0]:
                found[0].addmm_(upper, built.detach())
            if any(wanted[1:]):
                ours, theirs = torch.autograd.grad(built, (part, ends), upper.mT @ x)
                found[1][:, k : k + ctx.block] = ours
                found[2] += theirs
        found[2:] = torch.autograd.grad(rest, others, found[2])
        return None, *[one if want else None for one, want in zip(found, wanted, strict=True)]


def _once(way: str, x: Tensor, *cores: Tensor) -> Tensor:
    return recorded(way, cores, x, len(x))


def _add(found: Sequence[Tensor | None], part: slice, more: Sequence[Tensor | None]) -> None:
    """Add the gradients of one chunk: that of x to its rows, those of the cores to their sums."""
    for whole, one in zip([None if found[0] is None else found[0][part], *found[1:]], more, strict=True):
        if one is not None:
            whole.add_(one)


def _gradients(
    contract: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    upstream: Tensor,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """Gradients of x and the cores, None where none is wanted."""
    with torch.enable_grad():
        y = contract(*inputs)
    of = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(y, of, upstream, create_graph=create_graph))
    return [next(found) if want else None for want in wanted]
