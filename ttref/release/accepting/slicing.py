"""Slices of the examples: short and long ones, frequent and rare tokens, or whatever a function tells apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

__all__ = ["frequency_slices", "length_slices"]

WHOLE = "all"


def length_slices(data: Any, length: Callable[[Any], float] = len) -> dict[str, list[bool]]:
    """Cut the examples at their median length: those longer than it are ``"long"``, the others ``"short"``.

    Args:
        data: The examples.
        length: The length of an example; by default ``len``, which counts characters of a text.

    Returns:
        For each of the two slices, whether an example is in it; give it to :class:`AcceptanceSuite` as ``slices``, with
        others joined by ``|``.

    Raises:
        ValueError: No example is longer than the median.

    Cost:
        O(examples log examples).

    Example:
        >>> length_slices(["a", "to", "the", "then"])
        {'short': [True, True, False, False], 'long': [False, False, True, True]}
    """
    return _halves([float(length(one)) for one in _listed(data)], ("short", "long"), "length")


def frequency_slices(
    data: Any,
    tokens: Callable[[Any], Iterable[Hashable]] = str.split,
    counts: Mapping[Hashable, int] | None = None,
) -> dict[str, list[bool]]:
    """Cut the examples by how frequent their tokens are, at the median of the mean of ``log(1 + count)``.

    Args:
        data: The examples.
        tokens: The tokens of an example; by default the words of a text.
        counts: How often each token occurs, for instance in the training data; a token that is not there counts 0. By
            default as often as in these examples.

    Returns:
        As :func:`length_slices`, of ``"rare tokens"`` and ``"frequent tokens"``.

    Raises:
        ValueError: An example without tokens; all examples alike.

    Cost:
        O(tokens).

    Example:
        >>> found = frequency_slices(["the cat", "the the", "an okapi", "the the cat"])
        >>> found["rare tokens"]
        [True, False, True, False]
    """
    listed = [list(tokens(one)) for one in _listed(data)]
    for k, one in enumerate(listed):
        if not one:
            raise ValueError(f"example {k} has no tokens; leave it out")
    known = Counter(token for one in listed for token in one) if counts is None else counts
    means = [sum(math.log1p(known.get(token, 0)) for token in one) / len(one) for one in listed]
    return _halves(means, ("rare tokens", "frequent tokens"), "mean frequency")


def _halves(values: list[float], names: tuple[str, str], what: str) -> dict[str, list[bool]]:
    middle = median(values)
    above = [value > middle for value in values]
    if not any(above):
        raise ValueError(f"no example lies above the median {what} {middle:.4g}, so there are no two slices to cut")
    return {names[0]: [not one for one in above], names[1]: above}


def _listed(data: Any) -> list[Any]:
    listed = [data[k] for k in range(len(data))]
    if not listed:
        raise ValueError("there are no examples to cut")
    return listed


def masks_of(slices: Mapping[str, Any] | None, examples: list[Any]) -> dict[str, Tensor]:
    """Slices as masks ``(examples,)``; errors name the slice."""
    if slices is None:
        return {}
    if not isinstance(slices, Mapping):
        raise TypeError(f"slices must map names to functions or masks, got {type(slices).__name__}")
    found = {}
    for name, wanted in slices.items():
        if not isinstance(name, str) or not name.strip() or name == WHOLE:
            raise ValueError(f"a slice needs a name of its own, which is not {WHOLE!r}, got {name!r}")
        given = [wanted(one) for one in examples] if callable(wanted) else wanted
        found[name] = mask = torch.as_tensor(given)
        if mask.dtype != torch.bool:
            raise TypeError(
                f"slice {name!r} must say True or False of each example, got {mask.dtype}; for an index of examples "
                "give [k in index for k in range(len(data))]"
            )
        if mask.shape != (len(examples),):
            raise ValueError(f"slice {name!r} has shape {tuple(mask.shape)}, but there are {len(examples)} examples")
        if not mask.any():
            raise ValueError(f"slice {name!r} holds none of the {len(examples)} examples; leave it out")
        found[name] = mask.to("cpu").clone()
    return found
