"""The activity of every lane in every cycle, equal to the simulated hardware's; the animation is drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .scheduling import WRITE, Schedule, rows_of, widened

__all__ = ["Cycle", "trace"]

# Cycles from a word on the read port to its products.
MULTIPLY = 3


@dataclass(frozen=True)
class Cycle:
    """Activity of the data path in one cycle. A product is formed three cycles after its word is read.

    Args:
        stage: Index of the stage, in the order of execution.
        core: Index of its core, counted from the first.
        position: ``(a, bw, tile, k)`` of the word whose address is on the read port, or None.
        read: That address, in the array before the stage, or None.
        products: For each lane the output ``(a, row, b)`` and the term k of its product, or None for an idle lane.
        write: The address on the write port, in the array after the stage, or None.

    Example:
        >>> from ttref.fixedpoint import schedule, tt_stages
        >>> first = next(trace(schedule(tt_stages([(1, 2, 2, 1)]), 2)))
        >>> first.core, first.position, first.read, first.products, first.write
        (0, (0, 0, 0, 0), 0, (None, None), None)
    """

    stage: int
    core: int
    position: tuple[int, int, int, int] | None
    read: int | None
    products: tuple[tuple[int, int, int, int] | None, ...]
    write: int | None


def trace(schedule: Schedule) -> Iterator[Cycle]:
    """The activity of the hardware in every cycle, from start to done.

    Args:
        schedule: From :func:`~ttref.fixedpoint.scheduling.schedule`.

    Yields:
        One :class:`Cycle` for each of ``schedule.cycles``.

    Example:
        >>> from ttref.fixedpoint import schedule, tt_stages
        >>> record = list(trace(schedule(tt_stages([(1, 2, 2, 1)]), 2)))
        >>> [(c.read, c.products, c.write) for c in record[3:5]]
        [(None, ((0, 0, 0, 0), (0, 1, 0, 0)), None), (None, ((0, 0, 0, 1), (0, 1, 0, 1)), None)]
    """
    columns = [[0]]
    for index, tile in enumerate(schedule.tiles):
        read, products, write = {}, {}, {}
        steps = tile.A * tile.reads * tile.tiles
        for step in range(steps):
            (a, bw), t = divmod(step // tile.tiles, tile.reads), step % tile.tiles
            rows = [rows_of(tile, t * tile.words + i) for i in range(tile.words)]
            owners = [
                None if row is None or b < 0 else (a, row, b) for word in rows for row in word for b in columns[bw]
            ]
            for k in range(tile.K):
                begin = step * tile.length + k
                read[begin] = ((a, bw, t, k), (a * tile.K + k) * tile.reads + bw)
                products[begin + MULTIPLY] = tuple(None if owner is None else (*owner, k) for owner in owners)
            for i in range(tile.words if t < tile.tiles - 1 else tile.last):
                result = a * tile.results + t * tile.words + i
                write[step * tile.length + tile.K - 1 + WRITE + i] = result * tile.reads + bw
        columns = widened(columns, tile)
        for now in range(tile.cycles):
            position, address = read.get(now, (None, None))
            busy = products.get(now, ())
            busy += (None,) * (schedule.used_lanes - len(busy))
            yield Cycle(index, tile.core, position, address, busy, write.get(now))
