"""Three ways to apply a low-rank update that is kept as a tensor train, and what each costs.

With the matrix rows = outputs, columns = inputs, and the cores of a train over both::

    cores     the activations meet one core after the other, from the last input mode to the first output mode
    factors   the cores of each side collapse into one thin matrix: (out x r) and (r x in), applied as LoRA's two
    dense     the update is built and added to the frozen weight, and one matrix product does both

The numbers that come out are the same. ``factors`` needs a bond exactly between rows and columns; ``dense`` needs the
frozen weight itself, and no dropout on the adapter's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from .modes import Layout

FORMS = ("factors", "cores", "dense")


class LoRAPlan(NamedTuple):
    """How an adapter meets a batch of vectors, and what that costs beside the frozen layer alone.

    ``form``: "cores", "factors" or "dense". ``macs``: multiply-adds, the frozen layer's own product not among them.
    ``bytes``: float32 bytes read and written, likewise.
    """

    form: str
    macs: int
    bytes: int


@lru_cache(maxsize=4096)
def cheapest(layout: Layout, batch: int, training: bool, dense: bool) -> LoRAPlan:
    """The cheapest form by multiply-adds plus numbers moved; ``dense`` says whether that form may be taken."""
    plans = [cost(form, layout, batch, training) for form in available(layout, dense)]
    best = plans[0]
    for plan in plans[1:]:  # a plain loop, because torch.compile follows it and not min with a key
        if plan.macs + plan.bytes // 4 < best.macs + best.bytes // 4:
            best = plan
    return best


def available(layout: Layout, dense: bool) -> list[str]:
    """The forms that this train has."""
    there = {"factors": layout.left == layout.right, "cores": True, "dense": dense}
    return [form for form in FORMS if there[form]]


def cost(form: str, layout: Layout, batch: int, training: bool) -> LoRAPlan:
    """What a form costs in a forward pass, or in a forward and a backward one when ``training``."""
    rows, cols, passes = layout.rows, layout.cols, 3 if training else 1  # backward: one product for each operand
    sides = layout.cores[: layout.left], layout.cores[layout.left : layout.right], layout.cores[layout.right :]
    collapse = _collapsing(sides[0]) + _collapsing(sides[2][::-1])
    r_left, r_right = layout.ranks[layout.left], layout.ranks[layout.right]
    mixed = r_left * _collapsing(sides[1])
    if form == "factors":
        macs = passes * (collapse + batch * r_left * (rows + cols))
        moved = passes * batch * (cols + 2 * rows + 2 * r_left)  # x, the answer before and after, the narrow state
    elif form == "cores":
        steps = [(width, r * n, q) for (r, n, q), width in _walk(sides, layout)]
        macs = passes * (mixed + batch * sum([width * p * q for width, p, q in steps]))
        moved = passes * batch * (cols + 3 * rows + sum([width * (p + q) for width, p, q in steps]))
    else:
        build = _collapsing(layout.cores[: layout.right]) + _collapsing(sides[2][::-1]) + rows * cols * r_right
        macs = passes * build + (batch * rows * cols if training else 0)  # the gradient of the sum of both weights
        moved = passes * 3 * rows * cols
    return LoRAPlan(form, macs, 4 * moved)


def _collapsing(cores: Sequence[tuple[int, int, int]]) -> int:
    """Multiply-adds that merge neighboring cores one after the other, from an end rank of 1 or across the boundary."""
    rows, macs = 1, 0
    for k, (r, n, q) in enumerate(cores):
        rows *= n
        macs += rows * r * q * (k > 0)
    return macs


def _walk(sides: Sequence[Sequence[tuple[int, int, int]]], layout: Layout) -> list[tuple[tuple[int, int, int], int]]:
    """Cores in the order in which activations meet them, each with how many times for one vector."""
    met, width = [], layout.cols
    for core in reversed(sides[2]):
        width //= core[1]
        met.append((core, width))
    m, c = layout.across
    if sides[1]:
        met.append(((layout.ranks[layout.left] * m, c, layout.ranks[layout.right]), 1))
    width = m
    for core in reversed(sides[0]):
        met.append((core, width))
        width *= core[1]
    return met


def left_factor(cores: Sequence[Tensor]) -> Tensor:
    """The first cores of a train as one matrix ``(modes, r)``."""
    merged = cores[0][0]
    for core in cores[1:]:
        merged = (merged @ core.flatten(1)).reshape(-1, core.shape[2])
    return merged


def right_factor(cores: Sequence[Tensor]) -> Tensor:
    """The last cores of a train as one matrix ``(r, modes)``."""
    merged = cores[-1].flatten(1)
    for core in cores[-2::-1]:
        merged = (core.flatten(0, 1) @ merged).reshape(core.shape[0], -1)
    return merged


def matrices(cores: Sequence[Tensor], layout: Layout, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Two matrices whose product, read row-major as ``(out, in)``, is the train.

    With a bond between rows and columns they are ``(out, r)`` and ``(r, in)``. Where a mode straddles, the left one
    holds some of the column digits too, and only the reading puts them where they belong.
    """
    # A matrix of one row has no cores of rows; one of one column no cores of columns.
    left = left_factor(cores[: layout.right]) if layout.right else cores[0].new_ones(1, 1)
    right = right_factor(cores[layout.right :]) if layout.right < len(cores) else cores[0].new_ones(1, 1)
    if layout.rows > out_features:
        left = left[:out_features]
    if layout.cols > in_features:
        right = right[:, :in_features]
    return left, right


def walk(cores: Sequence[Tensor], layout: Layout, x: Tensor, out_features: int) -> Tensor:
    """The update times vectors ``(batch, in)``, before alpha: every step is a matrix product, nothing is transposed."""
    batch = x.shape[0]
    state = pad(x, (0, layout.cols - x.shape[1])) if x.shape[1] < layout.cols else x
    for core in reversed(cores[layout.right :]):
        r, n, q = core.shape
        state = linear(state.reshape(-1, n * q), core.reshape(r, n * q))
    m, c = layout.across
    r_left, r_right = layout.ranks[layout.left], layout.ranks[layout.right]
    if layout.left < layout.right:
        state = linear(state.reshape(batch, c * r_right), _mixed(cores, layout).reshape(r_left * m, c * r_right))
    state, width = state.reshape(batch, r_left, m), m
    for core in reversed(cores[: layout.left]):
        step = core.flatten(0, 1)
        if state.shape[2] == 1:
            state = linear(state.squeeze(2), step)
        else:
            state = torch.matmul(step, state)
        width *= core.shape[1]
        state = state.reshape(batch, core.shape[0], width)
    return state.reshape(batch, layout.rows)[:, :out_features]


def _mixed(cores: Sequence[Tensor], layout: Layout) -> Tensor:
    """Cores across the boundary as one ``(r_left, rows, columns, r_right)``."""
    r_left = layout.ranks[layout.left]
    merged = cores[layout.left].flatten(0, 1)
    for core in cores[layout.left + 1 : layout.right]:
        merged = (merged @ core.flatten(1)).reshape(-1, core.shape[2])
    return merged.reshape(r_left, *layout.across, layout.ranks[layout.right])
