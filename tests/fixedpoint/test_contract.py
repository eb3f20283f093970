"""The integer train: exact rationals whatever carries it, its ranges, its gauge, and the messages for bad input."""

import copy
import dataclasses
import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from exact import (
    chain,
    core_shapes,
    dense_matrix,
    gaussian_cores,
    integer_trains,
    integers_of,
    right_part,
    roundings,
    seeds,
    slow_matvec,
    stats_tuple,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import ttref
from ttref.fixedpoint import (
    AccumulatorOverflow,
    FixedPointFormat,
    FixedPointOverflow,
    FormatError,
    QuantizedTT,
    accumulator_width,
    contract,
    fill_ranges,
    quantize,
    right_orthogonal,
    tt_stages,
)
from ttref.fixedpoint.stages import contract_float

F = FixedPointFormat
CARRIERS = (np.float32, np.float64, np.int64)
RNG = np.random.default_rng(0)


# --- stages ----------------------------------------------------------------------------------------------------------


@given(core_shapes(most=5, ranks=4), seeds, st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_stages_are_the_dense_matrix(shapes, seed, batch):
    rng = np.random.default_rng(seed)
    cores = gaussian_cores(shapes, rng, batch)
    dense = dense_matrix(cores)
    x = rng.normal(size=(*(batch or (7,)), dense.shape[-1]))
    expected = np.einsum("...mn,...n->...m", dense, x)
    np.testing.assert_allclose(contract_float(cores, x), expected, rtol=0, atol=1e-11 * (1 + np.abs(expected).max()))
    stages = tt_stages(cores)
    assert stages == tt_stages(shapes) and [s.core for s in stages] == list(range(len(shapes)))[::-1]
    for before, after in itertools.pairwise(stages):
        assert before.A * before.M * before.B == after.A * after.K * after.B


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "a train has at least one core"),
        ([(1, 2, 1)], r"core 0 has shape \(1, 2, 1\); a matrix core is \(r_left, m, n, r_right\)"),
        ([(1, 2, 0, 1)], "core 0 has shape .*no size zero"),
        ([(2, 2, 2, 1)], "end ranks must be 1, got 2 at core 0 and 1 at core 0"),
        ([(1, 2, 2, 3), (3, 2, 2, 2)], "end ranks must be 1, got 1 at core 0 and 2 at core 1"),
        ([(1, 2, 2, 3), (2, 2, 2, 1)], "core 0 ends with rank 3 but core 1 begins with rank 2"),
    ],
)
def test_what_is_no_train(shapes, message):
    with pytest.raises(ValueError, match=message):
        tt_stages(shapes)


# --- matvec against exact rationals ----------------------------------------------------------------------------------


@given(integer_trains(most=3))
def test_matvec_is_the_exact_train(made):
    qtt, rng = made
    xq = integers_of(qtt.stage_formats[0], (2, qtt.in_features), rng)
    yq, stats = qtt.matvec(xq, return_stats=True)
    models = [slow_matvec(qtt, x) for x in xq.tolist()]
    assert yq.dtype == np.int64 and yq.tolist() == [y for y, _, _ in models]
    for stage, *expected in zip(stats, *(stage for _, stage, _ in models), strict=True):
        counts, totals, worsts = zip(*expected, strict=True)
        assert stats_tuple(stage) == (sum(counts), sum(totals), max(worsts))
    assert sum(stage.macs for stage in qtt.stages) == models[0][2]
    assert (qtt.matvec(xq[0]) == yq[0]).all()


@given(integer_trains(widths=(1, 12), most=3), st.sampled_from([1, 40, 1 << 18]))
def test_all_carriers_agree_to_the_last_bit(made, block):
    qtt, rng = made
    xq = integers_of(qtt.stage_formats[0], (5, qtt.in_features), rng)
    expected, expected_stats = qtt.matvec(xq, return_stats=True)
    chosen = []

    def at_least(least):
        def choose(*args):
            natural = original(*args)
            chosen.append(natural)
            return max(natural, least, key=CARRIERS.index)

        return choose

    original = contract.carrier
    for least in CARRIERS:
        with mock.patch.object(contract, "carrier", at_least(least)), mock.patch.object(contract, "BLOCK", block):
            yq, stats = qtt.matvec(xq, return_stats=True)
        assert (yq == expected).all() and stats == expected_stats
    assert set(chosen) <= set(CARRIERS)


@pytest.mark.parametrize(
    ("weight", "act", "terms", "number"),
    [(12, 12, 3, np.float32), (12, 12, 4, np.float64), (27, 26, 3, np.float64), (27, 26, 4, np.int64)],
)
@pytest.mark.parametrize("rounding", ["TRN", "RND", "RND_CONV"])
def test_sums_at_the_limit_of_a_carrier(weight, act, terms, number, rounding):
    w, a, rng = F(weight, 1), F(act, 1), np.random.default_rng(1)
    point = w.frac_bits + a.frac_bits
    bits = accumulator_width(w, a, terms)
    # Once all low bits stay and the upper ones are cut off, once the other way round.
    for after in (F(24, 24 - point, rounding, "WRAP"), F(8, bits - point, rounding, "SAT")):
        assert contract.carrier(w, a, terms, after) is number
        ends = np.array([w.min_int, w.max_int, w.min_int + 1, w.max_int - 1])
        core = ends[rng.integers(0, 4, (1, 6, terms, 1))]
        core[0, 0], core[0, 1] = w.min_int, w.max_int
        xq = np.array([a.min_int, a.max_int, a.min_int + 1, a.max_int - 1])[rng.integers(0, 4, (40, terms))]
        xq[0], xq[1] = a.min_int, a.max_int
        qtt = QuantizedTT((core,), (w,), (a, after))
        yq, stats = qtt.matvec(xq, return_stats=True)
        models = [slow_matvec(qtt, x) for x in xq.tolist()]
        assert yq.tolist() == [y for y, _, _ in models]
        assert stats[0].count == sum(m[1][0][0] for m in models)


def test_the_widest_accumulator_is_exact():
    w, a = F(31, 1), F(31, 1)
    after = F(32, 2, "RND_CONV", "SAT")
    qtt = QuantizedTT((np.full((1, 1, 1, 1), w.min_int),), (w,), (a, after))
    assert accumulator_width(w, a, 1) == 62
    assert qtt.matvec([[a.min_int], [a.max_int]]).tolist() == [slow_matvec(qtt, [v])[0] for v in (a.min_int, a.max_int)]


@pytest.mark.parametrize(
    ("weight", "before", "after", "core", "x"),
    [
        (F(4, 4), F(8, 8), F(32, 32, signed=False), 3, -5),  # float32 cannot hold -15 + 2^32
        (F(4, 4), F(8, 8), F(26, 26, signed=False), 3, -5),
        (F(4, 4), F(8, -60), F(8, 200), 3, -5),  # float32 would scale down to nothing
        (F(4, 4), F(8, -60), F(8, 40), 3, -5),
        (F(32, 0), F(25, 0), F(8, 40), 2**30, -5),  # more than 63 bits are dropped from int64
        (F(32, 0), F(25, 0), F(8, 40, "RND_CONV", "SAT"), 2**30, -5),
        (F(8, 8), F(8, 8), F(32, -200, overflow="SAT"), -3, 5),  # a long way to the left
        (F(8, 8), F(8, 8), F(32, -200, overflow="WRAP"), -3, 5),
        (F(8, 256), F(8, 256), F(8, -256, "RND", "SAT"), -3, 5),
        (F(8, -256), F(8, -256), F(8, 256), -3, 5),
    ],
)
def test_formats_far_apart(weight, before, after, core, x):
    qtt = QuantizedTT((np.full((1, 1, 1, 1), core),), (weight,), (before, after))
    assert qtt.matvec([[x], [-x], [0]]).tolist() == [slow_matvec(qtt, [v])[0] for v in (x, -x, 0)]


@given(core_shapes(most=3), st.integers(2, 8), roundings)
def test_the_smallest_number_times_itself(shapes, width, rounding):
    """min x min in every term of the first stage: the one sum that needs the accumulator's last bit."""
    fmt = F(width, 1, rounding, "SAT")
    qtt = QuantizedTT(
        tuple(np.full(shape, fmt.min_int) for shape in shapes), (fmt,) * len(shapes), (fmt,) * (len(shapes) + 1)
    )
    xq = np.full(qtt.in_features, fmt.min_int)
    yq, stats = qtt.matvec(xq, return_stats=True)
    expected, expected_stats, _ = slow_matvec(qtt, xq.tolist())
    assert yq.tolist() == expected and stats[0].count == stats[0].total
    assert [stats_tuple(stat) for stat in stats] == expected_stats


# --- batches, blocks, shapes -----------------------------------------------------------------------------------------


@given(
    integer_trains(most=3),
    st.sampled_from([(1,), (2,), (5,), (2, 3)]),
    st.booleans(),
    st.sampled_from([1, 60, 1 << 18]),
)
def test_many_trains_are_a_loop_over_trains(made, batch, as_rows, block):
    one, rng = made
    shapes = [(c.shape[0], c.shape[1], 1, c.shape[3]) if as_rows else c.shape for c in one.cores]
    cores = [integers_of(fmt, (*batch, *shape), rng) for fmt, shape in zip(one.core_formats, shapes, strict=True)]
    qtt = QuantizedTT(tuple(cores), one.core_formats, one.stage_formats)
    common = as_rows or rng.integers(2)
    xq = integers_of(qtt.stage_formats[0], (qtt.in_features,) if common else (*batch, qtt.in_features), rng)
    with mock.patch.object(contract, "BLOCK", block):
        yq, stats = qtt.matvec(xq, return_stats=True)
    assert yq.shape == (*batch, qtt.out_features)
    singles = []
    for index in np.ndindex(*batch):
        single = QuantizedTT(tuple(core[index] for core in cores), one.core_formats, one.stage_formats)
        expected, single_stats = single.matvec(xq if common else xq[index], return_stats=True)
        assert (yq[index] == expected).all()
        singles.append(single_stats)
    for stage, *parts in zip(stats, *singles, strict=True):
        assert (stage.count, stage.total) == (sum(p.count for p in parts), sum(p.total for p in parts))
        assert stage.worst == max(p.worst for p in parts)
    real = contract_float(qtt.float_cores, xq.astype(float))
    np.testing.assert_allclose(real, np.einsum("...mn,...n->...m", dense_matrix(qtt.float_cores), xq), atol=1e-6)


def sample_train(overflow="SAT", **more):
    shapes = chain((3, 4, 2), (2, 3, 5), 3)
    cores = gaussian_cores(shapes, np.random.default_rng(3))
    x = np.random.default_rng(4).normal(size=(33, 30))
    return QuantizedTT.from_float(cores, weight_width=6, act_width=7, calibration=x / 2, overflow=overflow, **more), x


@pytest.mark.parametrize("block", [1, 100, 240, 1000])
@pytest.mark.parametrize("overflow", ["SAT", "WRAP"])
def test_blocks_change_nothing(monkeypatch, block, overflow):
    qtt, x = sample_train(overflow)
    xq, _ = quantize(x, qtt.stage_formats[0])
    expected = qtt.matvec(xq, return_stats=True)
    assert all(stat.count for stat in expected[1])
    monkeypatch.setattr(contract, "BLOCK", block)
    yq, stats = qtt.matvec(xq, return_stats=True)
    assert (yq == expected[0]).all() and stats == expected[1]


def test_inputs_of_every_kind():
    qtt, x = sample_train()
    xq, _ = quantize(x, qtt.stage_formats[0])
    yq = qtt.matvec(xq)
    assert yq.shape == (33, 24) and yq.flags.c_contiguous and yq.flags.writeable
    assert (qtt.matvec(xq.reshape(3, 11, 30)) == yq.reshape(3, 11, 24)).all()
    assert (qtt.matvec(xq[5]) == yq[5]).all() and qtt.matvec(xq[5].tolist()).tolist() == yq[5].tolist()
    assert (qtt.matvec(xq.astype(np.int8)) == yq).all()
    assert (qtt.matvec(np.asfortranarray(xq)) == yq).all() and (qtt.matvec(xq[::-2]) == yq[::-2]).all()
    before = xq.copy()
    xq.setflags(write=False)
    assert (qtt.matvec(xq) == yq).all() and (xq == before).all()
    assert (qtt.matvec_float(x) == yq * qtt.stage_formats[-1].lsb).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2)])
@pytest.mark.parametrize("overflow", ["SAT", "RAISE"])
def test_no_vectors_at_all(shape, overflow):
    qtt, _ = sample_train(overflow)
    yq, stats = qtt.matvec(np.zeros((*shape, 30), dtype=np.int64), return_stats=True)
    assert yq.shape == (*shape, 24) and yq.dtype == np.int64
    assert [stats_tuple(stat) for stat in stats] == [(0, 0, 0.0)] * 3
    assert qtt.matvec_float(np.zeros((*shape, 30))).shape == (*shape, 24)


# --- overflow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [8, 27])  # a float carrier, and int64
@pytest.mark.parametrize("stage", [0, 1])
def test_raise_names_stage_core_and_entry(monkeypatch, stage, wide):
    """Two diagonal cores, and one vector with one entry too large for one of the two outputs."""
    monkeypatch.setattr(contract, "BLOCK", 1)
    eye = np.eye(3, dtype=np.int64).reshape(1, 3, 3, 1)
    roomy, tight = F(20, 20, overflow="RAISE"), F(8, 8, overflow="RAISE")
    states = [F(wide, 20), roomy, roomy]
    states[stage + 1] = tight
    qtt = QuantizedTT((eye, eye), (F(wide, wide),) * 2, tuple(states))
    xq = np.zeros((6, 9), dtype=np.int64)
    xq[4, 5] = qtt.stage_formats[0].max_int
    value = int(np.floor(xq[4, 5] * qtt.stage_formats[0].lsb))
    text = (
        rf"stage {stage} \(core {1 - stage}\).*: 1 of 54 values leave the range of ap_fixed<8,8,AP_TRN,RAISE>, "
        rf"-128 to 127 in LSBs; the worst is {value} at index \(0, 5, 4\)"
    )
    with pytest.raises(FixedPointOverflow, match=text):
        qtt.matvec(xq)
    with pytest.raises(FixedPointOverflow, match=r"at index \(0, 5, 11\)"):
        qtt.matvec(np.concatenate([xq[:4], xq[:4], xq[:3], xq[4:]]))


def test_raise_finds_the_train_of_a_batch(monkeypatch):
    monkeypatch.setattr(contract, "BLOCK", 1)
    cores = np.ones((7, 1, 2, 1, 1), dtype=np.int64)
    cores[5, 0, 1] = 90
    qtt = QuantizedTT((cores,), (F(8, 8),), (F(4, 4), F(6, 6, overflow="RAISE")))
    with pytest.raises(FixedPointOverflow, match=r"1 of 14 .* the worst is 90 at index \(5, 1, 0\)"):
        qtt.matvec([1])


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


# --- from_float ------------------------------------------------------------------------------------------------------


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


ONE = np.ones((1, 1, 1, 1), dtype=np.int64)
BYTE = F(8, 8)
REAL = [np.full((1, 2, 2, 2), 0.3), np.full((2, 2, 2, 1), 0.7)]


def made(**options):
    return QuantizedTT.from_float(REAL, **{"weight_width": 8, "act_width": 8, **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: QuantizedTT((ONE * 0.5,), (BYTE,), (BYTE, BYTE)), TypeError, "core 0 must be integers that fit int64"),
        (lambda: QuantizedTT((), (), (BYTE,)), ValueError, "a train has at least one core"),
        (lambda: QuantizedTT((ONE,), (), (BYTE, BYTE)), FormatError, "1 cores need 1 core formats and 2 stage formats"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE,)), FormatError, "got 1 and 1"),
        (lambda: QuantizedTT((ONE * 300,), (BYTE,), (BYTE, BYTE)), FormatError, "core 0 holds 300 to 300, outside of"),
        (lambda: QuantizedTT((ONE[None], ONE), (BYTE,) * 2, (BYTE,) * 3), ValueError, "the cores' batch axes differ"),
        (lambda: QuantizedTT((ONE,), ("fixed<8,8>",), (BYTE, BYTE)), TypeError, "FixedPointFormat.parse reads text"),
        (
            lambda: QuantizedTT((ONE, ONE), (F(32, 1),) * 2, (BYTE, F(32, 1), BYTE)),
            AccumulatorOverflow,
            "stage 1 (core 0) needs an accumulator of 64 bits, and 62 is the limit: ap_fixed<32,1,AP_TRN,AP_WRAP> "
            "times ap_fixed<32,1,AP_TRN,AP_WRAP>, 1 terms",
        ),
        (
            lambda: QuantizedTT((ONE,), (F(32, 1),), (F(31, 1), BYTE)),
            AccumulatorOverflow,
            "stage 0 (core 0) needs an accumulator of 63 bits, and 62 is the limit",
        ),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([1, 2]), ValueError, "xq has shape (2,), but the"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec(1), ValueError, "xq has shape (), but the train"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([0.5]), TypeError, "xq must be integers that fit"),
        (lambda: QuantizedTT((ONE,), (BYTE,), (BYTE, BYTE)).matvec([[128]]), ValueError, "xq holds 128 to 128, outs"),
        (lambda: made(), ValueError, "give exactly one of calibration (a sample of inputs) and x_max"),
        (lambda: made(x_max=1, calibration=np.ones((1, 4))), ValueError, "give exactly one of"),
        (lambda: made(x_max=1, gauge="left"), ValueError, "gauge is 'canonical' or 'as given', got 'left'"),
        (lambda: made(x_max=np.nan), ValueError, "x_max must be a finite number of at least 0, got nan"),
        (lambda: made(x_max=-1), ValueError, "x_max must be a finite number of at least 0, got -1"),
        (lambda: made(calibration=np.ones((3, 5))), ValueError, "calibration must be finite numbers (N, 4), got shape"),
        (lambda: made(calibration=np.full((3, 4), np.nan)), ValueError, "calibration must be finite numbers (N, 4)"),
        (lambda: made(calibration=np.zeros((0, 4))), ValueError, "calibration must be finite numbers (N, 4)"),
        (lambda: made(x_max=1, act_width=[8, 8]), ValueError, "act_width needs one number or 3 of them, got 2"),
        (lambda: made(x_max=1, weight_width=[8] * 3), ValueError, "weight_width needs one number or 2 of them, got 3"),
        (lambda: made(x_max=1, weight_width=8.0), TypeError, "weight_width must be an integer"),
        (lambda: made(x_max=1, weight_width=True), TypeError, "weight_width must be an integer"),
        (lambda: made(x_max=1, weight_width=33), FormatError, "width must be 1 to 32 bits, got 33"),
        (lambda: made(x_max=1, rounding="CEIL"), FormatError, "unknown rounding mode 'CEIL'"),
        (lambda: made(x_max=1, act_width=32, weight_width=32), AccumulatorOverflow, "needs an accumulator of 65 bits"),
        (
            lambda: QuantizedTT.from_float([REAL[0] * np.inf, REAL[1]], weight_width=8, act_width=8, x_max=1),
            ValueError,
            "core 0 holds NaN or infinity",
        ),
        (
            lambda: QuantizedTT.from_float([REAL[0], REAL[1] * 1j], weight_width=8, act_width=8, x_max=1),
            TypeError,
            "core 1 is an array of complex128",
        ),
        (
            lambda: QuantizedTT.from_float(REAL[:1], weight_width=8, act_width=8, x_max=1),
            ValueError,
            "end ranks must be 1, got 1 at core 0 and 2 at core 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value), str(caught.value)


def test_lists_torch_tensors_and_numpy_widths():
    torch = pytest.importorskip("torch")
    expected = made(calibration=np.ones((1, 4)))
    sames = [
        made(calibration=[[1.0] * 4], weight_width=np.array([8, 8]), act_width=np.int8(8)),
        made(calibration=torch.ones(1, 4), weight_width=(8, 8)),
        *(
            QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=np.ones((1, 4)))
            for cores in ([core.tolist() for core in REAL], [torch.tensor(core) for core in REAL])
        ),
    ]
    for same in sames:
        assert same.stage_formats == expected.stage_formats and same.core_formats == expected.core_formats
        assert all((a == b).all() for a, b in zip(same.cores, expected.cores, strict=True))


# --- what it needs ---------------------------------------------------------------------------------------------------


def test_numpy_is_all_it_needs():
    code = """
import sys
sys.modules["torch"] = None
import ttref.fixedpoint as fp
import numpy as np
from ttref.fixedpoint import accuracy, gauge, hardware
cores = [np.ones((1, 2, 2, 2)), np.ones((2, 2, 2, 1))]
qtt = fp.QuantizedTT.from_float(cores, weight_width=8, act_width=8, x_max=1.0)
x = np.eye(4)
assert fp.error_bound(cores, qtt, x).shape == (4, 4) and fp.error_bound_prior(cores, qtt, 1.0) > 0
assert fp.predicted_sqnr_db(cores, qtt, x) > 10 and fp.sqnr_db(x @ np.full((4, 4), 2.0), qtt.matvec_float(x)) > 10
assert fp.macs(qtt.stages) == 32
heavy = [name for name in ("amaranth", "torch", "scipy") if sys.modules.get(name)]
assert not heavy, heavy
assert set(fp.__all__) <= set(dir(fp))
try:
    fp.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ttref.__file__).parents[1], timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search("module 'ttref.fixedpoint' has no attribute 'nothing'", done.stdout)
