"""Rounding to signed integers: codes with one scale for each slice along the last axis."""

from __future__ import annotations

import torch
from torch import Tensor


def to_codes(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``values ≈ scale * code``, one scale for each slice along the last axis.

    Codes run from ``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``; the scale carries the largest entry to the largest
    code. It is a bfloat16, which has the range of float32, rounded up so that no entry is clipped.

    Args:
        values: float32 or float64, shape ``(..., n)``.
        bits: Width of a code, 2 to 8.

    Returns:
        ``codes`` int8 ``(..., n)`` and ``scales`` bfloat16 ``(..., 1)``; a zero slice has scale 0.

    Raises:
        ValueError: An entry too large for a bfloat16 scale.
    """
    top = 2 ** (bits - 1) - 1
    largest = values.abs().amax(-1, keepdim=True)
    if largest.numel() and largest.max() / top > torch.finfo(torch.bfloat16).max:
        raise ValueError(
            f"an entry of magnitude {largest.max():.3g}, too large for a bfloat16 scale; rescale the values"
        )
    exact = largest / top
    rounded = exact.bfloat16()
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    scales = torch.where(rounded.to(exact.dtype) < exact, above, rounded)
    wide = scales.to(values.dtype)
    codes = (values / wide.where(wide > 0, 1)).round_().clamp_(-top, top)
    return codes.to(torch.int8), scales
