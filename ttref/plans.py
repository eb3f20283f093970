"""What it costs to multiply a batch of vectors by a TT-matrix, in each of the orders there are: nothing is multiplied.

With cores ``(r_{k-1}, m_k, n_k, r_k)`` the product can be taken core by core from either end, or after some merging::

    left-to-right    x meets G_1, the result meets G_2, ...     cheap when the output modes grow from left to right
    right-to-left    x meets G_d, the result meets G_{d-1}, ... cheap when they shrink
    two-gemm         merge the cores into two halves, then two matrix products
    dense            rebuild the matrix, block by block, then one matrix product

Which is cheapest depends on the modes, the ranks and the batch; the numbers that come out agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_matrix_train, check_modes, paired_modes, several, whole
from .modules import listed
from .shapes import balanced_modes, tt_ranks

__all__ = ["Plan", "plan_contraction"]

# Of two equal costs the first is taken: a walk from the right uses the cores as they lie in memory.
ORDERS = ("right-to-left", "left-to-right", "two-gemm", "dense")

# Intermediate results of this size stay near a processor's cores; a batch that would make larger ones is cut into
# chunks of vectors. A GPU wants few, large products instead.
WORKING_BYTES = 8 << 20
WORKING_BYTES_CUDA = 256 << 20
LEAST_CHUNK = 32  # fewer vectors at a time would make the matrix products too small
NOMINAL_RANK = 16  # stands for the ranks that eps will find, when the mode order must be chosen before
FEW_ARRANGEMENTS = 1000  # pairs of orders of modes that are all compared, which takes some hundredths of a second

Shape = tuple[int, int, int, int]
Pair = tuple[tuple[int, ...], tuple[int, ...]]


class Plan(NamedTuple):
    """How a TT-matrix meets a batch of vectors, and what that costs.

    ``order``: "left-to-right" or "right-to-left" (one core after the other), "two-gemm" (merge the cores into two
    halves first), "dense" (rebuild the matrix first). ``macs``: multiply-adds; twice as many flops. ``bytes``: float32
    bytes that the matrix products read and write, an operand that meets many slices counted for each of them.
    ``temporary``: float32 bytes of the largest intermediate result, the answer not among them. ``chunk``: vectors
    handled at a time. ``cut``: cores merged into the left half, 0 if none are.
    """

    order: str
    macs: int
    bytes: int
    temporary: int
    chunk: int
    cut: int = 0


def plan_contraction(cores: Sequence[Tensor], batch: int, order: str = "auto") -> Plan:
    """The cost of multiplying ``batch`` vectors by a TT-matrix: in the cheapest order, or in the one you name.

    Orders are compared by multiply-adds plus float32 numbers moved; merging cores first must be an eighth cheaper.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        batch: Number of vectors.
        order: "auto" for the cheapest, or one of "left-to-right", "right-to-left", "two-gemm", "dense".

    Returns:
        A :class:`Plan`; print it to see what was chosen and what it costs.

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
    """
    cores = listed(cores)
    check_matrix_train(cores)
    batch = whole("batch", batch, least=1)
    if order != "auto" and order not in ORDERS:
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    shapes = tuple(tuple(core.shape) for core in cores)
    return cheapest(shapes, batch, working_bytes(cores[0].device.type), order)


def working_bytes(device: str) -> int:
    """How large an intermediate result may be on a device of this type."""
    return WORKING_BYTES_CUDA if device == "cuda" else WORKING_BYTES


def plan_for(shapes: Sequence[Shape], batch: int, device: str, order: str = "auto") -> Plan:
    """The plan that a module takes for a batch of vectors on such a device, "auto" or the order that it names.

    While a tracing compiler works, the plan of a named order is that of no batch in particular: only the order and the
    cut are used there, and a batch that is no number yet stays one.
    """
    if order not in ("auto", *ORDERS):
        raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
    if torch.compiler.is_compiling():  # it follows the arithmetic itself, and cannot look into a cache
        batch = max(batch, 1) if order == "auto" else LEAST_CHUNK
        return cheapest.__wrapped__(shapes, batch, working_bytes(device), order)
    return cheapest(shapes, max(int(batch), 1), working_bytes(device), order)  # to a tracer, sizes are tensors


@lru_cache(maxsize=4096)
def cheapest(shapes: Sequence[Shape], batch: int, working: int = WORKING_BYTES, order: str = "auto") -> Plan:
    """The cheapest of all orders for cores of these shapes, or the plan of the one named."""
    return _cheaper([cost(way, shapes, batch, working) for way in (ORDERS if order == "auto" else (order,))])


def _cheaper(plans: Sequence[Plan]) -> Plan:
    """The first of the cheapest; a plain loop, because torch.compile follows it and not ``min`` with a key."""
    best = plans[0]
    for plan in plans[1:]:
        if price(plan) < price(best):
            best = plan
    return best


def choose_modes(
    in_shape: int | Sequence[int], out_shape: int | Sequence[int], rank: int | Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of both sides; where a width was given instead, balanced ones in the order with fewest operations.

    Up to a thousand pairs of orders are compared; of more, those that a swap of two modes improves until none does.
    """
    given = {"in_shape": in_shape, "out_shape": out_shape}
    fixed = {name: check_modes(name, side) for name, side in given.items() if several(side)}
    order = len(next(iter(fixed.values()))) if fixed else 3
    if any(len(modes) != order for modes in fixed.values()):
        raise ValueError(
            f"in_shape {fixed['in_shape']} has {order} modes and out_shape {fixed['out_shape']} has "
            f"{len(fixed['out_shape'])}; they need equally many"
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
        return min(cost(way, shapes, 1).macs for way in ("left-to-right", "right-to-left")), sum(map(math.prod, shapes))

    if math.prod(_count(modes) for modes, may in zip(chosen, free, strict=True) if may) <= FEW_ARRANGEMENTS:
        sides = [_arrangements(modes) if may else [modes] for modes, may in zip(chosen, free, strict=True)]
        return min(((ins, outs) for ins in sides[0] for outs in sides[1]), key=macs)
    starts = [
        tuple(tuple(sorted(modes, reverse=down)) if may else modes for modes, may in zip(chosen, free, strict=True))
        for down in (False, True)
    ]
    return min((_improved(start, free, macs) for start in starts), key=macs)


def _count(modes: tuple[int, ...]) -> int:
    """How many arrangements there are."""
    return math.factorial(len(modes)) // math.prod(math.factorial(modes.count(mode)) for mode in set(modes))


def _arrangements(modes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All orders of the modes, equal modes not told apart: twelve twos have one, not 12!."""
    if len(modes) == 1:
        return [modes]
    places = [modes.index(mode) for mode in sorted(set(modes))]
    return [(modes[k], *rest) for k in places for rest in _arrangements(modes[:k] + modes[k + 1 :])]


def _improved(pair: Pair, free: Sequence[bool], macs: Callable[[Pair], tuple[int, int]]) -> Pair:
    """The best that is reached by swaps of two modes of a side, each the first that makes things cheaper."""
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


def price(plan: Plan) -> int:
    """What orders are compared by: multiply-adds, plus one for every float32 number that is read or written.

    An order that merges cores first must be an eighth cheaper: its merged cores are large and freshly made, and it was
    measured to lose where the sums are close. The performance page reports how good the choices are.
    """
    total = plan.macs + plan.bytes // 4
    return total + total // 8 if plan.cut else total


def cost(order: str, shapes: Sequence[Shape], batch: int, working: int = WORKING_BYTES) -> Plan:
    """One order's plan, summed over the matrix products that it takes."""
    if order == "dense":
        return _rebuild(shapes, batch, working)
    if order != "two-gemm":
        return _walk(order, order, shapes, batch, working)
    cuts = range(1, len(shapes)) if len(shapes) > 1 else [1]
    plans = []
    for cut in cuts:
        halves = [part for part in (shapes[:cut], shapes[cut:]) if part]
        merging = [step for part in halves for step in _merging(part)]
        halves = [merged(part) for part in halves]
        plan = _walk(order, way_through(halves), halves, batch, working)
        plans.append(
            Plan(
                order,
                plan.macs + sum([macs for macs, _, _ in merging]),
                plan.bytes + sum([moved for _, moved, _ in merging]),
                max([plan.temporary] + [result for _, _, result in merging]),
                plan.chunk,
                cut,
            )
        )
    return _cheaper(plans)


def steps(way: str, shapes: Sequence[Shape]) -> list[tuple[int, int, int, int]]:
    """For one vector and each core in turn: how many slices its product has, and the product's p, q and w.

    A core is a ``(p, q)`` matrix that meets ``(q, w)`` slices of the state.
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


def way_through(halves: Sequence[Shape]) -> str:
    """The direction with fewer multiply-adds."""
    right, left = (sum([math.prod(step) for step in steps(way, halves)]) for way in ORDERS[:2])
    return "right-to-left" if right <= left else "left-to-right"


def merged(part: Sequence[Shape]) -> Shape:
    """Shape of neighbouring cores merged into one."""
    return part[0][0], math.prod([s[1] for s in part]), math.prod([s[2] for s in part]), part[-1][3]


def block_rows(shapes: Sequence[Shape], working: int) -> int:
    """How many slices of the first row mode are rebuilt together, so that a block of the matrix is of working size."""
    _, rows, cols, _ = merged(shapes)
    return max(1, min(shapes[0][1], working * shapes[0][1] // (4 * rows * cols)))


def _walk(order: str, way: str, shapes: Sequence[Shape], batch: int, working: int) -> Plan:
    """Core after core."""
    products = steps(way, shapes)
    widest = max([0] + [slices * p * w for slices, p, _, w in products[:-1]])
    chunk = min(batch, max(LEAST_CHUNK, working // (4 * max(widest, 1)))) if widest else batch
    passes = -(-batch // chunk)
    moved = 0
    for slices, p, q, w in products:
        # For w = 1 the slices lie below each other and make one product, which reads the core once.
        moved += batch * slices * (q + p) * w + p * q * (passes if w == 1 else batch * slices)
    return Plan(order, batch * sum([math.prod(product) for product in products]), 4 * moved, 4 * chunk * widest, chunk)


def _merging(part: Sequence[Shape]) -> list[tuple[int, int, int]]:
    """Multiply-adds, bytes moved and bytes of the result, for each core merged onto those before it."""
    found = []
    for k in range(1, len(part)):
        entries = math.prod(merged(part[: k + 1]))
        found.append((entries * part[k][0], 12 * entries, 4 * entries))  # written; read and written to sort the axes
    return found


def _rebuild(shapes: Sequence[Shape], batch: int, working: int) -> Plan:
    """Merge all cores but the first, then for each block of rows: one product that rebuilds it, one that uses it."""
    _, rows, cols, _ = merged(shapes)
    before = _merging(shapes[1:])
    blocks = 1
    if len(shapes) > 1:  # a single core is the matrix
        together = block_rows(shapes, working)
        blocks = -(-shapes[0][1] // together)
        before.append((rows * cols * shapes[0][3], 12 * rows * cols, 4 * rows * cols // shapes[0][1] * together))
    return Plan(
        "dense",
        sum([macs for macs, _, _ in before]) + batch * rows * cols,
        sum([moved for _, moved, _ in before]) + 4 * (rows * cols + batch * (blocks * cols + rows)),
        max([0] + [result for _, _, result in before]),
        batch,
    )
