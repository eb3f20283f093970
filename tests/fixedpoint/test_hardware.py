"""What a train costs on hardware: known figures, what must hold for every shape, and the messages for bad input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttref.fixedpoint import tt_stages
from ttref.fixedpoint.hardware import (
    ArrayModel,
    amdahl,
    buffer_words,
    mac_ratio,
    macs,
    roofline,
    weight_words,
)

SMALL = tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)])
ARRAY = ArrayModel(macs_per_cycle=4096, clock_hz=140e6, bytes_per_s=286.72e9)


@st.composite
def trains(draw):
    """Shapes of a matrix train: one to four cores, modes and ranks up to 6."""
    modes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4))
    ranks = [1, *draw(st.lists(st.integers(1, 6), min_size=len(modes) - 1, max_size=len(modes) - 1)), 1]
    return [(ranks[k], m, n, ranks[k + 1]) for k, (m, n) in enumerate(modes)]


def dense(out_features, in_features):
    return tt_stages([(1, out_features, in_features, 1)])


def test_the_layer_of_the_prototype_stores_ten_times_less_and_multiplies_more():
    assert macs(SMALL) == 6144 and weight_words(SMALL) == 384
    assert mac_ratio(SMALL) == pytest.approx(2 / 3)
    assert buffer_words(SMALL) == 512


@pytest.mark.parametrize(
    ("modes_out", "rank", "ratio"),
    [((16, 16, 43), 4, 10.67), ((16, 16, 43), 8, 3.20), ((16, 16, 43), 16, 0.89), ((43, 16, 16), 8, 7.36)],
)
def test_published_ratios_of_a_llama_layer_depend_on_the_order_of_its_modes(modes_out, rank, ratio):
    ranks = (1, rank, rank, 1)
    shapes = [(ranks[k], modes_out[k], 16, ranks[k + 1]) for k in range(3)]
    assert mac_ratio(tt_stages(shapes)) == pytest.approx(ratio, abs=0.005)


@given(trains())
def test_counts_are_those_of_a_contraction_that_is_carried_out(shapes):
    """Count the products NumPy is asked for, and the numbers it reads and writes."""
    multiplied, words, stored = 0, [], 0
    state = np.ones((math.prod(shape[2] for shape in shapes), 1, 1))
    after = 1
    for r0, m, n, r1 in reversed(shapes):
        state = state.reshape(-1, n * r1, after)
        core = np.ones((r0 * m, n * r1))
        out = core @ state
        multiplied += out.size * core.shape[1]
        words.append(state.size + out.size)
        stored += core.size
        state, after = out, after * m
    assert (macs(tt_stages(shapes)), weight_words(tt_stages(shapes)), buffer_words(tt_stages(shapes))) == (
        multiplied,
        stored,
        max(words),
    )


@given(trains())
def test_a_number_is_used_at_least_once_so_storage_shrinks_more_than_arithmetic(shapes):
    stages = tt_stages(shapes)
    features = math.prod(shape[1] for shape in shapes) * math.prod(shape[2] for shape in shapes)
    assert mac_ratio(stages) <= features / weight_words(stages)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_plain_low_rank_product_saves_both_alike(out_features, in_features, rank):
    svd = tt_stages([(1, out_features, 1, rank), (rank, 1, in_features, 1)])
    assert macs(svd) == weight_words(svd) == rank * (out_features + in_features)


@given(trains(), st.integers(1, 8), st.integers(1, 8))
def test_padding_only_adds_and_a_tile_of_one_adds_nothing(shapes, t_in, t_out):
    stages = tt_stages(shapes)
    tiled = ArrayModel(64, 1e8, 1e9, tile=(t_in, t_out)).padded_macs(stages)
    assert tiled >= macs(stages) == ArrayModel(64, 1e8, 1e9, tile=(1, 1)).padded_macs(stages)
    assert tiled == macs(stages) or any(s.K % t_in or s.M % t_out for s in stages)


def test_tiles_cost_the_rank_8_train_almost_half_of_its_gain():
    train = tt_stages([(1, 16, 16, 8), (8, 16, 16, 8), (8, 43, 16, 1)])
    tiled = ArrayModel(4096, 140e6, 286.72e9, tile=(128, 32))
    gain = tiled.padded_macs(dense(11008, 4096)) / tiled.padded_macs(train)
    assert gain == pytest.approx(1.76, abs=0.005) and mac_ratio(train) == pytest.approx(3.20)


def test_the_array_is_balanced_for_one_vector_of_four_bit_weights():
    one = ARRAY.layer_time(dense(4096, 4096), 1, weight_bytes=4096 * 4096 / 2)
    assert one.binds == "both" and one.seconds == pytest.approx(29.26e-6, rel=1e-3)
    two = ARRAY.layer_time(dense(4096, 4096), 2, weight_bytes=4096 * 4096 / 2)
    assert two.binds == "compute" and two.seconds == pytest.approx(2 * one.seconds)
    half = ARRAY.layer_time(dense(4096, 4096), 1, weight_bytes=4096 * 4096 * 2)
    assert half.binds == "traffic" and half.seconds == half.traffic == pytest.approx(4 * one.seconds)


@given(trains(), st.integers(1, 1000), st.floats(0, 1e9))
def test_time_never_beats_either_limit_and_grows_with_the_batch(shapes, batch, weight_bytes):
    stages = tt_stages(shapes)
    time = ARRAY.layer_time(stages, batch, weight_bytes)
    assert time.seconds >= weight_bytes / 286.72e9
    assert time.seconds * 4096 * 140e6 >= batch * macs(stages) * (1 - 1e-12)
    assert ARRAY.layer_time(stages, batch + 1, weight_bytes).seconds >= time.seconds


@given(st.floats(1e-3, 1e6))
def test_roofline_has_its_corner_where_the_array_is_balanced(intensity):
    corner = 8e9 / 4e9
    reached = roofline(intensity, macs_per_s=8e9, bytes_per_s=4e9)
    assert reached == (8e9 if intensity >= corner else pytest.approx(4e9 * intensity))


@given(st.floats(0.01, 1e6), st.floats(0, 1))
def test_amdahl_adds_up_the_parts(local, fraction):
    assert 1 / amdahl(local, fraction) == pytest.approx((1 - fraction) + fraction / local)


def test_amdahl_at_its_ends():
    assert amdahl(math.inf, 0.75) == 4 and amdahl(7, 1) == 7 and amdahl(3, 0) == 1 and amdahl(math.inf, 1) == math.inf


@pytest.mark.parametrize("function", [macs, weight_words, buffer_words, mac_ratio, ARRAY.padded_macs])
def test_stages_that_are_no_chain_are_refused(function):
    with pytest.raises(ValueError, match="no stages"):
        function([])
    with pytest.raises(TypeError, match="tt_stages"):
        function([(1, 4, 4, 4)])
    with pytest.raises(TypeError, match="tt_stages"):
        function(SMALL[0])
    with pytest.raises(ValueError, match="core 0 writes 64 numbers and that of core 1 reads 256"):
        function(SMALL[::-1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"macs_per_cycle": 0}, ValueError, "macs_per_cycle must be at least 1"),
        ({"macs_per_cycle": 16.0}, TypeError, "macs_per_cycle must be an integer"),
        ({"clock_hz": 0}, ValueError, "clock_hz must be a finite number above 0"),
        ({"bytes_per_s": math.nan}, ValueError, "bytes_per_s must be a finite number above 0"),
        ({"tile": (4,)}, ValueError, "pair"),
        ({"tile": 4}, ValueError, "pair"),
        ({"tile": (4, 0)}, ValueError, "Tout must be at least 1"),
        ({"tile": (4.0, 4)}, TypeError, "Tin must be an integer"),
    ],
)
def test_an_array_that_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        ArrayModel(**{"macs_per_cycle": 16, "clock_hz": 1e8, "bytes_per_s": 1e9} | change)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ARRAY.layer_time(SMALL, 0, 1), ValueError, "batch must be at least 1"),
        (lambda: ARRAY.layer_time(SMALL, 1.5, 1), TypeError, "batch must be an integer"),
        (lambda: ARRAY.layer_time(SMALL, 1, -1), ValueError, "weight_bytes"),
        (lambda: ARRAY.layer_time(SMALL, 1, math.nan), ValueError, "weight_bytes"),
        (lambda: ARRAY.layer_time(SMALL, 1, math.inf), ValueError, "weight_bytes"),
        (lambda: roofline(0, macs_per_s=1, bytes_per_s=1), ValueError, "macs_per_byte"),
        (lambda: roofline(1, macs_per_s=-1, bytes_per_s=1), ValueError, "macs_per_s"),
        (lambda: roofline(1, macs_per_s=1, bytes_per_s=math.inf), ValueError, "bytes_per_s"),
        (lambda: amdahl(0, 0.5), ValueError, "local must be above 0"),
        (lambda: amdahl(math.nan, 0.5), ValueError, "local must be above 0"),
        (lambda: amdahl(2, 1.01), ValueError, "share of the time"),
        (lambda: amdahl(2, math.nan), ValueError, "share of the time"),
    ],
)
def test_bad_numbers_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
