"""Sizes of the matrix products of a contraction, and the peak of the numbers alive meanwhile: integer arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = tuple[int, int, int, int]
WAYS = ("right-to-left", "left-to-right")


def steps(way: str, shapes: Sequence[Shape]) -> list[tuple[int, int, int, int]]:
    """For one vector and each core in turn: the number of slices of its product, and the product's p, q and w.

    A core is a ``(p, q)`` matrix that multiplies ``(q, w)`` slices of the state.
    """
    if way == "right-to-left":
        shapes = [(q, m, n, r) for r, m, n, q in reversed(shapes)]
    inputs, outputs, found = math.prod([n for _, _, n, _ in shapes]), 1, []
    for r, m, n, q in shapes:
        inputs //= n
        slices, width = (outputs, inputs) if way == "left-to-right" else (inputs, outputs)
        found.append((slices, m * q, r * n, width))
        outputs *= m
    return found


def folds(slices: int, p: int, q: int, w: int) -> bool:
    """True if slices of the state are worth sorting into one matrix: if the core is much larger than a slice."""
    return slices > 1 and w > 1 and p * q >= 8 * w * (p + q)


def way_through(shapes: Sequence[Shape]) -> str:
    """The direction with fewer multiply-adds; if equal, from the right, which copies no core."""
    right, left = [sum([math.prod(step) for step in steps(way, shapes)]) for way in WAYS]
    return "right-to-left" if right <= left else "left-to-right"


def mergeable(sizes: Sequence[int], groups: Sequence[Sequence[int]]) -> bool:
    """True if the axes of a contiguous tensor, permuted into these groups, merge without a copy."""
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    for group in groups:
        axes = [axis for axis in group if sizes[axis] > 1]
        for k in range(1, len(axes)):
            if strides[axes[k - 1]] != sizes[axes[k]] * strides[axes[k]]:
                return False
    return True


def merged(part: Sequence[Shape]) -> Shape:
    """Shape of neighboring cores merged into one."""
    return part[0][0], math.prod([s[1] for s in part]), math.prod([s[2] for s in part]), part[-1][3]


def joins(part: Sequence[Shape], right: bool) -> list[tuple[int, int, tuple[Shape, Shape]]]:
    """For each core merged onto those before it: entries of the result, the bond, and the two that are joined."""
    found, whole = [], None
    for core in part[::-1] if right else part:
        if whole is None:
            whole = core
            continue
        one, other = (core, whole) if right else (whole, core)
        whole = merged([one, other])
        found.append((math.prod(whole), other[0], (one, other)))
    return found


def sorts(one: Shape, other: Shape) -> bool:
    """True if the product of two neighboring cores must be copied to become one core."""
    return not mergeable((*one[:3], *other[1:]), [(0,), (1, 3), (2, 4), (5,)])


def from_right(part: Sequence[Shape]) -> bool:
    """True if merging cores from the right takes fewer multiply-adds than from the left."""
    right, left = [sum([entries * bond for entries, bond, _ in joins(part, side)]) for side in (True, False)]
    return right < left


def halved(shapes: Sequence[Shape], cut: int) -> list[Sequence[Shape]]:
    """The two parts that "two-gemm" merges; a single part if there is one core."""
    return [part for part in (shapes[:cut], shapes[cut:]) if part]


def buffers(way: str, shapes: Sequence[Shape]) -> list[int]:
    """Entries per vector of the two buffers between which intermediate results alternate."""
    results = [slices * p * w for slices, p, _, w in steps(way, shapes)][:-1]
    return [max([0, *results[k::2]]) for k in (0, 1)]


class Live:
    """Numbers alive now (``held``), and the most that were alive at once (``peak``), while a product is computed."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def add(self, *numbers: int) -> None:
        """Allocate results of these sizes, one after the other."""
        self.held += sum(numbers)
        self.peak = max(self.peak, self.held)

    def drop(self, *numbers: int) -> None:
        """Free results of these sizes."""
        self.held -= sum(numbers)

    def sort(self, entries: int, *, needed: bool = True) -> None:
        """Replace a result by a copy with its axes permuted."""
        if needed:
            self.add(entries)
            self.drop(entries)

    def merge(self, part: Sequence[Shape], *, keep: bool) -> int:
        """Merge cores into one, which stays alive; with ``keep`` also the partial products, which backward needs."""
        before = 0
        for entries, _, pair in joins(part, from_right(part)):
            self.add(entries)
            self.sort(entries, needed=sorts(*pair))
            self.drop(0 if keep else before)
            before = entries
        return before

    def unmerge(self, part: Sequence[Shape]) -> None:
        """Backward through :meth:`merge`: from the gradient of the merged core to those of the cores."""
        right = from_right(part)
        ordered, found = part[::-1] if right else part, joins(part, right)
        for k in range(len(found) - 1, -1, -1):
            entries, _, pair = found[k]
            self.sort(entries, needed=sorts(*pair))
            before = found[k - 1][0] if k else math.prod(ordered[0])
            self.add(before, math.prod(ordered[k + 1]))
            self.drop(entries, before if k else 0)  # this gradient, and what was kept to compute it

    def walk(self, way: str, shapes: Sequence[Shape], batch: int, chunk: int, kept: bool) -> None:
        """Forward without gradients, as ``walks.in_place``."""
        if way == "left-to-right":  # the axes of the cores are sorted
            self.add(*[0 if mergeable(shape, [(0, 2), (1, 3)]) else math.prod(shape) for shape in shapes])
        if kept:
            self.add(batch * merged(shapes)[1], chunk * sum(buffers(way, shapes)))
            return
        before = 0
        for slices, p, q, w in steps(way, shapes):
            sorting = folds(batch * slices, p, q, w)
            self.add(batch * slices * q * w if sorting else 0, batch * slices * p * w)
            self.sort(batch * slices * p * w, needed=sorting)
            self.drop(before, batch * slices * q * w if sorting else 0)
            before = batch * slices * p * w

    def train(
        self, way: str, shapes: Sequence[Shape], batch: int, chunk: int, *, bias: int = 0, fresh: bool = False
    ) -> None:
        """Forward and backward through ``walks.recorded``; ``fresh`` cores are merged ones, alive already."""
        left, found, outputs, last = way == "left-to-right", [], 1, 1
        ordered = shapes if left else shapes[::-1]
        for (slices, p, q, w), (r, m, n, bond) in zip(steps(way, shapes), ordered, strict=True):
            matrix = 0
            if left:
                sort = not mergeable((chunk, n, w, outputs, r), [(0, 2, 3), (4, 1)])
                back = not mergeable((chunk, w, outputs // last, last, r, n), [(0, 5, 1, 2), (3, 4)])
                matrix = 0 if mergeable((r, m, n, bond), [(0, 2), (1, 3)]) else r * m * n * bond
                outputs, last = outputs * m, m
            else:
                sort = not mergeable((chunk, slices, n, outputs, bond, last), [(0, 1, 5, 3), (2, 4)])
                back = not mergeable((chunk, slices, last, outputs, n, bond), [(0, 1, 4, 3), (5, 2)])
                outputs, last = outputs * last, m
            found.append((slices * q * w, slices * p * w, sort, sort and back, matrix, r * m * n * bond))
        (_, rows, cols, _), others = merged(shapes), batch - chunk
        kept = [state if sort or k else 0 for k, (state, _, sort, *_) in enumerate(found)]
        self.add(others * (sum(kept) + rows))  # of the chunks before the last
        for k, (state, result, sort, _, matrix, _) in enumerate(found):
            self.add(chunk * state if sort else 0, matrix, chunk * result)
            self.drop(chunk * state if sort and k else 0)
        self.sort(chunk * rows, needed=not left and not mergeable((chunk, outputs, last), [(0,), (2, 1)]))
        self.sort(batch * rows, needed=others > 0)  # put together
        self.sort(batch * rows, needed=bias > 0)
        self.drop(sum([core for *_, matrix, core in found if matrix and fresh]))
        self.add(bias)
        upstream = 0 if left or mergeable((chunk, last, outputs), [(0, 2), (1,)]) else chunk * rows
        self.add(upstream)
        for (state, _, _, back, matrix, core), keeping in zip(reversed(found), reversed(kept), strict=True):
            self.add(chunk * state, core)
            self.drop(upstream, chunk * keeping, matrix, core if fresh and not matrix else 0)
            self.sort(core, needed=matrix > 0)
            self.sort(chunk * state, needed=back)
            upstream = chunk * state
        self.drop(others * sum(kept))
        self.add(others * cols)
        self.sort(batch * cols, needed=others > 0)

    def rebuild(self, shapes: Sequence[Shape], batch: int, block: int, bias: int) -> None:
        """Backward through ``recomputed.RebuiltTwice``."""
        (_, rows, cols, _), first, rest = merged(shapes), math.prod(shapes[0]), math.prod(merged(shapes[1:]))
        size, sorting = rows * cols // shapes[0][1] * block, sorts(shapes[0], merged(shapes[1:]))
        self.add(bias, batch * rows)
        self.merge(shapes[1:], keep=True)
        self.add(batch * cols, first, rest, size)
        self.sort(size, needed=sorting)
        part = [size, size if sorting else 0, first // shapes[0][1] * block, rest]
        self.add(*part)
        self.drop(size, *part)
        self.unmerge(shapes[1:])


def forward_peak(order: str, shapes: Sequence[Shape], batch: int, chunk: int, cut: int, block: int, kept: bool) -> int:
    """Peak of the numbers alive at once without gradients; neither cores nor vectors count."""
    live, (_, rows, cols, _) = Live(), merged(shapes)
    if order == "dense":
        rest, whole = live.merge(shapes[1:], keep=False), block == shapes[0][1]
        built = rows * cols // shapes[0][1] * block if len(shapes) > 1 else 0
        live.add(0 if whole else batch * rows, built)
        live.sort(built, needed=len(shapes) > 1 and sorts(shapes[0], merged(shapes[1:])))
        live.drop(rest)
        live.add(batch * rows if whole else 0)
        return live.peak
    if order == "two-gemm":
        parts = halved(shapes, cut)
        for part in parts:
            live.merge(part, keep=False)
        order, shapes = way_through(shapes := [merged(part) for part in parts]), shapes
    live.walk(order, shapes, batch, chunk, kept)
    return live.peak


def training_peak(
    order: str,
    shapes: Sequence[Shape],
    batch: int,
    chunk: int,
    cut: int,
    block: int,
    kept: bool,
    bias: int,
    recompute: bool,
) -> int:
    """Peak of the numbers alive at once in a training step; cores, vectors and the answer's gradient do not count."""
    live, (_, rows, cols, _), parts, fresh = Live(), merged(shapes), [], False
    if order == "dense" and recompute and len(shapes) > 1:
        before = forward_peak(order, shapes, batch, chunk, cut, block, kept)
        live.rebuild(shapes, batch, block, bias)
        return max(before, live.peak)
    if order == "dense":
        rest, alone = shapes[1:], len(shapes) == 1
        live.merge(rest, keep=True)
        live.add(0 if alone else rows * cols)
        live.sort(rows * cols, needed=len(shapes) > 1 and sorts(shapes[0], merged(shapes[1:])))
        live.add(batch * rows)
        live.sort(batch * rows, needed=bias > 0)
        live.add(bias, batch * cols, rows * cols)
        if not alone:
            live.drop(rows * cols)
            live.sort(rows * cols, needed=len(shapes) > 1 and sorts(shapes[0], merged(shapes[1:])))
            live.add(math.prod(shapes[0]), math.prod(merged(rest)))
            live.drop(rows * cols)
            live.unmerge(rest)
        return live.peak
    if order == "two-gemm":
        parts = halved(shapes, cut)
        fresh = sum([live.merge(part, keep=True) for part in parts]) > 0
        shapes = [merged(part) for part in parts]
        order = way_through(shapes)
    if recompute:
        before = live.held
        live.walk(order, shapes, batch, chunk, kept)
        live.held = before
        live.add(bias, batch * (rows + cols), *map(math.prod, shapes))
        before = live.held - (sum(map(math.prod, shapes)) if fresh else 0)
        live.train(order, shapes, chunk, chunk)
        live.held = before
    else:
        live.train(order, shapes, batch, chunk, bias=bias, fresh=fresh)
    for part in parts[::-1]:
        live.unmerge(part)
    return live.peak
