"""Scaling by powers of two: what keeps squares and products of many cores within the range of the arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def check_range(what: str, narrow: Tensor, wide: Tensor) -> None:
    """Refuse ``narrow`` where the cast from ``wide`` made Inf, or nothing but zeros along the last axis."""
    lost = (narrow == 0).all(-1) & (wide != 0).any(-1)
    if not narrow.isfinite().all() or lost.any():
        raise ValueError(f"{what} beyond the range of {narrow.dtype}; convert the input with .float() or .double()")


def peak(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Largest magnitude along ``axes``, or 1 where all is zero: what to divide by before squares leave the range."""
    largest = x.abs().amax(axes, keepdim=True)
    return torch.where(largest == 0, 1.0, largest)


def exponents(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Along ``axes``, the whole number e (int64) for which the largest magnitude lies in ``[2^(e-1), 2^e)``."""
    return torch.frexp(peak(x, axes)).exponent.long()


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2^exponent`` for float64 ``x`` of magnitude about 1: rounded only where the result leaves float64's range.

    In two halves, for ``2^exponent`` leaves the range long before the result does. Each half is put together from its
    bits: no library's power is trusted to be exact.
    """
    exponent = exponent.clamp(-2044, 2044)
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + 1023) << 52).view(torch.float64)
    return x
