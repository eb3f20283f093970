"""Where the modes of an adapter lie: those of the rows, those of the columns, and those across the boundary.

An adapter's train has the output modes first and then the input modes. If their products meet exactly at the number of
rows, one bond parts rows from columns, and its rank bounds the rank of the matrix. If not, a mode straddles::

    shape (8, 6, 8, 8, 6, 8) of a 384 x 384 matrix        shape (32, 18, 16, 16) of the same matrix

     8   6   8  |  8   6   8                               32  [ 18   16 ]  16
     o---o---o--|--o---o---o                                o--[--o----o--]--o
        rows    bond   columns                            rows   12 x 24   columns
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..checks import check_modes, whole
from ..shapes import factorize, tt_ranks

__all__ = ["automatic_modes"]

MAX_MODE = 12


class Layout(NamedTuple):
    """Sizes of an adapter's train and how its modes fall on rows and columns.

    ``shape``, ``ranks``: modes and full ranks. ``rows``, ``cols``: their products, at least the widths of the layer;
    more means padding. ``left``: cores of rows alone. ``right``: the first core of columns alone. Cores between them
    hold rows and columns both. ``across``: rows and columns of that part, (1, 1) if there is none.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    rows: int
    cols: int
    left: int
    right: int
    across: tuple[int, int]

    @property
    def boundary_rank(self) -> int | None:
        """Rank of the bond between rows and columns, or None where a mode straddles."""
        return self.ranks[self.left] if self.left == self.right else None

    @property
    def params(self) -> int:
        """Numbers in the cores."""
        return sum(r * n * q for r, n, q in self.cores)

    @property
    def cores(self) -> list[tuple[int, int, int]]:
        """Shapes of the cores."""
        return list(zip(self.ranks[:-1], self.shape, self.ranks[1:], strict=True))


def layout(out_features: int, in_features: int, shape: Sequence[int] | None, rank: int | Sequence[int]) -> Layout:
    """The layout of a train for a matrix of these widths; modes are chosen where ``shape`` is None."""
    if shape is None:
        sides = automatic_modes(out_features, in_features)
        shape, (rows, cols) = sum(sides, ()), map(math.prod, sides)
    else:
        shape, rows, cols = check_modes("shape", shape), out_features, in_features
        if math.prod(shape) != rows * cols:
            raise ValueError(
                f"shape {shape} multiplies to {math.prod(shape)}, but a {rows} x {cols} matrix (out x in) has "
                f"{rows * cols} entries; leave shape out and modes are chosen"
            )
    products = [math.prod(shape[:k]) for k in range(len(shape) + 1)]
    left = max(k for k, product in enumerate(products) if rows % product == 0)
    right = min(k for k, product in enumerate(products) if product % rows == 0)
    if products[left] == products[right]:  # modes of one can make left the larger
        left = right
    across = rows // products[left], products[right] // rows
    return Layout(shape, tt_ranks(shape, rank), rows, cols, left, right, across)


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
