"""Paired tests: of scores before and after against a margin, and of flips; exact for scores 0 and 1."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..checks import whole

__all__ = ["mcnemar"]

_OUTSIDE = 1e-4  # chance that the share of beneficial flips lies outside of where it is looked for; added to p
_SHARES = 64  # of beneficial flips that are tried
_NOTHING = 1e-13  # numbers of flips less likely than this are left out
_ROUNDING = 1e-9
_BASE = 1e-3  # chance that the mean before is smaller than the one that a relative margin is taken of; added to p


def mcnemar(harmful: int, beneficial: int) -> float:
    """Exact two-sided p of McNemar's test: that an example which changed sides is as likely to be lost as won.

    Args:
        harmful: How many examples changed from right to wrong.
        beneficial: How many changed from wrong to right.

    Raises:
        TypeError, ValueError: Numbers that are no counts.
        ModuleNotFoundError: scipy is not installed.

    Example:
        >>> round(mcnemar(8, 2), 4), mcnemar(0, 0)
        (0.1094, 1.0)
    """
    harmful, beneficial = whole("harmful", harmful, least=0), whole("beneficial", beneficial, least=0)
    if harmful == beneficial:
        return 1.0
    flips = harmful + beneficial
    return min(1.0, 2 * float(scipy_special().bdtr(min(harmful, beneficial), flips, 0.5)))


def fewest_examples(margin: float, alpha: float) -> int:
    """So many scores 0 and 1 the equivalence gate needs to accept a change that flips none."""
    return math.ceil(math.log(alpha - _OUTSIDE) / math.log1p(-margin)) if margin < 1 and alpha > _OUTSIDE else 2


def p_of_t(lost: Tensor, margin: float) -> float:
    """Of the paired one-sided t-test against a mean drop of the margin."""
    above, spread = lost.mean().item() - margin, lost.std().item() / math.sqrt(len(lost))
    if spread == 0:
        return 0.0 if above < 0 else 1.0
    return float(scipy_special().stdtr(len(lost) - 1, above / spread))


def p_of_t_share(lost: Tensor, base: Tensor, share: float) -> float:
    """The same against a share of the size of the mean of ``base``, which is itself a mean of these examples.

    A margin that is computed from the mean found would be taken for known, and luck with it for evidence.
    """
    return p_of_t(lost - share * (base if base.mean() >= 0 else -base), 0.0)


@functools.lru_cache(1024)  # resamplings and searches ask again
def p_of_flips(harmful: int, beneficial: int, examples: int, margin: float) -> float:
    """Exact p against a mean drop of the margin: the largest over all shares of beneficial flips that are likely.

    With the shares ``(q + margin, q)`` of harmful and beneficial flips, the number of flips is binomial with
    ``2 q + margin``, and the harmful among them are binomial again. A statistic that grows with the harmful flips, the
    beneficial ones kept, is largest in distribution on that border of the hypothesis. With the flips exchanged and the
    margin below 0, small p show that the drop is above it.
    """
    special = scipy_special()
    if margin >= 1:
        return 0.0
    size, flips = examples + 2, torch.arange(examples + 1, dtype=torch.float64)
    lost = (harmful - beneficial) / size
    statistic = (lost - margin) / math.sqrt(((harmful + beneficial + 2) / size - lost * lost) / size)
    # For each number of flips, the most harmful ones at which the statistic is no larger than the one found.
    square, share = statistic * statistic / size, (flips + 2) / size
    root = (square * ((1 + square) * share - margin * margin)).clamp_min(0).sqrt()
    limit = (margin + math.copysign(1.0, statistic) * root) / (1 + square)
    most = ((limit * size + flips) / 2 + _ROUNDING).floor().minimum(flips)
    ends = [min(max(end, -margin), (1 - margin) / 2) for end in share_bounds(beneficial, examples, _OUTSIDE)]
    gained = torch.linspace(*ends, _SHARES, dtype=torch.float64).unsqueeze(1)
    changed = 2 * gained + margin
    ways = math.lgamma(examples + 1) - (flips + 1).lgamma() - (examples - flips + 1).lgamma()
    chance = (ways + torch.xlogy(flips, changed) + torch.special.xlog1py(examples - flips, -changed)).exp()
    row, many = (chance > _NOTHING).nonzero(as_tuple=True)
    harm = ((gained + margin) / changed)[row, 0]
    tail = special.bdtr(most[many].clamp_min(0).numpy(), flips[many].long().numpy(), harm.numpy())
    tail = torch.as_tensor(tail).where(most[many] >= 0, 0.0)
    total = torch.zeros(_SHARES, dtype=torch.float64).index_add_(0, row, chance[row, many] * tail)
    return min(1.0, total.max().item() + _OUTSIDE)


def p_of_flips_share(harmful: int, beneficial: int, examples: int, right: int, share: float) -> float:
    """The same against a share of the mean before, where ``right`` examples scored 1; at least the exact p.

    The margin is taken of the mean that is likely and leaves the largest p, as by Berger and Boos.
    """
    margin = share * share_bounds(right, examples, 2 * _BASE)[share < 0]
    return min(1.0, p_of_flips(harmful, beneficial, examples, margin) + _BASE) if margin else 1.0


def share_bounds(count: int, examples: int, outside: float) -> tuple[float, float]:
    """By Clopper and Pearson: the share of such examples lies outside of these with a chance of at most ``outside``."""
    special, rest = scipy_special(), examples - count
    low = float(special.betaincinv(count, rest + 1, outside / 2)) if count else 0.0
    return low, float(special.betaincinv(count + 1, rest, 1 - outside / 2)) if rest else 1.0


def scipy_special() -> Any:
    """``scipy.special``, or an error that says what to install."""
    try:
        from scipy import special
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the tests of the equivalence gate need scipy; install it with: python -m pip install scipy"
        ) from error
    return special
