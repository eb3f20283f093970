"""Gates: is a changed model as good as before, on the scores that it was measured with?

The drop gate compares two numbers, and luck passes it. The equivalence gate wants evidence: a paired test must show
that the mean drop is below the margin. Scores are better when higher, and a margin is in their units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_real, whole
from .paired import mcnemar, p_of_flips, p_of_t, p_of_t_share

__all__ = ["FalseAccepts", "Verdict", "drop_gate", "equivalence_gate", "false_accepts"]

_ROUNDING = 1e-9


class Verdict(NamedTuple):
    """What a gate says of a change.

    Attributes:
        accepted: True if the gate lets the change pass.
        before, after: Mean scores.
        drop: ``before - after``, negative for a gain.
        allowed: The largest drop that passes, or the margin, in the units of the scores.
        harmful, beneficial: Of scores 0 and 1: how many examples went from 1 to 0, and from 0 to 1. None for others.
        p: Of the equivalence gate: the chance of a drop as small as this one, or smaller, where the true mean drop is
            the margin. Below alpha it is accepted. None for the drop gate, as are the two below.
        p_gain: The same for the other half of the two one-sided tests (TOST): that the true gain is the margin. If
            both are below alpha, the scores are equivalent.
        mcnemar: Of scores 0 and 1: exact p of McNemar's test, that the two kinds of flips are equally likely.
    """

    accepted: bool
    before: float
    after: float
    drop: float
    allowed: float
    harmful: int | None = None
    beneficial: int | None = None
    p: float | None = None
    p_gain: float | None = None
    mcnemar: float | None = None

    @property
    def why(self) -> str:
        """The verdict in a few words."""
        if self.p is None:
            return f"drop {self.drop:.3g} {'<=' if self.accepted else '>'} {self.allowed:.3g}"
        return f"drop {self.drop:.3g}, margin {self.allowed:.3g}: p = {self.p:.2g}"


def drop_gate(
    before: float | Sequence[float] | Tensor,
    after: float | Sequence[float] | Tensor,
    *,
    max_drop: float = 0.05,
    drop_type: str = "absolute",
) -> Verdict:
    """Accept if the metric fell by at most ``max_drop``; whether by luck is not asked.

    Args:
        before: The metric before the change, higher is better: a number, or the scores of examples, ``(examples,)``.
        after: The same with the change. Of scores the means are compared.
        max_drop: In the units of the metric, or a share of its size before.
        drop_type: ``"absolute"`` or ``"relative"``.

    Raises:
        TypeError, ValueError: A metric that is no number; ``max_drop`` out of range; relative to a metric of 0.

    Cost:
        Nothing.

    Example:
        >>> drop_gate(0.90, 0.86).accepted, drop_gate(0.90, 0.86, max_drop=0.04, drop_type="relative").accepted
        (True, False)
    """
    check_gate("drop", max_drop, drop_type)
    scores = as_scores(before), as_scores(after)
    one, two = (found.mean().item() for found in scores)
    allowed = _allowed(one, max_drop, drop_type)
    accepted = one - two <= allowed + _ROUNDING * max(abs(one), abs(two))
    return Verdict(accepted, one, two, one - two, allowed, *_flips(*scores))


def equivalence_gate(
    before: Sequence[float] | Tensor,
    after: Sequence[float] | Tensor,
    *,
    max_drop: float = 0.05,
    drop_type: str = "absolute",
    alpha: float = 0.05,
) -> Verdict:
    """Accept only if a paired test shows, at level ``alpha``, that the mean drop is below the margin ``max_drop``.

    This is the half of the two one-sided tests (TOST) that a gate needs: a gain is no harm. The other half is reported.
    A change whose true drop is the margin or more is accepted with a chance of at most alpha: exactly so for scores 0
    and 1, for others as far as the mean of their differences is Gaussian, which rare large drops are not.

    Args:
        before: Scores of the examples before the change, higher is better: ``(examples,)``.
        after: Scores of the same examples in the same order, with the change.
        max_drop: The margin, above 0: in the units of the scores, or a share of their mean before.
        drop_type: ``"absolute"`` or ``"relative"``.
        alpha: Level of the test.

    Raises:
        TypeError, ValueError: Scores that are no numbers; a single number; unequally many; thresholds out of range.
        ModuleNotFoundError: scipy is not installed; the message holds the install line.

    Several tests:
        Each decision has its own level. Where one search makes m of them and the result as a whole is to be vouched
        for, test at alpha / m, or test the result once more, on examples that the search has not seen.

    Cost:
        Scores 0 and 1: a few hundredths of a second for 1,000 examples. Others: O(examples).

    Source:
        Schuirmann (1987) for the two tests. Scores 0 and 1: the exact unconditional test of Hsueh, Liu and Chen (2001),
        with the statistic of Bonett and Price (2012) and the nuisance parameter confined as by Berger and Boos (1994).

    Example:
        >>> before = [1.0] * 180 + [0.0] * 20
        >>> same, worse = before[:], [0.0] * 6 + before[6:]
        >>> equivalence_gate(before, same).accepted, drop_gate(before, worse).accepted
        (True, True)
        >>> verdict = equivalence_gate(before, worse)
        >>> verdict.accepted, verdict.harmful, round(verdict.mcnemar, 3)
        (False, 6, 0.031)
    """
    check_gate("equivalence", max_drop, drop_type, alpha)
    one, two = as_scores(before), as_scores(after)
    if one.ndim == 0 or two.ndim == 0:
        raise ValueError("the equivalence gate needs the scores of single examples, (examples,), got a single number")
    if len(one) != len(two):
        raise ValueError(f"there were {len(one)} scores before and are {len(two)} now; give the same examples to both")
    if len(one) < 2:
        raise ValueError(f"a test needs 2 scores or more, got {len(one)}")
    lost, mean = one - two, one.mean().item()
    margin, drop = _allowed(mean, max_drop, drop_type), lost.mean().item()
    harmful, beneficial = flips = _flips(one, two)
    means = mean, two.mean().item(), drop, margin
    if harmful is None or beneficial is None:
        if drop_type == "relative":  # the mean before varies with the examples as the drop does
            p, p_gain = p_of_t_share(lost, one, max_drop), p_of_t_share(-lost, one, max_drop)
        else:
            p, p_gain = p_of_t(lost, margin), p_of_t(-lost, margin)
        return Verdict(p < alpha, *means, *flips, p, p_gain)
    p = p_of_flips(harmful, beneficial, len(one), margin)
    p_gain = p_of_flips(beneficial, harmful, len(one), margin)
    return Verdict(p < alpha, *means, *flips, p, p_gain, mcnemar(harmful, beneficial))


class FalseAccepts(NamedTuple):
    """How often each gate accepted one change, on validation sets drawn anew.

    Attributes:
        true_drop: Mean drop over all examples. Where it exceeds ``max_drop``, every acceptance is a false one.
        max_drop: The largest drop allowed, and the margin, in the units of the scores.
        drop, equivalence: How often the gates accepted.
        resamplings: Of how many draws.
    """

    true_drop: float
    max_drop: float
    drop: int
    equivalence: int
    resamplings: int


def false_accepts(
    before: Sequence[float] | Tensor,
    after: Sequence[float] | Tensor,
    *,
    size: int,
    max_drop: float = 0.05,
    drop_type: str = "absolute",
    alpha: float = 0.05,
    resamplings: int = 20,
    seed: int = 0,
) -> FalseAccepts:
    """Count how often the two gates accept a change whose true drop is known, on small validation sets.

    Args:
        before: Scores of all examples there are, before the change.
        after: Scores of the same examples with the change; the mean drop of all is taken for the true one.
        size: Examples of a validation set, drawn with replacement.
        max_drop: As of :func:`equivalence_gate`.
        drop_type: ``"absolute"``, or ``"relative"`` to the mean of all examples before.
        alpha: As of :func:`equivalence_gate`.
        resamplings: How many validation sets.
        seed: Of the draws.

    Raises:
        TypeError, ValueError: As :func:`equivalence_gate`.
        ModuleNotFoundError: scipy is not installed.

    Cost:
        That of ``resamplings`` equivalence gates.

    Example:
        >>> before = [1.0] * 900 + [0.0] * 100
        >>> after = [0.0] * 60 + before[60:]                     # six points worse, where five are allowed
        >>> found = false_accepts(before, after, size=150)
        >>> found.drop, found.equivalence
        (10, 0)
    """
    one, two = as_scores(before), as_scores(after)
    truth = drop_gate(one, two, max_drop=max_drop, drop_type=drop_type)
    size, resamplings = whole("size", size, least=2), whole("resamplings", resamplings, least=1)
    draw, accepted = torch.Generator().manual_seed(seed), [0, 0]
    equivalence_gate(one, two, max_drop=truth.allowed, alpha=alpha)  # refuses what it cannot compare
    for _ in range(resamplings):
        drawn = torch.randint(len(one), (size,), generator=draw)
        pair = one[drawn], two[drawn]
        accepted[0] += drop_gate(*pair, max_drop=truth.allowed).accepted
        accepted[1] += equivalence_gate(*pair, max_drop=truth.allowed, alpha=alpha).accepted
    return FalseAccepts(truth.drop, truth.allowed, *accepted, resamplings)


def check_gate(gate: str, max_drop: float, drop_type: str, alpha: float = 0.05) -> None:
    """Refuse thresholds out of range."""
    if gate not in ("drop", "equivalence"):
        raise ValueError(f'gate must be "drop" or "equivalence", got {gate!r}')
    if drop_type not in ("absolute", "relative"):
        raise ValueError(f'drop_type must be "absolute" or "relative", got {drop_type!r}')
    for name, value in (("max_drop", max_drop), ("alpha", alpha)):
        check_real(name, value)
    if not 0 <= max_drop < math.inf or (gate == "equivalence" and max_drop == 0):
        least = "above 0: no test can show that nothing at all was lost" if gate == "equivalence" else "of at least 0"
        raise ValueError(f"max_drop must be a finite number {least}, got {max_drop}")
    if drop_type == "relative" and max_drop >= 1:
        raise ValueError(f"a relative max_drop is a share of the metric and lies below 1 (0.05 is 5 %), got {max_drop}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")


def as_scores(metric: Any, name: str = "the metric") -> Tensor:
    """A metric as float64 on the CPU: a number of no axis, or the scores of examples on one axis."""
    if metric is None or isinstance(metric, (str, bytes)):
        raise TypeError(f"{name} must be a number, or one score for each example, got {metric!r}")
    try:
        kept = hasattr(metric, "dtype")  # a list would become float32
        scores = torch.as_tensor(metric, dtype=None if kept else torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, or one score for each example: {error}") from None
    if scores.is_complex():
        raise TypeError(f"{name} must be real, got {scores.dtype}")
    scores = scores.to("cpu", torch.float64)
    if scores.ndim > 1 or not scores.numel():
        raise ValueError(f"{name} must be a number or have one axis, (examples,), got shape {tuple(scores.shape)}")
    if not scores.isfinite().all():
        if scores.ndim == 0:
            raise ValueError(f"{name} is {scores.item()}, which is no finite number")
        bad = (~scores.isfinite()).nonzero()
        raise ValueError(f"{name} has {len(bad)} scores that are NaN or Inf, the first that of example {bad[0].item()}")
    return scores


def binary(*scores: Tensor) -> bool:
    """True if all scores are 0 or 1."""
    return all(bool(((one == 0) | (one == 1)).all()) for one in scores)


def _flips(before: Tensor, after: Tensor) -> tuple[int, int] | tuple[None, None]:
    """How many scores went from 1 to 0, and from 0 to 1; None and None for other scores."""
    if before.ndim == 0 or before.shape != after.shape or not binary(before, after):
        return None, None
    return int((before > after).sum()), int((before < after).sum())


def _allowed(before: float, max_drop: float, drop_type: str) -> float:
    if drop_type == "absolute":
        return max_drop
    if before == 0:
        raise ValueError('a share of a metric of 0 is 0: give max_drop in its units, with drop_type="absolute"')
    return max_drop * abs(before)
