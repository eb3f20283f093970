"""The reason of a verdict, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..advice.check import IN_INT8, MARGIN_INTEGERS
from .looking import LEVEL


def left(row: Mapping[str, Any], errors: Sequence[float], why: str) -> dict[str, Any]:
    """A row that was not looked at: left as it is at every error, for one reason."""
    many = {"verdicts": ["leave"] * len(errors), "reasons": [why] * len(errors), "after": [row["nbytes"]] * len(errors)}
    return {**row, "looked": False, **many, "verdict": "leave", "reason": why}


def reason(row: Mapping[str, Any], errors: Sequence[float], k: int) -> str:
    """Why a matrix has its verdict at the k-th error."""
    eps, word = errors[k], row["verdicts"][k]
    train, svd, noise, integers = (row[key][k] for key in ("train", "svd", "noise", "integers"))
    if word == "tt":
        return (
            f"{row['form'][k]}: {number(train)} times fewer numbers at an error of {eps:.0%}, SVD {number(svd)}, "
            f"noise {number(noise)}; none of {row['draws']} draws of noise does as well"
        )
    if word == "svd":
        chance = row["p"][k] > LEVEL and train > svd
        why = "noise does as well as the best train" if chance else f"the best train {number(train)}"
        return f"two factors: {number(svd)} times fewer numbers at an error of {eps:.0%}; {why}, noise {number(noise)}"
    rivals = f"the best train in int8 {number(IN_INT8 * train)} (of noise {number(IN_INT8 * noise)})"
    rivals += f", SVD in int8 {number(IN_INT8 * svd)}"
    if word == "quantize":
        if IN_INT8 * max(train, svd) >= MARGIN_INTEGERS * integers:
            return f"noise with the same row norms compresses as well: {number(train)} as a train, {number(svd)} by SVD"
        won = f"int{row['bits'][k]} takes {number(integers)} times fewer bytes than float32 at an error of {eps:.0%}"
        return f"{won}; {rivals}"
    stored = 8 * row["nbytes"] / row["numbers"]
    if stored < 16:
        return f"stored in {number(stored)} bits a number, and nothing tried takes less at an error of {eps:.0%}"
    return f"nothing tried is smaller at an error of {eps:.0%}: {rivals}"


def number(value: float) -> str:
    """Two digits behind the point for small numbers, one for others."""
    return f"{value:.2f}" if value < 9.95 else f"{value:,.1f}"
