"""The suite: what is declared, what is decided, and that models are left as they were."""

import math
import random
import re
import sys
from pathlib import Path

import interrupts
import numpy as np
import pytest
import torch
from acceptance_models import ByHeart, answers, flipped, metric, suite, with_logits
from strategies import gaussian
from torch import nn

import ttref.release.accepting as accepting
from ttref import TTLinear
from ttref.release.accepting import AcceptanceSuite, Metric, Scored, frequency_slices, length_slices

ROOMS = tuple(str(Path(accepting.__file__).with_name(name)) for name in ("guarding.py", "suite.py"))


def run(made, dense, compressed, **how):
    pair = (one if isinstance(one, nn.Module) else ByHeart(one) for one in (dense, compressed))
    return made.run(*pair, progress=False, **how)


def statuses(report):
    return {row["slice"]: row["status"] for row in report.rows}


def test_every_metric_must_pass():
    scores = torch.ones(200)
    worse = torch.cat([torch.zeros(30), scores[30:]])
    both = [metric(0.05), Metric("wide", answers, 0.2)]
    assert run(AcceptanceSuite(both, data=range(200), turns=0), scores, scores).accepted
    report = run(AcceptanceSuite(both, data=range(200), turns=0), scores, worse)
    assert [row["status"] for row in report.rows] == ["worse", "equivalent"] and not report.accepted
    assert len(report.reasons) == 1 and report.reasons[0].startswith("accuracy: shown to have changed by more")


def test_no_significant_drop_is_not_enough():
    """Six of a hundred lost, two won: McNemar's p is above alpha, and so is that of the margin."""
    report = run(suite(100), *flipped(100, 6, 2))
    assert report.rows[0]["mcnemar"] > 0.05 and statuses(report) == {"all": "not shown"} and not report.accepted


@pytest.mark.parametrize(
    ("inside", "harmful", "accepted", "status"),
    [
        (100, 0, True, "equivalent"),
        (100, 7, False, "not shown"),  # on all 1,000 examples it would pass
        (100, 25, False, "worse"),
        (20, 0, True, "too few"),
        (20, 1, True, "too few"),
        (20, 20, False, "worse"),  # which few examples can show, too
    ],
)
def test_what_a_slice_does_to_the_verdict(inside, harmful, accepted, status):
    before = torch.ones(1000)
    after = before.clone()
    after[:harmful] = 0
    report = run(suite(1000, slices={"first": lambda place: place < inside}), before, after)
    assert statuses(report) == {"all": "equivalent", "first": status}
    assert report.accepted is accepted
    assert report.undecided == (["accuracy on first"] if status == "too few" else [])
    assert report.rows[1]["examples"] == inside


def test_all_examples_are_never_let_off():
    report = run(suite(20), torch.ones(20), torch.ones(20))
    assert not report.accepted and report.undecided == []
    assert report.reasons == ["accuracy: 20 examples are too few to accept any model."]


def test_slices_have_margins_of_their_own():
    before = torch.ones(300)
    slices = {"first": [place < 60 for place in range(300)]}
    after = torch.cat([torch.zeros(1), before[1:]])
    assert statuses(run(suite(300, slices=slices), before, after))["first"] == "not shown"
    report = run(suite(300, slices=slices, slice_margin=0.1), before, after)
    assert report.accepted and report.rows[1]["allowed"] == 0.1 and report.rows[0]["allowed"] == 0.05


def test_examples_are_cut_by_length_and_by_frequency():
    data = ["the cat sat", "the okapi sat", "the cat", "the the cat sat here", "an okapi", "cat"]
    slices = length_slices(data) | frequency_slices(data)
    assert slices["long"] == [False, True, False, True, False, False] or slices["long"] == [
        len(text) > np.median([len(one) for one in data]) for text in data
    ]
    assert [a != b for a, b in zip(slices["short"], slices["long"], strict=True)] == [True] * 6
    assert slices["rare tokens"][4] and slices["frequent tokens"][2]
    known = frequency_slices(data, counts={"okapi": 1000, "an": 1000})
    assert known["frequent tokens"] == [False, True, False, False, True, False]
    assert length_slices(data, length=lambda text: len(text.split()))["long"][3]
    made = AcceptanceSuite(Metric("x", answers, 1.0), data=data, slices=slices, turns=0)
    assert list(made.slices) == ["short", "long", "rare tokens", "frequent tokens"]


def test_divergence_is_reported_and_can_decide():
    """The same class wins everywhere, and the chances differ: only the divergence sees it."""
    before = torch.cat([torch.ones(60, 1), torch.zeros(60, 1)], 1) + 0.01 * gaussian((60, 2), 0)
    after = before + torch.tensor([2.0, 0.0])
    made = AcceptanceSuite(with_logits({}), data=range(60), turns=0)
    row = run(made, before, after).rows[0]
    assert row["kl"] > 0.1 and row["kl_largest"] >= row["kl"] and row["answers_changed"] == 0
    assert row["kl_status"] is None and run(made, before, after).accepted
    strict = AcceptanceSuite(with_logits({"max_kl": 0.1}), data=range(60), turns=0)
    report = run(strict, before, after)
    assert not report.accepted and report.rows[0]["kl_status"] == "not shown"
    assert "nats not shown to be below 0.1" in report.reasons[0]
    assert run(strict, before, before).accepted and run(strict, before, before + 5).rows[0]["kl"] < 1e-9
    few = AcceptanceSuite(with_logits({"max_kl": 0.1}), data=range(60), fewest=61, turns=0)
    assert "too few to test the divergence" in run(few, before, before).reasons[0]
    sliced = AcceptanceSuite(with_logits({"max_kl": 0.1}), data=range(60), slices={"a": [True] * 60}, turns=0)
    assert [row["kl_status"] for row in run(sliced, before, before).rows] == ["no worse", None]


def test_hashes_name_what_is_declared():
    slices = {"first": lambda place: place < 10}
    first = suite(100, slices=slices)
    assert first.suite_hash == suite(100, slices={"first": [place < 10 for place in range(100)]}).suite_hash
    others = [
        suite(100),
        suite(100, slices={"first": lambda place: place < 11}),
        suite(100, slices={"second": slices["first"]}),
        suite(100, 0.06, slices=slices),
        suite(100, slices=slices, kind="relative"),
        suite(100, slices=slices, slice_margin=0.1),
        suite(100, slices=slices, alpha=0.01),
        suite(100, slices=slices, limits={"file": 0.5}),
        AcceptanceSuite(Metric("other", answers, 0.05), data=range(100), slices=slices, turns=0),
    ]
    assert len({one.suite_hash for one in [first, *others]}) == 10
    assert {one.data_hash for one in others} == {first.data_hash} != {suite(101).data_hash}
    assert suite(101).suite_hash != suite(100).suite_hash
    assert suite(0, data=torch.arange(100)).data_hash != first.data_hash  # 0-d tensors are not integers


def test_what_is_declared_stays():
    made = suite(100, slices={"first": lambda place: place < 50}, limits={"file": 2})
    with pytest.raises(AttributeError):
        made.metrics[0].margin = 0.5
    for name in ("metrics", "slices", "alpha", "data", "data_hash", "suite_hash", "limits"):
        with pytest.raises(AttributeError):
            setattr(made, name, None)
    with pytest.raises(TypeError):
        made.slices["first"] = None
    with pytest.raises(TypeError):
        made.limits["file"] = 3


@pytest.mark.parametrize("when", ["before", "during"])
def test_examples_that_change_are_not_those_that_were_declared(when):
    data = [[1.0, 2.0], [3.0, 4.0]] * 20

    def score(model, examples):
        if when == "during":
            examples[3].append(5.0)
        return torch.ones(len(examples))

    made = AcceptanceSuite(Metric("x", score, 0.2), data=data, turns=0)
    if when == "before":
        data[7] = [3.0, 4.5]
    with pytest.raises(ValueError, match=f"the examples changed {when} the run: their hash was"):
        run(made, torch.ones(40), torch.ones(40))


class Noisy(ByHeart):
    def __init__(self, scores):
        super().__init__(scores)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, places):
        self.norm(torch.arange(4.0).reshape(4, 1))  # in training mode its statistics move
        return super().forward(places)


def scores_by_drawing(model, places):
    return model(places) + torch.rand(len(places)) + random.random() + np.random.rand()


def everything(*models):
    state = [[(name, value.clone()) for name, value in model.state_dict().items()] for model in models]
    return state, [[part.training for part in model.modules()] for model in models]


def same(one, other):
    return one[1] == other[1] and all(
        a == b and torch.equal(x, y)
        for before, after in zip(one[0], other[0], strict=True)
        for (a, x), (b, y) in zip(before, after, strict=True)
    )


def test_models_run_in_evaluation_mode_and_return_to_their_own():
    dense, compressed = Noisy(torch.ones(100)), Noisy(torch.ones(100)).eval()
    compressed.norm.train()
    before = everything(dense, compressed)
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    made = AcceptanceSuite(Metric("x", scores_by_drawing, 0.1), data=range(100), turns=1)
    report = run(made, dense, compressed)
    assert report.scores["x"]["dense"] == report.scores["x"]["compressed"]  # no dropout, and the same draws
    assert same(before, everything(dense, compressed))
    assert torch.equal(draws[0], torch.get_rng_state()) and draws[1] == random.getstate()
    assert draws[2] == np.random.get_state()[1].tolist()
    shared = run(made, dense, dense)
    assert shared.accepted and same(before, everything(dense, compressed))


def trains(model, places):
    model.norm.train()
    return model(places)


def counts(model, places):
    model.calls += 1
    return model(places)


def replaces(model, places):
    model.calls = model.calls + 1
    return model(places)


def registers(model, places):
    model.register_buffer("cache", torch.zeros(3))
    return model(places)


def fails(model, places):
    model.calls += 1
    model.train()
    raise KeyError("no such layer")


def stops(model, places):
    model.calls += 1
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("score", "error", "says"),
    [
        (
            trains,
            ValueError,
            "metric 'x' of the dense model changed the mode of BatchNorm1d and more; that was put back",
        ),
        (counts, ValueError, "metric 'x' of the dense model changed the buffer calls; that was put back"),
        (replaces, ValueError, "changed the buffer calls"),
        (registers, ValueError, "changed the buffer cache, which is new"),
        (fails, RuntimeError, "metric 'x' of the dense model failed, KeyError: 'no such layer'"),
        (stops, KeyboardInterrupt, ""),
    ],
)
@pytest.mark.parametrize("as_work", [False, True])
def test_a_metric_that_changes_a_model_is_refused_and_nothing_is_left_changed(score, error, says, as_work):
    dense, compressed = Noisy(torch.ones(40)), Noisy(torch.ones(40))
    before = everything(dense, compressed)
    draws = torch.get_rng_state()
    if as_work:
        made = AcceptanceSuite(metric(0.1), data=range(40), work=score, turns=1)
        says = says.replace("metric 'x'", "the work")
    else:
        made = AcceptanceSuite(Metric("x", score, 0.1), data=range(40), turns=0)
    with pytest.raises(error, match=re.escape(says) or None):
        run(made, dense, compressed)
    assert same(before, everything(dense, compressed)) and torch.equal(draws, torch.get_rng_state())


def test_a_metric_that_writes_into_parameters_is_told_to_load_the_model_again():
    def score(model, places):
        model.answers.mul_(2)
        return model(places)

    with pytest.raises(ValueError, match="wrote into the parameter answers; .* load the model again"):
        run(AcceptanceSuite(Metric("x", score, 0.1), data=range(40), turns=0), torch.ones(40), torch.ones(40))


def test_the_model_that_fails_is_named():
    made = suite(40)
    with pytest.raises(RuntimeError, match="metric 'accuracy' of the compressed model failed, IndexError") as found:
        run(made, torch.ones(40), torch.ones(20))
    assert isinstance(found.value.__cause__, IndexError)


def test_an_interrupt_at_any_line_leaves_the_models_as_they_were():
    state, draws = everything(Noisy(torch.ones(40))), torch.get_rng_state()
    made = suite(40, 0.2, limits={"file": 2.0}, slices={"a": lambda place: place < 30})
    for model in interrupts.every_line(lambda: Noisy(torch.ones(40)), lambda model: run(made, model, model), ROOMS):
        assert same(state, everything(model)) and torch.equal(draws, torch.get_rng_state())


def test_a_layer_of_trains_in_the_place_of_a_dense_one():
    """The decision follows the error that the rank leaves."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    with torch.no_grad():
        dense[0].weight.copy_(torch.outer(torch.linspace(-1, 1, 64), torch.linspace(0.5, 1, 64)))
        dense[0].weight.add_(1e-3 * torch.randn(64, 64))
    data = torch.randn(300, 64)
    with torch.no_grad():
        target = dense(data)

    def loss(model, examples):
        found = model(examples)
        return Scored((found - target).square().mean(-1), found)

    made = AcceptanceSuite(
        Metric("error", loss, 1e-3, greater_is_better=False, max_kl=0.01), data=data, limits={"memory": 0.5}, turns=1
    )
    verdicts = {}
    for name, layer in (("train", TTLinear.from_linear(dense[0], rank=2)), ("noise", nn.Linear(64, 64))):
        verdicts[name] = made.run(dense, nn.Sequential(layer, *dense[1:]), progress=False)
    assert verdicts["train"].accepted and verdicts["train"].costs["memory"]["ratio"] < 0.5
    assert not verdicts["noise"].accepted and len(verdicts["noise"].reasons) == 3  # score, divergence, memory


SCORES = torch.ones(40)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (torch.full((40,), math.nan), ValueError, "metric 'x' of the dense model has 40 scores that are NaN or Inf"),
        (torch.ones(39), ValueError, "gives 39 scores for 40 examples"),
        (0.9, ValueError, "one score for each of the 40 examples, got a single number"),
        (torch.ones(40, 2), ValueError, "one axis, (examples,), got shape (40, 2)"),
        (None, TypeError, "metric 'x' of the dense model must be a number"),
        ("0.9", TypeError, "must be a number"),
        (Scored(SCORES, torch.ones(39, 2)), ValueError, "logits for 39 of 40 examples"),
        (
            Scored(SCORES, torch.ones(40)),
            ValueError,
            "the logits of example 0 of metric 'x' of the dense model have shape",
        ),
        (Scored(SCORES, torch.ones(40, 1)), ValueError, "with two classes or more"),
        (Scored(SCORES, torch.full((40, 2), math.nan)), ValueError, "are NaN or infinite"),
        (Scored(SCORES, torch.ones(40, 2).long()), TypeError, "are torch.int64, not floating-point"),
        (Scored(SCORES, "logits"), TypeError, "must be a tensor, or a list"),
    ],
)
def test_what_a_metric_may_not_return(given, error, says):
    made = AcceptanceSuite(Metric("x", lambda model, data: given, 0.1), data=range(40), turns=0)
    with pytest.raises(error, match=re.escape(says)):
        run(made, SCORES, SCORES)


def test_the_two_models_must_answer_alike():
    def one_only(model, places):
        found = model(places)
        return Scored(found, torch.ones(40, 2)) if model.answers[0] else found

    with pytest.raises(ValueError, match="gives logits for one of the two models only"):
        run(AcceptanceSuite(Metric("x", one_only, 0.1), data=range(40), turns=0), SCORES, 0 * SCORES)
    with pytest.raises(ValueError, match=r"logits \(2,\) of example 0 for the dense model and \(3,\)"):
        run(AcceptanceSuite(with_logits({}), data=range(40), turns=0), torch.ones(40, 2), torch.ones(40, 3))
    with pytest.raises(ValueError, match="has max_kl=0.1 but gives no logits"):
        run(AcceptanceSuite(Metric("x", answers, 0.1, max_kl=0.1), data=range(40), turns=0), SCORES, SCORES)
    with pytest.raises(ValueError, match="of the dense model is 0 on 'all', and a share of that is 0"):
        run(suite(40, kind="relative"), 0 * SCORES, SCORES)
    with pytest.raises(TypeError, match="compressed must be an nn.Module, got function"):
        suite(40).run(ByHeart(SCORES), answers)


def test_without_scipy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ModuleNotFoundError, match="python -m pip install scipy"):
        run(suite(43), torch.ones(43), torch.cat([torch.zeros(3), torch.ones(40)]))


def rounds(model):
    model.half()
    model.double()


def writes_around_the_count(model):
    model.answers.data[0] += 1


@pytest.mark.parametrize("change", [rounds, writes_around_the_count])
def test_numbers_that_a_metric_changes_unseen_are_noticed(change):
    def score(model, places):
        change(model)
        return torch.ones(len(places))

    made = AcceptanceSuite(Metric("accuracy", score, 0.05), data=range(100), turns=0)
    with pytest.raises(ValueError, match="changed|wrote into"):
        run(made, torch.full((100,), 0.1), torch.full((100,), 0.1))


def test_a_report_names_the_models_it_speaks_of():
    scores = torch.ones(100)
    one, other = (
        run(suite(100), scores, after).models for after in (scores, scores.clone().index_fill_(0, torch.tensor(3), 0))
    )
    assert one["dense"] == one["compressed"] == other["dense"] != other["compressed"]
