"""Is a metric's change for the worse shown to be below its margin? Paired tests, on all examples and on slices."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...surgery.gates import binary
from ...surgery.paired import mcnemar, p_of_flips, p_of_flips_share, p_of_t, p_of_t_share
from .divergence import Divergence
from .metrics import Metric
from .slicing import WHOLE

EQUIVALENT, NO_WORSE, WORSE, NOT_SHOWN, TOO_FEW = "equivalent", "no worse", "worse", "not shown", "too few"
PASSED = {EQUIVALENT: True, NO_WORSE: True, WORSE: False, NOT_SHOWN: False, TOO_FEW: None}


class Level(NamedTuple):
    """Level of each test, and how many examples a t-test needs at least."""

    alpha: float
    fewest: int


class Sides(NamedTuple):
    """Scores of one metric on some examples: of the dense model, and of better minus worse ones.

    Attributes:
        dense: ``(examples,)``, float64.
        better, worse: The scores of which the first would be the larger if compression did harm.
        margin: As declared for these examples.
        relative: Whether it is a share of the size of the mean of ``dense``.
        exact: Whether all scores are 0 or 1.
    """

    dense: Tensor
    better: Tensor
    worse: Tensor
    margin: float
    relative: bool
    exact: bool

    def flips(self) -> tuple[int, int]:
        """Harmful and beneficial ones."""
        return int((self.better > self.worse).sum()), int((self.better < self.worse).sum())

    def lost(self) -> Tensor:
        """How much each example lost."""
        return self.better - self.worse

    def turned(self) -> Sides:
        """With harm and gain exchanged."""
        return self._replace(better=self.worse, worse=self.better)


def sides(metric: Metric, dense: Tensor, compressed: Tensor, margin: float) -> Sides:
    """The scores of a metric as the tests take them."""
    pair = (compressed, dense) if metric.greater_is_better is False else (dense, compressed)
    return Sides(dense, *pair, margin, metric.kind == "relative", binary(dense, compressed))


def p_of(scores: Sides) -> float:
    """The p against the hypothesis that the mean harm is the margin or more.

    Exact for scores 0 and 1, a paired t-test for others. A relative margin is uncertain as the mean is that it is a
    share of, and both tests count that in.
    """
    if scores.exact:
        flips, examples = scores.flips(), len(scores.dense)
        if scores.relative:
            return p_of_flips_share(*flips, examples, int(scores.dense.sum()), scores.margin)
        return p_of_flips(*flips, examples, scores.margin)
    if scores.relative:
        return p_of_t_share(scores.lost(), scores.dense, scores.margin)
    return p_of_t(scores.lost(), scores.margin)


def p_of_worse(scores: Sides) -> float:
    """The p against the hypothesis that the mean harm is the margin or less."""
    return p_of(scores.turned()._replace(margin=-scores.margin))


def too_few(scores: Sides, level: Level) -> bool:
    """True if not even the dense model in its own place would be accepted, or a t-test has too few differences."""
    if len(scores.dense) < 2 or (not scores.exact and len(scores.dense) < level.fewest):
        return True
    return p_of(scores._replace(better=scores.dense, worse=scores.dense)) >= level.alpha


def judged(
    metric: Metric, dense: Tensor, compressed: Tensor, name: str, places: Tensor, level: Level
) -> dict[str, Any]:
    """The row of a metric on all examples or on a slice, at these places, as :class:`AcceptanceReport` has it."""
    margin = metric.margin if name == WHOLE or metric.slice_margin is None else metric.slice_margin
    found = sides(metric, dense, compressed, margin)
    mean, after = dense.mean().item(), compressed.mean().item()
    if found.relative and mean == 0:
        raise ValueError(
            f"metric {metric.name!r} of the dense model is 0 on {name!r}, and a share of that is 0: give a margin in "
            'its units, with kind="absolute"'
        )
    few = too_few(found, level)
    p, p_gain = (p_of(found), p_of(found.turned())) if len(dense) > 1 else (None, None)
    flips = found.flips() if found.exact else (None, None)
    worst = int((dense - compressed).abs().argmax() if metric.greater_is_better is None else found.lost().argmax())
    return {
        "metric": metric.name,
        "slice": name,
        "examples": len(dense),
        "dense": mean,
        "compressed": after,
        "change": after - mean,
        "allowed": margin * abs(mean) if found.relative else margin,
        "p": p,
        "p_gain": p_gain,
        "harmful": flips[0],
        "beneficial": flips[1],
        "mcnemar": mcnemar(*flips) if found.exact else None,
        "worst_example": int(places[worst]),
        "worst_change": (compressed[worst] - dense[worst]).item(),
        "status": _status(metric, found, few, p, p_gain, level.alpha),
    }


def _status(metric: Metric, found: Sides, few: bool, p: float | None, p_gain: float | None, alpha: float) -> str:
    both = metric.greater_is_better is None
    looked = (found, found.turned()) if both else (found,)
    if p is None or p_gain is None:
        return TOO_FEW
    if any(p_of_worse(one) < alpha / len(looked) for one in looked):
        return WORSE
    if few:
        return TOO_FEW
    if p < alpha and p_gain < alpha:
        return EQUIVALENT
    return NO_WORSE if p < alpha and not both else NOT_SHOWN


def diverged(found: Divergence | None, limit: float | None, level: Level) -> dict[str, Any]:
    """Of a row: the divergence of the answers, and whether it is shown to be below its limit; None if not known."""
    row = dict.fromkeys(("kl", "kl_largest", "answers_changed", "max_kl", "kl_p", "kl_status"))
    if found is None:
        return row
    row |= {"kl": found.kl.mean().item(), "kl_largest": found.kl.max().item()}
    row |= {"answers_changed": found.changed.mean().item(), "max_kl": limit}
    if limit is None:
        return row
    if len(found.kl) < max(2, level.fewest):
        return row | {"kl_status": TOO_FEW}
    p = p_of_t(found.kl, limit)
    return row | {"kl_p": p, "kl_status": NO_WORSE if p < level.alpha else NOT_SHOWN}
