"""Bounds that are never violated, and predictions that hold where they say: against exact rationals and at scale."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from exact import ROUNDINGS, chain, core_shapes, dense_matrix, gaussian_cores, right_part, roundings, seeds, slow_matvec
from hypothesis import given
from hypothesis import strategies as st

from ttref.fixedpoint import (
    FixedPointFormat,
    FixedPointOverflow,
    FormatError,
    QuantizedTT,
    error_bound,
    error_bound_prior,
    predicted_sqnr_db,
    quantize,
    requantize,
    right_orthogonal,
    sqnr_db,
    tt_stages,
)
from ttref.fixedpoint.stages import columns, contract_float, product

F = FixedPointFormat


def gaussian(modes_out, modes_in, rank, seed=0):
    return gaussian_cores(chain(modes_out, modes_in, rank), np.random.default_rng(seed))


def sign_vectors(matrix: np.ndarray, x_max: float) -> np.ndarray:
    """For every row of a matrix, the input that makes this row's product largest, and its negative."""
    signs = np.where(matrix < 0, -x_max, x_max)
    return np.concatenate([signs, -signs])


# --- error_bound and error_bound_prior -------------------------------------------------------------------------------


@given(
    core_shapes(most=3, ranks=3, cores=3),
    seeds,
    st.integers(2, 26),
    st.integers(2, 28),
    roundings,
    st.sampled_from(["canonical", "as given"]),
    st.booleans(),
    st.integers(-6, 6),
)
def test_bounds_hold_against_exact_rationals(shapes, seed, weight_width, act_width, rounding, gauge, guaranteed, scale):
    """Down to errors that float64 itself can barely see: up to 26 bits for weights and 28 for activations."""
    rng = np.random.default_rng(seed)
    cores = [core * 2.0**scale for core in gaussian_cores(shapes, rng)]
    options = dict(weight_width=weight_width, act_width=act_width, rounding=rounding, gauge=gauge)
    x = rng.uniform(-1, 1, size=(4, math.prod(shape[2] for shape in shapes)))
    if guaranteed:
        options["x_max"] = 1.0
        x = np.concatenate([x, sign_vectors(dense_matrix(cores), 1.0)[::3]])
    else:
        options["calibration"] = x
    qtt = QuantizedTT.from_float(cores, **options)
    bound = error_bound(cores, qtt, x)
    exact = dense_matrix([np.vectorize(Fraction, otypes=[object])(core) for core in cores])
    lsb = Fraction(qtt.stage_formats[-1].lsb)
    errors = []
    for vector, limits in zip(x, bound, strict=True):
        outputs, _, _ = slow_matvec(qtt, quantize(vector, qtt.stage_formats[0])[0].tolist())
        real = exact @ np.array([Fraction(v) for v in vector.tolist()], dtype=object)
        for y, w, limit in zip(outputs, real, limits.tolist(), strict=True):
            errors.append(abs(y * lsb - w))
            assert errors[-1] <= Fraction(limit)
    if guaranteed:
        assert max(errors) <= Fraction(error_bound_prior(cores, qtt, 1.0))


real_options = st.fixed_dictionaries(
    {
        "weight_width": st.integers(2, 16),
        "act_width": st.integers(2, 16),
        "rounding": roundings,
        "gauge": st.sampled_from(["canonical", "as given"]),
    }
)


@given(core_shapes(most=4, ranks=6), seeds, real_options)
def test_bounds_hold_for_a_calibrated_sample(shapes, seed, options):
    rng = np.random.default_rng(seed)
    cores = gaussian_cores(shapes, rng)
    x = rng.standard_t(3, size=(60, math.prod(shape[2] for shape in shapes)))
    qtt = QuantizedTT.from_float(cores, calibration=x, **options)
    bound = error_bound(cores, qtt, x)
    assert (np.abs(qtt.matvec_float(x) - contract_float(cores, x)) <= bound).all()
    # The train is the same in any gauge, and so is the bound, but for float64.
    assert (np.abs(error_bound(right_orthogonal(cores), qtt, x) - bound) <= 1e-9 * (1 + bound)).all()


@given(core_shapes(most=4, ranks=6), seeds, real_options, st.floats(0.01, 100))
def test_bounds_hold_for_every_input_within_a_guarantee(shapes, seed, options, x_max):
    rng = np.random.default_rng(seed)
    cores = gaussian_cores(shapes, rng)
    qtt = QuantizedTT.from_float(cores, x_max=x_max, **options)
    size = qtt.in_features
    x = np.concatenate(
        [
            rng.uniform(-x_max, x_max, size=(40, size)),
            rng.choice([-x_max, x_max], size=(20, size)),
            sign_vectors(dense_matrix(cores), x_max),
            sign_vectors(dense_matrix(qtt.float_cores) - dense_matrix(cores), x_max),
        ]
    )
    error = np.abs(qtt.matvec_float(x) - contract_float(cores, x))
    bound = error_bound(cores, qtt, x)
    prior = error_bound_prior(cores, qtt, x_max)
    assert (error <= bound).all() and error.max() <= prior
    assert (bound <= prior * (1 + 1e-9)).all()
    assert error_bound_prior(cores, qtt, x_max / 2) <= prior


def test_bounds_of_many_trains_are_those_of_each():
    rng = np.random.default_rng(2)
    cores = gaussian_cores(chain((3, 4), (1, 1), 3), rng, (6,))
    qtt = QuantizedTT.from_float(cores, weight_width=7, act_width=9, x_max=1.0)
    x = np.array([0.9])
    bound = error_bound(cores, qtt, x)
    assert bound.shape == (6, 12)
    assert (np.abs(qtt.matvec_float(x) - contract_float(cores, x)) <= bound).all()
    priors = []
    for row in range(6):
        single = QuantizedTT(tuple(core[row] for core in qtt.cores), qtt.core_formats, qtt.stage_formats)
        alone = [core[row] for core in cores]
        np.testing.assert_allclose(error_bound(alone, single, x), bound[row], rtol=1e-9)
        priors.append(error_bound_prior(alone, single, 1.0))
    assert error_bound_prior(cores, qtt, 1.0) == pytest.approx(max(priors), rel=1e-9)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("modes", [(4,), (2, 2)])
def test_bounds_are_not_silly(modes, rounding):
    """An input that comes within a factor of five of what is guaranteed, in a train small enough to look for it."""
    cores = gaussian(modes, modes, 1)
    qtt = QuantizedTT.from_float(cores, weight_width=10, act_width=8, x_max=1.0, rounding=rounding)
    x = np.random.default_rng(1).uniform(-1, 1, size=(20_000, 4))
    error = np.abs(qtt.matvec_float(x) - contract_float(cores, x))
    assert 0.5 < (error / error_bound(cores, qtt, x)).max() <= 1
    assert 0.2 < error.max() / error_bound_prior(cores, qtt, 1.0) <= 1


def test_nothing_is_lost_where_nothing_is_rounded():
    """Integer cores and inputs, and formats wide enough: the bound is float64's own slack and no more."""
    rng = np.random.default_rng(3)
    cores = [rng.integers(-3, 4, size=shape).astype(float) for shape in chain((2, 3), (3, 2), 2)]
    whole = F(30, 30)
    qtt = QuantizedTT(tuple(core.astype(int) for core in cores), (F(3, 3),) * 2, (F(8, 8), whole, whole))
    x = rng.integers(-128, 128, size=(20, 6))
    assert (qtt.matvec_float(x) == contract_float(cores, x)).all()
    assert 0 <= error_bound(cores, qtt, x).max() < 1e-9
    assert sqnr_db(contract_float(cores, x), qtt.matvec_float(x)) == predicted_sqnr_db(cores, qtt, x) == math.inf


def replaced(qtt, **changes):
    return QuantizedTT(
        qtt.cores, qtt.core_formats, tuple(dataclasses.replace(fmt, **changes) for fmt in qtt.stage_formats)
    )


def test_bounds_refuse_what_they_cannot_promise():
    cores = gaussian((3, 4), (4, 3), 3)
    x = np.random.default_rng(4).normal(size=(50, 12))
    calibrated = QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=x)
    for judge in (error_bound, predicted_sqnr_db):
        for overflow in ("SAT", "WRAP"):
            with pytest.raises(ValueError, match=r"values overflowed in the input, ap_fixed<8,\d,AP_RND_CONV,AP_"):
                judge(cores, replaced(calibrated, overflow=overflow), 2 * x)
        with pytest.raises(FixedPointOverflow):
            judge(cores, replaced(calibrated, overflow="RAISE"), 2 * x)
        roomy = [dataclasses.replace(fmt, int_bits=fmt.int_bits + 1) for fmt in calibrated.stage_formats[:1]]
        narrow = QuantizedTT(calibrated.cores, calibrated.core_formats, (*roomy, *calibrated.stage_formats[1:]))
        with pytest.raises(ValueError, match=r"values overflowed in stage \d, .*errors are predictable only without"):
            judge(cores, narrow, 2 * x)
        with pytest.raises(ValueError, match="the real train has modes"):
            judge(gaussian((12,), (12,), 1), calibrated, x)
        with pytest.raises(ValueError, match="the real train has modes"):
            judge([core[:, :, :2] for core in cores], calibrated, x)
    with pytest.raises(FormatError, match="inputs of magnitude 1 might overflow in the input|might overflow in stage"):
        error_bound_prior(cores, QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=x / 20), 1.0)
    guaranteed = QuantizedTT.from_float(cores, weight_width=8, act_width=8, x_max=1.0)
    assert error_bound_prior(cores, guaranteed, 1.0) > 0
    with pytest.raises(FormatError, match="inputs of magnitude 3 might overflow in the input, ap_fixed"):
        error_bound_prior(cores, guaranteed, 3.0)
    for s in range(3):
        tighter = list(guaranteed.stage_formats)
        tighter[s] = dataclasses.replace(tighter[s], int_bits=tighter[s].int_bits - 1)
        with pytest.raises(FormatError, match="the input" if s == 0 else f"stage {s - 1}"):
            error_bound_prior(cores, QuantizedTT(guaranteed.cores, guaranteed.core_formats, tuple(tighter)), 1.0)
    with pytest.raises(ValueError, match="x_max must be a finite number of at least 0, got nan"):
        error_bound_prior(cores, guaranteed, math.nan)
    with pytest.raises(ValueError, match="x_max must be a finite number of at least 0, got -1"):
        error_bound_prior(cores, guaranteed, -1)


@pytest.mark.slow
def test_bounds_over_ten_million_outputs():
    """Shapes, ranks, widths, roundings, both kinds of formats, inputs typical and adversarial: not one exception."""
    rng = np.random.default_rng(5)
    shapes = [((8, 8, 8), (8, 8, 8)), ((16, 32), (32, 16)), ((3, 4, 2, 5), (2, 3, 5, 4)), ((6, 7, 3), (5, 4, 6))]
    outputs = 0
    for (modes_out, modes_in), rank in itertools.product(shapes, (1, 3, 16)):
        cores = gaussian_cores(chain(modes_out, modes_in, rank), rng)
        dense, size = dense_matrix(cores), math.prod(modes_in)
        x = rng.uniform(-1, 1, size=(100, size))
        x = np.concatenate([x, rng.choice([-1.0, 1.0], size=(20, size)), sign_vectors(dense, 1.0)[::16]])
        real = contract_float(cores, x)
        for (weight, act), rounding, guaranteed in itertools.product(
            [(4, 6), (8, 8), (6, 12), (16, 16)], ROUNDINGS, (False, True)
        ):
            options = dict(weight_width=weight, act_width=act, rounding=rounding)
            qtt = QuantizedTT.from_float(cores, **options, **({"x_max": 1.0} if guaranteed else {"calibration": x}))
            error = np.abs(qtt.matvec_float(x) - real)
            assert (error <= error_bound(cores, qtt, x)).all()
            if guaranteed:
                assert error.max() <= error_bound_prior(cores, qtt, 1.0)
                hard = sign_vectors(dense_matrix(qtt.float_cores) - dense, 1.0)[::16]
                worst = np.abs(qtt.matvec_float(hard) - contract_float(cores, hard))
                assert (worst <= error_bound(cores, qtt, hard)).all()
                outputs += worst.size
            outputs += error.size
    assert outputs >= 10_000_000


# --- predicted_sqnr_db and sqnr_db -----------------------------------------------------------------------------------


def smallest(qtt: QuantizedTT, x: np.ndarray) -> float:
    """Over the input and all stages, the smallest root mean square of what is stored, in LSBs."""
    state = columns(quantize(x, qtt.stage_formats[0])[0], qtt.cores[0].shape[:-4])
    sizes = [np.sqrt(np.mean(state.astype(float) ** 2))]
    for s, stage in enumerate(qtt.stages):
        point = qtt.core_formats[stage.core].frac_bits + qtt.stage_formats[s].frac_bits
        state, _ = requantize(product(qtt.cores[stage.core], state, stage, np.int64), point, qtt.stage_formats[s + 1])
        sizes.append(np.sqrt(np.mean(state.astype(float) ** 2)))
    return min(sizes)


def gap(cores, qtt, x) -> tuple[float, float]:
    """The prediction's error in dB, and what was measured."""
    measured = sqnr_db(contract_float(cores, x), qtt.matvec_float(x))
    return abs(predicted_sqnr_db(cores, qtt, x) - measured), measured


WORDS = [(4, 8), (6, 6), (8, 8), (8, 16), (12, 12), (16, 8), (16, 16)]


def check_grid(cores, x, words=WORDS, kinds=(False, True)):
    """White noise is a fair model while every array is a few LSBs large, for any error of the weights."""
    inside = 0
    for (weight, act), rounding, guaranteed in itertools.product(words, ROUNDINGS, kinds):
        ranges = {"x_max": float(np.abs(x).max())} if guaranteed else {"calibration": x}
        qtt = QuantizedTT.from_float(cores, weight_width=weight, act_width=act, rounding=rounding, **ranges)
        size, (off, measured) = smallest(qtt, x), gap(cores, qtt, x)
        if size >= 4 or (size >= 1 and measured >= 15):
            assert off < 0.5, (weight, act, rounding, guaranteed, size, off, measured)
            inside += 1
    return inside


@pytest.mark.parametrize(
    ("modes_out", "modes_in", "rank"),
    [
        ((4, 4, 4), (4, 4, 4), 4),
        ((8, 8), (8, 8), 8),
        ((3, 4, 2), (2, 3, 5), 3),
        ((2, 2, 2, 2), (2, 2, 2, 2), 2),
        ((9,), (16,), 1),
    ],
)
def test_prediction_over_a_grid(modes_out, modes_in, rank):
    x = np.random.default_rng(6).normal(size=(500, math.prod(modes_in)))
    assert check_grid(gaussian(modes_out, modes_in, rank), x) >= 25


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from book.workbook.trained import digits_layer

    return digits_layer(4, epochs=8)


def test_prediction_for_a_trained_layer(digits):
    assert check_grid(digits.cores, digits.digits.test_x.numpy()) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_prediction_for_trained_layers_of_every_rank(rank):
    from book.workbook.trained import digits_layer

    subject = digits_layer(rank)
    x = np.concatenate([subject.digits.test_x.numpy(), subject.digits.train_x.numpy()])
    words = [(w, a) for w in (4, 6, 8, 12, 16) for a in (4, 6, 8, 10, 12, 16)]
    assert check_grid(subject.cores, x, words) >= 80


def test_prediction_for_many_trains():
    cores = gaussian_cores(chain((6, 8, 8), (1, 1, 1), 4), np.random.default_rng(7), (100,))
    one = np.ones(1)
    for weight, act in WORDS:
        qtt = QuantizedTT.from_float(cores, weight_width=weight, act_width=act, calibration=one)
        off, measured = gap(cores, qtt, one)
        assert off < 0.5 or measured < 15, (weight, act, off, measured)


def test_cutting_costs_a_bias_that_is_predicted():
    cores = gaussian((8, 8), (8, 8), 8)
    x = np.random.default_rng(9).normal(size=(2000, 64))
    real = contract_float(cores, x)

    def judged(rounding):
        qtt = QuantizedTT.from_float(cores, weight_width=14, act_width=9, calibration=x, rounding=rounding)
        error = (qtt.matvec_float(x) - real) / qtt.stage_formats[-1].lsb
        off, measured = gap(cores, qtt, x)
        assert off < 0.2
        return measured, error.mean(), np.abs(error.mean(0)).max()

    cut, cut_bias, cut_worst = judged("TRN")
    even, even_bias, even_worst = judged("RND_CONV")
    up, up_bias, _ = judged("RND")
    # Half an LSB of the output, and what the first stage's half LSB grows into.
    assert cut_worst > 0.5 and abs(cut_bias) > 0.25
    assert max(abs(even_bias), abs(up_bias)) < 0.02 and even_worst < 0.1
    assert 3 < even - cut < 12 and abs(even - up) < 0.2


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_few_dropped_bits_are_predicted_too(bits, rounding):
    """When one bit is dropped, every second value is a tie: no rounding's error is uniform there."""
    into, out = F(12, 1), F(12 - bits, 1, rounding, "SAT")
    qtt = QuantizedTT((np.ones((1, 1, 1, 1), dtype=int),), (F(2, 2),), (into, out))
    x = np.arange(-1536, 1536)[:, None] * into.lsb
    off, _ = gap([np.ones((1, 1, 1, 1))], qtt, x)
    assert off < 0.01
    bias = {"TRN": 2.0**-bits - 1, "RND": 2.0**-bits, "RND_CONV": 0.0}[rounding] / 2
    assert ((qtt.matvec_float(x) - x) / out.lsb).mean() == pytest.approx(bias, abs=1e-12)


def test_six_decibels_a_bit():
    cores = gaussian((4, 4, 4), (4, 4, 4), 4)
    x = np.random.default_rng(11).normal(size=(400, 64))
    for predict in (False, True):
        found = []
        for width in range(7, 17):
            qtt = QuantizedTT.from_float(cores, weight_width=width, act_width=width, calibration=x)
            real = contract_float(cores, x)
            found.append(predicted_sqnr_db(cores, qtt, x) if predict else sqnr_db(real, qtt.matvec_float(x)))
        slope = np.polyfit(range(7, 17), found, 1)[0]
        assert slope == pytest.approx(20 * math.log10(2), abs=0.15)
        assert (np.diff(found) > 3).all()


def test_sqnr():
    assert sqnr_db([1.0, -1.0], [1.1, -1.1]) == pytest.approx(20)
    assert sqnr_db([3.0, 4.0], [3.0, 4.0]) == math.inf
    assert sqnr_db([0.0], [0.0]) == math.inf and sqnr_db([0.0], [1e-3]) == -math.inf
    x = np.random.default_rng(12).normal(size=(20, 30))
    assert sqnr_db(x, x + 1e-3) == pytest.approx(10 * math.log10(np.mean(x**2) / 1e-6))
    with pytest.raises(ValueError, match=r"the reference has shape \(2,\), the test \(1, 2\)"):
        sqnr_db([1.0, 2.0], [[1.0, 2.0]])


def test_right_part_is_what_a_stage_writes():
    """The oracle's own test: the rows that adversarial inputs aim at are the rows of the stages."""
    cores = gaussian((2, 3, 2), (3, 2, 2), 3)
    x = np.random.default_rng(13).normal(size=12)
    state = columns(x, ())
    for stage in tt_stages(cores):
        state = product(cores[stage.core], state, stage, np.float64)
        rows = right_part(cores, stage.core)
        np.testing.assert_allclose(state.reshape(stage.A, -1), x.reshape(stage.A, -1) @ rows.T, atol=1e-12)
