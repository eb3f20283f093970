"""Buffers for intermediate results, which a thread keeps from call to call, and products written into them.

Fresh pages from the system would take a noticeable time beside the arithmetic that fills them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from .steps import folds
from .tracing import forward_mode, recorded, transformed

_KEPT = threading.local()
WORTH_KEEPING = 1 << 19  # bytes of an intermediate result; smaller ones come from the allocator's own stock
KEPT_BYTES = 32 << 20  # of a buffer; larger ones are given back


def worth_keeping(size: int) -> bool:
    """True if an intermediate result of ``size`` bytes goes into a kept buffer."""
    return size >= WORTH_KEEPING


def may_write(x: Tensor) -> bool:
    """True if results may be written into given buffers: no gradients, no functional transform, no tracing."""
    return not torch.is_grad_enabled() and plain(x)


def plain(x: Tensor) -> bool:
    """True if no transform, tracer or forward-mode derivative follows the computation."""
    return not (
        forward_mode()  # records even without grad
        or type(x) is not Tensor  # a fake tensor's memory must not be kept
        or recorded()  # a tracer would take the memory itself into its graph
        or transformed()
    )


def scratch(entries: Sequence[int], x: Tensor, *, keep: bool = True) -> list[Tensor]:
    """Two buffers of at least these sizes. On a CPU each thread keeps them from call to call, unless they are large."""
    # Other devices have caching allocators, which know what stream still uses the memory.
    if not keep or x.device.type != "cpu":
        return [x.new_empty(count) for count in entries]
    kept = getattr(_KEPT, "buffers", None)
    if kept is None or kept[0].dtype != x.dtype or any(map(int.__lt__, map(len, kept), entries)):
        with torch.inference_mode(False):  # a tensor born in inference mode could not be written to outside of it
            kept = [torch.empty(count, dtype=x.dtype, device="cpu") for count in entries]
        if max(entries) * x.dtype.itemsize <= KEPT_BYTES:
            _KEPT.buffers = kept
    return kept


def product(step: Tensor, state: Tensor, target: Tensor | None) -> Tensor:
    """``step (p, q)`` times every ``(q, w)`` slice of a state, into the first entries of ``target`` if it is given.

    For w = 1 that is one plain matrix product, and a large core becomes one too, which reads it once.
    """
    slices, _, width = state.shape
    if target is not None:
        target = target.reshape(-1)[: slices * len(step) * width].view(slices, len(step), width)
    if target is None and folds(slices, *step.shape, width):
        return (state.mT.reshape(slices * width, -1) @ step.mT).view(slices, width, -1).mT.contiguous()
    if width == 1:
        return torch.mm(state.squeeze(2), step.mT, out=None if target is None else target.squeeze(2))
    return torch.bmm(step.expand(slices, -1, -1), state, out=target)
