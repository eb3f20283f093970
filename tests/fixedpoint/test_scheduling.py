"""How lanes are filled: nothing is left out, nothing is done twice, no cheaper way exists, and the cycles are exact."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttref.fixedpoint.scheduling import cycles, schedule
from ttref.fixedpoint.stages import tt_stages
from ttref.fixedpoint.timeline import MULTIPLY, trace

SQUARE = [(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]
lane_counts = st.integers(1, 20)


@st.composite
def trains(draw):
    """Stages of small matrix trains: odd sizes, ones, sums shorter than the lanes are many."""
    modes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3))
    ranks = [1, *draw(st.lists(st.integers(1, 4), min_size=len(modes) - 1, max_size=len(modes) - 1)), 1]
    return tt_stages([(ranks[k], m, n, ranks[k + 1]) for k, (m, n) in enumerate(modes)])


def by_stage(found):
    """The records of the trace, one list for each stage."""
    records = list(trace(found))
    return [[record for record in records if record.stage == s] for s in range(len(found.tiles))]


@given(trains(), lane_counts)
def test_every_product_is_formed_once_and_its_factors_have_just_been_read(stages, lanes):
    found = schedule(stages, lanes)
    for s, records in enumerate(by_stage(found)):
        stage, tile, layout, weights = stages[s], found.tiles[s], found.layout(s), found.weights(s)
        formed = Counter()
        for now, record in enumerate(records):
            assert record.core == stage.core and len(record.products) == found.used_lanes <= lanes
            for lane, product in enumerate(record.products):
                if product is None:
                    continue
                a, row, b, k = product
                formed[product] += 1
                before = records[now - MULTIPLY]
                assert layout[before.read][lane % tile.columns] == (a * stage.K + k) * stage.B + b
                t = before.position[2]
                assert weights[t * tile.K + k][lane // tile.columns] == (row, k)
        assert len(formed) == stage.macs and set(formed.values()) <= {1}


@given(trains(), lane_counts)
def test_every_word_is_written_once_after_its_sums_are_complete_and_before_the_next_stage(stages, lanes):
    found = schedule(stages, lanes)
    for s, records in enumerate(by_stage(found)):
        stage, layout = stages[s], found.layout(s + 1)
        complete, written = {}, []
        for now, record in enumerate(records):
            for product in filter(None, record.products):
                a, row, b, k = product
                if k == stage.K - 1:
                    complete[(a * stage.M + row) * stage.B + b] = now
            if record.write is not None:
                written.append(record.write)
                # Product, sum, queue, and three steps of rounding lie between.
                assert all(complete[entry] <= now - 6 for entry in layout[record.write] if entry >= 0)
        assert sorted(written) == list(range(found.words[s + 1])) and records[-1].write is not None
        assert sorted(e for word in layout for e in word if e >= 0) == list(range(stage.A * stage.M * stage.B))


@given(trains(), lane_counts)
def test_a_lane_finishes_a_sum_before_it_begins_the_next(stages, lanes):
    found = schedule(stages, lanes)
    for s, records in enumerate(by_stage(found)):
        for lane in range(found.used_lanes):
            sums = [record.products[lane] for record in records if record.products[lane] is not None]
            assert [product[3] for product in sums] == list(range(stages[s].K)) * (len(sums) // stages[s].K)
            assert all(len({p[:3] for p in sums[i : i + stages[s].K]}) == 1 for i in range(0, len(sums), stages[s].K))


@given(trains(), lane_counts)
def test_the_formula_counts_the_cycles_of_the_trace(stages, lanes):
    found = schedule(stages, lanes)
    assert len(list(trace(found))) == found.cycles == cycles(stages, lanes)
    assert [len(records) for records in by_stage(found)] == [tile.cycles for tile in found.tiles]
    assert sum(stage.macs for stage in stages) <= lanes * sum(tile.feed for tile in found.tiles)


def fewest(stages, lanes, columns=1, reads=1):
    """The fewest cycles that keep the lanes fed, and the narrowest words with them: by trying everything."""
    if not stages:
        return 0, columns
    stage, *rest = stages
    found = []
    for rows in range(1, stage.m + 1 if reads == 1 else 2):
        for words in range(1, lanes // (rows * columns) + 1):
            groups = -(-stage.m // rows)
            tiles = -(-stage.r0 * groups // words)
            after, word = fewest(rest, lanes, rows * columns, groups * reads)
            found.append((stage.A * reads * tiles * max(stage.K, words) + after, word))
    return min(found, default=(float("inf"), 0))


@given(trains(), st.integers(1, 8))
def test_no_other_tiling_takes_fewer_cycles_or_as_few_with_narrower_words(stages, lanes):
    found = schedule(stages, lanes)
    assert (sum(tile.feed for tile in found.tiles), found.word) == fewest(stages, lanes)


@pytest.mark.parametrize(
    ("lanes", "expected", "word"), [(1, 6171, 1), (2, 3102, 1), (4, 1572, 1), (8, 804, 2), (16, 420, 4)]
)
def test_the_layer_of_the_book_keeps_its_lanes_busy(lanes, expected, word):
    """Nine cycles and the last words of each stage are all that is lost."""
    found = schedule(tt_stages(SQUARE), lanes)
    assert (found.cycles, found.word, found.used_lanes) == (expected, word, lanes)
    assert found.cycles <= 1.25 * 6144 / lanes


def test_words_grow_from_stage_to_stage_and_no_transpose_is_needed():
    found = schedule(tt_stages(SQUARE), 8)
    assert [(tile.words, tile.rows, tile.columns) for tile in found.tiles] == [(4, 2, 1), (4, 1, 2), (4, 1, 2)]
    assert found.layout(0)[:3] == [[0, -1], [1, -1], [2, -1]]  # one activation per word
    assert found.layout(1)[:3] == [[0, 1], [2, 3], [4, 5]]  # pairs of rows, in row-major order


def test_lanes_that_no_stage_can_use_are_not_built():
    found = schedule(tt_stages([(1, 2, 3, 1)]), 64)
    assert (found.lanes, found.used_lanes, found.cycles) == (64, 2, schedule(tt_stages([(1, 2, 3, 1)]), 2).cycles)


def test_bad_input_says_what_to_give():
    with pytest.raises(ValueError, match="lanes must be at least 1, got 0"):
        schedule(tt_stages(SQUARE), 0)
    with pytest.raises(TypeError, match="lanes must be an integer, got 2.5"):
        schedule(tt_stages(SQUARE), 2.5)
    with pytest.raises(ValueError, match="no stages; a layer has at least one product"):
        schedule([], 4)
    with pytest.raises(TypeError, match="stages is a list from tt_stages"):
        schedule(SQUARE, 4)
    with pytest.raises(ValueError, match="in the order of tt_stages"):
        schedule(tt_stages([(1, 2, 3, 2), (2, 2, 3, 2), (2, 5, 3, 1)])[::-1], 4)
    for boundary in (-1, 4):
        with pytest.raises(ValueError, match=f"boundary must be 0 to 3, got {boundary}"):
            schedule(tt_stages(SQUARE), 4).layout(boundary)
