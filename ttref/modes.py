"""Choice of the modes of a TT-matrix where a width is given: balanced, in the order with the fewest operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .checks import check_modes, paired_modes, several, whole
from .shapes import balanced_modes, tt_ranks
from .steps import WAYS, steps

NOMINAL_RANK = 16  # in place of the ranks that eps will give, because the mode order is chosen before
FEW_ARRANGEMENTS = 1000  # pairs of orders of modes that are all compared, which takes some hundredths of a second

Pair = tuple[tuple[int, ...], tuple[int, ...]]


def choose_modes(
    in_shape: int | Sequence[int],
    out_shape: int | Sequence[int],
    rank: int | Sequence[int],
    names: tuple[str, str] = ("in_shape", "out_shape"),
) -> Pair:
    """Modes of both sides; where a width was given instead, balanced ones in the order with fewest operations.

    Up to a thousand pairs of orders are all compared; above, a local search swaps two modes while that is cheaper.
    """
    given = dict(zip(names, (in_shape, out_shape), strict=True))
    fixed = {name: check_modes(name, side) for name, side in given.items() if several(side)}
    order = len(next(iter(fixed.values()))) if fixed else 3
    if any(len(modes) != order for modes in fixed.values()):
        raise ValueError(
            f"{names[0]} {fixed[names[0]]} has {order} modes and {names[1]} {fixed[names[1]]} has "
            f"{len(fixed[names[1]])}; they need equally many"
        )
    chosen = [
        fixed[name] if name in fixed else balanced_modes(whole(name, side, least=1), order)
        for name, side in given.items()
    ]
    free = [name not in fixed for name in given]

    def macs(pair: Pair) -> tuple[int, int]:
        ins, outs = pair
        ranks = tt_ranks(paired_modes(outs, ins), rank)
        shapes = list(zip(ranks[:-1], outs, ins, ranks[1:], strict=True))
        return min(sum(map(math.prod, steps(way, shapes))) for way in WAYS), sum(map(math.prod, shapes))

    if math.prod(_count(modes) for modes, may in zip(chosen, free, strict=True) if may) <= FEW_ARRANGEMENTS:
        sides = [_arrangements(modes) if may else [modes] for modes, may in zip(chosen, free, strict=True)]
        return min(((ins, outs) for ins in sides[0] for outs in sides[1]), key=macs)
    starts = [
        tuple(tuple(sorted(modes, reverse=down)) if may else modes for modes, may in zip(chosen, free, strict=True))
        for down in (False, True)
    ]
    return min((_improved(start, free, macs) for start in starts), key=macs)


def _count(modes: tuple[int, ...]) -> int:
    """Number of distinct orders of the modes."""
    return math.factorial(len(modes)) // math.prod(math.factorial(modes.count(mode)) for mode in set(modes))


def _arrangements(modes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All distinct orders of the modes: twelve twos have one, not 12!."""
    if len(modes) == 1:
        return [modes]
    places = [modes.index(mode) for mode in sorted(set(modes))]
    return [(modes[k], *rest) for k in places for rest in _arrangements(modes[:k] + modes[k + 1 :])]


def _improved(pair: Pair, free: Sequence[bool], macs: Callable[[Pair], tuple[int, int]]) -> Pair:
    """Local search: swap two modes of a side while that is cheaper, always the first such swap."""
    least = macs(pair)
    places = [(side, i, j) for side in (0, 1) if free[side] for j in range(len(pair[side])) for i in range(j)]
    while True:
        for side, i, j in places:
            modes = list(pair[side])
            if modes[i] == modes[j]:
                continue
            modes[i], modes[j] = modes[j], modes[i]
            swapped = (tuple(modes), pair[1]) if side == 0 else (pair[0], tuple(modes))
            if (found := macs(swapped)) < least:
                pair, least = swapped, found
                break
        else:
            return pair
