"""Binary points for every array of the contraction: from a sample of inputs, or from a bound on all of them.

A sample gives the finest steps and a promise about the sample alone. A bound follows the largest magnitudes through the
absolute values of the cores, so nothing can ever overflow, at the price of bits that are rarely used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ttref.fixedpoint.arithmetic import accumulator_width, quantize, requantize
from ttref.fixedpoint.formats import FixedPointFormat
from ttref.fixedpoint.stages import columns, product, tt_stages


def stage_formats(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    widths: Sequence[int],
    *,
    calibration: np.ndarray | None,
    x_max: float | None,
    modes: dict[str, str],
) -> list[FixedPointFormat]:
    """The formats of the input and of what each stage writes, with the finest steps that the ranges allow.

    Args:
        cores: Integer cores, first core first.
        core_formats: Their formats.
        widths: Bits of the ``d + 1`` formats, in the order of execution.
        calibration: A sample of inputs ``(N, in_features)``, or None.
        x_max: A bound on the magnitude of every input, or None. One of the two is given.
        modes: Rounding and overflow of all formats.

    Returns:
        ``d + 1`` formats.

    Raises:
        ValueError: A sample or a bound that is not finite, or a sample of the wrong shape.
    """
    inputs = math.prod(core.shape[-2] for core in cores)
    if x_max is not None:
        if not 0 <= x_max < math.inf:
            raise ValueError(f"x_max must be a finite number of at least 0, got {x_max}")
        sample, round_input, round_sums = np.full((1, inputs), float(x_max)), _largest, _largest_codes
        cores = [np.abs(core) for core in cores]
    else:
        sample, round_input, round_sums = np.asarray(calibration, dtype=np.float64), quantize, requantize
        if sample.shape[-1:] != (inputs,) or sample.size == 0 or not np.isfinite(sample).all():
            raise ValueError(f"calibration must be finite numbers (N, {inputs}), got shape {sample.shape}")
    formats = [FixedPointFormat.for_range(float(np.abs(sample).max()), widths[0], **modes)]
    state = columns(round_input(sample, formats[0])[0], cores[0].shape[:-4])
    for stage, width in zip(tt_stages(cores), widths[1:], strict=True):
        weight, before = core_formats[stage.core], formats[-1]
        sums = product(cores[stage.core], state, stage, carrier(weight, before, stage.K)).astype(np.int64)
        point = weight.frac_bits + before.frac_bits
        formats.append(FixedPointFormat.for_range(math.ldexp(float(np.abs(sums).max()), -point), width, **modes))
        state, _ = round_sums(sums, point, formats[-1])
    return formats


def possible_overflows(
    cores: Sequence[np.ndarray],
    core_formats: Sequence[FixedPointFormat],
    formats: Sequence[FixedPointFormat],
    x_max: float,
) -> Iterator[int]:
    """For the input and each stage: how many entries might leave their format for inputs of magnitude ``x_max``."""
    cores = [np.abs(core) for core in cores]
    inputs = math.prod(core.shape[-2] for core in cores)
    state, count = _largest(np.full((1, inputs), float(x_max)), formats[0])
    yield count
    state = columns(state, cores[0].shape[:-4])
    for stage, before, after in zip(tt_stages(cores), formats[:-1], formats[1:], strict=True):
        weight = core_formats[stage.core]
        sums = product(cores[stage.core], state, stage, carrier(weight, before, stage.K)).astype(np.int64)
        state, count = _largest_codes(sums, weight.frac_bits + before.frac_bits, after)
        yield count


def carrier(weight: FixedPointFormat, before: FixedPointFormat, k: int, left: int = 0) -> type:
    """The cheapest number type in which every sum that the formats allow, shifted left, is exact."""
    bits = accumulator_width(weight, before, k) - 1 + left
    return np.float32 if bits <= 24 else np.float64 if bits <= 53 else np.int64


def _largest(x: np.ndarray, fmt: FixedPointFormat) -> tuple[np.ndarray, int]:
    """The largest magnitudes that ``x`` and ``-x`` round to, and how many values leave the range."""
    (up, above), (down, below) = quantize(x, fmt), quantize(-x, fmt)
    return np.maximum(np.abs(up), np.abs(down)), above.count + below.count


def _largest_codes(sums: np.ndarray, point: int, fmt: FixedPointFormat) -> tuple[np.ndarray, int]:
    """The same for sums of products."""
    (up, above), (down, below) = requantize(sums, point, fmt), requantize(-sums, point, fmt)
    return np.maximum(np.abs(up), np.abs(down)), above.count + below.count
