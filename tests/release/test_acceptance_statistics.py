"""Tests of margins against scipy, by counting and by drawing: a model that is worse by the margin is not accepted."""

import math

import numpy as np
import pytest
import torch
from acceptance_models import ByHeart, flipped, metric, suite
from scipy import stats
from strategies import gaussian

from ttref.release.accepting.costs import _above
from ttref.release.accepting.divergence import divergence
from ttref.release.accepting.judging import Level, judged, p_of_worse, sides, too_few
from ttref.surgery import equivalence_gate
from ttref.surgery.paired import p_of_flips, p_of_flips_share, share_bounds

LEVEL = Level(0.05, 20)


def row_of(one, dense, compressed, level=LEVEL):
    return judged(one, dense, compressed, "all", torch.arange(len(dense)), level)


def most(rounds):
    """At a level of 5 %, more than so many of the rounds are false with a chance of 1 in 1,000."""
    return stats.binom.ppf(0.999, rounds, 0.05)


@pytest.mark.parametrize(("shift", "margin"), [(0.0, 0.2), (0.15, 0.2), (0.4, 0.2), (-0.1, 0.3)])
@pytest.mark.parametrize("greater", [True, False, None])
def test_both_halves_are_those_of_scipy(shift, margin, greater):
    dense = gaussian((40,), 0)
    compressed = dense - shift - 0.3 * gaussian((40,), 1)
    row = row_of(metric(margin, greater_is_better=greater), dense, compressed)
    harm = (compressed - dense if greater is False else dense - compressed).numpy()
    p = stats.ttest_1samp(harm, margin, alternative="less").pvalue
    p_gain = stats.ttest_1samp(harm, -margin, alternative="greater").pvalue
    worse = stats.ttest_1samp(harm, margin, alternative="greater").pvalue
    assert row["p"] == pytest.approx(p, rel=1e-9) and row["p_gain"] == pytest.approx(p_gain, rel=1e-9)
    assert (row["status"] in ("equivalent", "no worse")) is bool(p < 0.05 and (greater is not None or p_gain < 0.05))
    assert (row["status"] == "equivalent") is bool(max(p, p_gain) < 0.05)
    if greater is not None:
        assert (row["status"] == "worse") is bool(worse < 0.05)
    assert row["harmful"] is None and row["mcnemar"] is None


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.1])
def test_a_relative_margin_is_tested_as_scipy_tests_two_dependent_means(shift):
    """Loss 5 % larger or more: that the mean of 1.05 times the one minus the other is 0 or less."""
    dense = 2 + gaussian((60,), 0).abs()
    compressed = dense * (1 + shift) + 0.01 * gaussian((60,), 1)
    row = row_of(metric(0.05, kind="relative", greater_is_better=False), dense, compressed)
    below = stats.ttest_rel(compressed.numpy(), 1.05 * dense.numpy(), alternative="less").pvalue
    above = stats.ttest_rel(compressed.numpy(), 0.95 * dense.numpy(), alternative="greater").pvalue
    assert row["p"] == pytest.approx(below, rel=1e-7) and row["p_gain"] == pytest.approx(above, rel=1e-7)
    assert row["allowed"] == pytest.approx(0.05 * dense.mean().item())
    turned = row_of(metric(0.05, kind="relative"), -dense, -compressed)  # scores below 0, the greater the better
    assert turned["p"] == pytest.approx(below, rel=1e-7) and turned["status"] == row["status"]


@pytest.mark.parametrize("greater", [True, False])
def test_flips_are_tested_as_by_the_equivalence_gate(greater):
    dense, compressed = flipped(200, 9, 3)
    row = row_of(metric(0.08, greater_is_better=greater), dense, compressed)
    pair = (dense, compressed) if greater else (compressed, dense)
    gate = equivalence_gate(*pair, max_drop=0.08)
    assert (row["p"], row["p_gain"], row["mcnemar"]) == (gate.p, gate.p_gain, gate.mcnemar)
    assert (row["harmful"], row["beneficial"]) == ((9, 3) if greater else (3, 9))
    assert row["mcnemar"] == pytest.approx(stats.binomtest(9, 12).pvalue)
    assert row["change"] == pytest.approx(-0.03)


@pytest.mark.parametrize(("count", "examples"), [(0, 30), (30, 30), (7, 30), (1, 500)])
def test_bounds_of_a_share_are_those_of_clopper_and_pearson(count, examples):
    expected = stats.binomtest(count, examples).proportion_ci(0.9, method="exact")
    assert share_bounds(count, examples, 0.1) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_a_relative_p_of_flips_is_that_of_the_smallest_margin_that_is_likely():
    low = stats.beta.ppf(1e-3, 150, 51)
    assert p_of_flips_share(4, 2, 200, 150, 0.1) == pytest.approx(p_of_flips(4, 2, 200, 0.1 * low) + 1e-3, rel=1e-6)
    assert p_of_flips_share(0, 0, 200, 0, 0.1) == 1.0


@pytest.mark.parametrize(("relative", "greater"), [(False, True), (True, True), (True, False)])
def test_false_accepts_of_flips_at_the_margin_by_drawing(relative, greater):
    """Exactly the margin is lost; the dense model is right on 60 % (or wrong, where less is better)."""
    base, share, gained, examples, rounds = 0.6, 0.1, 0.03, 120, 400
    margin = share * base if relative else share
    lost = margin + gained
    one = metric(share, kind="relative" if relative else "absolute", greater_is_better=greater)
    draw, accepted = torch.Generator().manual_seed(0), 0
    for _ in range(rounds):
        luck, dense = torch.rand(examples, 2, generator=draw, dtype=torch.float64).unbind(1)
        dense = (dense < base).double()
        from_one, from_zero = (lost, gained) if greater else (gained, lost)
        flip = luck < torch.where(dense == 1, from_one / base, from_zero / (1 - base))
        row = row_of(one, dense, torch.where(flip, 1 - dense, dense))
        accepted += row["status"] in ("equivalent", "no worse")
    assert accepted <= most(rounds)


@pytest.mark.parametrize("how", [{}, {"kind": "relative"}, {"kind": "relative", "greater_is_better": False}])
def test_false_accepts_of_other_scores_at_the_margin_by_drawing(how):
    """Where all change nearly alike, a relative margin is as uncertain as the mean; if it were not, 28 % would pass."""
    draw, rounds, accepted, alarms, margin = torch.Generator().manual_seed(1), 600, 0, 0, 0.05
    loss = margin * 2 if "kind" in how else margin
    for _ in range(rounds):
        dense, noise = torch.randn(2, 60, generator=draw, dtype=torch.float64)
        dense = 2 + dense
        sign = 1 if how.get("greater_is_better") is False else -1
        status = row_of(metric(margin, **how), dense, dense + sign * loss + 0.02 * noise)["status"]
        accepted += status in ("equivalent", "no worse")
        alarms += status == "worse"
    least = stats.binom.ppf(0.001, rounds, 0.05)  # nothing is given away
    assert least <= accepted <= most(rounds) and least <= alarms <= most(rounds)


def test_false_alarms_at_the_margin_by_drawing():
    """What loses just what is allowed is hardly ever called worse."""
    draw = np.random.default_rng(0)
    for relative in (False, True):
        margin, alarms = 0.1, 0
        lost = margin * (0.7 if relative else 1)
        for harmful, beneficial, _ in draw.multinomial(150, [lost + 0.05, 0.05, 0.9 - lost], 300):
            pair = flipped(150, harmful, beneficial)
            found = sides(metric(margin, kind="relative" if relative else "absolute"), *pair, margin)
            alarms += p_of_worse(found) < 0.05
        assert alarms <= most(300)


@pytest.mark.parametrize(("examples", "margin"), [(20, 0.15), (8, 0.2)])
def test_never_more_than_alpha_is_called_worse_at_the_margin_or_below(examples, margin):
    """The exact chance, at every share of flips."""
    worse = [
        (b, c, examples - b - c)
        for c in range(examples + 1)
        for b in range(c, examples + 1 - c)
        if p_of_flips(c, b, examples, -margin) < 0.05
    ]
    assert (examples, 0, 0) in worse and (int(margin * examples), 0, examples - int(margin * examples)) not in worse
    chances = [
        stats.multinomial.pmf(np.array(worse), examples, [share + lost, share, 1 - 2 * share - lost])
        for lost in (margin, margin / 2, 0)
        for share in np.linspace(0, (1 - margin) / 2, 40)
    ]
    assert 0.02 < max(each.sum() for each in chances) <= 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda draw, n: torch.where(torch.rand(n, generator=draw) < 0.07, 0.0, 1.0),  # of all examples right, 7 % lost
        lambda draw, n: 0.93 + 0.2 * torch.randn(n, generator=draw),
    ],
    ids=["flips", "other scores"],
)
def test_twenty_resamplings_with_a_model_that_is_worse_than_the_margin(make):
    """Seven points worse where five are allowed: at most one of twenty suites of 150 examples accepts it."""
    draw = torch.Generator().manual_seed(0)
    worse = make(draw, 3000)
    dense, compressed = ByHeart(torch.ones(3000)), ByHeart(worse)
    assert worse.mean() < 0.94
    accepted = 0
    for _ in range(20):
        places = torch.randint(3000, (150,), generator=draw).tolist()
        accepted += suite(0, data=places).run(dense, compressed, progress=False).accepted
    assert accepted <= 1


@pytest.mark.parametrize("slices", [None, {"one half": lambda place: place % 2 == 0}])
def test_an_equal_model_is_accepted_nearly_always(slices):
    """Two of a hundred examples flip, one each way, and five points are allowed."""
    draw = torch.Generator().manual_seed(3)
    before = (torch.rand(4000, generator=draw) < 0.8).double()
    flip = torch.rand(4000, generator=draw)
    after = torch.where(flip < 0.01, 0, torch.where(flip > 0.99, 1, before))
    accepted = 0
    for _ in range(20):
        places = torch.randint(4000, (500,), generator=draw).tolist()
        made = suite(0, data=places, slices=slices, slice_margin=0.1)
        accepted += made.run(ByHeart(before), ByHeart(after), progress=False).accepted
    assert accepted >= 19


def test_too_few_is_where_the_dense_model_itself_would_not_be_accepted():
    for margin in (0.02, 0.05, 0.2):
        least = math.ceil(math.log(0.05 - 1e-4) / math.log1p(-margin))
        for count, few in ((least - 1, True), (least, False)):
            scores = torch.ones(count, dtype=torch.float64)
            assert too_few(sides(metric(margin), scores, scores, margin), LEVEL) is few
            assert row_of(metric(margin), scores, scores)["status"] == ("too few" if few else "equivalent")
    other = gaussian((20,), 0)
    assert row_of(metric(), other, other)["status"] == "equivalent"
    assert row_of(metric(), other[1:], other[1:])["status"] == "too few"
    assert row_of(metric(), other[:1], other[:1])["status"] == "too few"
    near_zero = row_of(metric(0.05, kind="relative"), other, other)  # its mean might be 0, and so the margin
    assert near_zero["status"] == "too few"


def test_a_gain_is_no_harm_unless_no_direction_is_better():
    dense, better = flipped(300, 0, 60)
    assert row_of(metric(0.05), dense, better)["status"] == "no worse"
    assert row_of(metric(0.05, greater_is_better=None), dense, better)["status"] == "worse"
    assert row_of(metric(0.05, greater_is_better=False), dense, better)["status"] == "worse"
    assert row_of(metric(0.05, greater_is_better=None), dense, dense)["status"] == "equivalent"


def test_more_harm_is_never_accepted_before_less():
    found = [row_of(metric(0.05), *flipped(200, harmful, 2))["p"] for harmful in range(16)]
    assert found == sorted(found) and found[0] < 0.05 < found[-1]


def test_the_worst_example_is_named():
    dense = torch.zeros(30, dtype=torch.float64)
    compressed = dense.clone()
    compressed[7], compressed[9] = -3.0, 4.0
    worst = [row_of(metric(greater_is_better=greater), dense, compressed) for greater in (True, False)]
    assert [(row["worst_example"], row["worst_change"]) for row in worst] == [(7, -3.0), (9, 4.0)]
    assert row_of(metric(greater_is_better=None), dense, compressed)["worst_example"] == 9


def test_divergence_is_that_of_scipy():
    one, two = (gaussian((6, 5), seed).float() for seed in (0, 1))
    chances = [np.exp(side.double().log_softmax(-1).numpy()) for side in (one, two)]
    found = divergence(one, two, "metric 'x'")
    assert found.kl.numpy() == pytest.approx(stats.entropy(*chances, axis=1), rel=1e-9)
    assert found.changed.tolist() == (one.argmax(-1) != two.argmax(-1)).double().tolist()
    shifted = divergence(one.log_softmax(-1), one + 3, "metric 'x'")  # logits and log-probabilities are the same
    assert shifted.kl.max() < 1e-6 and not shifted.changed.any()


def test_divergence_of_several_answers_is_their_mean_and_masked_classes_do_not_count():
    one, two = gaussian((4, 3), 0), gaussian((4, 3), 1)
    each = divergence(one, two, "")
    [kl] = divergence([one], [two], "").kl
    assert kl.item() == pytest.approx(each.kl.mean().item())
    masked = [torch.cat([side, torch.full((4, 1), -math.inf)], 1) for side in (one, two)]
    assert divergence(*masked, "").kl == pytest.approx(each.kl)
    with pytest.raises(ValueError, match="gives a class of example 0 no chance at all"):
        divergence(torch.cat([one, one[:, :1]], 1), masked[1], "metric 'x'")


@pytest.mark.parametrize("turns", range(12))
def test_a_bound_of_the_median_holds_by_the_order_of_the_ratios(turns):
    """So many or more ratios lie below the median with a chance of at most alpha, and one fewer with a larger one."""
    place = _above(turns, 0.05)
    chances = [stats.binom.sf(k - 1, turns, 0.5) for k in range(turns + 1)]
    if place is None:
        assert turns < 5
    else:
        assert chances[place] <= 0.05 < chances[place - 1]
