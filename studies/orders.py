"""How well two lists of values agree on an order; the studies have one measure of it."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import kendalltau


def tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b, in which ties count on neither side; None where one of the lists has nothing to order."""
    if min(len(set(a)), len(set(b))) < 2:
        return None
    return float(kendalltau(a, b).statistic)
