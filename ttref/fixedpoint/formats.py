"""Fixed-point numbers: stored integers with an implied binary point.

A format has ``width`` bits, ``int_bits`` of them left of the point (the sign included), as AMD's ``ap_fixed`` counts::

    ap_fixed<8,3>    s i i . f f f f f    value = integer * 2^-5, range -4 to 4 - 2^-5

The format also states how bits that do not fit are dropped, at the right (rounding) and at the left (overflow).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_number, whole
from .errors import FormatError

__all__ = ["FixedPointFormat"]

ROUNDINGS = ("TRN", "RND", "RND_CONV")
OVERFLOWS = ("WRAP", "SAT", "RAISE")
_TEXT = re.compile(r"\s*(?:ap_)?(u?)fixed\s*<([^<>]*)>\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class FixedPointFormat:
    """A signed or unsigned fixed-point format in the terms of ``ap_fixed<W, I, Q, O>``.

    Args:
        width: W, all bits, 1 to 32.
        int_bits: I, bits left of the binary point, the sign among them. It may be negative or larger than ``width``:
            then the point is outside of the stored bits.
        rounding: Q, where bits are dropped at the right: ``"TRN"`` toward minus infinity (cut them off), ``"RND"`` to
            the nearest, ties up, ``"RND_CONV"`` to the nearest, ties to the even neighbor.
        overflow: O, where a value does not fit: ``"WRAP"`` keeps the low bits, ``"SAT"`` takes the nearest end of the
            range, ``"RAISE"`` is an error (an addition of ``ttref``: no hardware does it).
        signed: Two's complement, or unsigned.

    AMD's prefix ``AP_`` is accepted in modes. Modes left out are AMD's: ``TRN`` and ``WRAP``.

    Raises:
        FormatError: A width outside of 1 to 32, a binary point beyond 256 bits, or an unknown mode.
        TypeError: ``width`` or ``int_bits`` is not an integer, or ``signed`` no boolean.

    Source:
        AMD Vitis HLS user guide UG1399, "Arbitrary Precision Fixed-Point Data Types".

    Example:
        >>> f = FixedPointFormat(8, 3, rounding="RND_CONV", overflow="SAT")
        >>> print(f, f.lsb, f.min, f.max)
        ap_fixed<8,3,AP_RND_CONV,AP_SAT> 0.03125 -4.0 3.96875
        >>> FixedPointFormat.parse("fixed<16,6>").hls4ml
        'fixed<16,6,TRN,WRAP>'
    """

    width: int
    int_bits: int
    rounding: str = "TRN"
    overflow: str = "WRAP"
    signed: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "int_bits"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if not 1 <= self.width <= 32:
            raise FormatError(f"width must be 1 to 32 bits, got {self.width}")
        if abs(self.int_bits) > 256:
            raise FormatError(f"int_bits must be between -256 and 256, got {self.int_bits}")
        object.__setattr__(self, "rounding", _mode("rounding", self.rounding, ROUNDINGS))
        object.__setattr__(self, "overflow", _mode("overflow", self.overflow, OVERFLOWS))
        if not isinstance(self.signed, bool | np.bool_):
            raise TypeError(f"signed must be True or False, got {self.signed!r}")
        object.__setattr__(self, "signed", bool(self.signed))

    @property
    def frac_bits(self) -> int:
        """Bits right of the binary point: ``width - int_bits``."""
        return self.width - self.int_bits

    @property
    def lsb(self) -> float:
        """The value of the last bit, ``2^-frac_bits``: the distance between neighbors."""
        return 2.0**-self.frac_bits

    @property
    def min_int(self) -> int:
        """The smallest stored integer."""
        return -(2 ** (self.width - 1)) if self.signed else 0

    @property
    def max_int(self) -> int:
        """The largest stored integer."""
        return 2 ** (self.width - self.signed) - 1

    @property
    def min(self) -> float:
        """The smallest value."""
        return self.min_int * self.lsb

    @property
    def max(self) -> float:
        """The largest value."""
        return self.max_int * self.lsb

    @property
    def hls4ml(self) -> str:
        """The format as hls4ml writes it: the same four parameters without AMD's prefixes."""
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.int_bits},{self.rounding},{self.overflow}>"

    def __str__(self) -> str:
        overflow = self.overflow if self.overflow == "RAISE" else f"AP_{self.overflow}"
        return f"ap_{'' if self.signed else 'u'}fixed<{self.width},{self.int_bits},AP_{self.rounding},{overflow}>"

    @classmethod
    def parse(cls, text: str) -> FixedPointFormat:
        """Read ``ap_fixed<W,I,Q,O>``, ``ap_ufixed<...>``, and hls4ml's ``fixed<...>`` and ``ufixed<...>``.

        Args:
            text: W and I are required, Q and O default to ``TRN`` and ``WRAP``. ``str()`` of a format and its
                ``hls4ml`` are read back as the same format.

        Returns:
            The format.

        Raises:
            FormatError: The text is not such a format, or names a mode that is not supported.
            TypeError: Not a string.

        Example:
            >>> FixedPointFormat.parse("ap_fixed<16, 6, AP_RND_CONV, AP_SAT>").frac_bits
            10
        """
        if not isinstance(text, str):
            raise TypeError(f"a format is read from text such as 'ap_fixed<16,6>', got {type(text).__name__}")
        match = _TEXT.fullmatch(text)
        parts = [part.strip() for part in match[2].split(",")] if match else []
        # AMD's fifth parameter counts the bits that stay saturated under WRAP; its default is zero.
        if len(parts) == 5 and parts[4] == "0":
            parts.pop()
        if not 2 <= len(parts) <= 4 or not all(re.fullmatch(r"[+-]?[0-9]+", part) for part in parts[:2]):
            raise FormatError(f"{text!r} is not a fixed-point format; write for example 'ap_fixed<16,6,AP_RND,AP_SAT>'")
        return cls(int(parts[0]), int(parts[1]), *parts[2:], signed=not match[1])

    @classmethod
    def for_range(cls, max_abs: float, width: int, **modes: Any) -> FixedPointFormat:
        """The finest format of a width in which no value up to ``max_abs`` overflows when rounded to the nearest.

        Args:
            max_abs: Largest magnitude, at least 0. Zero gives ``int_bits = 1``.
            width: All bits.
            **modes: ``rounding``, ``overflow``, ``signed``.

        Returns:
            The format.

        Raises:
            TypeError: ``max_abs`` is not a number.
            ValueError: ``max_abs`` is negative, NaN or infinite.
            FormatError: It is so small or large that the binary point would be more than 256 bits away.

        Example:
            >>> [FixedPointFormat.for_range(largest, 8).int_bits for largest in (3.2, 3.999)]
            [3, 4]
        """
        check_number("max_abs", max_abs)
        unit = cls(width, 1, **modes)
        if max_abs == 0:
            return unit
        width, signed = unit.width, unit.signed
        fraction, exponent = math.frexp(max_abs)
        # The largest value must stay below the largest integer plus a half, or rounding makes it overflow.
        carried = math.ldexp(fraction, width - signed) >= 2 ** (width - signed) - 0.5
        int_bits = exponent + signed + carried
        if abs(int_bits) > 256:
            raise FormatError(f"values up to {max_abs:.3g} put the binary point {int_bits} bits away; rescale them")
        return cls(width, int_bits, **modes)


def _mode(kind: str, text: Any, known: tuple[str, ...]) -> str:
    mode = str(text).upper().removeprefix("AP_")
    if mode not in known:
        raise FormatError(f"unknown {kind} mode {text!r}; known are {', '.join(known)}")
    return mode
