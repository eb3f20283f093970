"""Buffers that evaluations change, such as running statistics: kept before, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Kept = list[tuple[nn.Module, str, Tensor, Tensor]]


def kept_buffers(modules: Iterable[nn.Module]) -> Kept:
    """The own buffers of modules: module, name, the tensor itself, and a copy of its numbers."""
    own = ((part, *entry) for part in modules for entry in part.named_buffers(recurse=False, remove_duplicate=False))
    return [(part, name, buffer, buffer.detach().clone()) for part, name, buffer in own]


@torch.no_grad()
def put_buffers_back(kept: Kept) -> None:
    """Let buffers be the tensors that they were, with their old numbers; what did not change is not written to.

    A tensor that cannot be written to as it was, because it was resized, gives its place to the copy. Idempotent.
    """
    for part, name, buffer, _ in kept:
        if part._buffers.get(name) is not buffer:
            part._buffers[name] = buffer
    for _, _, buffer, numbers in kept:  # all of them before any gives its place: a view comes back with its base
        if not _same(buffer, numbers):
            _write(buffer, numbers)
    for part, name, buffer, numbers in kept:
        if not _same(buffer, numbers):
            part._buffers[name] = numbers


def changed_buffers(kept: Kept) -> list[str]:
    """Names, within their modules, of the buffers that are other tensors than before or hold other numbers."""
    return [
        name
        for part, name, buffer, numbers in kept
        if part._buffers.get(name) is not buffer or not _same(buffer, numbers)
    ]


def _write(buffer: Tensor, numbers: Tensor) -> None:
    """Copy numbers into a tensor where PyTorch does it; not where several entries share a number."""
    if buffer.shape != numbers.shape:
        return  # the copy would be spread over it
    try:
        # The mode in which it was made, or it refuses; to leave the mode would turn gradients on.
        with torch.inference_mode(buffer.is_inference()), torch.no_grad():
            buffer.copy_(numbers)
    except RuntimeError:
        return


def _same(one: Tensor, other: Tensor) -> bool:
    """True for equal numbers to the bit, NaN and signs of zeros included; False where they cannot be compared."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.is_meta:  # no numbers
        return True
    try:
        if one.layout is not torch.strided:
            one, other = one.to_dense(), other.to_dense()
        if one.is_quantized:
            return torch.equal(one, other)
        return torch.equal(_bits(one), _bits(other))
    except RuntimeError:
        return False


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    flat = flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
