"""Quantizing and requantizing against exact rationals: every mode, every width, the ends of int64, and bad input."""

import math
from fractions import Fraction

import numpy as np
import pytest
from exact import ROUNDINGS, counted, fitted, formats, rounded, stats_tuple
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ttref.fixedpoint import (
    FixedPointFormat,
    FixedPointOverflow,
    FormatError,
    OverflowStats,
    accumulator_width,
    dequantize,
    quantize,
    requantize,
)

F = FixedPointFormat
ALL_MODES = ("SAT", "WRAP", "RAISE")
any_format = formats(frac_bits=(-224, 256), overflows=ALL_MODES)


# Whole and half LSBs with their neighbors in float64 on both sides, small and huge numbers, and subnormal ones.
numbers = (
    st.floats(-(2.0**80), 2.0**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.builds(
        lambda n, e, side: float(np.nextafter(n / 2 * 2.0**e, side)) if side else n / 2 * 2.0**e,
        st.integers(-600, 600),
        st.integers(-40, 12),
        st.sampled_from([0, -math.inf, math.inf]),
    )
)


# --- quantize and dequantize -----------------------------------------------------------------------------------------


@given(st.lists(numbers, max_size=20), formats(overflows=ALL_MODES))
@example([-5e-324, 5e-324, -1e-310], F(8, 9))
@example([-5e-324, 5e-324, -1e-310], F(8, 250, "RND_CONV"))
def test_quantize_is_exact(values, fmt):
    values = [abs(value) for value in values] if not fmt.signed else values
    assume(all(abs(Fraction(value)) * Fraction(2) ** fmt.frac_bits < Fraction(2) ** 1023 for value in values))
    wholes = [rounded(Fraction(value) * Fraction(2) ** fmt.frac_bits, fmt.rounding) for value in values]
    count, total, worst = counted(wholes, fmt)
    if fmt.overflow == "RAISE" and count:
        with pytest.raises(FixedPointOverflow, match=f"^{count} of {total} values leave the range of"):
            quantize(values, fmt)
        return
    q, stats = quantize(values, fmt)
    assert q.dtype == np.int64 and q.tolist() == [fitted(whole, fmt) for whole in wholes]
    assert stats_tuple(stats) == (count, total, worst)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.49999999999999994, (0, 0, 0)),
        (0.5, (0, 1, 0)),
        (1.5, (1, 2, 2)),
        (2.5, (2, 3, 2)),
        (-0.5, (-1, 0, 0)),
        (-1.5, (-2, -1, -2)),
        (-2.5, (-3, -2, -2)),
        (-0.49999999999999994, (-1, 0, 0)),
        (-0.5000000000000001, (-1, -1, -1)),
        (-5e-324, (-1, 0, 0)),
        (4503599627370495.5, (4503599627370495, 4503599627370496, 4503599627370496)),
    ],
)
def test_ties_and_their_neighbors(value, expected):
    wide = [F(32, 32, mode, "WRAP") for mode in ROUNDINGS]
    assert tuple(int(quantize([value], fmt)[0][0]) for fmt in wide) == tuple(
        fitted(whole, fmt) for whole, fmt in zip(expected, wide, strict=True)
    )


@pytest.mark.parametrize("scale", [2.0**60 + 2.0**8, -(2.0**90), 1.2345e300, -9.87e307])
def test_huge_values_wrap_exactly(scale):
    for fmt in (F(16, 16), F(32, 30), F(9, 9)):
        whole = math.floor(Fraction(scale) * 2**fmt.frac_bits) if abs(scale) < 1e307 else None
        if whole is None and fmt.frac_bits:
            with pytest.raises(ValueError, match="out of all proportion"):
                quantize([scale, 1e308], F(8, -100))
            continue
        assert int(quantize([scale], fmt)[0][0]) == fitted(int(scale) if whole is None else whole, fmt)


@given(any_format, st.lists(st.floats(0, 1), max_size=8))
def test_dequantize_is_exact_and_quantize_brings_it_back(fmt, where):
    q = [fmt.min_int + round((fmt.max_int - fmt.min_int) * w) for w in where]
    values = dequantize(np.array(q, dtype=np.int64), fmt)
    assert values.dtype == np.float64
    assert [Fraction(value) for value in values] == [i * Fraction(fmt.lsb) for i in q]
    back, stats = quantize(values, fmt)
    assert back.tolist() == q and stats == OverflowStats(0, len(q), 0.0)


def test_quantize_takes_what_holds_real_numbers():
    fmt = F(8, 4, "RND_CONV", "SAT")
    x = np.linspace(-9, 9, 60).reshape(5, 12)
    expected, stats = quantize(x, fmt)
    x.setflags(write=False)
    assert (quantize(x, fmt)[0] == expected).all() and quantize(x.tolist(), fmt)[1] == stats
    assert (quantize(x[::2, ::-3], fmt)[0] == expected[::2, ::-3]).all()
    assert (quantize(np.asfortranarray(x), fmt)[0] == expected).all()
    single = x.astype(np.float32)
    assert (quantize(single, fmt)[0] == quantize(single.astype(np.float64), fmt)[0]).all()
    assert quantize(np.arange(3, dtype=np.uint8), fmt)[0].tolist() == [0, 16, 32]
    assert quantize([True, False], fmt)[0].tolist() == [16, 0]
    assert quantize(np.zeros((0, 3)), fmt)[0].shape == (0, 3)
    assert quantize([], fmt)[1] == OverflowStats(0, 0, 0.0)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("overflow", ALL_MODES)
def test_a_single_number(mode, overflow):
    fmt = F(8, 4, mode, overflow)
    q, stats = quantize(-1.25, fmt)
    assert np.shape(q) == () and q == -20 and stats == OverflowStats(0, 1, 0.0)
    assert dequantize(q, fmt) == -1.25 and requantize(q, 4, fmt)[0] == -20
    if overflow != "RAISE":
        assert quantize(100, fmt)[0] == fitted(1600, fmt)


def test_integers_beyond_the_floats_keep_their_last_bit():
    for n in (2**53 + 1, -(2**53) - 1, 2**62 + 3, -(2**63)):
        assert quantize(np.array([n]), F(8, 8))[0].tolist() == [fitted(n, F(8, 8))]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize([0.1, math.nan], F(8, 1)), ValueError, "NaN or infinity cannot be quantized; look for it"),
        (lambda: quantize([math.inf], F(8, 1)), ValueError, "NaN or infinity"),
        (lambda: quantize([1j], F(8, 1)), TypeError, "quantize takes real numbers, got an array of complex128"),
        (lambda: quantize(["0.1"], F(8, 1)), TypeError, "quantize takes real numbers, got an array of <U3"),
        (lambda: quantize([None], F(8, 1)), TypeError, "quantize takes real numbers, got an array of object"),
        (
            lambda: quantize([0.5, -0.25], F(8, 1, signed=False)),
            FormatError,
            "ap_ufixed<8,1,AP_TRN,AP_WRAP> has no sign, but the smallest value is -0.25; use a signed format",
        ),
        (
            lambda: quantize([[0.5, 0.1], [-3.0, 2.0]], F(8, 1, overflow="RAISE")),
            FixedPointOverflow,
            "2 of 4 values leave the range of ap_fixed<8,1,AP_TRN,RAISE>, -128 to 127 in LSBs; the worst is -384 "
            "at index (1, 0). Give the format more integer bits, or SAT or WRAP",
        ),
        (
            lambda: requantize([[1, 2], [3, 2**40]], 2, F(8, 8, overflow="RAISE")),
            FixedPointOverflow,
            "1 of 4 values leave the range of ap_fixed<8,8,AP_TRN,RAISE>, -128 to 127 in LSBs; the worst is "
            "274877906944 at index (1, 1)",
        ),
        (
            lambda: requantize([1, -20, 3], -4, F(8, 8, overflow="RAISE")),
            FixedPointOverflow,
            "1 of 3 values leave the range of ap_fixed<8,8,AP_TRN,RAISE>, -128 to 127 in LSBs; the worst is -320 "
            "at index (1,)",
        ),
        (lambda: dequantize([0.5], F(8, 1)), TypeError, "q must be integers that fit int64, got float64"),
        (lambda: requantize([0.5], 3, F(8, 1)), TypeError, "acc must be integers that fit int64, got float64; quant"),
        (lambda: requantize(np.array([1], np.uint64), 3, F(8, 1)), TypeError, "must be integers that fit int64, got u"),
        (lambda: requantize([2**70], 3, F(8, 1)), TypeError, "acc must be integers that fit int64, got object"),
        (lambda: requantize([True], 3, F(8, 1)), TypeError, "acc must be integers that fit int64, got bool"),
        (lambda: accumulator_width(F(8, 1), F(8, 1), 0), ValueError, "k must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_converted(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_no_sign_is_needed_for_zero():
    assert quantize([-0.0, 0.0], F(8, 1, signed=False))[0].tolist() == [0, 0]


ACC = np.arange(-(2**15) - 100, 2**15 + 101)  # every sum that one product of two bytes can be, and some more


def check_every_sum(shift):
    exact = [Fraction(acc) / Fraction(2) ** shift for acc in ACC.tolist()]
    for mode in ROUNDINGS:
        wholes = np.array([rounded(value, mode) for value in exact])
        for signed in (True, False):
            saturate, wrap, strict = (F(8, 2, mode, overflow, signed) for overflow in ALL_MODES)
            low, high, point = saturate.min_int, saturate.max_int, saturate.frac_bits + shift
            beyond = np.maximum(np.maximum(low - wholes, wholes - high), 0)
            expected = (np.count_nonzero(beyond), len(ACC), float(beyond.max()))
            q, stats = requantize(ACC, point, saturate)
            assert (q == np.clip(wholes, low, high)).all() and stats_tuple(stats) == expected
            q, stats = requantize(ACC, point, wrap)
            assert (q == (wholes - low) % 256 + low).all() and stats_tuple(stats) == expected
            fits = beyond == 0
            assert (requantize(ACC[fits], point, strict)[0] == wholes[fits]).all()
            if not fits.all():
                with pytest.raises(FixedPointOverflow, match=f"^{expected[0]} of {len(ACC)} values"):
                    requantize(ACC, point, strict)


# --- requantize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-3, 0, 1, 4, 8])
def test_every_16_bit_sum_to_8_bits_against_exact_rationals(shift):
    check_every_sum(shift)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-64, -17, -9, -8, -7, -2, -1, 2, 3, 5, 6, 7, 9, 12, 15, 16, 17, 18, 40, 62])
def test_every_16_bit_sum_to_8_bits_at_other_shifts(shift):
    check_every_sum(shift)


int64s = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-5000, 5000)
    | st.builds(lambda e, n: max(-(2**63), min(2**63 - 1, (-2) ** e + n)), st.integers(0, 63), st.integers(-3, 3))
)


@given(st.lists(int64s, max_size=20), st.integers(-80, 130), formats(overflows=ALL_MODES))
@example([2**63 - 1, -(2**63), 2**62, -(2**62)], 62, F(2, 2, "RND_CONV", "SAT"))
@example([2**63 - 1, -(2**63), 2**62, -1], 63, F(8, 8, "TRN", "SAT"))
@example([2**63 - 1, -(2**63), 2**62, 2**62 - 1, -(2**62), -1], 63, F(8, 8, "RND", "SAT"))
@example([2**63 - 1, -(2**63), 2**62, 2**62 + 1, -(2**62), -1], 63, F(8, 8, "RND_CONV", "SAT"))
@example([2**63 - 1, -(2**63), -1], 64, F(8, 8, "RND", "SAT"))
@example([2**63 - 1, -(2**63), -1], 65, F(8, 8, "TRN", "SAT"))
@example([2**63 - 1, -(2**63)], 1, F(32, 32, "RND", "WRAP"))
@example([2**63 - 1, -(2**63), 1, -1], -64, F(32, 32, "RND", "WRAP"))
@example([-(2**31), 2**31 - 1, -(2**31) - 1, 2**31], 0, F(32, 32, "TRN", "WRAP"))
def test_requantize_is_exact_for_every_int64(accs, shift, fmt):
    wholes = [rounded(Fraction(acc) / Fraction(2) ** shift, fmt.rounding) for acc in accs]
    count, total, worst = counted(wholes, fmt)
    acc = np.array(accs, dtype=np.int64)
    if fmt.overflow == "RAISE" and count:
        with pytest.raises(FixedPointOverflow, match=f"^{count} of {total} values leave"):
            requantize(acc, fmt.frac_bits + shift, fmt)
        return
    q, stats = requantize(acc, fmt.frac_bits + shift, fmt)
    assert q.dtype == np.int64 and q.tolist() == [fitted(whole, fmt) for whole in wholes]
    # How far is a float, rounded where integers leave 53 bits.
    assert (stats.count, stats.total) == (count, total) and stats.worst == pytest.approx(worst, rel=2.0**-51)
    assert acc.tolist() == accs


@given(formats(), st.integers(-40, 62))
def test_requantize_agrees_with_quantize(fmt, shift):
    acc = np.arange(-300, 300) * 7919
    acc = np.abs(acc) if not fmt.signed else acc
    ours, ours_stats = requantize(acc, fmt.frac_bits + shift, fmt)
    theirs, their_stats = quantize(np.ldexp(acc.astype(float), -fmt.frac_bits - shift), fmt)
    assert (ours == theirs).all() and ours_stats == their_stats


def test_requantize_of_other_arrays():
    fmt = F(8, 8, "RND", "SAT")
    assert requantize(np.zeros((0, 3), dtype=np.int64), 4, fmt)[0].shape == (0, 3)
    assert requantize(np.zeros(0, dtype=np.int64), 4, fmt)[1] == OverflowStats(0, 0, 0.0)
    small = np.array([[-128, 127], [5, 9]], dtype=np.int8)
    assert requantize(small, 2, fmt)[0].tolist() == [[-32, 32], [1, 2]]
    assert requantize(small.T, -3, fmt)[0].tolist() == [[-128, 40], [127, 72]]
    numpy_point = requantize([2**40], np.int64(-40), fmt)
    assert numpy_point == requantize([2**40], -40, fmt) and numpy_point[1].worst == 2.0**80 - 127
