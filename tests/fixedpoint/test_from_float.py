"""Integer trains made of real ones: the gauge, formats that never overflow, and what is kept."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from exact import chain, core_shapes, dense_matrix, gaussian_cores, right_part, roundings, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_trains import (
    sample_train,
)

from ttref.fixedpoint import FixedPointFormat, QuantizedTT, fill_ranges, quantize, right_orthogonal
from ttref.fixedpoint.stages import contract_float

F = FixedPointFormat


RNG = np.random.default_rng(0)


# --- gauge -----------------------------------------------------------------------------------------------------------


@given(core_shapes(most=4, ranks=6), seeds, st.sampled_from([(), (3,), (2, 2)]), st.booleans())
def test_right_orthogonal_is_the_same_train(shapes, seed, batch, dead):
    cores = gaussian_cores(shapes, np.random.default_rng(seed), batch)
    if dead:
        cores[-1] = np.zeros_like(cores[-1])
    before = [core.copy() for core in cores]
    swept = right_orthogonal(cores)
    scale = 1e-12 * (1 + np.abs(dense_matrix([np.abs(core) for core in cores])).max())
    np.testing.assert_allclose(dense_matrix(swept), dense_matrix(cores), rtol=0, atol=scale)
    assert all((core == kept).all() for core, kept in zip(cores, before, strict=True))
    for k, core in enumerate(swept[1:], 1):
        rows = core.reshape(*batch, core.shape[-4], -1)
        assert np.abs(rows @ np.swapaxes(rows, -1, -2) - np.eye(rows.shape[-2])).max() < 1e-12
        assert rows.shape[-2] <= min(shapes[k][0], rows.shape[-1])


@given(core_shapes(most=4, ranks=4), seeds, st.sampled_from([(), (3,)]), st.integers(2, 16))
def test_filled_cores_reach_the_largest_integer(shapes, seed, batch, width):
    cores = gaussian_cores(shapes, np.random.default_rng(seed), batch)
    filled = fill_ranges(cores, [width] * len(cores))
    scale = 1e-12 * (1 + np.abs(dense_matrix([np.abs(core) for core in cores])).max())
    np.testing.assert_allclose(dense_matrix(filled), dense_matrix(cores), rtol=0, atol=scale)
    for core in filled[1:]:
        fmt = F.for_range(float(np.abs(core).max()), width, rounding="RND_CONV", overflow="RAISE")
        q, _ = quantize(core, fmt)
        assert (np.abs(q).max((-4, -3, -2, -1)) >= fmt.max_int).all()


@st.composite
def real_trains(draw, most=4, ranks=4):
    shapes = draw(core_shapes(most=most, ranks=ranks))
    rng = np.random.default_rng(draw(seeds))
    cores = gaussian_cores(shapes, rng)
    # Scales of the cores and of the inputs far from one, so that binary points leave the stored bits.
    cores = [core * 2.0 ** rng.integers(-12, 12) for core in cores]
    widths = st.integers(2, 16)
    options = dict(
        weight_width=[draw(widths) for _ in cores],
        act_width=[draw(widths) for _ in range(len(cores) + 1)],
        rounding=draw(roundings),
        gauge=draw(st.sampled_from(["canonical", "as given"])),
    )
    return cores, options, rng


# --- from_float ------------------------------------------------------------------------------------------------------


@given(real_trains(), st.sampled_from([1, 2, 50]))
def test_the_calibration_sample_never_overflows(made, count):
    cores, options, rng = made
    size = np.prod([core.shape[2] for core in cores])
    sample = rng.standard_t(2, size=(count, size)) * 2.0 ** rng.integers(-10, 10)
    qtt = QuantizedTT.from_float(cores, calibration=sample, overflow="RAISE", **options)
    xq, _ = quantize(sample, qtt.stage_formats[0])
    yq = qtt.matvec(xq)
    if options["rounding"] != "RND_CONV" or not yq.any():
        return
    # No bit is wasted either: with one integer bit less, the sample or its mirror image overflows there.
    for s in range(1, len(qtt.stage_formats)):
        finer = [dataclasses.replace(fmt, overflow="SAT") for fmt in qtt.stage_formats]
        finer[s] = dataclasses.replace(finer[s], int_bits=finer[s].int_bits - 1, rounding="RND")
        partial = QuantizedTT(qtt.cores, qtt.core_formats, tuple(finer))
        mirrored = np.clip(-xq, finer[0].min_int, finer[0].max_int)
        _, stats = partial.matvec(np.concatenate([xq, mirrored]), return_stats=True)
        assert stats[s - 1].count > 0


def adversaries(qtt, cores, x_max):
    """For every entry that any stage writes: the signs that make this entry largest."""
    inputs = qtt.in_features
    found = [np.full(inputs, x_max), np.full(inputs, -x_max)]
    for k in range(len(cores)):
        rows = np.sign(right_part(cores, k)) + (right_part(cores, k) == 0)
        found += [np.tile(sign * x_max * row, inputs // rows.shape[-1]) for row in rows for sign in (1, -1)]
    return np.array(found)


@given(real_trains(most=3, ranks=3), st.integers(-8, 8), st.floats(0.51, 1))
@settings(max_examples=150)
def test_guaranteed_formats_never_overflow(made, exponent, mantissa):
    cores, options, rng = made
    x_max = mantissa * 2.0**exponent
    qtt = QuantizedTT.from_float(cores, x_max=x_max, overflow="RAISE", **options)
    x = rng.uniform(-x_max, x_max, size=(30, qtt.in_features))
    qtt.matvec_float(np.concatenate([x, adversaries(qtt, cores, x_max), adversaries(qtt, qtt.float_cores, x_max)]))


def test_guaranteed_formats_are_not_wasteful():
    cores = gaussian_cores(chain((4, 4), (4, 4), 4), np.random.default_rng(5))
    qtt = QuantizedTT.from_float(cores, weight_width=12, act_width=14, x_max=1.0)
    xq, _ = quantize(adversaries(qtt, qtt.float_cores, 1.0), qtt.stage_formats[0])
    fmt = qtt.stage_formats[-1]
    assert np.abs(qtt.matvec(xq)).max() > 0.49 * fmt.max_int


def test_the_canonical_gauge_fills_every_width():
    qtt, _ = sample_train()
    assert [int(np.abs(core).max()) for core in qtt.cores[1:]] == [31, 31]
    loose, _ = sample_train(gauge="as given")
    assert [fmt.width for fmt in loose.core_formats] == [6, 6, 6] and loose.cores[1].max() != 31


def test_gauge_rescues_a_lopsided_bond():
    rng = np.random.default_rng(6)
    cores = gaussian_cores(chain((4, 4, 4), (4, 4, 4), 4), rng)
    x = rng.normal(size=(200, 64))
    bond = 2.0 ** np.array([0, 9, 3, -6])
    lopsided = [cores[0] * bond, cores[1] / bond[:, None, None, None], cores[2]]
    real = contract_float(cores, x)

    def noise(train, gauge):
        qtt = QuantizedTT.from_float(train, weight_width=8, act_width=12, calibration=x, gauge=gauge)
        return np.sum((qtt.matvec_float(x) - real) ** 2) / np.sum(real**2)

    assert noise(lopsided, "as given") > 100 * noise(lopsided, "canonical")
    assert noise(lopsided, "canonical") == pytest.approx(noise(cores, "canonical"), rel=1e-6)


def test_a_dead_sample_and_dead_cores():
    cores = gaussian_cores(chain((2, 2), (2, 2), 2), RNG)
    for scale in (1.0, 1e-30):
        qtt = QuantizedTT.from_float(
            [scale * core for core in cores], weight_width=8, act_width=8, calibration=np.zeros((1, 4))
        )
        assert not qtt.matvec(np.zeros((1, 4), dtype=int)).any()
    qtt = QuantizedTT.from_float([0 * core for core in cores], weight_width=8, act_width=8, x_max=1.0)
    assert not qtt.matvec_float(np.ones((3, 4))).any()


def test_sizes_and_description():
    qtt, _ = sample_train()
    assert (qtt.in_features, qtt.out_features) == (30, 24)
    assert qtt.storage_bits == 6 * sum(core.size for core in qtt.cores)
    assert repr(qtt) == (
        f"QuantizedTT(30 -> 24, ranks (1, 3, 3, 1), weights 6 bits, activations 7 bits, {qtt.storage_bits} bits)"
    )
    mixed = QuantizedTT.from_float(
        gaussian_cores([(1, 2, 1, 2), (2, 2, 1, 1)], RNG, (5,)), weight_width=[4, 8], act_width=[6, 7, 8], x_max=1
    )
    assert repr(mixed) == (
        "QuantizedTT(5 trains, 1 -> 4, ranks (1, 2, 1), weights 4 to 8 bits, activations 6 to 8 bits, 240 bits)"
    )
    assert [fmt.width for fmt in (*mixed.core_formats, *mixed.stage_formats)] == [4, 8, 6, 7, 8]


def test_cores_are_frozen_and_their_own():
    mine = np.ones((1, 2, 2, 1), dtype=np.int64)
    qtt = QuantizedTT((mine,), (F(8, 8),), (F(8, 8), F(8, 8)))
    mine[:] = 100
    assert (qtt.cores[0] == 1).all() and mine.flags.writeable
    for same in (qtt, pickle.loads(pickle.dumps(qtt)), copy.deepcopy(qtt)):
        with pytest.raises(ValueError, match="read-only"):
            same.cores[0][0, 0, 0, 0] = 5
        with pytest.raises(dataclasses.FrozenInstanceError):
            same.cores = ()
        assert (same.matvec([1, 2]) == [3, 3]).all()
