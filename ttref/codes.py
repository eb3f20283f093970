"""Rounding to signed integers: codes with one scale for each slice along the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def to_codes(values: Tensor, bits: int, *, best: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``values ≈ scale * code``, one scale for each slice along the last axis.

    Codes run from ``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``. The scale is a bfloat16, which has the range of float32.

    Args:
        values: float32 or float64, shape ``(..., n)``.
        bits: Width of a code, 2 to 8.
        best: Take of 33 scales the one with the least squared error, which clips the largest entries where that pays.
            Otherwise the scale carries the largest entry to the largest code, rounded up so that nothing is clipped.

    Returns:
        ``codes`` int8 ``(..., n)`` and ``scales`` bfloat16 ``(..., 1)``; a zero slice has scale 0.

    Raises:
        ValueError: An entry too large for a bfloat16 scale.
    """
    top = 2 ** (bits - 1) - 1
    largest = values.abs().amax(-1, keepdim=True)
    if largest.numel() and largest.max() / top > torch.finfo(torch.bfloat16).max:
        raise ValueError(f"an entry of magnitude {largest.max():.3g}, too large for a bfloat16 scale; rescale it")
    exact = largest / top
    rounded = exact.bfloat16()
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    scales = torch.where(rounded.to(exact.dtype) < exact, above, rounded)
    if best:
        scales = _least_error(values, scales, top)
    return _codes(values, scales, top).to(torch.int8), scales


def _codes(values: Tensor, scales: Tensor, top: int) -> Tensor:
    wide = scales.to(values.dtype)
    return (values / wide.where(wide > 0, 1)).round_().clamp_(-top, top)


def _least_error(values: Tensor, scales: Tensor, top: int) -> Tensor:
    """Of 33 scales from a fifth of the largest to the largest, the one that errs least in each slice."""
    best, least = scales, None
    for step in range(33):
        tried = (scales.to(values.dtype) * (1 - 0.025 * step)).bfloat16()
        error = (_codes(values, tried, top).mul_(tried.to(values.dtype)) - values).square_().sum(-1, keepdim=True)
        if least is None:
            least = error
        better = error < least
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return best
