"""Modes, ranks and parameter counts of tensor trains: integer arithmetic only, no torch.

A tensor with modes ``(n_1, ..., n_d)`` in tensor-train (TT) form is a chain of cores::

    r_0=1    r_1    r_2           r_d=1
      --( G_1 )--( G_2 )-- ... --( G_d )--        G_k has shape (r_{k-1}, n_k, r_k)
           |        |               |
          n_1      n_2             n_d

``ranks`` always means the full tuple ``(1, r_1, ..., r_{d-1}, 1)``; ``rank`` is a cap: one int, or such a tuple.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from .checks import check_modes, paired_modes, several, whole

__all__ = ["factorize", "balanced_modes", "tt_ranks", "tt_params", "ttm_params"]


def factorize(n: int, order: int | None = None, *, max_mode: int | None = None) -> tuple[int, ...]:
    """Write ``n`` as a product of modes, as equal in size as possible.

    Args:
        n: The number to split, at least 2.
        order: How many modes. By default the smallest number that respects ``max_mode``; without both, the result is
            the prime factors, the finest split there is.
        max_mode: Upper limit for every mode.

    Returns:
        Modes in ascending order, each at least 2, with product ``n``. Among all such splits, the one with the
        smallest sum, and so (at rank one) the fewest parameters.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: No such split exists. The message names the next larger number that has one, to pad to.

    Cost:
        O(sqrt(n) + s^2 * order) for a number with s divisors, and the same for each larger number tried for the
        message.

    Example:
        >>> factorize(768, 3)
        (8, 8, 12)
        >>> factorize(3072, max_mode=16)
        (12, 16, 16)
        >>> factorize(768)
        (2, 2, 2, 2, 2, 2, 2, 2, 3)
    """
    n = whole("n", n, least=2)
    if order is not None:
        order = whole("order", order, least=1)
    if max_mode is not None:
        max_mode = whole("max_mode", max_mode, least=2)
    if order is not None and max_mode is not None and max_mode**order < n:
        raise ValueError(f"{order} modes of at most {max_mode} reach {max_mode**order}, which is less than {n}")
    modes = _split(n, order, max_mode)
    if modes is None:
        padded = max(n + 1, 2 ** (order or 1))
        while _split(padded, order, max_mode) is None:
            padded += 1
        wanted = "modes" if order is None else f"{order} modes of at least 2"
        limit = "" if max_mode is None else f", each at most {max_mode}"
        raise ValueError(
            f"{n} is not a product of {wanted}{limit} (its prime factors are {_prime_factors(n)}); "
            f"pad to {padded} = {' * '.join(map(str, _split(padded, order, max_mode)))}"
        )
    return modes


def balanced_modes(n: int, order: int = 3) -> tuple[int, ...]:
    """``order`` modes of about equal size for a width, padded where its factors allow no such split.

    A mode may be at most twice the ``order``-th root of the product, or 8, whichever is larger. The smallest product
    of at least ``n`` with such modes is taken, so only widths with a large prime factor are padded. The padding is at
    most 8, or 3 % of ``n`` if that is more: where such modes need more padding, the limit on a mode is raised in steps
    of one until they do not (of the widths up to 20,000 in three modes, 151, 201, 365 and 366 need it).

    Args:
        n: The width, at least 1.
        order: How many modes.

    Returns:
        Modes in ascending order, ones among them for small widths. Their product is ``n``, or more if padded: at most
        ``n + max(8, 3 n // 100)``.

    Raises:
        TypeError, ValueError: An argument is not an integer or below 1.

    Cost:
        O(sqrt(n) + s^2 * order) for each width tried, s the number of its divisors.

    Example:
        >>> balanced_modes(11008), balanced_modes(10)
        ((16, 16, 43), (1, 2, 5))
        >>> balanced_modes(769)                       # a prime: padded to 770
        (7, 10, 11)
    """
    n, order = whole("n", n, least=1), whole("order", order, least=1)
    for wider in itertools.count():  # ends: with modes as large as n itself there is nothing to pad
        for padded in range(n, n + max(8, 3 * n // 100) + 1):
            modes = _balanced(padded, order, 1, max(8, int(2 * padded ** (1 / order))) + wider)
            if modes is not None:
                return modes


def tt_ranks(shape: Sequence[int], rank: int | Sequence[int]) -> tuple[int, ...]:
    """Largest useful TT-ranks of a tensor with these modes under a rank cap.

    No bond needs more than the product of the modes on its left, nor on its right; a larger cap is clipped.

    Args:
        shape: Modes ``(n_1, ..., n_d)``.
        rank: One cap for all bonds, or d+1 caps with ones at both ends.

    Returns:
        ``(1, r_1, ..., r_{d-1}, 1)``.

    Raises:
        TypeError: A mode or rank is not an integer.
        ValueError: A mode or rank below 1, a wrong number of ranks, or end ranks other than 1.

    Cost:
        O(d).

    Source:
        Oseledets (2011), Tensor-Train Decomposition, section 2: r_k is at most the rank of the k-th unfolding.

    Example:
        >>> tt_ranks((2,) * 10, 4)
        (1, 2, 4, 4, 4, 4, 4, 4, 4, 2, 1)
        >>> tt_ranks((4, 16, 4, 16), (1, 8, 8, 8, 1))
        (1, 4, 8, 8, 1)
    """
    modes = check_modes("shape", shape)
    d = len(modes)
    if several(rank):
        caps = [whole(f"rank[{k}]", r, least=1) for k, r in enumerate(rank)]
        if len(caps) != d + 1:
            raise ValueError(
                f"rank has {len(caps)} entries, but {d} modes have {d + 1} ranks (ones at both ends included)"
            )
        if caps[0] != 1 or caps[-1] != 1:
            raise ValueError(f"the ranks at both ends must be 1, got {caps[0]} and {caps[-1]}")
    else:
        cap = whole("rank", rank, least=1)
        caps = [1] + [cap] * (d - 1) + [1]
    for k in range(1, d):
        caps[k] = min(caps[k], caps[k - 1] * modes[k - 1])
    for k in range(d - 1, 0, -1):
        caps[k] = min(caps[k], caps[k + 1] * modes[k])
    return tuple(caps)


def tt_params(shape: Sequence[int], rank: int | Sequence[int]) -> int:
    """Numbers stored by a tensor train with these modes, ranks clipped as in :func:`tt_ranks`.

    Args:
        shape: Modes ``(n_1, ..., n_d)``.
        rank: One cap for all bonds, or d+1 caps with ones at both ends.

    Returns:
        The sum of ``r_{k-1} * n_k * r_k``. It can exceed the number of entries of the tensor: an exact train of a
        generic tensor is larger than the tensor.

    Raises:
        TypeError, ValueError: As :func:`tt_ranks`.

    Cost:
        O(d).

    Example:
        >>> [tt_params((2,) * 10, r) for r in (1, 2, 3, 4, 8, 16, 32)]
        [20, 72, 140, 232, 680, 1704, 2728]
    """
    modes = check_modes("shape", shape)
    ranks = tt_ranks(modes, rank)
    return sum(ranks[k] * n * ranks[k + 1] for k, n in enumerate(modes))


def ttm_params(row_shape: Sequence[int], col_shape: Sequence[int], rank: int | Sequence[int]) -> int:
    """Numbers stored by a matrix as a tensor train with cores ``(r_{k-1}, m_k, n_k, r_k)``.

    Args:
        row_shape: Row (output) modes ``(m_1, ..., m_d)``.
        col_shape: Column (input) modes ``(n_1, ..., n_d)``, as many as rows.
        rank: One cap for all bonds, or d+1 caps with ones at both ends; clipped with modes ``m_k * n_k``.

    Returns:
        The sum of ``r_{k-1} * m_k * n_k * r_k``.

    Raises:
        TypeError, ValueError: As :func:`tt_ranks`; ValueError when the two shapes differ in length.

    Cost:
        O(d).

    Source:
        Novikov et al. (2015), Tensorizing Neural Networks, section 3.

    Example:
        >>> ttm_params((12, 16, 16), (8, 8, 12), 8)
        10496
    """
    return tt_params(paired_modes(row_shape, col_shape), rank)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, 0 if none does; every number below one that fits, fits too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _split(n: int, order: int | None, max_mode: int | None) -> tuple[int, ...] | None:
    """The result of :func:`factorize`, or None if there is no such split."""
    primes = _prime_factors(n)
    limit = n if max_mode is None else max_mode
    if order is not None:
        return _balanced(n, order, 2, limit)
    if max_mode is None:
        return primes
    for fewest in range(1, len(primes) + 1):
        if (modes := _balanced(n, fewest, 2, limit)) is not None:
            return modes
    return None


@lru_cache(maxsize=4096)
def _balanced(n: int, order: int, least: int, most: int) -> tuple[int, ...] | None:
    """``order`` ascending modes in [least, most] with product n and smallest sum, or None."""
    if order == 1:
        return (n,) if least <= n <= most else None
    best = None
    for mode in _divisors(n):
        if mode < least or mode > most or mode**order > n:
            continue
        rest = _balanced(n // mode, order - 1, mode, most)
        if rest is not None and (best is None or mode + sum(rest) < sum(best)):
            best = (mode, *rest)
    return best


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    small = [q for q in range(1, math.isqrt(n) + 1) if n % q == 0]
    return tuple(small + [n // q for q in reversed(small) if q * q != n])


def _prime_factors(n: int) -> tuple[int, ...]:
    factors, p = [], 2
    while p * p <= n:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return (*factors, n) if n > 1 else tuple(factors)
