"""Integer codes: rounding with one scale for each slice, and packing bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 1 << 19  # codes packed together, a multiple of eight: bounds the working memory


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
    return nearest(values, scales, top).to(torch.int8), scales


def nearest(values: Tensor, scales: Tensor, top: int) -> Tensor:
    """The nearest codes from ``-top`` to ``top`` on grids with these scales, in the dtype of the values."""
    wide = scales.to(values.dtype)
    return (values / wide.where(wide > 0, 1)).round_().clamp_(-top, top)


def _least_error(values: Tensor, scales: Tensor, top: int) -> Tensor:
    """The scale of least squared error in each slice, of 33 from a fifth of the largest to the largest."""
    best, least = scales, None
    for step in range(33):
        tried = (scales.to(values.dtype) * (1 - 0.025 * step)).bfloat16()
        error = (nearest(values, tried, top).mul_(tried.to(values.dtype)) - values).square_().sum(-1, keepdim=True)
        if least is None:
            least = error
        better = error < least
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return best


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Integers of ``bits`` bits each, least significant first and without gaps: uint8 ``(packed_size(codes, bits),)``.

    Negative integers are packed as two's complement.
    """
    packed = [torch.empty(0, dtype=torch.uint8, device=codes.device)]
    for part in codes.reshape(-1).split(AT_ONCE):
        part = F.pad(part.long(), (0, -len(part) % 8)).unsqueeze(1)
        single = part >> torch.arange(bits, device=part.device) & 1
        eights = single.reshape(-1, 8) << torch.arange(8, device=part.device)
        packed.append(eights.sum(1).to(torch.uint8))
    return torch.cat(packed)[: packed_size(codes.numel(), bits)]


def unpack_bits(packed: Tensor, bits: int, count: int, *, signed: bool) -> Tensor:
    """The ``count`` integers that :func:`pack_bits` packed, int64 ``(count,)``."""
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(count, bits),):
        raise ValueError(f"{count} codes of {bits} bits are packed as {packed.dtype} {tuple(packed.shape)}")
    codes = [torch.empty(0, dtype=torch.int64, device=packed.device)]
    for part in packed.split(AT_ONCE // 8 * bits):
        single = part.long().unsqueeze(1) >> torch.arange(8, device=part.device) & 1
        single = single.reshape(-1)[: single.numel() // bits * bits].reshape(-1, bits)
        codes.append((single << torch.arange(bits, device=part.device)).sum(1))
    found = torch.cat(codes)[:count]
    return torch.where(found >> (bits - 1) > 0, found - (1 << bits), found) if signed else found


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits each."""
    return -(-count * bits // 8)
