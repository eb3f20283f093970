"""Pictures of the deployment record: what a bar, a tick and a point stand for."""

import pytest
import torch
from matplotlib.figure import Figure

from book.workbook.deployment import FORMS, draw_margins, draw_roofline, draw_times

MACHINE = {"flops32_per_s": 3e10, "int8_ops_per_s": 1e11, "bytes_per_s": 1e10}


def rows(*forms, **values):
    row = {"median_ms": 4.0, "roofline_ms": 1.5, "macs": 2e9, "bytes": 1e9} | values
    return [row | {"form": form} for form in forms]


def judged(harmful, beneficial, examples=100, slice_="all"):
    change = None if harmful is None else (beneficial - harmful) / examples
    flips = {"harmful": harmful, "beneficial": beneficial, "examples": examples, "change": change}
    return {"metric": "right", "slice": slice_, "allowed": 0.05} | flips


def test_a_bar_has_the_bounds_of_the_mean_of_paired_scores():
    ax = Figure().subplots()
    draw_margins(ax, {"small": [judged(8, 2)]}, "right")
    scores = torch.tensor([-1.0] * 8 + [1.0] * 2 + [0.0] * 90)
    error = 1.645 * 100 * scores.std(correction=0).item() / 10
    (bar,) = ax.collections[0].get_segments()
    assert bar[:, 0] == pytest.approx([-6 - error, -6 + error])


def test_margins_and_slices_of_two_candidates_stand_below_each_other():
    ax = Figure().subplots()
    rows = [judged(1, 1), judged(0, 0, slice_="short")]
    draw_margins(ax, {"one": rows, "two": rows}, "right")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["all", "short"]
    assert ax.get_legend_handles_labels()[1] == ["one", "two"]
    assert sum(list(line.get_xdata()) == [-5, -5] for line in ax.lines) == 2


@pytest.mark.parametrize(("row", "metric"), [(judged(1, 1), "other"), (judged(None, None), "right")])
def test_a_metric_without_flips_is_refused(row, metric):
    with pytest.raises(ValueError, match="report of small has no scores 0 and 1 of a metric"):
        draw_margins(Figure().subplots(), {"small": [row]}, metric)


def test_forms_stand_in_one_order_whatever_the_record_has():
    ax = Figure().subplots()
    draw_times(ax, rows("int8", "dense", "svd"), title="MiniLM")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [FORMS[form][0] for form in ("dense", "svd", "int8")]
    assert "MiniLM" in (ax.get_title(), ax.get_title(loc="left"))


def test_panels_that_share_an_axis_have_the_first_form_on_top():
    panels = Figure().subplots(1, 2, sharey=True)
    for ax in panels:
        draw_times(ax, rows("dense", "svd"))
    bottom, top = panels[0].get_ylim()
    assert bottom > 1 and top < 0


@pytest.mark.parametrize("took", [0.2, 30.0])
def test_bar_tick_and_number_fit_whichever_is_longer(took):
    ax = Figure().subplots()
    draw_times(ax, rows("dense", median_ms=took))
    assert ax.patches[0].get_width() == took
    assert {x for line in ax.lines for x in line.get_xdata()} == {1.5}
    assert max(took, 1.5) < ax.texts[0].get_position()[0] < ax.get_xlim()[1]


def test_a_point_has_two_operations_for_a_multiply_add():
    ax = Figure().subplots()
    draw_roofline(ax, MACHINE, {"decode": rows("dense")})
    assert ax.lines[-1].get_xydata().tolist() == [[4.0, 1000.0]]


def test_roofs_rise_with_the_memory_and_end_at_the_multipliers():
    ax = Figure().subplots()
    draw_roofline(ax, MACHINE, {"decode": rows("dense", macs=1e8), "prompt": rows("int8", macs=1e11)})
    for line, peak in zip(ax.lines, (30, 100), strict=False):
        x, y = line.get_data()
        assert y[0] == pytest.approx(10 * x[0]) and y[-1] == pytest.approx(peak)


def test_a_form_is_named_once_in_the_legend():
    ax = Figure().subplots()
    draw_roofline(ax, MACHINE, {"decode": rows("dense", "svd"), "prompt": rows("dense", macs=1e11)})
    assert ax.get_legend_handles_labels()[1] == ["dense", "whitened SVD"]


@pytest.mark.parametrize("draw", [draw_times, lambda ax, rows: draw_roofline(ax, MACHINE, {"decode": rows})])
def test_a_form_that_has_no_name_is_refused(draw):
    with pytest.raises(ValueError, match="'int3'; there are dense, trains"):
        draw(Figure().subplots(), rows("dense", "int3"))
