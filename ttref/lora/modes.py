"""Modes of an update, and their division into row and column modes.

An adapter's train has the output modes first, then the input modes. If some leading modes multiply exactly to the
number of rows, one bond separates rows from columns, and its rank bounds the rank of the matrix. If not, a mode
straddles the boundary::

    384 x 384 as (8, 6, 8, 8, 6, 8)         the same as (32, 18, 16, 16)

     8   6   8  |  8   6   8                 32  [ 18   16 ]  16
     o---o---o--|--o---o---o                  o--[--o----o--]--o
        rows    bond   columns              rows   12 x 24   columns

Either way the cores are those of a TT-matrix: a row core has column mode 1, a column core row mode 1, and straddling
cores are merged into one with both modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from ..checks import check_modes, whole
from ..shapes import factorize

__all__ = ["automatic_modes"]

MAX_MODE = 12


def folded(out_features: int, in_features: int, shape: Sequence[int] | None) -> tuple[tuple[int, ...], int]:
    """Modes of an update, chosen if ``shape`` is None, and its number of rows, padding included."""
    if shape is None:
        rows, cols = automatic_modes(out_features, in_features)
        return rows + cols, math.prod(rows)
    shape = check_modes("shape", shape)
    if math.prod(shape) != out_features * in_features:
        raise ValueError(
            f"shape {shape} multiplies to {math.prod(shape)}, but a {out_features} x {in_features} matrix (out x in) "
            f"has {out_features * in_features} entries; leave shape out and modes are chosen"
        )
    return shape, out_features


def paired(shape: Sequence[int], rows: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """Row and column mode of each matrix core, and the range ``[left, right)`` of the cores that straddle."""
    products = [math.prod(shape[:k]) for k in range(len(shape) + 1)]
    left = max(k for k, product in enumerate(products) if rows % product == 0)
    right = min(k for k, product in enumerate(products) if product % rows == 0)
    if products[left] == products[right]:  # a bond at the boundary; modes of one can make left the larger
        left = right
    across = [(rows // products[left], products[right] // rows)] if left < right else []
    return (*[(m, 1) for m in shape[:left]], *across, *[(1, n) for n in shape[right:]]), (left, right)


def automatic_modes(out_features: int, in_features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of at most 12 for two widths, so that the train has a bond exactly between rows and columns.

    The largest modes stand first and last, where a core has a rank of 1 on one side: a given rank then takes the fewest
    numbers. A width with a prime factor above 12 is padded to the next width without one.

    Args:
        out_features: Rows of the weight, at least 1.
        in_features: Columns of the weight, at least 1.

    Returns:
        The modes of the rows, descending, and those of the columns, ascending.

    Raises:
        TypeError, ValueError: A width that is no positive integer.

    Cost:
        As :func:`factorize`.

    Example:
        >>> automatic_modes(384, 768)
        ((8, 8, 6), (8, 8, 12))
        >>> automatic_modes(50257, 10)                          # 29 x 1733: padded to 50400
        ((10, 10, 9, 8, 7), (10,))
    """
    return _side(whole("out_features", out_features, least=1))[::-1], _side(whole("in_features", in_features, least=1))


@lru_cache(maxsize=1024)
def _side(width: int) -> tuple[int, ...]:
    """Ascending modes of at most 12 whose product is the width, or the next larger number that has such modes."""
    return (1,) if width == 1 else factorize(_padded(width), max_mode=MAX_MODE)


def _padded(width: int) -> int:
    """The smallest number from ``width`` on without a prime factor above 12, found among products of small primes."""
    odd = [1]
    for prime in (3, 5, 7, 11):
        odd = [n * prime**k for n in odd for k in range(width.bit_length()) if n * prime**k < 2 * width]
    return min(n << (-(-width // n) - 1).bit_length() for n in odd)
