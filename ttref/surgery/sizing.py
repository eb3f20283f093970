"""How small a replacement must be, and with which modes: what the candidates share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from ..checks import check_number, check_rank_or_eps, paired_modes, whole
from ..modes import NOMINAL_RANK, choose_modes
from ..shapes import factorize, largest, ttm_params
from .finding import sizes_of

Modes = tuple[Sequence[int], Sequence[int]]


class Size:
    """How small a replacement must be: by eps, ratio or rank."""

    def __init__(self, eps: float | None, ratio: float | None, rank: int | None) -> None:
        given = [
            f"{name}={value}" for name, value in (("eps", eps), ("ratio", ratio), ("rank", rank)) if value is not None
        ]
        if len(given) != 1:
            raise ValueError(f"give exactly one of eps, ratio and rank, got {' and '.join(given) or 'none'}")
        if ratio is not None:
            check_number("ratio", ratio, positive=True)
        else:
            check_rank_or_eps(None if rank is None else whole("rank", rank, least=1), eps)
        self.eps, self.ratio, self.rank = eps, ratio, rank

    def __str__(self) -> str:
        return (
            f"{self.ratio:g}x"
            if self.ratio is not None
            else f"eps {self.eps:g}"
            if self.rank is None
            else f"rank {self.rank}"
        )

    def rank_of(self, layer: nn.Module, shape: Shape) -> int | None:
        """The rank cap for this layer, 0 if none is small enough; None for eps."""
        if self.ratio is None:
            return self.rank
        numbers = math.prod(sizes_of(layer)) / self.ratio
        return largest(lambda rank: ttm_params(*shape.of(layer, rank), rank) <= numbers, max(sizes_of(layer)))

    def missing(self, layer: nn.Module, shape: Shape) -> str | None:
        """The reason why no rank is small enough."""
        if self.ratio is None or self.rank_of(layer, shape):
            return None
        least, numbers = ttm_params(*shape.of(layer, 1), 1), math.prod(sizes_of(layer))
        return f"rank 1 already takes {least} of its {numbers} numbers, {numbers / least:.3g}x"


class Shape:
    """Row and column modes for a layer: given, or balanced."""

    def __init__(self, order: int, modes: Modes | None) -> None:
        if modes is not None:
            if not isinstance(modes, (tuple, list)) or len(modes) != 2:
                raise TypeError(f"modes must be row modes and column modes, such as ((4, 6), (6, 6)), got {modes!r}")
            paired_modes(*modes)
            modes = tuple(modes[0]), tuple(modes[1])
        self.order, self.modes = order, modes

    @property
    def free(self) -> bool:
        """True if nothing was asked for."""
        return self.modes is None and self.order == 3

    def __str__(self) -> str:
        if self.modes is not None:
            return f", {'x'.join(map(str, self.modes[0]))} | {'x'.join(map(str, self.modes[1]))}"
        return "" if self.order == 3 else f", {self.order} modes"

    def of(self, layer: nn.Module, rank: int | None = None) -> Modes:
        """Row modes and column modes; the order of three balanced ones depends on the rank, as in :class:`TTLinear`."""
        m, n = sizes_of(layer)
        if self.modes is not None:
            return self.modes
        if isinstance(layer, nn.Conv2d) and self.order == 3:  # out, in, taps: a core each
            taps = math.prod(layer.kernel_size)
            return (m, 1, 1), (1, n // taps, taps)
        if self.order == 3:
            return choose_modes(n, m, rank or NOMINAL_RANK)[::-1]
        return factorize(m, self.order), factorize(n, self.order)

    def missing(self, layer: nn.Module) -> str | None:
        """The reason why this layer has no such modes."""
        try:
            rows, cols = self.of(layer)
        except ValueError as error:
            return str(error)
        made, (m, n) = (math.prod(rows), math.prod(cols)), sizes_of(layer)
        if made != (m, n) and self.modes is not None:
            return f"the modes multiply to {made[0]} x {made[1]}, not {m} x {n}"
        return None


class Factors(Shape):
    """The modes of a matrix product of two."""

    def of(self, layer: nn.Module, rank: int | None = None) -> Modes:
        """``(m, 1)`` and ``(1, n)``."""
        m, n = sizes_of(layer)
        return (m, 1), (1, n)


TWO_FACTORS = Factors(2, None)
