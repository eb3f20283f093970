"""Formats: their text, their numbers, their ranges, the width of an accumulator, and what is no format."""

import dataclasses
import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from exact import ROUNDINGS, counted, formats, rounded
from hypothesis import example, given
from hypothesis import strategies as st

from ttref.fixedpoint import FixedPointFormat, FormatError, accumulator_width, quantize

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
