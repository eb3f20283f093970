"""Scheduling of a data path: which products each of its lanes computes in which cycle. Integers only.

A lane has one accumulator, and so one output at a time. For each stage ``out[a, m, b] = sum_k G[m, k] z[a, k, b]`` the
lanes form a small array: ``q`` words of ``g`` rows times ``v`` columns::

    cycle:  one activation word read       v neighbors b of one (a, k)
            one weight word read           q g rows m of one k          ->  q g v products
    after K cycles, while the next sums accumulate:
            q words of g v results written, one a cycle, as the next stage reads them

A memory of one number per word feeds one column. A memory of words of ``g v`` numbers feeds ``g v`` columns, and needs
as many rounding units. So a stage that reads words of ``v`` numbers may write wider words for the next, as soon as a
word holds all of ``B``. No transpose is ever executed: the order of the writes is the order of the next stage's reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..checks import whole
from .stages import Stage, check_chain

__all__ = ["Tile", "Schedule", "schedule", "cycles"]

# Cycles from the last word of a tile on the read port to its first word of results on the write port.
WRITE = 9


@dataclass(frozen=True)
class Tile:
    """The use of the lanes in one stage: a tile is ``words`` words of ``rows`` x ``columns`` outputs, computed at once.

    Args:
        core: Index of the core, counted from the first.
        A: Outer positions of the stage.
        K: Terms of each sum.
        B: Inner positions.
        r0: Left rank of the core.
        m: Its row mode; the stage has ``r0 * m`` rows.
        words: Words that are written after each tile, ``q``.
        rows: Rows of one r0 that share a written word, ``g``. More than 1 only where a word read holds all of B.
        columns: Numbers in a word read, ``v``.
        reads: Words read for one (a, k); they cover B.

    Example:
        >>> tile = Tile(core=1, A=4, K=16, B=4, r0=4, m=4, words=4, rows=1, columns=2, reads=2)
        >>> tile.lanes, tile.tiles, tile.feed, tile.cycles
        (8, 4, 512, 524)
    """

    core: int
    A: int
    K: int
    B: int
    r0: int
    m: int
    words: int
    rows: int
    columns: int
    reads: int

    @property
    def lanes(self) -> int:
        """Lanes in use, ``q g v``."""
        return self.words * self.rows * self.columns

    @property
    def written(self) -> int:
        """Numbers in a word written, ``g v``; the next stage's ``columns``."""
        return self.rows * self.columns

    @property
    def groups(self) -> int:
        """Groups of rows for each r0."""
        return -(-self.m // self.rows)

    @property
    def results(self) -> int:
        """Words written for one word column (a, bw)."""
        return self.r0 * self.groups

    @property
    def tiles(self) -> int:
        """Tiles for one word column; the last may be partly idle."""
        return -(-self.results // self.words)

    @property
    def last(self) -> int:
        """Words written after the last tile of a word column."""
        return self.results - (self.tiles - 1) * self.words

    @property
    def length(self) -> int:
        """Cycles of a tile: K, or the time to write its words where that is longer."""
        return max(self.K, self.words)

    @property
    def feed(self) -> int:
        """Cycles of all tiles."""
        return self.A * self.reads * self.tiles * self.length

    @property
    def cycles(self) -> int:
        """Cycles of the stage: the next one may read once the last word is written."""
        return self.feed - (self.length - self.K) + WRITE - 1 + self.last

    @property
    def read_words(self) -> int:
        """Words of the array that is read."""
        return self.A * self.K * self.reads

    @property
    def written_words(self) -> int:
        """Words of the array that is written."""
        return self.A * self.results * self.reads


@dataclass(frozen=True)
class Schedule:
    """The tiles of all stages, in the order of execution.

    Args:
        lanes: Lanes available.
        tiles: One for each stage, the last core's first.

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> found = schedule(tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]), 8)
        >>> tiles = [(tile.words, tile.rows, tile.columns) for tile in found.tiles]
        >>> tiles, found.word, found.cycles
        ([(4, 2, 1), (4, 1, 2), (4, 1, 2)], 2, 804)
    """

    lanes: int
    tiles: tuple[Tile, ...]

    @property
    def word(self) -> int:
        """Slots of a memory word, and rounding units."""
        return self.tiles[-1].written

    @property
    def cycles(self) -> int:
        """Cycles from start to done, exactly."""
        return sum(tile.cycles for tile in self.tiles)

    @property
    def used_lanes(self) -> int:
        """Largest number of lanes that a stage uses: the lanes that are built."""
        return max(tile.lanes for tile in self.tiles)

    @property
    def words(self) -> tuple[int, ...]:
        """Words of the arrays between the stages, from the input to the output."""
        return (self.tiles[0].read_words, *(tile.written_words for tile in self.tiles))

    @property
    def weight_slots(self) -> int:
        """Weights in a word of the weight memory."""
        return max(tile.words * tile.rows for tile in self.tiles)

    @property
    def weight_depth(self) -> int:
        """Words of the weight memory."""
        return sum(tile.tiles * tile.K for tile in self.tiles)

    def layout(self, boundary: int) -> list[list[int]]:
        """Memory layout of an array between two stages.

        Args:
            boundary: The array before stage ``boundary``: 0 for the input, ``d`` for the output.

        Returns:
            For each word and each of its ``word`` slots the flat index of the entry, -1 for none.

        Raises:
            ValueError: There is no such boundary.

        Example:
            >>> from ttref.fixedpoint import tt_stages
            >>> schedule(tt_stages([(1, 2, 2, 2), (2, 2, 2, 1)]), 4).layout(1)  # entries (a, r, m)
            [[0, 1], [2, 3], [4, 5], [6, 7]]
        """
        if not 0 <= boundary <= len(self.tiles):
            raise ValueError(f"boundary must be 0 to {len(self.tiles)}, got {boundary}")
        columns, inner = [[0]], 1
        for tile in self.tiles[:boundary]:
            columns, inner = widened(columns, tile), inner * tile.m
        positions = self.words[boundary] // len(columns)
        pad = [-1] * (self.word - len(columns[0]))
        return [
            [position * inner + b if b >= 0 else -1 for b in column] + pad
            for position in range(positions)
            for column in columns
        ]

    def weights(self, stage: int) -> list[list[tuple[int, int] | None]]:
        """Weight memory of a stage: the index (row, k) in the core's matrix for each word and slot, or None.

        Args:
            stage: Index of the stage, in the order of execution.

        Returns:
            One list of ``weight_slots`` for each word, in the order of their addresses.

        Example:
            >>> from ttref.fixedpoint import tt_stages
            >>> # 3 rows on 2 lanes: one slot stays empty
            >>> schedule(tt_stages([(1, 3, 2, 1)]), 2).weights(0)
            [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(2, 0), None], [(2, 1), None]]
        """
        tile, table = self.tiles[stage], []
        for t in range(tile.tiles):
            rows = [row for i in range(tile.words) for row in rows_of(tile, t * tile.words + i)]
            rows += [None] * (self.weight_slots - len(rows))
            table += [[None if row is None else (row, k) for row in rows] for k in range(tile.K)]
        return table


def schedule(stages: Sequence[Stage], lanes: int) -> Schedule:
    """The tilings of all stages whose tiles take the fewest cycles and, among those, the narrowest words.

    Args:
        stages: From :func:`~ttref.fixedpoint.stages.tt_stages`.
        lanes: Multiply-accumulate units, at least 1.

    Returns:
        The schedule. Lanes that no stage can use are not built.

    Raises:
        ValueError: Not the stages of one layer in the order of ``tt_stages``, or ``lanes`` below 1.
        TypeError: ``stages`` is not a list of stages, or ``lanes`` not an integer.

    Cost:
        Dynamic programming over the width of the words: O(stages * widths * m * lanes).

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> stages = tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)])  # 6144 products
        >>> [(p, schedule(stages, p).cycles, -(-6144 // p)) for p in (1, 2, 4, 8, 16)]
        [(1, 6171, 6144), (2, 3102, 3072), (4, 1572, 1536), (8, 804, 768), (16, 420, 384)]
    """
    lanes = whole("lanes", lanes, least=1)
    check_chain(stages)
    # The cheapest tilings that lead to each (numbers in a word, words for one (a, k)).
    best: dict[tuple[int, int], tuple[tuple[int, ...], tuple[Tile, ...]]] = {(1, 1): ((0, 0, 0), ())}
    for stage in stages:
        reached: dict[tuple[int, int], tuple[tuple[int, ...], tuple[Tile, ...]]] = {}
        for (columns, reads), (cost, tiles) in best.items():
            for tile in _choices(stage, lanes, columns, reads):
                key = (tile.written, tile.groups * reads)
                weights = tile.words * tile.rows
                total = (cost[0] + tile.feed, cost[1] + tile.cycles, max(cost[2], weights))
                if key not in reached or total < reached[key][0]:
                    reached[key] = (total, (*tiles, tile))
        best = reached
    chosen = min(best, key=lambda key: (best[key][0][0], key[0], best[key][0][1:]))
    return Schedule(lanes, best[chosen][1])


def cycles(stages: Sequence[Stage], lanes: int) -> int:
    """Cycles from start to done on ``lanes`` lanes, as the simulated hardware takes them.

    Args:
        stages: From :func:`~ttref.fixedpoint.stages.tt_stages`.
        lanes: Multiply-accumulate units, at least 1.

    Returns:
        Cycles.

    Raises:
        ValueError, TypeError: As :func:`schedule`.

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> cycles(tt_stages([(1, 3, 2, 2), (2, 2, 3, 1)]), 4)
        33
    """
    return schedule(stages, lanes).cycles


def _choices(stage: Stage, lanes: int, columns: int, reads: int) -> Iterator[Tile]:
    """All tilings of a stage that reads ``reads`` words of ``columns`` numbers for one (a, k)."""
    widest = min(stage.m, lanes // columns) if reads == 1 else 1
    for rows in range(1, widest + 1):
        for words in range(1, min(lanes // (rows * columns), stage.r0 * -(-stage.m // rows)) + 1):
            yield Tile(stage.core, stage.A, stage.K, stage.B, stage.r0, stage.m, words, rows, columns, reads)


def rows_of(tile: Tile, result: int) -> list[int | None]:
    """Row index in the core's matrix for each row of a word of results; None for padding."""
    r, group = divmod(result, tile.groups)
    if r >= tile.r0:
        return [None] * tile.rows
    first = group * tile.rows
    return [r * tile.m + first + j if first + j < tile.m else None for j in range(tile.rows)]


def widened(columns: list[list[int]], tile: Tile) -> list[list[int]]:
    """Index b in each slot of the words for one (a, k) after a stage, from those before it; -1 for an unused slot."""
    return [
        [
            row * tile.B + b if row < tile.m and b >= 0 else -1
            for row in range(group * tile.rows, (group + 1) * tile.rows)
            for b in column
        ]
        for group in range(tile.groups)
        for column in columns
    ]
