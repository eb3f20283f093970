"""Conversion to a format and back: rounding drops bits at the right, overflow handling drops bits at the left.

:func:`quantize` converts real numbers, :func:`requantize` sums of products; both count overflows. Integers are int64
arrays, and floats are used only where they are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import whole
from .errors import FixedPointOverflow, FormatError
from .formats import FixedPointFormat

__all__ = ["OverflowStats", "quantize", "dequantize", "requantize", "accumulator_width"]


@dataclass(frozen=True)
class OverflowStats:
    """How many values left the range of a format, and by how much.

    Args:
        count: Values outside of the range.
        total: All values.
        worst: Largest distance of a value from the range, in LSBs.

    Example:
        >>> from ttref.fixedpoint import FixedPointFormat
        >>> _, stats = quantize([0.5, 1.5, -9.0], FixedPointFormat(8, 2, overflow="SAT"))
        >>> stats
        OverflowStats(count=1, total=3, worst=448.0)
    """

    count: int
    total: int
    worst: float


def quantize(x: Any, fmt: FixedPointFormat) -> tuple[np.ndarray, OverflowStats]:
    """Round real numbers to a format: ``q`` with ``x ≈ q * fmt.lsb``.

    Args:
        x: Real numbers, any shape. Converted to float64 or, if they are integers, to int64; rounded exactly from there.
        fmt: The format to round to.

    Returns:
        ``q`` int64, the shape of ``x``, and the overflow statistics.

    Raises:
        ValueError: NaN or infinity in ``x``.
        FormatError: Negative numbers and an unsigned format.
        FixedPointOverflow: The format's overflow mode is ``RAISE`` and a value does not fit.
        TypeError: Complex numbers, or an array that does not hold numbers.

    Cost:
        O(entries).

    Example:
        >>> q, _ = quantize([0.3, -0.3, 0.125], FixedPointFormat(8, 6, rounding="RND_CONV"))
        >>> q, quantize([0.3, -0.3, 0.125], FixedPointFormat(8, 6))[0]      # TRN goes down
        (array([ 1, -1,  0]), array([ 1, -2,  0]))
    """
    check_format(fmt)
    values = np.asarray(x)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"quantize takes real numbers, got an array of {values.dtype}")
    if not fmt.signed and (values < 0).any():
        raise FormatError(f"{fmt} has no sign, but the smallest value is {values.min():.4g}; use a signed format")
    if values.dtype.kind != "f":
        return requantize(values.astype(np.int8) if values.dtype.kind == "b" else integers("x", values), 0, fmt)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity cannot be quantized; look for it with numpy.isfinite")
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.asarray(np.ldexp(values, fmt.frac_bits))
    if not np.isfinite(scaled).all():
        raise ValueError(f"values as large as {np.abs(values).max():.4g} are out of all proportion for {fmt}")
    # Underflow must keep its sign, so that floor rounds it to -1.
    scaled = np.where((np.abs(scaled) < 1e-300) & (values != 0), np.copysign(1e-300, values), scaled)
    rounded = round_float(scaled, fmt.rounding)
    fitted, stats = fit_float(rounded, fmt)
    return fitted.astype(np.int64), stats


def dequantize(q: Any, fmt: FixedPointFormat) -> np.ndarray:
    """The values of stored integers, ``q * fmt.lsb``, float64 and exact.

    Args:
        q: Integers, any shape.
        fmt: Their format.

    Returns:
        float64, the shape of ``q``.

    Raises:
        TypeError: ``q`` is not integer.

    Example:
        >>> dequantize([-4, 3], FixedPointFormat(8, 6))
        array([-1.  ,  0.75])
    """
    check_format(fmt)
    return np.ldexp(integers("q", q).astype(np.float64), -fmt.frac_bits)


def requantize(acc: Any, acc_frac_bits: int, fmt: FixedPointFormat) -> tuple[np.ndarray, OverflowStats]:
    """Bring wide sums into a format: shift, round, then saturate or wrap. Integer arithmetic only.

    Args:
        acc: Integers of ``acc_frac_bits`` fraction bits, any shape: the exact sums of products.
        acc_frac_bits: Fraction bits of ``acc``; for products of two formats, the sum of their ``frac_bits``. With
            fewer than ``fmt.frac_bits`` nothing is rounded: the sums are shifted to the left.
        fmt: The format to round to.

    Returns:
        ``q`` int64, the shape of ``acc``, and the overflow statistics.

    Raises:
        TypeError: ``acc`` or ``acc_frac_bits`` is not integer; :func:`quantize` converts real numbers.
        FixedPointOverflow: The format's overflow mode is ``RAISE`` and a value does not fit.

    Cost:
        O(entries).

    Example:
        >>> half_even = FixedPointFormat(8, 8, rounding="RND_CONV", overflow="SAT")
        >>> requantize([5, 6, 7, 10, 4000], 2, half_even)      # 1.25, 1.5, 1.75, 2.5 and 1000
        (array([  1,   2,   2,   2, 127]), OverflowStats(count=1, total=5, worst=873.0))
    """
    check_format(fmt)
    acc = integers("acc", acc)
    shift = whole("acc_frac_bits", acc_frac_bits, least=-(10**6)) - fmt.frac_bits
    if shift > 0:
        acc, shift = _round_shift(acc, shift, fmt.rounding), 0
    return _fit_integers(acc, -shift, fmt)


def accumulator_width(weight_format: FixedPointFormat, act_format: FixedPointFormat, k: int) -> int:
    """Bits of the narrowest signed accumulator that no sum of ``k`` products can overflow.

    Args:
        weight_format: Format of one factor.
        act_format: Format of the other.
        k: Products in the sum, at least 1.

    Returns:
        Bits, for the worst case of ``k`` equal products of the largest magnitude. At most
        ``W_w + W_a + ceil(log2 k)``, the usual rule of thumb, and one more if both factors are unsigned.

    Raises:
        ValueError: ``k`` below 1.
        TypeError: ``k`` is not an integer.

    Example:
        >>> byte = FixedPointFormat(8, 1)
        >>> [accumulator_width(byte, byte, k) for k in (1, 2, 3, 4, 16)]
        [16, 17, 17, 18, 20]
    """
    k = whole("k", k, least=1)
    a, b = weight_format, act_format
    products = [p * q for p in (a.min_int, a.max_int) for q in (b.min_int, b.max_int)]
    low, high = k * min(0, *products), k * max(0, *products)
    return max((-low - 1).bit_length() if low else 0, high.bit_length()) + 1


def check_format(fmt: Any) -> None:
    """TypeError unless ``fmt`` is a FixedPointFormat; for text the message says how to parse it."""
    if not isinstance(fmt, FixedPointFormat):
        hint = "; FixedPointFormat.parse reads text" if isinstance(fmt, str) else ""
        raise TypeError(f"a format is a FixedPointFormat, got {type(fmt).__name__}{hint}")


def check_range(name: str, q: np.ndarray, fmt: FixedPointFormat) -> None:
    """FormatError unless the format can hold these integers."""
    if q.size and not fmt.min_int <= q.min() <= q.max() <= fmt.max_int:
        raise FormatError(f"{name} holds {q.min()} to {q.max()}, outside of {fmt}; quantize() clips or wraps")


def integers(name: str, values: Any) -> np.ndarray:
    """``values`` as int64; TypeError for other dtypes, because nothing is rounded silently."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        hint = "; quantize() makes integers of real numbers" if array.dtype.kind == "f" else ""
        raise TypeError(f"{name} must be integers that fit int64, got {array.dtype}{hint}")
    return array.astype(np.int64)


def round_float(scaled: np.ndarray, rounding: str) -> np.ndarray:
    """Round to integer-valued floats, in place; exact, because the fraction of a float is exact."""
    if rounding == "RND_CONV":
        return np.rint(scaled, out=scaled)
    if rounding == "TRN":
        return np.floor(scaled, out=scaled)
    low = np.floor(scaled)
    return np.add(low, scaled - low >= 0.5, out=scaled)


def fit_float(rounded: np.ndarray, fmt: FixedPointFormat) -> tuple[np.ndarray, OverflowStats]:
    """Apply the overflow mode to integer-valued floats, in place except under WRAP, and count overflows."""
    high = float(rounded.max(initial=fmt.min_int))
    low = float(rounded.min(initial=fmt.max_int))
    if low >= fmt.min_int and high <= fmt.max_int:
        return rounded, OverflowStats(0, rounded.size, 0.0)
    outside = (rounded < fmt.min_int) | (rounded > fmt.max_int)
    worst = max(fmt.min_int - low, high - fmt.max_int)
    stats = OverflowStats(int(np.count_nonzero(outside)), rounded.size, worst)
    if fmt.overflow == "RAISE":
        _refuse(stats, fmt, rounded)
    if fmt.overflow == "SAT":
        return np.clip(rounded, fmt.min_int, fmt.max_int, out=rounded), stats
    # numpy.fmod is exact for floats, and the remainder is a small integer.
    span = 2.0**fmt.width
    low_bits = np.fmod(rounded, span)
    low_bits += span * (low_bits < fmt.min_int) - span * (low_bits > fmt.max_int)
    return low_bits, stats


def _round_shift(acc: np.ndarray, shift: int, rounding: str) -> np.ndarray:
    """``acc / 2^shift`` rounded to integers, for ``shift`` above 0."""
    low = acc >> min(shift, 63)
    if rounding == "TRN":
        return low
    if shift > 63:  # the magnitude is at most half an LSB
        return np.zeros_like(acc)
    # Adding half first, as hardware does, could overflow int64; comparing the dropped bits cannot.
    dropped = acc & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    if rounding == "RND":
        return low + (dropped >= half)
    return low + ((dropped > half) | ((dropped == half) & (low & 1 == 1)))


def _fit_integers(values: np.ndarray, left: int, fmt: FixedPointFormat) -> tuple[np.ndarray, OverflowStats]:
    """``values << left`` under the overflow mode. The shift can overflow int64, so it comes after the comparisons."""
    top, bottom = fmt.max_int >> left, -((-fmt.min_int) >> left)
    outside = (values > top) | (values < bottom)
    count = int(np.count_nonzero(outside))
    if count:
        far = min(left, 900)  # statistics are float64, with exponents up to 1023
        high, low = int(values.max()) << far, int(values.min()) << far
        stats = OverflowStats(count, values.size, float(max(high - fmt.max_int, fmt.min_int - low)))
        if fmt.overflow == "RAISE":
            _refuse(stats, fmt, np.ldexp(values.astype(np.float64), far))
        if fmt.overflow == "SAT":
            clipped = np.clip(values, bottom, top) << left
            return np.where(values > top, fmt.max_int, np.where(values < bottom, fmt.min_int, clipped)), stats
    else:
        stats = OverflowStats(0, values.size, 0.0)
    if left >= fmt.width:
        return np.zeros_like(values), stats
    bits = (values << left) & ((1 << fmt.width) - 1)
    return bits - ((bits > fmt.max_int).astype(np.int64) << fmt.width), stats


def _refuse(stats: OverflowStats, fmt: FixedPointFormat, values: np.ndarray) -> None:
    """Raise FixedPointOverflow, naming the value farthest out of range."""
    beyond = np.maximum(values - float(fmt.max_int), float(fmt.min_int) - values)
    index = np.unravel_index(int(beyond.argmax()), values.shape)
    raise FixedPointOverflow(
        f"{stats.count} of {stats.total} values leave the range of {fmt}, {fmt.min_int} to {fmt.max_int} in LSBs; "
        f"the worst is {values[index]:.0f} at index {tuple(int(i) for i in index)}. "
        "Give the format more integer bits, or SAT or WRAP"
    )
