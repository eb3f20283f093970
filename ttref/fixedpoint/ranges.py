"""Binary points for every array of the contraction: from a sample of inputs, or from a bound on all of them.

A sample gives the finest LSBs, but a guarantee for the sample alone. A bound gives a guarantee for every input: the
result of a stage is a row of a matrix ``R``, the product of the cores used so far, times the input, so its magnitude is
at most the row's absolute sum times the largest input, plus the propagated roundings of earlier stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..checks import check_number
from .arithmetic import accumulator_width, dequantize, quantize, requantize
from .formats import FixedPointFormat
from .stages import columns, product, tt_stages

# The bounds are float64 sums of magnitudes; this factor exceeds their rounding errors many times.
SLACK = 1 + 1e-9


def calibrated_formats(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    widths: Sequence[int],
    sample: np.ndarray,
    modes: dict[str, str],
) -> list[FixedPointFormat]:
    """The ``d + 1`` stage formats in which this sample ``(N, in_features)`` never overflows, stage by stage."""
    inputs = math.prod(core.shape[-2] for core in cores)
    sample = np.asarray(sample)
    if sample.dtype.kind not in "fiub":
        raise TypeError(f"calibration is an array of {sample.dtype}; inputs are real numbers")
    sample = sample.astype(np.float64)
    if sample.shape[-1:] != (inputs,) or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"calibration must be finite numbers (N, {inputs}), got shape {sample.shape}")
    formats = [FixedPointFormat.for_range(float(np.abs(sample).max()), widths[0], **modes)]
    state = columns(quantize(sample, formats[0])[0], cores[0].shape[:-4])
    for stage, width in zip(tt_stages(cores), widths[1:], strict=True):
        weight, before = core_formats[stage.core], formats[-1]
        sums = product(cores[stage.core], state, stage, carrier(weight, before, stage.K)).astype(np.int64)
        point = weight.frac_bits + before.frac_bits
        formats.append(FixedPointFormat.for_range(math.ldexp(float(np.abs(sums).max()), -point), width, **modes))
        state, _ = requantize(sums, point, formats[-1])
    return formats


def guaranteed_formats(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    widths: Sequence[int],
    x_max: float,
    modes: dict[str, str],
) -> list[FixedPointFormat]:
    """The ``d + 1`` stage formats in which no input of magnitude up to ``x_max`` ever overflows."""
    formats: list[FixedPointFormat] = []

    def choose(largest: float) -> FixedPointFormat:
        formats.append(FixedPointFormat.for_range(largest, widths[len(formats)], **modes))
        return formats[-1]

    _follow(cores, core_formats, x_max, choose)
    return formats


def first_overflow(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    formats: Sequence[FixedPointFormat],
    x_max: float,
) -> int | None:
    """Index of the first stage format that inputs of magnitude up to ``x_max`` might overflow, or None."""
    fits: list[bool] = []

    def look(largest: float) -> FixedPointFormat:
        fmt = formats[len(fits)]
        fits.append(largest / fmt.lsb < fmt.max_int + 0.5)
        return fmt

    _follow(cores, core_formats, x_max, look)
    return fits.index(False) if False in fits else None


def carrier(weight: FixedPointFormat, before: FixedPointFormat, k: int, after: FixedPointFormat | None = None) -> type:
    """The cheapest number type that is exact for all sums of ``k`` products, and for their values in ``after``."""
    bits, shift = accumulator_width(weight, before, k) - 1, 0
    if after is not None:
        shift = weight.frac_bits + before.frac_bits - after.frac_bits
        bits = max(bits + max(0, -shift), after.width)
    # A sum scaled down too far underflows in float32, which loses its sign.
    return np.float32 if bits <= 24 and shift < 100 else np.float64 if bits <= 53 else np.int64


def rounding_step(fmt: FixedPointFormat, dropped: bool) -> float:
    """Largest error of one rounding: half an LSB, one LSB under TRN, 0 if no bits are dropped."""
    return 0.0 if not dropped else fmt.lsb if fmt.rounding == "TRN" else fmt.lsb / 2


def _follow(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    x_max: float,
    take: Callable[[float], FixedPointFormat],
) -> None:
    """Call ``take`` with the largest magnitude of the input, then of each stage's result; it returns their formats."""
    check_number("x_max", x_max)
    before = take(float(x_max))
    largest = x_max + rounding_step(before, True)
    batch = cores[0].shape[:-4]
    used, error = np.ones((*batch, 1, 1, 1)), np.zeros((*batch, 1, 1))
    for integer_core, fmt in zip(reversed(cores), reversed(core_formats), strict=True):
        core = dequantize(integer_core, fmt)
        grown = np.einsum("...amnb,...bpq->...ampnq", core, used)
        *_, r0, m, p, n, q = grown.shape
        used = grown.reshape(*batch, r0, m * p, n * q)
        error = np.einsum("...amnb,...bp->...amp", np.abs(core), error).reshape(*batch, r0, m * p)
        after = take(SLACK * float((np.abs(used).sum(-1) * largest + error).max()))
        error = error + rounding_step(after, after.frac_bits < before.frac_bits + fmt.frac_bits)
        before = after
