"""A plan of a contraction and its figures, and what each order costs for given sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .scratch import worth_keeping
from .steps import (
    Live,
    Shape,
    buffers,
    forward_peak,
    from_right,
    halved,
    joins,
    merged,
    steps,
    training_peak,
    way_through,
)

__all__ = ["Plan"]

# Intermediate results of this size stay near a processor's cores; a batch that would make larger ones is cut into
# chunks of vectors. A GPU wants few, large products instead.
WORKING_BYTES = 8 << 20
LEAST_SHARE = 32  # a chunk is at least this part of the working bytes: smaller matrix products would be slow


class Plan(NamedTuple):
    """An order of multiplying a batch of vectors by a TT-matrix, and its costs; ``print`` shows them beside dense ones.

    ``order``: "left-to-right" or "right-to-left" (one core after the other), "two-gemm" (merge the cores into two
    halves first), "dense" (rebuild the matrix first). ``macs``: multiply-adds; twice as many flops. ``bytes``: float32
    bytes that the matrix products read and write without gradients; an operand that multiplies several slices counts
    once for each. ``temporary``: float32 bytes of the largest intermediate result without gradients, the answer not
    included. ``chunk``: vectors handled at a time. ``cut``: number of cores merged into the left half, 0 if none are.
    ``block``: slices of the first row mode that are rebuilt together, 0 if none are. ``recompute``: True if training
    computes intermediate results twice instead of keeping them. ``shapes``: shapes of the cores. ``batch``: number of
    vectors. ``widths``: rows and columns of the matrix without padding. ``bias``: entries of a bias, 0 without one.

    Example:
        >>> cost("dense", ((1, 8, 8, 2), (2, 8, 8, 1)), 1).macs
        12288
    """

    order: str
    macs: int
    bytes: int
    temporary: int
    chunk: int
    cut: int = 0
    block: int = 0
    recompute: bool = False
    shapes: tuple[Shape, ...] = ()
    batch: int = 1
    widths: tuple[int, int] = (0, 0)
    bias: int = 0

    @property
    def forward(self) -> int:
        """Peak of the float32 bytes alive at once while the answer is computed without gradients.

        The answer and all intermediate results count, parameters and ``x`` do not; of the buffers that a thread keeps
        from call to call, the part that this call uses. Half precision takes copies in float32 besides.
        """
        peak = forward_peak(self.order, self.shapes, self.batch, self.chunk, self.cut, self.block, self._kept)
        x, y = self._padding
        return 4 * (x + max(peak, y and y + self.batch * self.widths[0]) + (self.bias if y else 0))

    @property
    def training(self) -> int:
        """Peak of the float32 bytes alive at once in a training step: forward, then backward to x and all parameters.

        The tensors that autograd keeps, the answer, and the gradients of ``x``, cores and bias count. Parameters,
        ``x``, the gradient of the answer and an optimizer's state do not.
        """
        given = self.order, self.shapes, self.batch, self.chunk, self.cut, self.block, self._kept
        x, y = self._padding
        return 4 * (training_peak(*given, self.bias, self.recompute) + x + (y if self.recompute else 0))

    @property
    def _kept(self) -> bool:
        """True if intermediate results are written into buffers set aside for them."""
        return self.recompute or self.chunk < self.batch or worth_keeping(self.temporary)

    @property
    def weights(self) -> int:
        """Float32 bytes of the cores."""
        return 4 * sum(map(math.prod, self.shapes))

    @property
    def dense(self) -> dict[str, int]:
        """The same figures of a dense layer of these widths: macs, bytes, forward, training and weights."""
        (rows, cols), batch = self.widths, self.batch
        weight, vectors = rows * cols, batch * (rows + cols)
        training = 4 * (vectors + weight + self.bias)
        found = {"macs": batch * weight, "bytes": 4 * (weight + vectors), "forward": 4 * batch * rows}
        return found | {"training": training, "weights": 4 * weight}

    @property
    def _padding(self) -> tuple[int, int]:
        """Entries of the padded vectors and of the padded answer, 0 where a width is not padded."""
        _, rows, cols, _ = merged(self.shapes)
        sizes = (cols, self.widths[1]), (rows, self.widths[0])
        x, y = (self.batch * size if size != width else 0 for size, width in sizes)
        return x, y

    def __str__(self) -> str:
        dense = self.dense
        rows = [("", "TT", "dense")] + [
            (label, f"{getattr(self, name):,}", f"{dense[name]:,}")
            for label, name in (
                ("multiply-adds", "macs"),
                ("bytes moved", "bytes"),
                ("peak bytes, forward", "forward"),
                ("peak bytes, training", "training"),
                ("bytes of weights", "weights"),
            )
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        how = f"{self.order}, {self.chunk} of {self.batch} vectors at a time" + ", recomputed" * self.recompute
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        return "\n".join([how, *lines])


def cheaper(plans: Sequence[Plan]) -> Plan:
    """The first of the cheapest; a plain loop, because torch.compile follows it and not ``min`` with a key."""
    best = plans[0]
    for plan in plans[1:]:
        if price(plan) < price(best):
            best = plan
    return best


def price(plan: Plan) -> int:
    """The cost by which orders are compared: multiply-adds plus the number of float32 numbers read or written.

    An order that merges cores first must be an eighth cheaper: its merged cores are large and not in the cache, and in
    measurements it loses where the sums are close. The performance page reports how good the choices are.
    """
    total = plan.macs + plan.bytes // 4
    return total + total // 8 if plan.cut else total


def cost(
    order: str, shapes: Sequence[Shape], batch: int, working: int = WORKING_BYTES, recompute: bool = False
) -> Plan:
    """The plan of one order, summed over its matrix products."""
    _, rows, cols, _ = merged(shapes)
    room = _room(shapes, batch, recompute)
    if order == "dense":
        plan = _rebuild(shapes, batch, working, room, copies=4 if recompute else 2)
    elif order == "two-gemm":
        plans = []
        for cut in range(1, max(len(shapes), 2)):
            halves, before = _merging(halved(shapes, cut))
            plans.append(_walk(order, way_through(halves), halves, batch, working, room, recompute, before, cut))
        plan = cheaper(plans)
    else:
        plan = _walk(order, order, shapes, batch, working, room, recompute)
    return plan._replace(shapes=tuple(shapes), batch=batch, widths=(rows, cols), recompute=recompute)


def _room(shapes: Sequence[Shape], batch: int, recompute: bool) -> int:
    """Bytes for intermediate results that keep cores, results and answer within a dense layer's bytes plus a tenth.

    With recomputation: within a dense layer and its gradient.
    """
    _, rows, cols, _ = merged(shapes)
    saved = rows * cols - sum([math.prod(shape) for shape in shapes])
    return 8 * saved if recompute else 4 * saved + 4 * (rows * cols + batch * rows) // 10


def _walk(
    order: str,
    way: str,
    shapes: Sequence[Shape],
    batch: int,
    working: int,
    room: int,
    recompute: bool,
    before: Sequence[tuple[int, int, int]] = (),
    cut: int = 0,
) -> Plan:
    """The plan of one core after the other; ``before`` holds the costs of merging cores first."""
    products = steps(way, shapes)
    widest = max([0] + [slices * p * w for slices, p, _, w in products[:-1]])
    each = sum(buffers(way, shapes))
    if recompute:
        live = Live()
        live.train(way, shapes, 1, 1)
        each = live.peak
    most = max(working // LEAST_SHARE, min(2 * working, room - sum([result for _, _, result in before])))
    chunk = min(batch, max(1, most // (4 * each))) if widest else batch
    passes = -(-batch // chunk)
    chunk = -(-batch // passes)  # chunks of about equal size
    moved = 0
    for slices, p, q, w in products:
        # For w = 1 the slices are rows of one matrix: one product, which reads the core once.
        moved += batch * slices * (q + p) * w + p * q * (passes if w == 1 else batch * slices)
    return Plan(
        order,
        batch * sum([math.prod(product) for product in products]) + sum([macs for macs, _, _ in before]),
        4 * moved + sum([moved for _, moved, _ in before]),
        max([4 * chunk * widest] + [result for _, _, result in before]),
        chunk,
        cut,
    )


def _merging(parts: Sequence[Sequence[Shape]]) -> tuple[list[Shape], list[tuple[int, int, int]]]:
    """Shapes of the merged cores; multiply-adds, bytes moved and bytes of the result of each merging product."""
    found = []
    for part in parts:
        for entries, bond, _ in joins(part, from_right(part)):
            found.append((entries * bond, 12 * entries, 4 * entries))  # written; read and written to sort the axes
    return [merged(part) for part in parts], found


def _rebuild(shapes: Sequence[Shape], batch: int, working: int, room: int, copies: int) -> Plan:
    """The plan of "dense": merge all cores but the first; for each block of rows, one product rebuilds, one uses it.

    ``copies``: arrays of a block's size that may be alive at once.
    """
    (_, rows, cols, _), first = merged(shapes), shapes[0][1]
    block, before = first, []
    if len(shapes) > 1:  # a single core is the matrix
        _, before = _merging([shapes[1:]])
        most = max(working // LEAST_SHARE, min(working, (room - 4 * math.prod(merged(shapes[1:]))) // copies))
        block = max(1, min(first, most * first // (4 * rows * cols)))
        before.append((rows * cols * shapes[0][3], 12 * rows * cols, 4 * rows * cols // first * block))
    return Plan(
        "dense",
        sum([macs for macs, _, _ in before]) + batch * rows * cols,
        sum([moved for _, moved, _ in before]) + 4 * (rows * cols + batch * (-(-first // block) * cols + rows)),
        max([0] + [result for _, _, result in before]),
        batch,
        block=block,
    )
