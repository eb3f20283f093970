"""Scaling by powers of two, which keeps squares and products of many cores within the range of the dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def check_cast(what: str, narrow: Tensor, wide: Tensor) -> None:
    """ValueError if the cast from ``wide`` to ``narrow`` made an entry Inf, or a whole last axis zero."""
    lost = (narrow == 0).all(-1) & (wide != 0).any(-1)
    if not narrow.isfinite().all() or lost.any():
        raise ValueError(f"{what} beyond the range of {narrow.dtype}; convert the input with .float() or .double()")


def peak(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Largest magnitude along ``axes``, or 1 where all entries are zero: the divisor that keeps squares in range."""
    largest = x.abs().amax(axes, keepdim=True)
    return torch.where(largest == 0, 1.0, largest)


def exponents(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Binary exponent e (int64) of the largest magnitude along ``axes``, ``2^(e-1) <= magnitude < 2^e``."""
    return torch.frexp(peak(x, axes)).exponent.long()


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2^exponent`` for float64 ``x`` of magnitude about 1; exact unless the result leaves float64's range.

    Multiplied in two halves, because ``2^exponent`` overflows before the result does. Each half is assembled from its
    bits, because no library's power function is certain to be exact.
    """
    exponent = exponent.clamp(-2044, 2044)
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + 1023) << 52).view(torch.float64)
    return x
