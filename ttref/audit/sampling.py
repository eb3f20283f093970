"""Which matrices stand for others, and how far a total that is counted from them may be off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..advice.kinds import HEAD, OTHER_TABLE, POSITIONS, TOKENS
from .reading import Entry

PART = 4096  # rows of a table, from its middle
EVERY = 6  # of the layers of one kind and size, one in so many
ONES = (TOKENS, POSITIONS, OTHER_TABLE, HEAD)  # looked at one by one


def chosen(entries: Sequence[Entry]) -> dict[str, float]:
    """Names of the matrices to look at, spread evenly over each group, and for how many each stands.

    A group has one kind and one size, upright or lying. Two of it at least are looked at, so that they can differ.
    """
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        alone = (entry.name,) if entry.kind in ONES else ()
        groups.setdefault((entry.kind, entry.floats, *sorted(entry.shape), *alone), []).append(entry)
    picked = {}
    for group in groups.values():
        count = min(len(group), max(2, len(group) // EVERY))
        for k in range(count):
            picked[group[(2 * k + 1) * len(group) // (2 * count)].name] = len(group) / count
    return picked


def total(rows: Sequence[Mapping[str, Any]], part: Callable[[Mapping[str, Any]], float]) -> tuple[float, float]:
    """The sum of something over all matrices, counted from those that were looked at, and its standard error.

    Source:
        Cochran (1977), Sampling Techniques, section 5.3: stratified sampling without replacement.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["stands_for"], *sorted(row["shape"])), []).append(row)
    whole, variance = 0.0, 0.0
    for group in groups.values():
        values, stands_for = [part(row) for row in group], group[0]["stands_for"]
        whole += stands_for * sum(values)
        if stands_for > 1 and len(values) > 1:
            mean = sum(values) / len(values)
            spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            count = stands_for * len(values)
            variance += count**2 * (1 - 1 / stands_for) * spread / len(values)
    return whole, math.sqrt(variance)
