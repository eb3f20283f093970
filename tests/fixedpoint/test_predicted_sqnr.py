"""`predicted_sqnr_db` where numbers differ in size: what is smaller than an LSB is lost, and is no white noise."""

import itertools

import numpy as np
import pytest
from exact import ROUNDINGS, chain, dense_matrix, gaussian_cores

from ttref.fixedpoint import QuantizedTT, predicted_sqnr_db, sqnr_db
from ttref.fixedpoint.stages import contract_float

SIZE = 10.0 ** -np.linspace(0, 4, 64)


def scaled(outputs: np.ndarray | None = None, inputs: np.ndarray | None = None, seed: int = 0) -> list[np.ndarray]:
    """Gaussian cores of a 64 x 64 train; then its rows, or columns, times a product of sizes for each mode."""
    cores = gaussian_cores(chain((4, 4, 4), (4, 4, 4), 4), np.random.default_rng(seed))
    for k in range(3):
        if outputs is not None:
            cores[k] = cores[k] * outputs[:, None, None]
        if inputs is not None:
            cores[k] = cores[k] * inputs[:, None]
    return cores


def off(cores, x, width, **options) -> float:
    """By how many dB the prediction is too high."""
    options = options or {"calibration": x}
    qtt = QuantizedTT.from_float(cores, weight_width=width, act_width=width, **options)
    return predicted_sqnr_db(cores, qtt, x) - sqnr_db(contract_float(cores, x), qtt.matvec_float(x))


def samples(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(400, 64))
    return {
        "Gaussian": normal,
        "of very different size": normal * rng.permutation(SIZE),
        "heavy-tailed": rng.standard_t(3, size=(400, 64)),
        "sparse": normal * (rng.random((400, 64)) < 0.05),
        "large and small": normal * 10.0 ** -rng.uniform(0, 4, size=(400, 1)),
    }[kind]


# Over three modes 64 outputs, from 1 down to 1/27,000, or to 1/1,000.
MODES = {"steep": np.array([1, 0.33, 0.1, 0.033]), "one of four": np.array([1, 0.1, 0.1, 0.1])}


@pytest.mark.parametrize("kind", ["Gaussian", "of very different size", "heavy-tailed", "sparse", "large and small"])
@pytest.mark.parametrize("outputs", MODES)
def test_sizes_may_differ(outputs, kind):
    """Outputs, inputs, vectors: where counting white noise for all of them missed by up to 8 dB."""
    cores, x = scaled(MODES[outputs]), samples(kind)
    calibrated, guaranteed = {"calibration": x}, {"x_max": float(np.abs(x).max())}
    for width, (rounding, ranges) in itertools.product(
        (4, 6, 8, 11), [*((rounding, calibrated) for rounding in ROUNDINGS), ("RND_CONV", guaranteed)]
    ):
        wrong = abs(off(cores, x, width, rounding=rounding, **ranges))
        assert wrong < (0.5 if width >= 8 else 1), (width, rounding, list(ranges))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_channels_of_a_bond_may_differ(rounding):
    """As the cores are, no gauge in between: the channels of a stage's result have large and small variance."""
    cores, x = scaled(), samples("Gaussian")
    cores[0], cores[1] = cores[0] / MODES["steep"], cores[1] * MODES["steep"][:, None, None, None]
    for width in (5, 6, 8, 10, 12):
        qtt = QuantizedTT.from_float(
            cores, weight_width=16, act_width=width, calibration=x, rounding=rounding, gauge="as given"
        )
        measured = sqnr_db(contract_float(cores, x), qtt.matvec_float(x))
        assert predicted_sqnr_db(cores, qtt, x) == pytest.approx(measured, abs=0.5), width


def test_outputs_of_a_dense_matrix_may_differ():
    """One core, no train: an output is rounded once, and most of them to zero."""
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(64, 64)) * rng.permutation(SIZE)[:, None]
    x = rng.normal(size=(300, 64))
    for width in range(4, 15):
        assert abs(off([weight[None, :, :, None]], x, width)) < 0.3, width


def test_where_everything_vanishes_nothing_is_left():
    """Guaranteed ranges at few bits: nearly all is rounded to zero, and the error is the signal."""
    cores, x = scaled(seed=3), np.random.default_rng(8).normal(size=(500, 64))
    x_max = float(np.abs(x).max())
    for width in (2, 3, 4, 5):
        qtt = QuantizedTT.from_float(cores, weight_width=width, act_width=width, x_max=x_max)
        measured = sqnr_db(contract_float(cores, x), qtt.matvec_float(x))
        assert predicted_sqnr_db(cores, qtt, x) == pytest.approx(measured, abs=0.5), width
    qtt = QuantizedTT.from_float(cores, weight_width=2, act_width=2, x_max=x_max)
    assert not qtt.matvec_float(x).any() and predicted_sqnr_db(cores, qtt, x) == pytest.approx(0, abs=1e-9)


def test_trains_of_very_different_size_share_their_formats():
    """Many trains in one table: small rows vanish, and they are known to."""
    rng = np.random.default_rng(4)
    cores = gaussian_cores(chain((6, 8, 8), (1, 1, 1), 4), rng, (200,))
    cores[0] = cores[0] * 10.0 ** -np.linspace(0, 4, 200)[:, None, None, None, None]
    for width in (4, 6, 8, 12):
        assert abs(off(cores, np.ones(1), width)) < 0.5, width


def test_sums_that_cancel_have_no_sign_to_be_cut_by():
    """Equal and opposite terms: the integers give zero, and floor would turn float64's last digit into minus one."""
    rng = np.random.default_rng(5)
    first, last = rng.normal(size=(1, 3, 7, 3)), rng.normal(size=(3, 5, 2, 1))
    last[:, :, 1] = -last[:, :, 0]
    x = np.repeat(rng.normal(size=(50, 7)), 2, axis=1)
    qtt = QuantizedTT.from_float([first, last], weight_width=8, act_width=8, x_max=4.0, rounding="TRN")
    assert not qtt.matvec_float(x).any()
    dense = dense_matrix(qtt.float_cores)
    assert np.abs(x @ dense.T).max() < 1e-12
    assert predicted_sqnr_db(qtt.float_cores, qtt, x + np.tile([0, 1.0], 7)) > 0
    noise = predicted_sqnr_db([np.ones((1, 3, 7, 1)), np.ones((1, 5, 2, 1))], qtt, x)
    assert noise == pytest.approx(0, abs=1e-9)  # the integers give nothing: the error is the signal


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    from book.workbook.trained import digits_layer

    return digits_layer(4, epochs=8)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_word_length_of_a_trained_layer(digits, rounding):
    """At two and three bits too, where it once missed by up to 33 dB."""
    x = digits.digits.test_x.numpy()
    for width in range(2, 17):
        for ranges in ({"calibration": x}, {"x_max": 1.0}):
            wrong = abs(off(digits.cores, x, width, rounding=rounding, **ranges))
            assert wrong < (1 if width < 4 else 0.5 if width < 6 else 0.3), (width, list(ranges))
