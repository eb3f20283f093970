"""What stands beside the map: predictors, the drawn tree, and structures trained from scratch."""

import pytest
from matplotlib.figure import Figure

from book.tools.results import read
from book.workbook import pays_structures, pays_told
from book.workbook.pays_tree import boxes_of, draw_tree
from ttref.advice.tree import TREE, Node


def matrix(k, *, train, svd, noise):
    entropy = {"rows | columns": [6.0 - 0.1 * k, 6.0], "blocks | the rest": [6.0 - k, 6.0]}
    return {"entropy": entropy, "at": {"4": {"train": train, "svd": svd, "noise": noise}}}


def test_less_entropy_than_noise_foretells_a_gain():
    rows = [matrix(k, train=0.5 / (k + 1), svd=0.5, noise=0.6) for k in range(6)]
    over_noise, over_svd = pays_told.by_matrices(rows, 4)
    assert over_noise.tau == over_svd.tau == 1 and over_noise.count == 6
    assert [told.tau for told in pays_told.by_matrices(rows[::-1], 4)] == [1, 1]
    backward = [matrix(k, train=0.1 * (k + 1), svd=0.5, noise=0.6) for k in range(6)]
    assert [told.tau for told in pays_told.by_matrices(backward, 4)] == [-1, -1]


def test_matrices_too_small_for_a_size_are_left_out():
    rows = [matrix(k, train=0.5 / (k + 1), svd=0.5, noise=0.6) for k in range(4)] + [matrix(9, train=1, svd=1, noise=1)]
    rows[-1]["at"] = {}
    assert {told.count for told in pays_told.by_matrices(rows, 4)} == {4}


def test_a_layer_is_compared_with_itself():
    rows = [
        {
            "task": "vit",
            "candidate": name,
            "ratio": 4.4,
            "layer": k,
            "entropy": k,
            "output_error": error,
            "distance": far,
        }
        for k in range(5)
        for name, error, far in (("fitted", 0.1 * (5 - k), 0.1), ("whitened", 0.5, 0.1 * (k + 1)))
    ]
    errors, entropies = pays_told.by_layers(rows, "vit", "fitted", "ViT")
    assert (errors.tau, entropies.tau, errors.count) == (1, -1, 5)


def test_the_records_give_what_the_table_shows():
    layers = read("partial_tensorization")["layers"]
    for task in ("vit", "sst2"):
        errors, entropies = pays_told.by_layers(layers, task, "fitted", task)
        assert errors.count == entropies.count == 36 and errors.tau > errors.chance
    ranks = pays_told.by_ranks(read("retrieval")["ranks"], 4)
    assert ranks.count == 14 and ranks.tau > ranks.chance


def test_every_question_has_one_box_and_two_arrows():
    boxes, arrows = boxes_of(TREE)
    questions = [k for k, box in enumerate(boxes) if not box.verdict]
    assert len({boxes[k].text for k in questions}) == len(questions) == 4
    assert sorted(box.text for box in boxes if box.verdict) == ["SVD", "integers", "integers", "none", "train"]
    assert [(start, answer) for start, _, answer in arrows] == [(k, a) for k in questions for a in (True, False)]
    assert len({(box.x, box.y) for box in boxes}) == len(boxes)
    assert all(boxes[end].y < boxes[start].y for start, end, _ in arrows)


def test_the_arrows_lead_where_the_answers_do():
    boxes, arrows = boxes_of(TREE)

    def follow(question):
        start = next(k for k, box in enumerate(boxes) if box.text == question.ask)
        for answer, following in ((True, question.yes), (False, question.no)):
            (end,) = (end for begin, end, given in arrows if (begin, given) == (start, answer))
            assert boxes[end].text == (following.ask if isinstance(following, Node) else following)
            if isinstance(following, Node):
                follow(following)

    follow(TREE)


def test_the_drawn_tree_holds_every_word():
    ax = Figure().subplots()
    draw_tree(ax, TREE)
    said = " ".join(" ".join(text.get_text().split()) for text in ax.texts)
    for box in boxes_of(TREE)[0]:
        assert box.text in said
    assert said.split().count("yes") == said.split().count("no") == 4


def run(arm, size, seed, loss):
    cost = {"small": 10, "medium": 20, "large": 40}[size]
    return {
        "arm": arm,
        "size": size,
        "seed": seed,
        "loss": loss,
        "right": 0.5,
        "macs": cost,
        "params": cost,
        "width": 8,
    }


RUNS = [
    *(run("dense", "small", seed, 2.0 + seed) for seed in range(3)),
    *(run("block tensor train, rank 1", "small", seed, 1.9 + seed + 0.1 * (seed == 2)) for seed in range(3)),
    run("block tensor train, rank 1, one rate", "small", 0, 2.5),
    run("dense", "large", 0, 1.5),
]


def test_points_are_means_over_the_seeds_on_record():
    points = {(point.arm, point.size): point for point in pays_structures.points_of(RUNS)}
    assert list(points)[:2] == [("dense", "small"), ("block tensor train, rank 1", "small")]
    dense = points["dense", "small"]
    assert (dense.seeds, dense.loss, dense.low, dense.high) == (3, 3.0, 2.0, 4.0)
    assert points["dense", "large"].seeds == 1 and ("dense", "medium") not in points


def test_gains_over_dense_are_paired_by_seed():
    gain, error = pays_structures.against_dense(RUNS, "block tensor train, rank 1", "small")
    assert gain == pytest.approx(0.2 / 3) and error == pytest.approx(0.1 / 3)  # and not one, the spread of the losses
    assert pays_structures.against_dense(RUNS, "block tensor train, rank 1, one rate", "small") == (-0.5, None)
    assert pays_structures.against_dense(RUNS, "dense", "small") == (0, 0)
    assert pays_structures.against_dense(RUNS, "low rank", "small") is None


def test_the_rival_is_the_better_of_the_dense_networks_of_each_size():
    runs = [*RUNS, *(run("dense, one rate", "small", seed, 1.8 + seed) for seed in range(3))]
    runs += [run("dense, one rate", "large", 0, 1.7), run("block tensor train, rank 1", "large", 0, 1.4)]
    found = pays_structures.against_the_better_dense(runs, "block tensor train, rank 1")
    assert found["small"][0] == pytest.approx(-0.4 / 3) and found["large"] == (pytest.approx(0.1), None)


def test_the_budget_counts_the_seeds_of_each_size():
    record = {"steps": 9, "tuning_steps": 4, "rates": [0.5], "pictures": {"runs": RUNS}}
    assert pays_structures.budget(record).endswith("pictures, seeds: small 3, large 1")
    assert "characters" not in pays_structures.budget(record)


def test_an_arm_without_scaled_steps_is_hollow_in_its_color():
    ax = Figure().subplots()
    pays_structures.draw_losses(ax, pays_structures.points_of(RUNS))
    handles, labels = ax.get_legend_handles_labels()
    lines = {label: handle[0] for label, handle in zip(labels, handles, strict=True)}
    plain, scaled = lines["block tensor train, rank 1, one rate"], lines["block tensor train, rank 1"]
    assert plain.get_color() == scaled.get_color() != lines["dense"].get_color()
    assert plain.get_markerfacecolor() == "white" != scaled.get_markerfacecolor()
    assert len(labels) == len(set(labels)) == 3


def test_rates_are_shown_in_their_order_and_ends_are_named():
    tried = {"dense": {0.2: 2.0, 0.1: 3.0, 0.4: 2.5}, "low rank": {0.1: 2.0, 0.2: 3.0, 0.4: 4.0}, "TT": {0.1: 2.0}}
    rows = [{"arm": arm, "rate": rate, "loss": loss} for arm, each in tried.items() for rate, loss in each.items()]
    record = {"rates": [0.1, 0.2, 0.4], "pictures": {"tuning": rows}}
    found = pays_structures.rates_of(record, "pictures")
    assert (found["dense"], found["low rank"]) == ([3.0, 2.0, 2.5], [2.0, 3.0, 4.0])
    assert found["TT"][0] == 2.0 and all(loss != loss for loss in found["TT"][1:])  # not a number: not measured
    assert pays_structures.around_the_best(record, "pictures") == [
        ("dense", 0.2, 2.0, 3.0, 2.5),
        ("low rank", 0.1, 2.0, None, 3.0),
        ("TT", 0.1, 2.0, None, None),
    ]
    assert pays_structures.rates_of(record, "characters") == {}
