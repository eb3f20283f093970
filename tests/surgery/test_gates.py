"""Gates against scipy, against counting every outcome, and by drawing: at the margin, at most alpha is accepted."""

import math
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from strategies import gaussian

from ttref.surgery import drop_gate, equivalence_gate, false_accepts
from ttref.surgery.paired import fewest_examples, mcnemar, p_of_flips


def flipped(examples, harmful, beneficial):
    """Scores before and after with so many flips, and both kinds of examples among the others."""
    before = torch.ones(examples)
    before[harmful : harmful + beneficial + (examples - harmful - beneficial) // 3] = 0
    after = before.clone()
    after[:harmful], after[harmful : harmful + beneficial] = 0, 1
    return before, after


@pytest.mark.parametrize(
    ("before", "after", "how", "accepted"),
    [
        (0.9, 0.85, {}, True),  # 0.9 - 0.85 exceeds 0.05 by rounding
        (0.9, 0.849, {}, False),
        (0.9, 1.2, {"max_drop": 0}, True),
        (0.9, 0.9, {"max_drop": 0}, True),
        (0.9, 0.8999, {"max_drop": 0}, False),
        (0.5, 0.475, {"drop_type": "relative"}, True),
        (0.5, 0.47, {"drop_type": "relative"}, False),
        (-2.0, -2.1, {"drop_type": "relative"}, True),  # a loss, with its sign changed
        (-2.0, -2.2, {"drop_type": "relative"}, False),
        ([1, 0, 1, 1], [1, 1, 0, 1], {"max_drop": 0}, True),
        (torch.tensor([True, True]), np.array([1.0, 0.0]), {}, False),
    ],
)
def test_the_drop_gate(before, after, how, accepted):
    verdict = drop_gate(before, after, **how)
    assert verdict.accepted is accepted
    assert verdict.drop == pytest.approx(verdict.before - verdict.after) and verdict.p is None
    assert verdict.why.startswith(f"drop {verdict.drop:.3g} {'<=' if accepted else '>'}")


def test_the_drop_gate_counts_flips_of_scores():
    assert drop_gate(*flipped(40, 5, 2))[5:7] == (5, 2)
    assert drop_gate([0.5, 1], [1, 1])[5:7] == (None, None)


@pytest.mark.parametrize(("shift", "margin"), [(0.0, 0.2), (0.15, 0.2), (0.4, 0.2), (-0.1, 0.3)])
def test_other_scores_are_tested_as_scipy_does(shift, margin):
    before = gaussian((40,), 0)
    after = before - shift - 0.3 * gaussian((40,), 1)
    verdict = equivalence_gate(before, after, max_drop=margin)
    lost = (before - after).numpy()
    below = stats.ttest_1samp(lost, margin, alternative="less").pvalue
    above = stats.ttest_1samp(lost, -margin, alternative="greater").pvalue
    assert verdict.p == pytest.approx(below, rel=1e-9) and verdict.p_gain == pytest.approx(above, rel=1e-9)
    assert verdict.accepted is bool(below < 0.05) and verdict.harmful is None and verdict.mcnemar is None
    bound = stats.t.ppf(0.95, 39) * lost.std(ddof=1) / math.sqrt(40) + lost.mean()
    assert verdict.accepted is bool(bound < margin)  # the same, as a confidence bound


@pytest.mark.parametrize("counts", [(0, 0), (8, 2), (2, 8), (1, 0), (30, 31), (100, 60)])
def test_mcnemar_is_a_binomial_test(counts):
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-9)


def statistic(harmful, beneficial, examples, margin):
    size = examples + 2
    lost = (harmful - beneficial) / size
    return (lost - margin) / math.sqrt(((harmful + beneficial + 2) / size - lost**2) / size)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (1, 3), (3, 1), (0, 5), (2, 2), (9, 3), (0, 12)])
def test_p_of_flips_counts_every_outcome(counts):
    """Every outcome that is no worse than this one, at each share of beneficial flips; 1e-4 is added for the others."""
    examples, margin = 12, 0.15
    found = [
        (b, c)
        for b in range(examples + 1)
        for c in range(examples + 1 - b)
        if statistic(b, c, examples, margin) <= statistic(*counts, examples, margin) + 1e-9
    ]
    harmful, beneficial = np.array(found).T
    kept = counts[1], examples - counts[1]
    low = stats.beta.ppf(5e-5, kept[0], kept[1] + 1) if kept[0] else 0.0
    high = stats.beta.ppf(1 - 5e-5, kept[0] + 1, kept[1]) if kept[1] else 1.0
    worst = 0.0
    for share in np.linspace(min(low, 0.425), min(high, 0.425), 300):
        rest = np.stack([harmful, beneficial, examples - harmful - beneficial], 1)
        chances = stats.multinomial.pmf(rest, examples, [share + margin, share, max(1 - 2 * share - margin, 0)])
        worst = max(worst, chances.sum())
    assert p_of_flips(*counts, examples, margin) == pytest.approx(min(1.0, worst + 1e-4), rel=2e-3)


@pytest.mark.parametrize(("examples", "margin", "largest"), [(20, 0.15, 0.045), (40, 0.1, 0.045)])
def test_never_more_than_alpha_is_accepted_at_the_margin_or_beyond(examples, margin, largest):
    """The exact chance, at every share of flips; and it comes close to alpha, so nothing is given away."""
    accepted = [
        (b, c, examples - b - c)
        for c in range(examples // 5 * 3)
        for b in range(c + int(margin * examples) + 1)
        if b + c <= examples and p_of_flips(b, c, examples, margin) < 0.05
    ]
    chances = [
        stats.multinomial.pmf(
            np.array(accepted), examples, [share + margin + more, share, 1 - 2 * share - margin - more]
        )
        for more in (0, 0.02, 0.1)
        for share in np.linspace(0, 0.25, 40)
    ]
    sizes = [each.sum() for each in chances]
    assert largest < max(sizes) <= 0.05
    assert max(sizes[:40]) == max(sizes)  # beyond the margin it is less


@pytest.mark.parametrize(("share", "margin", "examples"), [(0.0, 0.05, 130), (0.08, 0.05, 130), (0.2, 0.1, 60)])
def test_false_accepts_at_the_margin_by_drawing(share, margin, examples):
    chances, rounds = [share + margin, share, 1 - 2 * share - margin], 400
    drawn = Counter(map(tuple, np.random.default_rng(0).multinomial(examples, chances, rounds).tolist()))
    accepted = lucky = 0
    for (harmful, beneficial, _), times in drawn.items():
        pair = flipped(examples, harmful, beneficial)
        accepted += times * equivalence_gate(*pair, max_drop=margin).accepted
        lucky += times * drop_gate(*pair, max_drop=margin).accepted
    assert accepted <= stats.binom.ppf(0.999, rounds, 0.05)
    assert lucky > rounds / 3  # a drop gate accepts every second one


def test_false_accepts_of_gaussian_scores_by_drawing():
    draw = torch.Generator().manual_seed(0)
    before = torch.zeros(12, dtype=torch.float64)
    lost = 0.3 + torch.randn(600, 12, generator=draw, dtype=torch.float64)
    accepted = sum(equivalence_gate(before, -one, max_drop=0.3).accepted for one in lost)
    assert stats.binom.ppf(0.001, 600, 0.05) <= accepted <= stats.binom.ppf(0.999, 600, 0.05)


def test_false_accepts_of_gaussian_scores_at_a_relative_margin():
    draw = torch.Generator().manual_seed(0)
    accepted = 0
    for _ in range(600):
        before = 1 + 0.5 * torch.randn(30, generator=draw, dtype=torch.float64)
        lost = 0.1 + 0.005 * torch.randn(30, generator=draw, dtype=torch.float64)  # a tenth of the true mean, steadily
        accepted += equivalence_gate(before, before - lost, max_drop=0.1, drop_type="relative").accepted
    # A margin that is taken from the mean found, as if it were known, accepts every second one.
    assert stats.binom.ppf(0.001, 600, 0.05) <= accepted <= stats.binom.ppf(0.999, 600, 0.05)


def test_a_clearly_harmless_change_is_accepted():
    assert equivalence_gate(*flipped(400, 4, 4)).accepted
    assert equivalence_gate(*flipped(400, 0, 60)).accepted  # a gain is no harm, but no equivalence either
    assert equivalence_gate(*flipped(400, 0, 60)).p_gain > 0.5
    assert not equivalence_gate(*flipped(400, 16, 2)).accepted and drop_gate(*flipped(400, 16, 2)).accepted


def test_the_other_half_is_the_same_test_turned_round():
    one, two = equivalence_gate(*flipped(90, 7, 3)), equivalence_gate(*flipped(90, 7, 3)[::-1])
    assert (one.p, one.p_gain) == (two.p_gain, two.p) and one.mcnemar == two.mcnemar


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.2])
def test_the_fewest_examples_are_those_that_no_flip_suffices_for(margin):
    least = fewest_examples(margin, 0.05)
    assert p_of_flips(0, 0, least, margin) < 0.05 <= p_of_flips(0, 0, least - 1, margin)


def test_more_harm_is_never_better():
    found = [p_of_flips(harmful, 4, 100, 0.05) for harmful in range(12)]
    assert found == sorted(found) and found[0] < 0.05 < found[-1]


def test_unchanged_scores_of_other_kinds():
    scores = gaussian((5,), 0)
    assert equivalence_gate(scores, scores).p == 0.0
    assert equivalence_gate(scores, scores - 0.25, max_drop=0.125).p == 1.0  # each example lost as much


def test_relative_margins_are_shares_of_the_mean_before():
    before, after = flipped(200, 6, 2)
    relative = equivalence_gate(before, after, max_drop=0.1, drop_type="relative")
    assert relative.allowed == pytest.approx(0.1 * before.mean().item())
    assert relative == equivalence_gate(before, after, max_drop=relative.allowed)


def test_on_new_validation_sets_the_rule_of_five_points_accepts_what_the_test_does_not():
    before, after = flipped(1000, 90, 30)
    found = false_accepts(before, after, size=150, resamplings=30)
    assert found.true_drop == pytest.approx(0.06) and found.max_drop == 0.05
    assert found.drop > 8 and found.equivalence <= 4
    assert found == false_accepts(before, after, size=150, resamplings=30)
    assert found != false_accepts(before, after, size=150, resamplings=30, seed=1)
    harmless = false_accepts(*flipped(1000, 5, 5), size=150, resamplings=20)
    assert harmless.drop == 20 and harmless.equivalence > 15


GATES = {"drop": drop_gate, "equivalence": equivalence_gate}
SCORES = torch.ones(10)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"after": None}, TypeError, "the metric must be a number, or one score for each example, got None"),
        ({"after": "0.9"}, TypeError, "got '0.9'"),
        ({"after": [1, "a"]}, TypeError, "the metric must be a number"),
        ({"after": torch.ones(10, dtype=torch.complex64)}, TypeError, "must be real, got torch.complex64"),
        ({"after": torch.ones(2, 5)}, ValueError, "one axis, (examples,), got shape (2, 5)"),
        ({"after": []}, ValueError, "got shape (0,)"),
        ({"after": math.nan}, ValueError, "the metric is nan, which is no finite number"),
        ({"after": [1.0] * 9 + [math.inf]}, ValueError, "1 scores that are NaN or Inf, the first that of example 9"),
        ({"max_drop": -0.1}, ValueError, "max_drop must be a finite number"),
        ({"max_drop": math.inf}, ValueError, "max_drop must be a finite number"),
        ({"max_drop": True}, TypeError, "max_drop must be a number"),
        ({"max_drop": 5, "drop_type": "relative"}, ValueError, "lies below 1 (0.05 is 5 %), got 5"),
        ({"drop_type": "percent"}, ValueError, 'drop_type must be "absolute" or "relative"'),
        ({"before": torch.zeros(10), "drop_type": "relative"}, ValueError, "a share of a metric of 0 is 0"),
    ],
)
def test_what_no_gate_takes(gate, wrong, error, says):
    with pytest.raises(error, match=re.escape(says)):
        GATES[gate](**{"before": SCORES, "after": SCORES, **wrong})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"after": 0.9}, "needs the scores of single examples"),
        ({"after": torch.ones(9)}, "there were 10 scores before and are 9 now"),
        ({"before": [0.5], "after": [0.5]}, "a test needs 2 scores or more, got 1"),
        ({"max_drop": 0}, "no test can show that nothing at all was lost"),
        ({"alpha": 0}, "alpha must lie between 0 and 0.5"),
        ({"alpha": 0.5}, "alpha must lie between 0 and 0.5"),
    ],
)
def test_what_the_equivalence_gate_does_not_take(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        equivalence_gate(**{"before": SCORES, "after": SCORES, **wrong})


def test_without_scipy_the_drop_gate_works_and_the_other_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert drop_gate(*flipped(101, 1, 1)).accepted
    with pytest.raises(ModuleNotFoundError, match="python -m pip install scipy"):
        equivalence_gate(*flipped(101, 1, 1))  # asked for by no other test, so it is not remembered
