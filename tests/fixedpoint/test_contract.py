"""The integer train: exact rationals whatever carries it, in batches and blocks, and overflow that is named."""

import itertools
from unittest import mock

import numpy as np
import pytest
from exact import (
    core_shapes,
    dense_matrix,
    gaussian_cores,
    integer_trains,
    integers_of,
    roundings,
    seeds,
    slow_matvec,
    stats_tuple,
)
from hypothesis import given
from hypothesis import strategies as st
from integer_trains import (
    sample_train,
)

from ttref.fixedpoint import (
    FixedPointFormat,
    FixedPointOverflow,
    QuantizedTT,
    accumulator_width,
    contract,
    quantize,
    tt_stages,
)
from ttref.fixedpoint.stages import contract_float

F = FixedPointFormat
CARRIERS = (np.float32, np.float64, np.int64)


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
