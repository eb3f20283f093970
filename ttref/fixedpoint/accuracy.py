"""Error of the integer train against the real one: a guaranteed bound, a prediction, and the measured ratio.

The output differs from ``W x`` for two reasons. Rounded cores and a rounded input are another linear map of another
vector; that part is known exactly before any integer is multiplied. And each stage rounds its result. The rounding
at stage ``s`` reaches the output through the cores to its left, whose product ``L`` is a matrix: errors of at most
``h`` change the output by at most ``h`` times the sum of ``|L|`` along a row, and independent errors of variance ``v``
add ``v`` times the sum of its squares. The first sum gives the guarantee, the second the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..checks import check_number
from . import arithmetic as fp
from .contract import QuantizedTT
from .errors import FormatError
from .formats import FixedPointFormat
from .ranges import SLACK, first_overflow, rounding_step
from .stages import Stage, columns, contract_float, product, real_cores

__all__ = ["error_bound", "error_bound_prior", "predicted_sqnr_db", "sqnr_db"]


def error_bound(cores: Sequence[np.ndarray], qtt: QuantizedTT, x: Any) -> np.ndarray:
    """For these inputs, a bound on every entry of ``|qtt.matvec_float(x) - W x|`` that is never violated.

    Args:
        cores: The real train ``W`` that ``qtt`` was made from, in any gauge.
        qtt: The integer train.
        x: Inputs ``(N, in_features)``.

    Returns:
        float64 ``(N, out_features)``, at least 0. The error of rounded cores and inputs, exact, plus half an LSB (one
        LSB under ``TRN``) for each rounding of each stage, times the absolute row sums of the product of the cores
        that follow.

    Raises:
        ValueError: A value overflowed in some stage: nothing bounds the error then.
        FixedPointOverflow: The same, where a format's overflow mode is ``RAISE``.
        ValueError: ``cores`` and ``qtt`` have different modes.

    Cost:
        Three contractions in float64 and the products of the first ``k`` cores, ``prod(m_1..m_k) prod(n_1..n_k) r_k``
        numbers each: at most the entries of the dense matrix times ``r_{d-1} / (m_d n_d)``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cores = [rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(2, 4, 4, 1))]
        >>> x = rng.normal(size=(50, 16))
        >>> q = QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=x)
        >>> error = np.abs(q.matvec_float(x) - contract_float(cores, x))
        >>> bool((error <= error_bound(cores, q, x)).all())
        True
    """
    cores = _checked(cores, qtt)
    xq = _no_overflow(qtt, x)
    difference, slack = _known_error(cores, qtt, x, xq)
    return np.abs(difference) + slack + _guaranteed(qtt)


def error_bound_prior(cores: Sequence[np.ndarray], qtt: QuantizedTT, x_max: float) -> float:
    """A bound on the error of every output for all inputs of magnitude up to ``x_max``, without data.

    Args:
        cores: The real train that ``qtt`` was made from, in any gauge.
        qtt: The integer train. Its formats must rule out overflow for such inputs, as those of
            ``QuantizedTT.from_float(x_max=...)`` do.
        x_max: Largest magnitude of an input's entry.

    Returns:
        The bound, in the units of the output.

    Raises:
        FormatError: An input within ``x_max`` might overflow; the message names the stage. Or a format is unsigned.
        TypeError: ``x_max`` is not a number.
        ValueError: ``cores`` and ``qtt`` have different modes, or ``x_max`` is negative or not finite.

    Cost:
        The two dense matrices are formed: ``in_features`` contractions each.

    Example:
        >>> cores = [np.full((1, 2, 2, 1), 0.3), np.full((1, 2, 2, 1), 0.7)]
        >>> q = QuantizedTT.from_float(cores, weight_width=8, act_width=10, x_max=1.0)
        >>> 0.001 < error_bound_prior(cores, q, 1.0) < 0.02
        True
    """
    cores = _checked(cores, qtt)
    check_number("x_max", x_max)
    _no_overflow_within(qtt, x_max)
    real, rounded = _dense(cores), _dense(qtt.float_cores)
    into = qtt.stage_formats[0]
    step = rounding_step(into, True)
    from_inputs = np.abs(rounded - real).sum(-1) * x_max + np.abs(rounded).sum(-1) * step
    sizes = _dense([np.abs(core) for core in cores]) + _dense([np.abs(core) for core in qtt.float_cores])
    slack = _slack(cores, qtt) * sizes.sum(-1) * (x_max + step)
    return float((from_inputs + slack + _guaranteed(qtt)).max())


def predicted_sqnr_db(cores: Sequence[np.ndarray], qtt: QuantizedTT, x: Any) -> float:
    """The expected signal-to-quantization-noise ratio in dB, with rounding errors modeled as independent noise.

    Args:
        cores: The real train that ``qtt`` was made from, in any gauge.
        qtt: The integer train.
        x: A sample of inputs ``(N, in_features)``, at least one. The integer product is computed only to check for
            overflow.

    Returns:
        ``10 log10`` of the power of ``W x`` over that of the error. Rounded cores and inputs count exactly, each
        stage's rounding as white noise. Sums smaller than two LSBs are an exception and are rounded exactly: below
        half an LSB a number becomes zero, an error that is not noise. Rounding off ``s`` bits has variance
        ``lsb^2 (1 - 4^-s) / 12``, or ``lsb^2 (1 + 2 * 4^-s) / 12`` with ties to even; under ``TRN`` its mean is
        ``-lsb (1 - 2^-s) / 2``, and means add up along the train where variances would average out. From a few
        hundred inputs the prediction is within half a dB in words of eight bits or more, outputs of very different
        sizes included, and within 1 dB in most shorter ones; not so where a few numbers carry all the power.

    Raises:
        ValueError: A value overflowed, there are no inputs, or the trains have different modes.
        FixedPointOverflow: A value overflowed where a format's overflow mode is ``RAISE``.

    Cost:
        Two contractions in float64, and for each stage the matrix of ``error_bound`` times the result of the stage.

    Source:
        Bennett, "Spectra of quantized signals" (1948), and Widrow's conditions for it; the exact variance of dropped
        bits follows by summing over the 2^s equally likely remainders.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cores = [rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(2, 4, 4, 1))]
        >>> x = rng.normal(size=(500, 16))
        >>> q = QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=x)
        >>> measured = sqnr_db(contract_float(cores, x), q.matvec_float(x))
        >>> abs(predicted_sqnr_db(cores, q, x) - measured) < 0.5
        True
    """
    cores = _checked(cores, qtt)
    xq = _no_overflow(qtt, x)
    batch, variance = qtt.cores[0].shape[:-4], 0.0
    state = columns(fp.dequantize(xq, qtt.stage_formats[0]), batch)
    for stage, left, (fmt, bits) in zip(qtt.stages, _lefts(qtt), _drops(qtt), strict=True):
        state = product(qtt.float_cores[stage.core], state, stage, np.float64)
        if bits:
            # Sums are integer multiples of 2^-bits LSBs. A float64 error could make a zero negative: -1 under TRN.
            sums = np.rint(np.ldexp(state, fmt.frac_bits + bits)) * 2.0**-bits
            noisy = np.abs(sums) >= 2
            offset, power = _noise(fmt.rounding, bits)
            variance = variance + fmt.lsb**2 * power * _propagated(left**2, noisy, stage)
            state = fmt.lsb * np.where(noisy, sums + offset, fp.round_float(sums.copy(), fmt.rounding))
    real = columns(contract_float(cores, x), batch)
    return _decibel(float(np.mean(real**2)), float(np.mean((state - real) ** 2 + variance)))


def sqnr_db(reference: Any, test: Any) -> float:
    """Signal-to-quantization-noise ratio: ``10 log10`` of the power of ``reference`` over that of ``test - reference``.

    Args:
        reference: The exact numbers, any shape.
        test: The numbers to judge, the same shape.

    Returns:
        dB; infinity if both are equal, minus infinity if the reference is all zero and the test is not.

    Raises:
        ValueError: The shapes differ, there are no entries, or some are NaN or infinite.

    Example:
        >>> round(sqnr_db([1.0, -1.0], [1.1, -1.1]), 6)
        20.0
    """
    reference, test = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if reference.shape != test.shape:
        raise ValueError(f"the reference has shape {reference.shape}, the test {test.shape}")
    if not (reference.size and np.isfinite(reference).all() and np.isfinite(test).all()):
        raise ValueError("a ratio of powers needs finite numbers, at least one")
    unit = max(np.abs(reference).max(), np.abs(test).max()) or 1.0  # squares might leave the range of float64
    return _decibel(float(np.sum((reference / unit) ** 2)), float(np.sum((reference / unit - test / unit) ** 2)))


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _checked(cores: Sequence[np.ndarray], qtt: QuantizedTT) -> list[np.ndarray]:
    """The real cores in float64; ValueError unless they have the modes of the integer train."""
    cores = real_cores(cores)
    real, integer = ([core.shape[:-4] + core.shape[-3:-1] for core in train] for train in (cores, qtt.cores))
    if real != integer:
        raise ValueError(f"the real train has modes {real}, the integer train {integer}")
    return cores


def _no_overflow(qtt: QuantizedTT, x: Any) -> np.ndarray:
    """The inputs as integers; ValueError if they overflow the input format or any stage."""
    xq, first = fp.quantize(x, qtt.stage_formats[0])
    if not xq.size:
        raise ValueError("x holds no inputs")
    _, stats = qtt.matvec(xq, return_stats=True)
    for s, stat in enumerate([first, *stats]):
        if stat.count:
            raise ValueError(
                f"{stat.count} of {stat.total} values overflowed in {'the input' if s == 0 else f'stage {s - 1}'}, "
                f"{qtt.stage_formats[s]}; errors are predictable only without overflow. Calibrate on these inputs, or "
                "make the formats with x_max="
            )
    return xq


def _no_overflow_within(qtt: QuantizedTT, x_max: float) -> None:
    """FormatError unless the formats rule out overflow for inputs of magnitude up to ``x_max``."""
    for fmt in qtt.stage_formats:
        if not fmt.signed:
            raise FormatError(f"{fmt} has no sign, but inputs of both signs are bounded; use signed formats")
    s = first_overflow(qtt.cores, qtt.core_formats, qtt.stage_formats, x_max)
    if s is not None:
        where = "the input" if s == 0 else f"stage {s - 1}"
        raise FormatError(
            f"inputs of magnitude {x_max:g} might overflow in {where}, {qtt.stage_formats[s]}; "
            "make the formats with from_float(x_max=...), or give this one more integer bits"
        )


def _dense(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The dense matrix, ``(*batch, out_features, in_features)``."""
    units = np.eye(math.prod(core.shape[-2] for core in cores))
    if cores[0].ndim == 4:
        return contract_float(cores, units).T
    return np.stack([contract_float(cores, unit) for unit in units], -1)


def _known_error(
    cores: Sequence[np.ndarray], qtt: QuantizedTT, x: Any, xq: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The error of rounded cores and inputs without rounding between stages, and a bound on its float64 error."""
    x = np.asarray(x, dtype=np.float64)
    rounded = fp.dequantize(xq, qtt.stage_formats[0])
    difference = contract_float(qtt.float_cores, rounded) - contract_float(cores, x)
    size = contract_float([np.abs(c) for c in cores], np.abs(x))
    size = size + contract_float([np.abs(c) for c in qtt.float_cores], np.abs(rounded))
    return difference, _slack(cores, qtt) * size


def _slack(cores: Sequence[np.ndarray], qtt: QuantizedTT) -> float:
    """A generous bound on the relative error of float64 sums of the lengths in these trains."""
    terms = [sum(core.shape[-2] * core.shape[-1] + 2 for core in train) for train in (cores, qtt.cores)]
    return 4 * np.finfo(np.float64).eps * max(terms)


def _lefts(qtt: QuantizedTT) -> Iterator[np.ndarray]:
    """For each stage, in the order of execution, the product of the cores to its left, which multiplies its result.

    Shape ``(*batch, rows m_1..m_{k-1}, columns n_1..n_{k-1}, bond r_{k-1})``.
    """
    left = np.ones((*qtt.cores[0].shape[:-4], 1, 1, 1))
    lefts = [left]
    for core in qtt.float_cores[:-1]:
        grown = np.einsum("...pqa,...amnb->...pmqnb", left, core)
        *batch, p, m, q, n, b = grown.shape
        left = grown.reshape(*batch, p * m, q * n, b)
        lefts.append(left)
    return reversed(lefts)


def _drops(qtt: QuantizedTT) -> Iterator[tuple[FixedPointFormat, int]]:
    """For each stage, the format of its result and the number of bits that it rounds off."""
    for s, stage in enumerate(qtt.stages):
        after = qtt.stage_formats[s + 1]
        point = qtt.core_formats[stage.core].frac_bits + qtt.stage_formats[s].frac_bits
        yield after, max(0, point - after.frac_bits)


def _noise(rounding: str, bits: int) -> tuple[float, float]:
    """Mean and variance, in LSBs, of the error of rounding off ``bits`` bits, all remainders equally likely."""
    dropped = 2.0**-bits
    if rounding == "RND_CONV":
        return 0.0, (1 + 2 * dropped**2) / 12
    return (dropped - 1 if rounding == "TRN" else dropped) / 2, (1 - dropped**2) / 12


def _propagated(weights: np.ndarray, noisy: np.ndarray, stage: Stage) -> np.ndarray:
    """Sum of ``weights[..., p, a, r]`` over the noisy results of a stage, ``(trains, out_features, vectors)``."""
    trains, _, vectors = noisy.shape
    weights = weights.reshape(-1, weights.shape[-3], stage.A * stage.r0)  # of one train, or of each
    noisy = noisy.reshape(trains, stage.A * stage.r0, stage.m * stage.B * vectors)
    return np.matmul(weights, noisy.astype(np.float64)).reshape(trains, -1, vectors)


def _spread_over(rows: np.ndarray, qtt: QuantizedTT) -> np.ndarray:
    """Values per row ``m_1..m_{k-1}``, repeated over the modes to its right."""
    return np.repeat(rows, qtt.out_features // rows.shape[-1], axis=-1)


def _guaranteed(qtt: QuantizedTT) -> np.ndarray:
    """Bound on the error of every output that the roundings of the stages cause."""
    total = 0.0
    for left, (fmt, bits) in zip(_lefts(qtt), _drops(qtt), strict=True):
        total = total + SLACK * rounding_step(fmt, bits > 0) * _spread_over(np.abs(left).sum((-1, -2)), qtt)
    return total
