"""How the modes of an update fall on rows and columns.

An adapter's train has the output modes first and then the input modes. If their products meet exactly at the number of
rows, one bond parts rows from columns, and its rank bounds the rank of the matrix. If not, a mode straddles::

    shape (8, 6, 8, 8, 6, 8) of a 384 x 384 matrix        shape (32, 18, 16, 16) of the same matrix

     8   6   8  |  8   6   8                               32  [ 18   16 ]  16
     o---o---o--|--o---o---o                                o--[--o----o--]--o
        rows    bond   columns                            rows   12 x 24   columns

Either way the cores are those of a TT-matrix: a core of rows has the column mode 1, a core of columns the row mode 1,
and what straddles is one core of both.
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
    """Modes of an update and the rows that they make, padding included; chosen where ``shape`` is None."""
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
    """Row and column mode of each matrix core, and which cores straddle: from the first to before the second."""
    products = [math.prod(shape[:k]) for k in range(len(shape) + 1)]
    left = max(k for k, product in enumerate(products) if rows % product == 0)
    right = min(k for k, product in enumerate(products) if product % rows == 0)
    if products[left] == products[right]:  # a bond at the boundary; modes of one can make left the larger
        left = right
    across = [(rows // products[left], products[right] // rows)] if left < right else []
    return (*[(m, 1) for m in shape[:left]], *across, *[(1, n) for n in shape[right:]]), (left, right)


def automatic_modes(out_features: int, in_features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of at most 12 for any two widths, so that a train of both has a bond exactly between rows and columns.

    The large modes stand first and last, where a core has one rank only: a given rank then takes fewest numbers. A
    width with a prime factor above 12 is padded to the next one without.

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
    """Ascending modes of at most 12 whose product is the width, or the next larger number that has some."""
    return (1,) if width == 1 else factorize(_padded(width), max_mode=MAX_MODE)


def _padded(width: int) -> int:
    """The smallest number from ``width`` on without a prime factor above 12: found among those, not by trying all."""
    odd = [1]
    for prime in (3, 5, 7, 11):
        odd = [n * prime**k for n in odd for k in range(width.bit_length()) if n * prime**k < 2 * width]
    return min(n << (-(-width // n) - 1).bit_length() for n in odd)
