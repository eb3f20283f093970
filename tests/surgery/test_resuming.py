"""A search that was killed goes on from its file, and ends as it would have; any other file is refused."""

import json
import re

import numpy as np
import pytest
import torch
from searches import NAMES, Counted, accuracy, compressed, net, right, state

from ttref import TTLinear
from ttref.surgery import partial_tensorize
from ttref.surgery.candidates import Candidate, tensor_train

HOW = {
    "forward": {"max_drop": 0.1},
    "forward, last": {"max_drop": 0.07, "reference": "last"},
    "restore": {"max_drop": 0.1, "order": "restore"},
    "restore, ranked": {"max_drop": 0.1, "order": "restore", "ranking": lambda model: right(model)[:50]},
    "equivalence": {"max_drop": 0.1, "gate": "equivalence"},
    "equivalence, restore": {"max_drop": 0.1, "gate": "equivalence", "order": "restore"},
}


def stop(model):
    raise KeyboardInterrupt


def rows(report):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in report.layers]


def weights(model):
    return {name: x.detach().flatten().view(torch.uint8).tolist() for name, x in model.named_parameters()}


@pytest.mark.parametrize("how", HOW)
def test_killed_at_any_evaluation_it_ends_as_without(how, tmp_path):
    how = {"layers": NAMES, "eps": 0.6, **HOW[how]}
    metric = right if "gate" in how else accuracy
    whole, counted = net(), Counted(metric)
    expected = partial_tensorize(whole, counted, **how)
    assert 0 < len(expected.names()) < 3
    for at in range(1, counted.calls + 1):
        path = tmp_path / f"{at}.json"
        killed, first = net(), Counted(metric, at, stop)
        before = state(killed)
        with pytest.raises(KeyboardInterrupt):
            partial_tensorize(killed, first, resume=path, **how)
        assert state(killed) == before
        model, rest = net(), Counted(metric)
        report = partial_tensorize(model, rest, resume=path, **how)
        assert rest.calls == counted.calls - at + 1  # nothing is measured twice
        assert rows(report) == rows(expected) and report.verdict == expected.verdict
        assert (report.params_after, report.evaluations) == (expected.params_after, expected.evaluations)
        assert compressed(model) == compressed(whole) and weights(model) == weights(whole)
        report.undo()
        assert weights(model) == weights(net())


def test_a_finished_search_is_only_repeated(tmp_path):
    path = tmp_path / "search.json"
    first = partial_tensorize(net(), accuracy, layers=NAMES, max_drop=0.05, resume=path)
    again, metric, built = net(), Counted(accuracy), []

    def build(layer, gram):
        built.append(layer)
        return TTLinear.from_linear(layer, eps=0.5)

    watched = Candidate("TT eps 0.5", build)
    second = partial_tensorize(again, metric, layers=NAMES, candidate=watched, max_drop=0.05, resume=path)
    assert metric.calls == 0 and len(built) == len(second.names()) < 3  # those that are needed
    assert rows(second) == rows(first) and second.layers == first.layers  # the times, too


def test_the_saved_report_is_such_a_file(tmp_path):
    path = tmp_path / "report.json"
    first = partial_tensorize(net(), accuracy, layers=NAMES, max_drop=0.05)
    first.save(path)
    found = json.loads(path.read_text())
    assert found["rows"] == first.layers == first.as_dict()["rows"] and found["totals"] == first.as_dict()["totals"]
    metric = Counted(accuracy)
    assert rows(partial_tensorize(net(), metric, layers=NAMES, max_drop=0.05, resume=path)) == rows(first)
    assert metric.calls == 0


def test_thresholds_of_numpy_are_written(tmp_path):
    path = tmp_path / "search.json"
    half, tenth = np.float32(0.5), np.float32(0.1)
    report = partial_tensorize(net(), accuracy, layers=NAMES, max_drop=half, alpha=tenth, resume=path)
    report.save(path)
    assert json.loads(path.read_text())["settings"]["max_drop"] == 0.5
    again = partial_tensorize(net(), accuracy, layers=NAMES, max_drop=0.5, alpha=float(tenth), resume=path)
    assert rows(again) == rows(report)


def test_the_file_is_there_before_anything_is_measured(tmp_path):
    path, metric = tmp_path / "search.json", Counted(accuracy)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        partial_tensorize(net(), metric, layers=NAMES, resume=tmp_path / "none" / "search.json")
    assert metric.calls == 0

    def look(model):
        assert json.loads(path.read_text())["format"] == "ttref.partial"
        return accuracy(model)

    partial_tensorize(net(), look, layers=NAMES, resume=path)


def other_model():
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1.001)
    return model


OTHERS = {
    "a threshold": ({"max_drop": 0.04}, "max_drop = 0.05, and this one has 0.04"),
    "a gate": ({"gate": "equivalence"}, "gate = 'drop', and this one has 'equivalence'"),
    "an order": ({"order": "restore"}, "order = 'forward', and this one has 'restore'"),
    "an error": ({"eps": 0.6}, "candidate = 'TT eps 0.5', and this one has 'TT eps 0.6'"),
    "a candidate": ({"candidate": tensor_train(ratio=2)}, "candidate = 'TT eps 0.5', and this one has 'TT 2x'"),
    "layers": ({"layers": NAMES[:2]}, "layers = [['4', [10, 48]]], and this one has []"),
    "another model": ({"model": other_model}, "is of another model: the weight of 2 had the norm"),
    "another shape": ({"model": lambda: net()[2:]}, "layers = [['0', [48, 64]]"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_search_is_refused(what, tmp_path):
    path, (other, says) = tmp_path / "search.json", OTHERS[what]
    partial_tensorize(net(), right, layers=NAMES, max_drop=0.05, resume=path)
    content = path.read_bytes()
    how = {"layers": NAMES, "max_drop": 0.05, "resume": path, "model": net} | other
    if what == "another shape":
        how["layers"] = None
    model, metric = how.pop("model")(), Counted(right)
    before = state(model)
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        partial_tensorize(model, metric, **how)
    assert str(path) in str(raised.value) and "give a new path" in str(raised.value)
    assert metric.calls == 0 and state(model) == before and path.read_bytes() == content


def test_a_candidate_of_the_same_name_that_makes_something_else_is_refused(tmp_path):
    path, model = tmp_path / "search.json", net()
    how = {"layers": NAMES, "max_drop": 1.0, "resume": path}
    partial_tensorize(net(), accuracy, **how)
    other = Candidate("TT eps 0.5", lambda layer, gram: TTLinear.from_linear(layer, rank=2))
    before = state(model)
    with pytest.raises(ValueError, match="the replacement of 0 is another one than in"):
        partial_tensorize(model, accuracy, candidate=other, **how)
    assert state(model) == before


def edited(change):
    def spoil(content):
        found = json.loads(content)
        change(found)
        return json.dumps(found).encode()

    return spoil


DAMAGED = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: b"\xff\xfe\x00" + content,
    "another JSON": lambda content: b'{"eps": [0.2]}',
    "a list": lambda content: b"[1, 2]",
    "a number": lambda content: b"7",
    "deep": lambda content: b"[" * 100_000,
    "another format": edited(lambda found: found.update(format="ttref.other")),
    "a later version": edited(lambda found: found.update(version=2)),
    "no settings": edited(lambda found: found.pop("settings")),
    "other settings": edited(lambda found: found.update(settings=[1])),
    "no metrics": edited(lambda found: found.pop("metrics")),
    "layers of text": edited(lambda found: found.update(layers="none")),
    "a layer without norm": edited(lambda found: found["layers"][0].pop("norm")),
    "a metric without scores": edited(lambda found: found["metrics"][1].pop("scores")),
    "a metric of text": edited(lambda found: found["metrics"][1].update(scores="high")),
    "NaN": edited(lambda found: found["metrics"][1].update(scores=float("nan"))),
    "another order of metrics": edited(lambda found: found["metrics"].reverse()),
    "a metric of another layer": edited(lambda found: found["metrics"][1].update(tried="with 2")),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused(what, tmp_path):
    path = tmp_path / "search.json"
    partial_tensorize(net(), accuracy, layers=NAMES, max_drop=0.05, resume=path)
    path.write_bytes(content := DAMAGED[what](path.read_bytes()))
    model, metric = net(), Counted(accuracy)
    before = state(model)
    with pytest.raises(
        ValueError, match=r"is no search saved by partial_tensorize, or is damaged|is damaged, or of anoth"
    ):
        partial_tensorize(model, metric, layers=NAMES, max_drop=0.05, resume=path)
    assert metric.calls == 0 and state(model) == before and path.read_bytes() == content


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OSError):
        partial_tensorize(net(), accuracy, layers=NAMES, resume=tmp_path)
