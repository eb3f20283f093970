"""Errors of fixed-point arithmetic: an impossible format, an accumulator too narrow, a value out of range."""

from __future__ import annotations

__all__ = ["FormatError", "AccumulatorOverflow", "FixedPointOverflow"]


class FormatError(ValueError):
    """An impossible number format: unknown text, mode or width, or data that the format can never hold.

    Example:
        >>> from ttref.fixedpoint import FixedPointFormat
        >>> FixedPointFormat(0, 0)
        Traceback (most recent call last):
        ...
        ttref.fixedpoint.errors.FormatError: width must be 1 to 32 bits, got 0
    """


class AccumulatorOverflow(OverflowError):
    """The formats of a product allow sums that 62 bits cannot hold. Raised before anything is computed.

    Example:
        >>> from ttref.fixedpoint import FixedPointFormat, accumulator_width
        >>> wide = FixedPointFormat(32, 1)
        >>> accumulator_width(wide, wide, 16)         # a QuantizedTT of such formats is refused
        68
    """


class FixedPointOverflow(OverflowError):
    """A value left the range of a format whose overflow mode is ``RAISE``. The message names the entry.

    Example:
        >>> import textwrap
        >>> from ttref.fixedpoint import FixedPointFormat, FixedPointOverflow, quantize
        >>> try:
        ...     quantize([0.5, 3.0], FixedPointFormat(8, 1, overflow="RAISE"))
        ... except FixedPointOverflow as error:
        ...     print(textwrap.fill(str(error), 84))
        1 of 2 values leave the range of ap_fixed<8,1,AP_TRN,RAISE>, -128 to 127 in LSBs;
        the worst is 384 at index (1,). Give the format more integer bits, or SAT or WRAP
    """
