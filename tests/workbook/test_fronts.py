"""Fronts of accuracy against bits: what is drawn are the recorded points, and bad input is named."""

import matplotlib.pyplot as plt
import pytest

from book.workbook import fronts

ROWS = [
    {"family": family, "bits": bits, "accuracy": accuracy}
    for family, points in {
        "a": [(1, 0.5), (2, 0.8), (1.5, 0.4)],
        "b": [(3, 0.9), (4, 0.85)],
    }.items()
    for bits, accuracy in points
]


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_a_front_leaves_out_what_a_smaller_point_beats():
    assert fronts.front_of(ROWS, ["b", "a"]) == {"b": [(3, 0.9)], "a": [(1, 0.5), (2, 0.8)]}


def test_the_lines_are_the_fronts_and_the_names_stand_where_they_are_told(ax):
    found = fronts.front_of(ROWS, ["a", "b"])
    fronts.accuracy_front(ax, found, dense=0.95, names={"a": (1.2, 0.3)})
    dashed, one, other = ax.lines
    assert list(dashed.get_ydata()) == [0.95, 0.95]
    assert list(zip(*one.get_data(), strict=True)) == found["a"] and list(other.get_xdata()) == [3]
    said, a, b = ax.texts
    assert said.get_text() == "dense, 32 bits: 0.950" and a.xy == (1.2, 0.3) and b.xy == (3, 0.9)
    assert one.get_marker() != other.get_marker() and one.get_color() != other.get_color()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "1.5", "2", "3"]


def test_what_cannot_be_drawn_is_named(ax):
    with pytest.raises(ValueError, match="no points of 'c'"):
        fronts.front_of(ROWS, ["c"])
    with pytest.raises(ValueError, match="at least one point"):
        fronts.accuracy_front(ax, {"a": []}, dense=0.9)
    with pytest.raises(ValueError, match="9 methods"):
        fronts.accuracy_front(ax, {str(k): [(1, 0.5)] for k in range(9)}, dense=0.9)
