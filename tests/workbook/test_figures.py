"""House style, diagrams, rank curves and Pareto plots."""

import io
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, Wedge
from PIL import Image

from book.workbook import figures


@pytest.fixture(autouse=True)
def house():
    with mpl.rc_context():
        mpl.use("Agg")
        figures.use_house_style()
        yield
        plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def boxes(ax):
    """The drawn extent of every text, in pixels."""
    ax.figure.canvas.draw()
    return {i: (text.get_text(), text.get_window_extent()) for i, text in enumerate(ax.texts)}


def overlapping(ax):
    return [(a, b) for (a, box_a), (b, box_b) in itertools.combinations(boxes(ax).values(), 2) if box_a.overlaps(box_b)]


def png(figure):
    stream = io.BytesIO()
    figures.save_png(figure, stream)
    return stream.getvalue()


# --- style -----------------------------------------------------------------------------------------------------------


def lab(rgb):
    """CIE L*a*b* of a linear sRGB color, white point D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / (0.9505, 1.0, 1.089), 1e-9))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Viénot, Brettel and Mollon 1999: how linear sRGB looks without long- or medium-wave cones.
DICHROMATS = {
    "normal": np.eye(3),
    "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


@pytest.mark.parametrize("vision", DICHROMATS)
def test_colors_stay_apart_for_color_blind_readers(vision):
    seen = []
    for color in figures.OKABE_ITO:
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen.append(lab(np.clip(DICHROMATS[vision] @ linear, 0, 1)))
    # A difference of 2.3 is the smallest one can notice side by side.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 10


def test_series_differ_in_color_and_marker():
    assert len(set(figures.OKABE_ITO)) == len(set(figures.MARKERS)) == len(figures.OKABE_ITO) == 8
    _, ax = plt.subplots()
    lines = [ax.plot([0, 1])[0] for _ in range(8)]
    assert [line.get_color() for line in lines] == figures.OKABE_ITO
    assert [line.get_marker() for line in lines] == figures.MARKERS


@settings(deadline=None)
@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_readable_text_has_contrast(rgb):
    dark = np.array(to_rgb(figures.readable(mpl.colors.to_hex(rgb))))
    # Rounding to 8 bits may cost a trace of contrast.
    assert 1.05 / (figures.luminance(dark) + 0.05) > 4.45
    assert np.all(dark <= np.array(rgb) + 1 / 255)


def test_saved_png_is_opaque_large_and_the_same_twice():
    def picture():
        figure, ax = plt.subplots()
        figures.rank_curve(ax, [1, 2, 4], {"a": [3, 2, 1], "b": [3.1, 2.1, 1.1]}, ylabel="error")
        return figure

    first = png(picture())
    assert first == png(picture())
    image = Image.open(io.BytesIO(first))
    assert image.size == (1080, 630)
    assert image.info.keys() == {"dpi"}
    assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255
    assert np.asarray(image.convert("RGB"))[0, 0].tolist() == [255, 255, 255]


def test_diagram_png_is_the_same_twice():
    def picture():
        ax = figures.draw_tensor((4, 4, 4))
        figures.draw_symbol("=", ax=ax)
        return figures.draw_train((1, 4, 4, 1), (4, 4, 4), ax=ax, center=1).figure

    assert png(picture()) == png(picture())


# --- diagrams --------------------------------------------------------------------------------------------------------


def test_a_train_shows_every_rank_and_mode():
    ax = figures.draw_train((1, 7, 11, 1), (2, 3, 5))
    assert sorted(texts(ax)) == sorted(["$G_{1}$", "$G_{2}$", "$G_{3}$", "7", "11", "2", "3", "5"])
    assert sum(isinstance(patch, Circle) for patch in ax.patches) == 6
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert at["$G_{1}$"][0] < at["7"][0] < at["$G_{2}$"][0] < at["11"][0] < at["$G_{3}$"][0]
    for node, mode in (("$G_{1}$", "2"), ("$G_{2}$", "3"), ("$G_{3}$", "5")):
        assert at[node][0] == at[mode][0] and at[node][1] > at[mode][1]


def test_a_matrix_train_has_rows_above_and_columns_below():
    ax = figures.draw_train_matrix((1, 9, 1), (2, 3), (5, 7), labels=["$A$", "$B$"])
    at = {text.get_text(): text.get_position() for text in ax.texts}
    assert at["2"][1] == at["3"][1] > at["9"][1] > at["$A$"][1] > at["5"][1] == at["7"][1]
    assert at["2"][0] == at["$A$"][0] == at["5"][0] < at["3"][0] == at["$B$"][0] == at["7"][0]


@pytest.mark.parametrize("center", range(4))
def test_canonical_form_fills_halves_and_points_to_the_center(center):
    ax = figures.draw_train((1, 2, 4, 2, 1), (2, 2, 2, 2), center=center)
    wedges = sorted((p for p in ax.patches if isinstance(p, Wedge)), key=lambda p: p.center[0])
    # A wedge from 90 to 270 degrees is the left half.
    assert [w.theta1 for w in wedges] == [90] * center + [-90] * (3 - center)
    arrows = sorted((line for line in ax.lines if len(line.get_xdata()) == 1), key=lambda line: line.get_xdata()[0])
    assert [line.get_marker() for line in arrows] == [">"] * center + ["<"] * (3 - center)


@pytest.mark.parametrize("center", [None, 0, 4])
@pytest.mark.parametrize("order", [1, 2, 5, 10])
def test_no_text_of_a_diagram_overlaps_another_or_leaves_the_figure(order, center):
    if center is not None:
        center = min(center, order - 1)
    ranks = (1, *[1024] * (order - 1), 1)
    for ax in (
        figures.draw_train(ranks, (4096,) * order, center=center),
        figures.draw_train_matrix(ranks, (4096,) * order, (512,) * order, center=center),
    ):
        assert overlapping(ax) == []
        for text, box in boxes(ax).values():
            assert ax.figure.bbox.contains(box.x0, box.y0) and ax.figure.bbox.contains(box.x1, box.y1), text


def test_node_labels_stay_inside_their_nodes():
    ax = figures.draw_train((1, *[2] * 9, 1), (2,) * 10)
    ax.figure.canvas.draw()
    circles = {p.center[0]: p.get_window_extent() for p in ax.patches if isinstance(p, Circle)}
    for text in (t for t in ax.texts if t.get_text().startswith("$G")):
        box, circle = text.get_window_extent(), circles[text.get_position()[0]]
        assert circle.x0 < box.x0 and box.x1 < circle.x1 and circle.y0 < box.y0 and box.y1 < circle.y1


def test_pictures_line_up_from_left_to_right_at_one_scale():
    alone = figures.draw_train((1, 3, 1), (2, 2))
    ax = figures.draw_tensor((2, 2), label="$T$")
    figures.draw_symbol("≈", ax=ax)
    figures.draw_train((1, 3, 1), (2, 2), ax=ax)
    assert overlapping(ax) == []
    at = {text: box for text, box in boxes(ax).values()}
    assert at["$T$"].x1 < at["≈"].x0 < at["≈"].x1 < at["$G_{1}$"].x0
    patches = [p.get_window_extent() for p in ax.patches]
    assert patches[0].x1 < at["≈"].x0 and at["≈"].x1 < min(p.x0 for p in patches[1:])

    def inches(axes):
        axes.figure.canvas.draw()
        circle = next(p for p in axes.patches if isinstance(p, Circle))
        return circle.get_window_extent().width / axes.figure.dpi

    assert inches(ax) == pytest.approx(inches(alone), rel=0.02)


def test_rows_do_not_overlap():
    ax = figures.draw_train((1, 2, 1), (3, 4), center=0)
    figures.draw_train((1, 2, 1), (3, 4), center=1, ax=ax, at=(0, -figures.ROW))
    assert overlapping(ax) == []
    assert len(texts(ax)) == 10


def test_a_diagram_leaves_the_size_of_a_shared_figure_alone():
    figure, axes = plt.subplots(1, 2, figsize=(6, 2))
    figures.draw_train((1, 2, 1), (2, 2), ax=axes[0])
    assert figure.get_size_inches().tolist() == [6, 2]


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: figures.draw_train((1, 2), (2, 2)), "2 modes needs 3 ranks with both ends .* got 2 ranks"),
        (lambda: figures.draw_train((1,), ()), "at least one mode"),
        (lambda: figures.draw_train_matrix((1, 2, 1), (2, 2), (2,)), "1 column modes needs 2 ranks"),
        (lambda: figures.draw_train((1, 2, 1), (2, 2), labels=["A"]), "2 nodes need 2 labels, got 1"),
        (lambda: figures.draw_train((1, 2, 1), (2, 2), center=2), "from 0 to 1, got 2"),
        (lambda: figures.draw_tensor(()), "empty shape"),
    ],
)
def test_diagrams_refuse_what_does_not_fit(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- curves and Pareto plots -----------------------------------------------------------------------------------------


def test_rank_curve_plots_the_values_and_names_every_line():
    figure, ax = plt.subplots()
    series = {"table": [0.9, 0.8, float("nan")], "Gaussian": [0.91, 0.81, 0.6], "other": [0.905, 0.805, 0.61]}
    assert figures.rank_curve(ax, [1, 2, 8], series, ylabel="relative error", null="Gaussian") is ax
    for line, (name, values) in zip(ax.lines, series.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert line.get_linestyle() == ("--" if name == "Gaussian" else "-")
    assert len({line.get_marker() for line in ax.lines}) == len({line.get_color() for line in ax.lines}) == 3
    assert sorted(texts(ax)) == ["Gaussian", "other", "table"]
    assert overlapping(ax) == []
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "8"]


@pytest.mark.parametrize("log", [False, True])
def test_names_of_close_lines_do_not_overlap(log):
    _, ax = plt.subplots()
    series = {f"method {k}": [1, 0.5 + 1e-4 * k] for k in range(6)}
    figures.rank_curve(ax, [1, 2], series, ylabel="error", log=log)
    assert overlapping(ax) == []
    found = boxes(ax).values()
    assert [name for name, _ in sorted(found, key=lambda entry: entry[1].y0)] == list(series)


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.floats(0.5, 20))
def test_spread_keeps_order_and_gap_and_moves_no_more_than_needed(heights, gap):
    heights = np.sort(heights)
    placed = np.array(figures._spread(heights, gap))
    assert np.all(np.diff(placed) >= gap - 1e-9)
    if np.all(np.diff(heights) >= gap):
        np.testing.assert_allclose(placed, heights, atol=1e-9)
    # Least squares: the movements of every rigid block cancel, so the mean stays.
    assert placed.mean() == pytest.approx(heights.mean(), abs=1e-9)


def test_spread_is_scikit_learns_isotonic_regression():
    from sklearn.isotonic import isotonic_regression

    heights = np.sort(np.random.default_rng(0).normal(scale=20, size=30))
    steps = 7.0 * np.arange(30)
    np.testing.assert_allclose(figures._spread(heights, 7.0), isotonic_regression(heights - steps) + steps, atol=1e-9)


@pytest.mark.parametrize(
    "ranks, series, null, message",
    [
        ([1, 2], {"a": [1]}, None, "'a' has 1 values for 2 ranks"),
        ([0, 2], {"a": [1, 2]}, None, r"got ranks \[0, 2\]"),
        ([2, 1], {"a": [1, 2]}, None, r"got ranks \[2, 1\]"),
        ([1, 2], {}, None, "needs a series"),
        ([1, 2], {"a": [1, 2]}, "b", "null 'b' is not among the series: a"),
    ],
)
def test_rank_curve_refuses_bad_series(ranks, series, null, message):
    with pytest.raises(ValueError, match=message):
        figures.rank_curve(plt.subplots()[1], ranks, series, ylabel="error", null=null)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12), st.booleans())
def test_frontier_is_the_brute_force_one(points, larger_x):
    sign = -1 if larger_x else 1

    def beats(p, q):
        return sign * p[0] <= sign * q[0] and p[1] <= q[1] and p != q

    expected = {q for q in points if not any(beats(p, q) for p in points)}
    frontier = figures.pareto_frontier(points, larger_x=larger_x)
    assert set(frontier) == expected and len(frontier) == len(expected)


def test_pareto_shows_points_names_and_frontier():
    _, ax = plt.subplots()
    ax.set_xscale("log")
    points = {"SVD": [(2, 0.5, "rank 8"), (4, 0.4)], "int": [(4, 0.1, "8 bit"), (8, 0.2)], "null": [(9, 0.01)]}
    figures.pareto(ax, points, xlabel="ratio", ylabel="error", larger_x=True, null="null")
    stairs, *clouds = ax.lines
    assert list(zip(*stairs.get_data(), strict=True)) == [(8, 0.2), (4, 0.1)]
    for cloud, (name, values) in zip(clouds, points.items(), strict=True):
        assert cloud.get_label() == name and cloud.get_linestyle() == "None"
        assert list(zip(*cloud.get_data(), strict=True)) == [v[:2] for v in values]
    assert len({cloud.get_marker() for cloud in clouds}) == 3
    assert [cloud.get_markerfacecolor() for cloud in clouds] == [figures.OKABE_ITO[0], "none", "none"]
    assert stairs.get_zorder() < min(artist.get_zorder() for artist in (*clouds, *ax.texts))
    assert sorted(texts(ax)) == ["8 bit", "SVD", "int", "null", "rank 8"]
    ax.figure.canvas.draw()
    ticks = [label.get_text() for label in ax.get_xticklabels(which="both") if label.get_text()]
    assert ticks and all(float(tick) > 0 for tick in ticks)


def test_pareto_shows_a_point_beneath_another_and_names_across_the_staircase():
    _, ax = plt.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 1))
    figures.pareto(ax, {"SVD": [(1, 0.9), (5, 0.5)], "int": [(5, 0.5), (9, 0.1)]}, xlabel="bytes", ylabel="error")
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]
    column, row = np.rint(ax.transData.transform((5, 0.5))).astype(int)
    assert mpl.colors.to_hex(pixels[len(pixels) - row, column] / 255).upper() == figures.OKABE_ITO[0]
    for text in ax.texts:
        (stroke,) = text.get_path_effects()
        assert stroke._gc == {"linewidth": 3, "foreground": "white"}


def test_pareto_keeps_the_text_of_a_last_point_clear_of_names():
    _, ax = plt.subplots()
    ax.set(xscale="log", yscale="log", xlim=(0.55, 60), ylim=(2e-4, 40))
    points = {"MPS": [(8, 6.6, "rank 2"), (28.8, 6.7, "rank 1")], "SVD": [(8, 6.7), (29.5, 6.7)]}
    figures.pareto(ax, points, xlabel="ratio", ylabel="loss rise", larger_x=True)
    assert overlapping(ax) == []


@pytest.mark.parametrize(
    "points, null, message",
    [
        ({}, None, "none for any method"),
        ({"a": [(1, 2)], "b": []}, None, "got none for b"),
        ({"a": [(1, 2)]}, "c", "null 'c' is not among the methods: a"),
        ({str(k): [(k, k)] for k in range(9)}, None, "9 methods but 8 colors"),
    ],
)
def test_pareto_refuses_bad_points(points, null, message):
    with pytest.raises(ValueError, match=message):
        figures.pareto(plt.subplots()[1], points, xlabel="x", ylabel="y", null=null)
