"""Formats and their arithmetic against exact rationals: every mode, every width, the ends of int64, and bad input."""

import dataclasses
import itertools
import math
import pickle
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


# --- FixedPointFormat ------------------------------------------------------------------------------------------------


@given(any_format)
def test_text_round_trip(fmt):
    assert F.parse(str(fmt)) == fmt
    assert F.parse(fmt.hls4ml) == fmt
    spaced = str(fmt).replace(",", " ,\t").replace("<", " < ").replace(">", " > ")
    assert F.parse(f"  {spaced}\n") == fmt
    assert F.parse(str(fmt).replace(">", ",0>").lower()) == fmt


@pytest.mark.parametrize(
    ("text", "fmt"),
    [
        ("ap_fixed<16,6>", F(16, 6, "TRN", "WRAP")),
        ("fixed<16,6>", F(16, 6, "TRN", "WRAP")),
        ("ufixed<8,0>", F(8, 0, signed=False)),
        ("ap_ufixed<8, -3, AP_RND>", F(8, -3, "RND", signed=False)),
        ("ap_fixed<16,6,AP_RND_CONV,AP_SAT>", F(16, 6, "RND_CONV", "SAT")),
        ("fixed<16,+6,RND_CONV,SAT>", F(16, 6, "RND_CONV", "SAT")),
        ("ap_fixed<16,6,AP_TRN,AP_WRAP,0>", F(16, 6)),
        ("AP_FIXED<4,40,ap_rnd,sat>", F(4, 40, "RND", "SAT")),
    ],
)
def test_known_spellings(text, fmt):
    assert F.parse(text) == fmt


def test_how_a_format_is_written():
    fmt = F(16, 6, "RND_CONV", "SAT")
    assert (str(fmt), fmt.hls4ml) == ("ap_fixed<16,6,AP_RND_CONV,AP_SAT>", "fixed<16,6,RND_CONV,SAT>")
    ours = F(8, -2, "AP_RND", "RAISE", signed=False)
    assert (str(ours), ours.hls4ml) == ("ap_ufixed<8,-2,AP_RND,RAISE>", "ufixed<8,-2,RND,RAISE>")


@given(any_format)
def test_numbers_of_a_format(fmt):
    assert fmt.frac_bits + fmt.int_bits == fmt.width
    assert fmt.max_int - fmt.min_int + 1 == 2**fmt.width
    assert (fmt.min_int < 0) == fmt.signed and fmt.min_int in (0, -fmt.max_int - 1)
    lsb = Fraction(2) ** (fmt.int_bits - fmt.width)
    assert (Fraction(fmt.lsb), Fraction(fmt.min), Fraction(fmt.max)) == (lsb, fmt.min_int * lsb, fmt.max_int * lsb)


def test_a_format_is_a_value():
    one, other = F(np.int8(8), np.int64(3), "AP_RND", "ap_sat", np.bool_(True)), F(8, 3, "RND", "SAT")
    assert one == other and hash(one) == hash(other) and len({one, other, F(8, 3)}) == 2
    assert type(one.width) is int and type(one.int_bits) is int and type(one.signed) is bool
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.width = 9


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: F(0, 0), FormatError, "width must be 1 to 32 bits, got 0"),
        (lambda: F(33, 1), FormatError, "width must be 1 to 32 bits, got 33"),
        (lambda: F(8, 257), FormatError, "int_bits must be between -256 and 256, got 257"),
        (lambda: F(8, -257), FormatError, "int_bits must be between -256 and 256, got -257"),
        (lambda: F(8, 1, "AP_RND_INF"), FormatError, "unknown rounding mode 'AP_RND_INF'; known are TRN, RND,"),
        (lambda: F(8, 1, None), FormatError, "unknown rounding mode None"),
        (lambda: F(8, 1, "TRN", "AP_SAT_SYM"), FormatError, "unknown overflow mode 'AP_SAT_SYM'; known are WRAP, SAT"),
        (lambda: F(8.0, 1), TypeError, "width must be an integer, got 8.0"),
        (lambda: F(8, "1"), TypeError, "int_bits must be an integer, got '1'"),
        (lambda: F(True, 1), TypeError, "width must be an integer, got True"),
        (lambda: F.parse("ap_float<16,6>"), FormatError, "'ap_float<16,6>' is not a fixed-point format; write for"),
        (lambda: F.parse("fixed<16>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6>>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<a,6>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6.5>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6,RND,SAT,1>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6,RND,SAT,0,0>"), FormatError, "is not a fixed-point format"),
        (lambda: F.parse("fixed<16,6,,SAT>"), FormatError, "unknown rounding mode ''"),
        (lambda: F.parse("fixed<16,6,SAT,RND>"), FormatError, "unknown rounding mode 'SAT'"),
        (lambda: F.parse("fixed<99,6>"), FormatError, "width must be 1 to 32 bits, got 99"),
        (lambda: F.parse(""), FormatError, "'' is not a fixed-point format"),
        (lambda: F.parse(F(8, 1)), TypeError, "a format is read from text such as 'ap_fixed<16,6>', got FixedPointFo"),
        (lambda: F.for_range(-1.0, 8), ValueError, "max_abs must be a finite number of at least 0, got -1.0"),
        (lambda: F.for_range(math.inf, 8), ValueError, "max_abs must be a finite number"),
        (lambda: F.for_range(math.nan, 8), ValueError, "max_abs must be a finite number"),
        (lambda: F.for_range(1.0, 33), FormatError, "width must be 1 to 32 bits, got 33"),
        (lambda: F.for_range(1.0, 8, rounding="RND_ZERO"), FormatError, "unknown rounding mode 'RND_ZERO'"),
    ],
)
def test_what_is_no_format(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


magnitudes = st.floats(1e-30, 1e30) | st.builds(
    # Next to a power of two, and within an LSB of the largest value, is where a format is decided.
    lambda e, steps, near: math.ldexp((1.0 - 2.0**-near) if near else 1.0, e) * (1 + steps * 2.0**-52),
    st.integers(-60, 60),
    st.integers(-2, 2),
    st.integers(0, 34),
)


@given(magnitudes, st.integers(1, 32), st.booleans())
@example(3.999, 8, True)
@example(127.5, 8, True)
@example(np.nextafter(127.5, 0), 8, True)
@example(255.5, 8, False)
def test_for_range_is_the_finest_that_holds_the_range(max_abs, width, signed):
    def wholes(fmt, mode):
        ends = (max_abs, -max_abs) if signed else (max_abs,)
        return [rounded(Fraction(end) / Fraction(fmt.lsb), mode) for end in ends]

    fmt = F.for_range(max_abs, width, rounding="RND", overflow="RAISE", signed=signed)
    for mode in ROUNDINGS:
        assert counted(wholes(fmt, mode), fmt)[0] == 0
        same = F.for_range(max_abs, width, rounding=mode, signed=signed)
        assert same.rounding == mode and counted(wholes(same, mode), same)[0] == 0
    finer = dataclasses.replace(fmt, int_bits=fmt.int_bits - 1)
    assert counted(wholes(finer, "RND"), finer)[0] > 0
    assert quantize([max_abs, -max_abs] if signed else [max_abs], fmt)[1].count == 0


def test_for_range_of_nothing():
    assert F.for_range(0, 8).int_bits == 1
    assert F.for_range(0.0, 12, rounding="RND", overflow="SAT", signed=False) == F(12, 1, "RND", "SAT", False)


# --- quantize and dequantize -----------------------------------------------------------------------------------------

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


# --- requantize ------------------------------------------------------------------------------------------------------

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


# --- accumulator_width -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", list(itertools.product([True, False], repeat=2)))
def test_the_accumulator_is_the_narrowest(signs):
    for wa, wb, k in itertools.product(range(1, 5), range(1, 5), range(1, 6)):
        a, b = F(wa, 1, signed=signs[0]), F(wb, 1, signed=signs[1])
        products = {p * q for p in range(a.min_int, a.max_int + 1) for q in range(b.min_int, b.max_int + 1)}
        sums = {0}
        for _ in range(k):
            sums |= {total + product for total in sums for product in products}
        need = next(n for n in range(1, 40) if -(2 ** (n - 1)) <= min(sums) and max(sums) < 2 ** (n - 1))
        assert accumulator_width(a, b, k) == need, (a, b, k)


@given(formats(), formats(), st.integers(1, 10**6))
def test_the_accumulator_is_within_the_rule_of_thumb(a, b, k):
    width = accumulator_width(a, b, k)
    assert width <= a.width + b.width + (k - 1).bit_length() + (not (a.signed or b.signed))
    assert width == accumulator_width(b, a, k) == accumulator_width(a, b, np.int64(k))
