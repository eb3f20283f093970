"""One measure of rank correlation for all studies, the same as the library's own."""

import pytest

from studies.fitting import summary
from studies.orders import tau
from studies.partial_tensorization import layer_map
from ttref.surgery.sensed import kendall


def test_pairs_in_the_same_order_less_those_in_the_reverse_one():
    assert tau([1, 2, 3], [1, 4, 9]) == pytest.approx(1) and tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)


def test_ties_count_on_neither_side():
    assert tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)
    assert tau([1, 1, 2, 3], [5, 4, 4, 9]) == pytest.approx(kendall([1, 1, 2, 3], [5, 4, 4, 9]))


@pytest.mark.parametrize(("a", "b"), [([1, 1], [1, 2]), ([1, 2], [3, 3]), ([], []), ([1], [2])])
def test_where_nothing_can_be_ordered_there_is_none(a, b):
    assert tau(a, b) is None


def test_the_studies_use_it():
    assert summary.tau is tau and layer_map.tau is tau
