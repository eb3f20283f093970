"""The report in all its forms, what it costs, the hash of data, and what a suite refuses when it is declared."""

import html.parser
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acceptance_models import ByHeart, answers, flipped, metric, suite, with_logits
from strategies import gaussian
from torch import nn

from ttref.release.accepting import AcceptanceSuite, Metric, costs, frequency_slices, length_slices
from ttref.release.accepting.hashing import hash_of
from ttref.release.accepting.live import peak_of


@pytest.fixture
def report():
    """Of four rows, a metric with an awkward name, a slice that is too few, and a limit that is exceeded."""
    before, after = flipped(200, 9, 1)
    made = AcceptanceSuite(
        [Metric("right | <b>wrong</b>", answers, 0.2), Metric("loss", answers, 0.5, "relative", False)],
        data=range(200),
        slices={"few_of *them*": lambda place: place < 5},
        limits={"file": 0.5, "memory": 1.0},
        turns=0,
    )
    return made.run(ByHeart(before), ByHeart(after), progress=False)


def finite(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and finite(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(finite, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def test_as_dict_is_plain_and_finite_and_what_save_writes(report, tmp_path):
    found = report.as_dict()
    assert finite(found)
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert found["format"] == "ttref.acceptance" and found["accepted"] is False is report.accepted
    assert len(found["scores"]["loss"]["dense"]) == 200 and len(found["data_hash"]) == 64
    assert found["declared"]["metrics"][1]["kind"] == "relative"
    assert found["declared"]["slices"] == {"few_of *them*": [0, 1, 2, 3, 4]}
    assert hash_of(found["declared"], "the suite") == found["suite_hash"]


def test_the_scores_in_the_file_lead_to_the_same_rows(report):
    scores = report.scores["loss"]
    again = AcceptanceSuite(Metric("loss", answers, 0.5, "relative", False), data=range(200), turns=0)
    rows = again.run(ByHeart(scores["dense"]), ByHeart(scores["compressed"]), progress=False).rows
    assert rows == [row for row in report.rows if row["metric"] == "loss" and row["slice"] == "all"]


def test_the_table_fits_and_says_what_failed(report):
    text = report.table()
    assert text == str(report) == repr(report) and max(map(len, text.splitlines())) <= 88
    assert text.startswith("Not accepted: 200 examples, 2 metrics, each tested at alpha = 0.05. file: 1.000 times")
    assert "Too few examples to decide anything: right | <b>wrong</b> on few_of" in " ".join(text.split())
    assert re.search(r"loss +all +200 .* 1/9 +equivalent", text)  # less is better, so nine are gains
    assert re.search(r"file \(bytes\) +1,604 +1,604 +1.000 +0.5 exceeded", text)
    assert report.data_hash[:12] in text and report.suite_hash[:12] in text


def test_columns_that_do_not_fit_are_left_out_of_the_text_only():
    before = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    made = AcceptanceSuite(
        with_logits({}), data=range(60), slices={"a slice with quite a long name": [True] * 60}, turns=0
    )
    report = made.run(ByHeart(before), ByHeart(before), progress=False)
    head = report.table().splitlines()[2]
    assert "McNemar" not in head and "verdict" in head and max(map(len, report.table().splitlines())) <= 88
    assert "McNemar" in report.card() and "KL" in report.card()


class Cells(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_in_a_notebook_it_is_two_tables(report):
    found = Cells()
    found.feed(report._repr_html_())
    assert found.tags.count("table") == 2 and "b" not in found.tags and "right | <b>wrong</b>" in found.text


def test_the_card_is_markdown_whose_names_break_nothing(report):
    card = report.card()
    assert card.startswith("## Acceptance\n\nNot accepted: 200 examples")
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(bars) == 1 and re.fullmatch(r"\|( :?---:? \|)+", lines[1])
    assert "<b>" not in re.sub(r"\\<", "", card) and r"few\_of \*them\*" in card
    assert f"`{report.data_hash}`" in card and f"`{report.suite_hash}`" in card


def test_bytes_of_memory_and_files(tmp_path):
    dense, tied = (
        nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)),
        nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)),
    )
    tied[1].weight = tied[0].weight
    tied.register_buffer("kept", torch.zeros(3, dtype=torch.int8), persistent=False)
    assert costs.memory(dense, tied) == {"dense": 880, "compressed": 483, "ratio": 483 / 880}
    found = costs.files(dense, tied, (None, None))
    assert (found["dense"], found["compressed"], found["dense_of"]) == (880, 480, "state")
    assert costs.memory(nn.Identity(), dense)["ratio"] is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"x" * 100)
    (tmp_path / "b.bin").write_bytes(b"x" * 50)
    pair = tmp_path / "model", [tmp_path / "model", str(tmp_path / "b.bin")]
    assert costs.files(dense, tied, pair) == {
        "dense": 100,
        "compressed": 150,
        "ratio": 1.5,
        "dense_of": "files",
        "compressed_of": "files",
    }
    made = suite(40, 0.2, limits={"file": 1.0})
    models = [ByHeart(torch.ones(40)) for _ in range(2)]
    report = made.run(*models, dense_files=pair[0], compressed_files=pair[1], progress=False)
    assert report.reasons == ["file: 1.500 times the dense one, limit 1."]
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        made.run(*models, dense_files=tmp_path / "c", progress=False)


def test_the_peak_is_what_tensors_take_beside_the_model():
    model = nn.Sequential(nn.Linear(100, 400), nn.Tanh(), nn.Linear(400, 10))
    x = torch.ones(50, 100)
    assert peak_of(lambda: model(x), [x, *model.parameters()]) == 2 * 4 * 50 * 400
    assert peak_of(lambda: x.to_sparse().sum(), [x]) >= 0


def ticking(monkeypatch, seconds):
    """A clock by which the calls take these times one after another."""
    now, left = [0.0], iter(seconds)

    def clock():
        clock.calls += 1
        if clock.calls % 2 == 0:
            now[0] += next(left)
        return now[0]

    clock.calls = 0
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=clock))


def test_latency_is_the_median_of_ratios_of_pairs_in_turn(monkeypatch):
    called = []
    dense = [1.0, 1.0, 10.0, 1.0, 1.0]  # in the third turn the machine is slow for both
    ratios = [2.0, 2.5, 2.0, 1.5, 8.0]
    pairs = [(one, one * ratio) for one, ratio in zip(dense, ratios, strict=True)]
    ticking(monkeypatch, [9, 9, *(t for k, pair in enumerate(pairs) for t in (pair if k % 2 == 0 else pair[::-1]))])
    found = costs.latency(lambda: called.append("d"), lambda: called.append("c"), 5, 0.05)
    assert called == list("dcdccddccddc"[:12])
    assert found == {"dense": 1.0, "compressed": 2.5, "ratio": 2.0, "low": 1.5, "high": 8.0, "turns": 5}


@pytest.mark.parametrize(("limit", "passed"), [(2.0, True), (1.9, False), (None, None)])
def test_the_bound_of_the_latency_must_keep_the_limit(monkeypatch, limit, passed):
    ticking(monkeypatch, [1.0] * 2 + [1.0, 2.0, 2.0, 1.0] * 3)
    made = suite(40, 0.2, turns=6, limits=None if limit is None else {"latency": limit})
    report = made.run(ByHeart(torch.ones(40)), ByHeart(torch.ones(40)), progress=False)
    assert list(report.costs) == ["latency", "memory", "peak", "file"]
    assert report.costs["latency"]["high"] == 2.0 and report.costs["latency"]["passed"] is passed
    assert report.accepted is (passed is not False)
    assert "2.000 (2.000 to 2.000)" in report.table()


def test_few_turns_have_no_bound(monkeypatch):
    ticking(monkeypatch, [1.0] * 2 + [1.0, 0.5, 0.5, 1.0])
    found = costs.latency(lambda: None, lambda: None, 2, 0.05)
    assert (found["ratio"], found["low"], found["high"]) == (0.5, None, None)


EQUAL = [
    ([1, 2], (1, 2)),
    ({"a": 1, "b": [2]}, {"b": (2,), "a": 1}),
    (torch.arange(6.0).reshape(2, 3).T, torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])),
    (np.arange(3), torch.arange(3)),
    (torch.arange(12)[::2], torch.tensor([0, 2, 4, 6, 8, 10])),
    (nn.Parameter(torch.ones(2)), torch.ones(2)),
]
DIFFERENT = [
    1,
    1.0,
    True,
    "1",
    b"1",
    None,
    0,
    -0.0,
    0.0,
    math.nan,
    "",
    [],
    {},
    [[]],
    ["ab"],
    ["a", "b"],
    [["a"], "b"],
    [["a", "b"]],
    {"a": "b"},
    {1: "b"},
    {"1": "b"},
    ["a", ["b"]],
    "s1;a",
    10**30,
    torch.ones(2),
    torch.ones(2, 1),
    torch.ones(2).double(),
    torch.ones(2, dtype=torch.int64),
    torch.tensor(1),
    torch.zeros(0),
    "\ud800",
]


@pytest.mark.parametrize("pair", EQUAL)
def test_equal_data_have_equal_hashes(pair):
    assert hash_of(pair[0]) == hash_of(pair[1])


def test_different_data_have_different_hashes():
    assert len({hash_of(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_the_hash_is_the_same_everywhere():
    """On every machine and in later versions: recorded hashes name data by it."""
    value = [{"a": "x", "b": 3}, torch.arange(3), 0.1, None, True, b"y"]
    assert hash_of(value) == "7e1acd6daa66af5eb9e2877884adfdc5c2fe0b0ece1dc81f174ea32b991e2b4c"


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ([{1, 2}, 3], TypeError, "data[0] is {1, 2} of type set, which has no fixed bytes to hash"),
        (["a", {"x": object}], TypeError, "data[1]['x'] is <class 'object'> of type type"),
        ([{(1, 2): 3}, 4], TypeError, "data[0] has the key (1, 2); the keys"),
        ([{True: 3}, 4], TypeError, "has the key True"),
        ([np.array(["a", 1], dtype=object), 4], TypeError, "data[0] is a ndarray that cannot be hashed"),
        ("some text", TypeError, "data must be a sequence of examples, got str"),
        ({"a": 1, "b": 2}, TypeError, "got dict"),
        (iter([1, 2]), TypeError, "list(...) makes one"),
        ([1], ValueError, "a suite needs 2 examples or more, got 1"),
    ],
)
def test_data_that_have_no_hash(data, error, says):
    with pytest.raises(error, match=re.escape(says)):
        AcceptanceSuite(metric(), data=data)


def test_a_list_that_holds_itself_has_no_hash():
    data = [1, 2]
    data.append(data)
    with pytest.raises(ValueError, match="does a list hold itself"):
        AcceptanceSuite(metric(), data=data)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"name": ""}, TypeError, "a metric needs a name, got ''"),
        ({"score": 0.9}, TypeError, "score of metric 'x' must be a function of model and examples, got float"),
        ({"kind": "percent"}, ValueError, 'kind of metric \'x\' must be "absolute" or "relative"'),
        ({"greater_is_better": 1}, TypeError, "must be True, False or None, got 1"),
        ({"margin": 0}, ValueError, "margin of metric 'x' must be a finite number above 0, got 0"),
        ({"margin": math.inf}, ValueError, "must be a finite number above 0"),
        ({"margin": "0.1"}, TypeError, "margin of metric 'x' must be a number"),
        ({"margin": 5, "kind": "relative"}, ValueError, "must lie below 1 (0.05 is 5 %), got 5"),
        ({"slice_margin": -1}, ValueError, "slice_margin of metric 'x' must be a finite number above 0"),
        ({"max_kl": 0}, ValueError, "max_kl of metric 'x' must be"),
    ],
)
def test_what_is_no_metric(wrong, error, says):
    with pytest.raises(error, match=re.escape(says)):
        Metric(**{"name": "x", "score": answers, "margin": 0.1, **wrong})


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"metrics": []}, ValueError, "a suite needs a metric"),
        ({"metrics": [answers]}, TypeError, "metrics must be Metric(name, score, margin), got function"),
        ({"metrics": [metric(), metric()]}, ValueError, "two metrics are called 'accuracy'"),
        ({"alpha": 0.5}, ValueError, "alpha must lie between 0 and 0.5"),
        ({"fewest": 1}, ValueError, "fewest must be at least 2"),
        ({"turns": -1}, ValueError, "turns must be at least 0"),
        ({"work": 3}, TypeError, "work must be a function"),
        ({"slices": [True] * 40}, TypeError, "slices must map names"),
        ({"slices": {"all": [True] * 40}}, ValueError, "which is not 'all'"),
        ({"slices": {"a": [True] * 39}}, ValueError, "slice 'a' has shape (39,), but there are 40 examples"),
        ({"slices": {"a": [1] * 40}}, TypeError, "slice 'a' must say True or False of each example, got torch.int64"),
        ({"slices": {"a": lambda place: False}}, ValueError, "slice 'a' holds none of the 40 examples"),
        ({"limits": {"speed": 1}}, ValueError, "one of latency, memory, peak, file, got 'speed'"),
        ({"limits": {"file": 0}}, ValueError, "the limit of file must be a finite number above 0"),
        ({"limits": [0.5]}, TypeError, "limits must map costs to ratios"),
        ({"limits": {"latency": 1}, "turns": 4}, ValueError, "needs 5 turns or more to be tested at 0.05, got turns=4"),
        ({"limits": {"peak": 1}, "turns": 0}, ValueError, "needs a run to measure it"),
    ],
)
def test_what_a_suite_refuses(wrong, error, says):
    with pytest.raises(error, match=re.escape(says)):
        AcceptanceSuite(**{"metrics": metric(), "data": range(40), **wrong})


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda: length_slices(["ab", "cd"]), "no example lies above the median length 2"),
        (lambda: length_slices([]), "there are no examples"),
        (lambda: frequency_slices(["a", " "]), "example 1 has no tokens"),
    ],
)
def test_what_cannot_be_cut(cut, says):
    with pytest.raises(ValueError, match=says):
        cut()


def test_gaussian_scores_in_half_precision_are_taken_as_they_are():
    scores = gaussian((40,), 0).half()

    def score(model, places):
        return model(places).half()

    report = AcceptanceSuite(Metric("x", score, 0.5), data=range(40), turns=0).run(
        ByHeart(scores), ByHeart(scores), progress=False
    )
    assert report.scores["x"]["dense"] == scores.double().tolist() and report.accepted
