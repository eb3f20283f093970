"""A shadow model: false alarms over all looks stay below alpha, a real loss is found, and nothing is half done."""

import math
from dataclasses import replace

import pytest
import torch
from acceptance_models import ByHeart, flipped, metric
from scipy import stats
from strategies import gaussian
from torch import nn

from ttref.release.accepting import Metric
from ttref.release.drift import Shadow
from ttref.surgery.paired import p_of_flips

LOOKS, EACH, RUNS = 200, 10, 12


def false_alarms(runs):
    """More runs than so many give a false alarm with a chance of 1 in 1,000 where each does with 5 %."""
    return stats.binom.ppf(0.999, runs, 0.05)


def watched(dense, compressed, one, looks=LOOKS, each=EACH, **how):
    """A shadow after so many looks at the next examples, or after its first alarm."""
    shadow = Shadow(ByHeart(dense), ByHeart(compressed), one, looks=looks, **how)
    for k in range(min(looks, len(dense) // each)):
        if shadow.observe(range(k * each, (k + 1) * each)).alarm:
            break
    return shadow


def flips(draw, lost, gained=0.03, right=0.7, count=LOOKS * EACH):
    """Scores 0 and 1 of which the compressed model loses and gains these shares of all."""
    luck, dense = torch.rand(count, 2, generator=draw, dtype=torch.float64).unbind(1)
    dense = (dense < right).double()
    flip = luck < torch.where(dense == 1, lost / right, gained / (1 - right))
    return dense, torch.where(flip, 1 - dense, dense)


@pytest.mark.parametrize("window", [60, 300])
def test_false_alarms_over_200_looks_at_flips(window):
    """The margin is lost exactly. Without the correction nearly every run would give a false alarm."""
    draw, alarms, uncorrected = torch.Generator().manual_seed(0), 0, 0
    for _ in range(RUNS):
        dense, compressed = flips(draw, 0.13)
        shadow = watched(dense, compressed, metric(0.1), window=window)
        alarms += shadow.alarm
        uncorrected += any(look.p is not None and look.p < 0.05 for look in shadow.history)
    assert alarms <= false_alarms(RUNS)
    assert uncorrected > RUNS / 2


@pytest.mark.parametrize("how", [{}, {"greater_is_better": None}, {"kind": "relative", "greater_is_better": False}])
def test_false_alarms_over_200_looks_at_other_scores(how):
    draw, alarms, uncorrected = torch.Generator().manual_seed(1), 0, 0
    one = metric(0.1, **how)
    margin = 0.2 if one.kind == "relative" else 0.1
    sign = 1 if one.greater_is_better is False else -1
    for _ in range(RUNS):
        dense, noise = torch.randn(2, LOOKS * EACH, generator=draw, dtype=torch.float64)
        dense = 2 + dense
        shadow = watched(dense, dense + sign * margin + 0.3 * noise, one, window=150)
        alarms += shadow.alarm
        uncorrected += any(look.p is not None and look.p < 0.05 for look in shadow.history)
    assert alarms <= false_alarms(RUNS)
    assert uncorrected > RUNS / 2


def test_a_sudden_loss_is_found_soon_in_a_window_and_late_in_all_so_far():
    """After 100 looks without a loss, 30 of 100 examples are lost where ten may be."""
    draw = torch.Generator().manual_seed(2)
    for _ in range(2):
        parts = [flips(draw, lost, count=100 * EACH) for lost in (0.03, 0.3)]
        dense, compressed = (torch.cat(side) for side in zip(*parts, strict=True))
        windowed = watched(dense, compressed, metric(0.1), window=120)
        whole = watched(dense, compressed, metric(0.1))
        assert 100 < len(windowed.history) < 130
        assert windowed.alarm and len(whole.history) > len(windowed.history)


def test_a_small_loss_beyond_the_margin_is_found_in_all_so_far():
    draw = torch.Generator().manual_seed(3)
    for _ in range(2):
        shadow = watched(*flips(draw, 0.23), metric(0.1))
        assert shadow.alarm and len(shadow.history) < LOOKS


@pytest.mark.parametrize("greater", [True, False])
def test_a_look_is_the_test_of_the_acceptance_suite(greater):
    """By the gate with the two sides exchanged, and by scipy."""
    dense, compressed = flipped(80, 40, 2)
    pair = (dense, compressed) if greater else (compressed, dense)
    (look,) = watched(*pair, metric(0.1, greater_is_better=greater), each=80).history
    assert look.p == p_of_flips(2, 40, 80, -0.1) and look.alarm
    assert look.harm == pytest.approx(38 / 80) and look.allowed == 0.1
    dense = gaussian((50,), 0)
    compressed = dense - 0.3 + 0.5 * gaussian((50,), 1)
    (look,) = watched(dense, compressed, metric(0.1), each=50).history
    expected = stats.ttest_1samp((dense - compressed).numpy(), 0.1, alternative="greater").pvalue
    assert look.p == pytest.approx(expected, rel=1e-9) and look.alarm is bool(expected < 0.05 / LOOKS)


def test_the_window_holds_the_latest_examples_and_few_take_no_look():
    dense, compressed = gaussian((70,), 0), gaussian((70,), 1)
    shadow = Shadow(ByHeart(dense), ByHeart(compressed), metric(), looks=5, window=30)
    first = shadow.observe(range(10))
    assert first.p is None and not first.alarm and shadow.left == 5 and first.examples == 10
    last = [shadow.observe(range(k, k + 20)) for k in (10, 30, 50)][-1]
    assert last.examples == 30 and shadow.left == 2
    assert last.dense == pytest.approx(dense[40:70].mean().item())
    assert last.compressed == pytest.approx(compressed[40:70].mean().item())
    assert [look.examples for look in shadow.history] == [10, 30, 30, 30]


def test_the_alarm_stays_and_the_level_is_divided_among_the_looks():
    dense = torch.ones(400, dtype=torch.float64)
    shadow = watched(dense, dense * 0, metric(0.1), looks=4, each=50, alpha=0.02)
    assert shadow.alarm and shadow.level == 0.005
    shadow = Shadow(ByHeart(dense), ByHeart(torch.cat((dense[:50] * 0, dense[50:]))), metric(0.1), looks=3, window=50)
    assert [shadow.observe(range(k, k + 50)).alarm for k in (0, 50, 100)] == [True, False, False]
    assert shadow.alarm and shadow.left == 0
    with pytest.raises(ValueError, match="all looks are taken, and with them alpha is spent; make a new Shadow"):
        shadow.observe(range(10))


def test_so_many_looks_that_no_flips_could_give_an_alarm_are_refused():
    dense = torch.ones(40, dtype=torch.float64)
    many = Shadow(ByHeart(dense), ByHeart(dense * 0), metric(), looks=1000)
    with pytest.raises(ValueError, match="gives no p below 1.0e-04, whatever is lost: take fewer looks"):
        many.observe(range(40))
    assert many.history == [] and many.left == 1000
    other = Shadow(ByHeart(gaussian((40,), 0)), ByHeart(gaussian((40,), 0) - 1 + 0.1 * gaussian((40,), 2)), metric())
    assert other.observe(range(40)).alarm


def test_models_are_left_as_they_were_and_an_error_adds_nothing():
    dense, compressed = (ByHeart(gaussian((60,), k)).train() for k in (0, 1))

    def score(model, places):
        if 59 in places:
            raise KeyError("no such place")
        return model(places)

    shadow = Shadow(dense, compressed, Metric("score", score, 0.1))
    before = torch.get_rng_state()
    shadow.observe(range(30))
    assert torch.equal(torch.get_rng_state(), before) and dense.training and compressed.training
    with pytest.raises(RuntimeError, match="metric 'score' of the dense model"):
        shadow.observe(range(30, 60))
    assert len(shadow.history) == 1 and shadow.observe(range(30)).examples == 60


def test_wrong_settings_are_named():
    model, one = nn.Linear(2, 2), metric()
    for bad, message in (
        ({"alpha": 0.7}, "alpha must lie between 0 and 0.5"),
        ({"looks": 0}, "looks"),
        ({"window": 5}, "a window of 5 examples never holds the 20 that a test needs"),
        ({"fewest": 1}, "fewest"),
    ):
        with pytest.raises(ValueError, match=message):
            Shadow(model, model, one, **bad)
    with pytest.raises(TypeError, match="compressed must be an nn.Module, got str"):
        Shadow(model, "model", one)
    with pytest.raises(TypeError, match="metric must be a Metric"):
        Shadow(model, model, len)
    shadow = Shadow(model, model, one)
    with pytest.raises(ValueError, match="no examples to observe"):
        shadow.observe([])
    with pytest.raises(TypeError, match="examples must have a length"):
        shadow.observe(iter([1]))
    nan = replace(one, score=lambda model, places: [math.nan] * len(places))
    with pytest.raises(ValueError, match="dense model"):
        Shadow(model, model, nan).observe([0] * 30)
