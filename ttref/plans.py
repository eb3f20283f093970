"""Costs of multiplying a batch of vectors by a TT-matrix, in each order. Nothing is multiplied here.

With cores ``(r_{k-1}, m_k, n_k, r_k)`` the product can be taken core by core from either end, or after some merging::

    left-to-right    x meets G_1, the result meets G_2, ...     cheap when the output modes grow from left to right
    right-to-left    x meets G_d, the result meets G_{d-1}, ... cheap when they shrink
    two-gemm         merge the cores into two halves, then two matrix products
    dense            rebuild the matrix, block by block, then one matrix product

Which is cheapest depends on the modes, the ranks and the batch; the numbers that come out agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_matrix_train, whole
from .modules import listed
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

__all__ = ["Plan", "plan_contraction"]

# Of two equal costs the first is taken: a walk from the right reads the cores in their own memory order.
ORDERS = ("right-to-left", "left-to-right", "two-gemm", "dense")

# Intermediate results of this size stay near a processor's cores; a batch that would make larger ones is cut into
# chunks of vectors. A GPU wants few, large products instead.
WORKING_BYTES = 8 << 20
WORKING_BYTES_CUDA = 256 << 20
LEAST_SHARE = 32  # a chunk is at least this part of the working bytes: smaller matrix products would be slow
NOMINAL_BATCH = 32  # while a tracing compiler works, and the batch may be no number yet


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


def plan_contraction(cores: Sequence[Tensor], batch: int, order: str = "auto") -> Plan:
    """The cost of multiplying ``batch`` vectors by a TT-matrix: in the cheapest order, or in the one you name.

    Orders are compared by multiply-adds plus float32 numbers moved; merging cores first must be an eighth cheaper. If
    cores and peak bytes of the cheapest exceed a dense layer's by more than a tenth, one that stays within is taken, if
    there is one that costs at most a tenth more.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        batch: Number of vectors.
        order: "auto" for the cheapest, or one of "left-to-right", "right-to-left", "two-gemm", "dense".

    Returns:
        A :class:`Plan`; print it to see what was chosen and what it costs beside the dense matrix.

    Raises:
        TypeError, ValueError: ``batch`` not an integer or below 1, no such order, or cores that are no TT-matrix.

    Cost:
        O(d); nothing is contracted.

    Source:
        Gray and Kourtis (2021), Hyper-optimized tensor network contraction: flops and the largest intermediate as the
        two costs of an order.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd
        >>> cores = ttm_svd(torch.randn(64, 64), (8, 8), (8, 8), rank=2)
        >>> plan_contraction(cores, 1).macs, plan_contraction(cores, 1, "dense").macs
        (2048, 12288)
        >>> print(plan_contraction(cores, 1))
        right-to-left, 1 of 1 vectors at a time
                                 TT   dense
        multiply-adds         2,048   4,096
        bytes moved           2,560  16,896
        peak bytes, forward     768     256
        peak bytes, training  2,048  16,896
        bytes of weights      1,024  16,384
    """
    cores = listed(cores)
    check_matrix_train(cores)
    batch = whole("batch", batch, least=1)
    if order != "auto" and order not in ORDERS:
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    shapes = tuple(tuple(core.shape) for core in cores)
    return cheapest(shapes, batch, working_bytes(cores[0].device.type), order)


def working_bytes(device: str) -> int:
    """Bytes that an intermediate result may take on a device of this type."""
    return WORKING_BYTES_CUDA if device == "cuda" else WORKING_BYTES


def plan_for(shapes: Sequence[Shape], batch: int, device: str, order: str = "auto", recompute: bool = False) -> Plan:
    """The plan of a module for a batch of vectors on a device of this type: the cheapest order, or the named one.

    While a compiler traces, a named order is planned for a nominal batch: only the order and the cut are used there,
    and a symbolic batch size must stay symbolic.
    """
    if order not in ("auto", *ORDERS):
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    if torch.compiler.is_compiling():  # it follows the arithmetic itself, and cannot look into a cache
        batch = max(batch, 1) if order == "auto" else NOMINAL_BATCH
        return cheapest.__wrapped__(shapes, batch, working_bytes(device), order)
    return cheapest(shapes, max(int(batch), 1), working_bytes(device), order, recompute)  # to a tracer, a tensor


@lru_cache(maxsize=4096)
def cheapest(
    shapes: Sequence[Shape], batch: int, working: int = WORKING_BYTES, order: str = "auto", recompute: bool = False
) -> Plan:
    """The cheapest of all orders for cores of these shapes, or the plan of the one named.

    Among orders that cost at most a tenth more, one that takes at most a tenth more memory than a dense layer is
    preferred. With recomputation two-gemm
    is left out: its merged cores would get a gradient from every chunk.
    """
    orders = (order,) if order != "auto" else (*ORDERS[:2], "dense") if recompute else ORDERS
    plans = [cost(way, shapes, batch, working, recompute) for way in orders]
    best = _cheaper(plans)
    if torch.compiler.is_compiling() or _modest(best):
        return best
    return _cheaper([plan for plan in plans if _modest(plan) and 10 * price(plan) <= 11 * price(best)] or plans)


def _modest(plan: Plan) -> bool:
    """True if cores and peak take at most a tenth more than a dense layer; with recomputation, than its training."""
    dense, weights = plan.dense, plan.dense["weights"]
    if plan.recompute:
        return plan.training + plan.weights <= dense["training"] + weights
    return 10 * (plan.forward + plan.weights) <= 11 * (dense["forward"] + weights)


def _cheaper(plans: Sequence[Plan]) -> Plan:
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
        plan = _cheaper(plans)
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
