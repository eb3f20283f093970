"""What differs between processors, shaken on one.

A row of a matrix product is not a function of that row alone. It depends on how many rows are multiplied beside it, on
where the numbers start in memory, on the strides, on the number of threads and on the instructions that a library
chooses. What is stored is bit for bit; what is computed agrees to rounding, on every one of these versions of an input.

With ``TTREF_SHAKE=1`` the whole suite runs on shaken inputs, with two threads and without vector instructions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

SHAKING = os.environ.get("TTREF_SHAKE") == "1"
OFFSETS = (4, 8, 20)  # bytes; the nearest whole number of entries where these are no such number


def offset(x: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The same numbers, starting so many bytes behind an aligned address."""
    skipped = -(-nbytes // x.element_size())
    room = torch.empty(x.numel() + skipped, dtype=x.dtype)
    return room[skipped:].view(x.shape).copy_(x)


def transposed(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with the strides of a transposed tensor."""
    return x.mT.contiguous().mT if x.ndim >= 2 else torch.stack((x, x), -1)[..., 0]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run with so many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


LYING = {f"{nbytes} bytes on": partial(offset, nbytes=nbytes) for nbytes in OFFSETS} | {"transposed": transposed}
_how: list[str] = []  # the innermost of the settings in force


@contextmanager
def lying(how: str) -> Iterator[None]:
    """Everything that the strategies draw lies in memory as the name says, one of ``LYING``."""
    _how.append(how)
    try:
        yield
    finally:
        _how.pop()


def shaken(x: torch.Tensor) -> torch.Tensor:
    """What the strategies draw: as it is, as ``lying`` says, or, when the suite shakes, as its shape picks."""
    if not x.numel() or not (_how or SHAKING):
        return x
    return LYING[_how[-1] if _how else list(LYING)[sum(x.shape) % len(LYING)]](x)
