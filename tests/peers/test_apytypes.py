"""APyTypes as oracle: every 8-bit requantization, and whole trains of random shapes and formats, bit for bit."""

import numpy as np
import pytest
from apytypes import APyFixedArray, OverflowMode, QuantizationMode
from exact import ROUNDINGS, gaussian_cores, integer_trains, integers_of, roundings, seeds
from hypothesis import given
from hypothesis import strategies as st

from ttref.fixedpoint import FixedPointFormat, FixedPointOverflow, QuantizedTT, quantize, requantize

QUANTIZATION = {"TRN": QuantizationMode.TRN, "RND": QuantizationMode.RND, "RND_CONV": QuantizationMode.RND_CONV}
OVERFLOW = {"SAT": OverflowMode.SAT, "WRAP": OverflowMode.WRAP}


def theirs(values: np.ndarray, int_bits: int, frac_bits: int) -> APyFixedArray:
    # APyTypes does not take read-only arrays.
    return APyFixedArray(values.copy(), int_bits=int_bits, frac_bits=frac_bits)


def signed_bits(array: APyFixedArray) -> np.ndarray:
    bits = array.to_bits(numpy=True).astype(np.int64)
    return bits - ((bits >> (array.bits - 1)) << array.bits)


def cast(array: APyFixedArray, fmt: FixedPointFormat) -> APyFixedArray:
    """Into ``fmt``, whose numbers are kept in one bit more if they have no sign: APyTypes knows signed ones only."""
    quantization = QUANTIZATION[fmt.rounding]
    if fmt.signed:
        return array.cast(fmt.int_bits, fmt.frac_bits, quantization, OVERFLOW[fmt.overflow])
    wide = array.cast(fmt.int_bits + 60, fmt.frac_bits, quantization, OverflowMode.SAT)
    bits = signed_bits(wide.cast(max(array.int_bits, fmt.int_bits) + 2, fmt.frac_bits))
    kept = bits & fmt.max_int if fmt.overflow == "WRAP" else np.clip(bits, 0, fmt.max_int)
    return theirs(kept, fmt.int_bits + 1, fmt.frac_bits)


ACC = np.arange(-(2**17), 2**17)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", ["SAT", "WRAP", "RAISE"])
@pytest.mark.parametrize("signed", [True, False])
def test_every_18_bit_sum_to_8_bits(rounding, overflow, signed):
    for shift in (-9, -3, -1, 0, 1, 2, 3, 5, 8, 10, 12, 17, 18, 20):
        mode = "SAT" if overflow == "RAISE" else overflow
        fmt = FixedPointFormat(8, 3, rounding, mode, signed)
        point = fmt.frac_bits + shift
        acc = theirs(ACC, 18 - point, point)
        q, stats = requantize(ACC, point, fmt)
        expected = signed_bits(cast(acc, fmt))
        assert (q == expected).all()
        whole = signed_bits(acc.cast(30 - fmt.frac_bits, fmt.frac_bits, QUANTIZATION[rounding]))
        beyond = np.maximum(np.maximum(fmt.min_int - whole, whole - fmt.max_int), 0)
        assert (stats.count, stats.total, stats.worst) == (np.count_nonzero(beyond), ACC.size, beyond.max())
        if overflow == "RAISE":
            strict = FixedPointFormat(8, 3, rounding, "RAISE", signed)
            assert (requantize(ACC[beyond == 0], point, strict)[0] == expected[beyond == 0]).all()
            if stats.count:
                with pytest.raises(FixedPointOverflow, match=f"^{stats.count} of {ACC.size} values"):
                    requantize(ACC, point, strict)


def contract(qtt: QuantizedTT, xq: np.ndarray) -> np.ndarray:
    """The stages with their matrix products, one vector and one outer position after the other."""
    into = qtt.stage_formats[0]
    states = [theirs(x, into.int_bits + (not into.signed), into.frac_bits) for x in xq]
    for stage, after in zip(qtt.stages, qtt.stage_formats[1:], strict=True):
        weight = qtt.core_formats[stage.core]
        core = qtt.cores[stage.core].reshape(stage.M, stage.K)
        core = theirs(core, weight.int_bits + (not weight.signed), weight.frac_bits)
        written = []
        for state in states:
            blocks = state.reshape((stage.A, stage.K, stage.B))
            bits = [signed_bits(cast(core @ blocks[a], after)).reshape(-1) for a in range(stage.A)]
            written.append(theirs(np.concatenate(bits), after.int_bits + (not after.signed), after.frac_bits))
        states = written
    return np.array([signed_bits(state) for state in states])


@given(integer_trains(widths=(1, 10)))
def test_whole_trains_of_any_format(made):
    qtt, rng = made
    xq = integers_of(qtt.stage_formats[0], (3, qtt.in_features), rng)
    assert (qtt.matvec(xq) == contract(qtt, xq)).all()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=3),
    st.integers(1, 5),
    seeds,
    st.integers(3, 18),
    st.integers(3, 18),
    roundings,
    st.sampled_from(["SAT", "WRAP"]),
)
def test_whole_trains_of_chosen_formats(modes, rank, seed, weight_width, act_width, rounding, overflow):
    """Formats as ``from_float`` picks them, and inputs four times as large as those that it saw."""
    rng = np.random.default_rng(seed)
    bonds = [1] + [rank] * (len(modes) - 1) + [1]
    cores = gaussian_cores([(bonds[k], m, n, bonds[k + 1]) for k, (m, n) in enumerate(modes)], rng)
    x = rng.normal(size=(6, np.prod([n for _, n in modes])))
    qtt = QuantizedTT.from_float(
        cores, weight_width=weight_width, act_width=act_width, calibration=x, rounding=rounding, overflow=overflow
    )
    xq, _ = quantize(x * rng.choice([1, 4], size=(6, 1)), qtt.stage_formats[0])
    assert (qtt.matvec(xq) == contract(qtt, xq)).all()
