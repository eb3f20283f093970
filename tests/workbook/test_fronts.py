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


def test_the_lines_are_the_fronts_over_a_logarithmic_axis_that_says_so(ax):
    found = fronts.front_of(ROWS, ["a", "b"])
    fronts.accuracy_front(ax, found, dense=0.95)
    dashed, one, other = ax.lines
    assert list(dashed.get_ydata()) == [0.95, 0.95]
    assert list(zip(*one.get_data(), strict=True)) == found["a"] and list(other.get_xdata()) == [3]
    assert one.get_marker() != other.get_marker() and one.get_color() != other.get_color()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "1.5", "2", "3"]
    assert ax.get_xscale() == "log" and "log" in ax.get_xlabel()


def test_names_stand_off_lines_and_off_each_other_and_inside(ax):
    crossing = {
        "falling behind": [(1, 0.1), (2, 0.5), (4, 0.6)],
        "rising fast": [(1, 0.3), (2, 0.4), (4, 0.9)],
        "both at one end": [(2, 0.85), (4, 0.9)],
    }
    fronts.accuracy_front(ax, crossing, dense=0.92)
    ax.figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert list(boxes) == ["dense, 32 bits: 0.920", *crossing]
    for name, box in boxes.items():
        assert ax.get_window_extent().padded(1).fully_containsx(box.x1), name
        assert not any(box.overlaps(other) for said, other in boxes.items() if said != name), name
        for line in ax.lines[1:]:
            assert not line.get_transform().transform_path(line.get_path()).intersects_bbox(box, filled=False), name


def test_what_cannot_be_drawn_is_named(ax):
    with pytest.raises(ValueError, match="no points of 'c'"):
        fronts.front_of(ROWS, ["c"])
    with pytest.raises(ValueError, match="at least one point"):
        fronts.accuracy_front(ax, {"a": []}, dense=0.9)
    with pytest.raises(ValueError, match="9 methods"):
        fronts.accuracy_front(ax, {str(k): [(1, 0.5)] for k in range(9)}, dense=0.9)
