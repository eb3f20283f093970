"""Figures of the chapter on whole models: they draw what is recorded, and the legend says what marks mean."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from book.workbook import whole


@pytest.fixture
def ax():
    return Figure().subplots()


def said(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def hollow(line):
    return to_rgba(line.get_markerfacecolor()) == to_rgba("white")


def test_a_search_is_hollow_where_a_layer_was_put_back_and_hides_no_other(ax):
    steps = [("a", 0.6, True), ("b", 0.5, False)]
    whole.draw_path(ax, {"one": steps, "other": steps}, 0.63, 0.05)
    marks = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    assert [(line.get_ydata()[0], hollow(line)) for line in marks] == 2 * [(0.6, False), (0.5, True)]
    assert len({line.get_xdata()[0] for line in marks}) == 4
    assert said(ax) == ["one", "accepted", "other", "put back"]
    assert {text.get_text() for text in ax.texts} == {"dense model", "5 points below"}
    assert sorted(line.get_ydata()[0] for line in ax.lines if line.get_color() == "0.3") == pytest.approx([0.58, 0.63])


def test_white_is_zero_in_every_panel_of_a_map():
    figure, drops = Figure(), {"few": (0.01, -0.02), "many": (0.1, 0.0), "third": (0.0, 0.0)}
    panels = {
        title: [{"kind": kind, "block": 0, "drop": drop} for kind, drop in zip(("query", "down"), both, strict=True)]
        for title, both in drops.items()
    }
    whole.draw_map(figure, panels, value="drop", label="points", scale=100)
    *maps, unused, bar = figure.axes
    assert [[text.get_text() for text in ax.texts] for ax in maps] == [["1.0", "−2.0"], ["10.0", "0.0"], ["0.0", "0.0"]]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in maps] == list(drops)
    assert {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in maps} == {(-10.0, 10.0)}
    np.testing.assert_allclose(maps[0].images[0].cmap(0.5)[:3], 1, atol=0.05)
    assert not unused.axison and bar.get_xlabel() == "points"


def test_the_two_marks_of_one_change_stand_beside_its_true_drop(ax):
    rows = [{"true_drop": 0.08, "drop_200": 6, "equivalence_200": 1}]
    whole.draw_accepts(ax, rows, size=200, resamplings=20, margin=0.05)
    (rule, gate), margin = ax.lines[:2], ax.lines[2]
    assert rule.get_xdata()[0] < 8 < gate.get_xdata()[0] and rule.get_xdata()[0] == pytest.approx(8, abs=0.1)
    assert (rule.get_ydata()[0], gate.get_ydata()[0]) == (30, 5) and list(margin.get_xdata()) == [5, 5]


def test_noise_is_spread_around_its_error_and_nothing_is_joined(ax):
    rows = [{"kind": "noise", "error": 0.3, "gain": gain} for gain in (0.01, -0.02, 0.03)]
    rows += [{"kind": "tt", "error": 0.3, "gain": -0.1}]
    whole.draw_gains(ax, rows)
    train, noise, _ = ax.lines
    assert train.get_xydata().tolist() == [[0.3, -10.0]] and noise.get_ydata().tolist() == [1.0, -2.0, 3.0]
    assert len(set(noise.get_xdata())) == 3 and np.mean(noise.get_xdata()) == pytest.approx(0.3)
    assert {train.get_linestyle(), noise.get_linestyle()} == {"None"}


def test_before_healing_is_hollow_and_integers_are_said_not_to_be_healed(ax):
    rows = [
        {"candidate": name, "size": 4.4, "linears_bytes": 4.4, "before": {"cosine": 0.2}, "after": {"cosine": 0.7}}
        for name in ("fitted", "tt")
    ]
    whole.draw_healing(
        ax, [*rows, {"candidate": "int", "size": 4, "linears_bytes": 8, "before": {"cosine": 0.9}}], value="cosine"
    )
    marks = [(line.get_ydata()[0], hollow(line)) for line in ax.lines]
    assert marks == [(0.7, False), (0.2, True), (0.7, False), (0.2, True), (0.9, False)]
    assert len({line.get_xdata()[0] for line in ax.lines}) == 3
    assert said(ax) == [
        "train, fitted",
        "TT-SVD",
        "integers, not healed",
        "before healing",
        "after",
    ]
    assert ax.get_xscale() == "log"


def test_bars_carry_their_note(ax):
    whole.draw_bars(ax, {"SVD": 0.5, "int4": 0.1}, {"SVD": "r"}, notes={"int4": "4.25 bits"}, null="int4")
    assert [text.get_text() for text in ax.texts] == ["0.500", "0.100, 4.25 bits"]
    assert max(ax.get_xticks()) <= 0.575 < ax.get_xlim()[1]
