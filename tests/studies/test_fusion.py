"""Fusion of views: the record, its arithmetic, and slices of it run again."""

import json

import pytest
import torch

from book.tools.results import RESULTS
from studies.fusion import data, study

TASKS = {task.name: task for task in data.tasks()}


@pytest.fixture(scope="module")
def recorded():
    record = json.loads((RESULTS / "fusion.json").read_text(encoding="utf-8"))
    return {task["name"]: task for task in record["tasks"]}


def row_of(task, method, size):
    (found,) = (row for row in task["rows"] if (row["method"], row["size"]) == (method, size))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_matched_and_as_recorded(name, recorded):
    task = TASKS[name]
    for size, rank in enumerate(study.RANKS[name]):
        made = study.layers(task, rank)
        params = {method: sum(p.numel() for p in make().parameters()) for method, (_, make) in made.items()}
        assert max(abs(count / params[study.LMF] - 1) for count in params.values()) <= study.MARGIN + 0.01
        for method, (setting, _) in made.items():
            row = row_of(recorded[name], method, size)
            assert (row["setting"], row["params"]) == (setting, params[method])
    for method, (_, make) in study.references(task).items():
        assert row_of(recorded[name], method, None)["params"] == sum(p.numel() for p in make().parameters())


@pytest.mark.parametrize(
    ("name", "method"),
    [("breast cancer", study.TT), ("breast cancer", study.TUCKER), ("planted product", study.LMF)],
)
def test_one_split_ends_near_the_record(name, method, recorded):
    task, row = TASKS[name], row_of(recorded[name], method, 0)
    parts = data.parts_of(task, 0)
    found = study.run(task, parts, study.layers(task, study.RANKS[name][0])[method][1], 0)
    assert found["validation_loss"] == pytest.approx(row["validation_loss"][0], rel=0.1)
    assert abs(found["test_correct"] - row["test_correct"][0]) <= 4  # another processor may stop at another epoch


def test_digits_of_one_rate_stay_above_the_recorded_loss(recorded, monkeypatch):
    """The record has the smallest loss of all rates: one of them alone cannot be better, nor is it far off."""
    monkeypatch.setattr(study, "RATES", (1e-2,))
    monkeypatch.setattr(study, "DECAYS", (1e-2,))
    task, row = TASKS["digits"], row_of(recorded["digits"], study.TT, 0)
    found = study.run(task, data.parts_of(task, 0), study.layers(task, study.RANKS["digits"][0])[study.TT][1], 0)
    assert 0.9 * row["validation_loss"][0] < found["validation_loss"] < 2 * row["validation_loss"][0]
    assert abs(found["test_correct"] - row["test_correct"][0]) <= 20


@pytest.mark.parametrize("name", TASKS)
def test_gains_follow_from_the_recorded_counts(name, recorded):
    rows, total = recorded[name]["rows"], recorded[name]["examples"][-1]
    methods = (study.CONCATENATION, study.TT, study.LMF, study.TUCKER)
    for row in rows:
        assert len(row["test_correct"]) == len(study.SEEDS) == 10
        for key, value in study.gains(row, study.rival(rows, row), total).items():
            assert row[key] == pytest.approx(value, abs=1e-5), key
    for method in methods:
        sizes = [row_of(recorded[name], method, size) for size in range(len(study.RANKS[name]))]
        found, kept = study.best_sizes(sizes), row_of(recorded[name], method, study.CHOSEN)
        assert {key: kept[key] for key in found} == found


def test_gains_are_paired():
    rows = [
        {"method": study.CONCATENATION, "size": 0, "test_correct": [90, 80, 70]},
        {"method": study.TT, "size": 0, "test_correct": [91, 80, 71]},
    ]
    found = study.gains(rows[1], study.rival(rows, rows[1]), 100)
    assert found["gain"] == pytest.approx(0.02 / 3)
    assert found["gain_error"] == pytest.approx(0.01 / 3)  # and not a tenth, the spread of the accuracies
    assert (found["better"], found["worse"]) == (2, 0)


@pytest.mark.parametrize("name", TASKS)
def test_features_are_standardized_by_the_training_part_alone(name):
    task = TASKS[name]
    parts = data.parts_of(task, 3)
    x = parts.train[0]
    assert x.dtype == torch.float64 and x.shape[1] == sum(task.sizes)
    assert x.mean(0).abs().max() < 1e-9 < parts.test[0].mean(0).abs().max()
    if task.together:
        assert x.square().mean() == pytest.approx(1, abs=0.01) and x.abs().max() < 6
    else:
        assert torch.allclose(x.std(0), torch.ones(x.shape[1], dtype=x.dtype))
    assert sum(len(y) for _, y in parts) == len(task.y)


def test_the_views_are_what_they_are_called():
    names = data.load_breast_cancer().feature_names
    for start, kind in ((0, "mean"), (10, "error"), (20, "worst")):
        assert all(kind in name for name in names[start : start + 10])
    bands = TASKS["digits"].sizes
    assert all(size % 8 == 0 for size in bands) and sum(bands) == 64


def test_two_views_of_a_planted_product_tell_nothing():
    task = TASKS["planted product"]
    first = task.x[:, :: data.WIDTH]
    assert ((first.prod(1) > 0) == task.y).all()
    for pair in ((0, 1), (0, 2), (1, 2)):
        agree = ((first[:, pair].prod(1) > 0) == task.y).mean()
        assert 0.45 < agree < 0.55
