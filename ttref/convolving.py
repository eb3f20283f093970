"""A convolution with a TT-matrix as kernel: rebuilt and done at once, or in two stages of fewer multiply-adds.

The columns of the matrix are a patch, its axes (in, height, width) or, taps first, (height, width, in). Where a cut of
the train falls between two axes, or divides the channels, each side is a convolution of its own::

    columns   (height, width) | in          x  -> 1 x 1, in to r  -> height x width, r to out
              | in, height, width           x  -> height x width, in to r  -> 1 x 1, r to out
              height | width, in            x  -> 1 x width, in to r  -> height x 1, r to out
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_input, several, whole
from .linears import numbers_of
from .matrices import ttm_to_matrix
from .plans import NOMINAL_BATCH
from .steps import Shape, from_right, halved, joins, merged
from .tracing import exported
from .walks import merge

PAYS = 2 / 3  # of the multiply-adds of rebuilding: two convolutions move more numbers and sort axes between them


class Geometry(NamedTuple):
    """What a convolution has beside its kernel; ``taps_first`` tells how the patch is read."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    taps_first: bool

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output."""
        each = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each)


class Stages(NamedTuple):
    """A cut between two axes of the patch: channel groups of the outer side, and which taps the inner side has."""

    groups: int
    inside: tuple[bool, bool]


class ConvPlan(NamedTuple):
    """How a convolution with TT cores is computed for one size of pictures, and what that costs in multiply-adds.

    ``way``: "rebuilt" (the kernel first, then one convolution) or "factored" (two convolutions). ``macs``: its
    multiply-adds. ``rebuilt``: those of the other, or the same, rebuilding included. ``dense``: those of the dense
    convolution. ``cut``: cores on the outer side of the two stages, 0 if rebuilt.

    Example:
        >>> ConvPlan("factored", 500, 1100, 1000, 1).macs
        500
    """

    way: str
    macs: int
    rebuilt: int
    dense: int
    cut: int = 0


def parts_of(conv: nn.Module) -> tuple[Tensor, Tensor | None, dict[str, tuple[int, int]]]:
    """Weight, bias and settings of a convolution; a TypeError or ValueError says what cannot be compressed."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
    if conv.groups != 1:
        raise ValueError(
            f"conv has {conv.groups} groups, each with a kernel of its own: compress conv.weight's groups one by one, "
            "or leave it dense; a depthwise kernel has little to compress"
        )
    if conv.padding_mode != "zeros":
        raise ValueError(f"conv pads with {conv.padding_mode!r}; pad with F.pad before a convolution without padding")
    weight, bias = numbers_of(conv, nn.Conv2d, "weight", "bias")
    check_input("conv.weight", weight)
    found = {"kernel_size": conv.kernel_size, "stride": conv.stride, "dilation": conv.dilation}
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(size % 2 for size in total):
            raise ValueError(f"padding 'same' is lopsided for kernel {conv.kernel_size}; pad with F.pad before it")
        padding = tuple(size // 2 for size in total)
    return weight, bias, found | {"padding": tuple(padding)}


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """An int or a pair of ints as a pair."""
    values: Sequence[Any] = tuple(value) if several(value) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    return whole(name, values[0], least=least), whole(name, values[1], least=least)


def stages(cols: int, geometry: Geometry) -> Stages | None:
    """The stages if the outer side has so many columns, or None if that cuts through an axis of taps."""
    channels, (height, width) = geometry.channels, geometry.kernel
    area = height * width
    if geometry.taps_first:
        if cols % area == 0 and channels % (cols // area) == 0:
            return Stages(cols // area, (height == 1, width == 1))
        return Stages(1, (height == 1, True)) if cols == height else Stages(1, (True, True)) if cols == 1 else None
    if channels % cols == 0:
        return Stages(cols, (True, True))
    if cols == channels * height:
        return Stages(channels, (height == 1, True))
    return Stages(channels, (height == 1, width == 1)) if cols == channels * area else None


def plan_conv(shapes: Sequence[Shape], geometry: Geometry, batch: int, size: Sequence[int]) -> ConvPlan:
    """Two stages where they take at most two thirds of the multiply-adds, else the kernel rebuilt."""
    _, rows, cols, _ = merged(shapes)
    batch = NOMINAL_BATCH if exported(batch) else batch
    spots = batch * _area(geometry.output(size))
    dense = spots * rows * cols
    rebuilt = dense + sum(entries * bond for entries, bond, _ in joins(shapes, from_right(shapes)))
    best = ConvPlan("rebuilt", rebuilt, rebuilt, dense)
    for cut, found, macs in _factored(shapes, geometry):
        inner, outer = (_area(stage.output(size)) for stage in ways(geometry, found))
        # The outer stage sees the pictures that the inner one leaves, which end at the output's size.
        total = macs + batch * inner * _inner(shapes, cut, found) + spots * _outer(shapes, cut)
        if total < best.macs and total <= PAYS * rebuilt:
            best = ConvPlan("factored", total, rebuilt, dense, cut)
    return best


def ways(geometry: Geometry, found: Stages) -> tuple[Geometry, Geometry]:
    """Kernel, stride, padding and dilation of the inner and of the outer stage; an axis belongs to one of them."""
    parts = []
    for mine in (True, False):
        held = [
            (k, s, p, d) if inside == mine else (1, 1, 0, 1)
            for inside, k, s, p, d in zip(found.inside, *geometry[1:5], strict=True)
        ]
        parts.append(Geometry(geometry.channels, *zip(*held, strict=True), geometry.taps_first))
    return parts[0], parts[1]


def convolved(cores: Sequence[Tensor], x: Tensor, bias: Tensor | None, geometry: Geometry, plan: ConvPlan) -> Tensor:
    """The convolution of ``(batch, in, height, width)`` in the way of the plan."""
    if plan.way == "rebuilt":
        return F.conv2d(x, kernel_of(cores, geometry), bias, geometry.stride, geometry.padding, geometry.dilation)
    outer, inner = (merge(part) for part in halved(cores, plan.cut))
    _, m1, n1, r = outer.shape
    _, m2, n2, _ = inner.shape
    found = stages(n1, geometry)
    first, second = ways(geometry, found)
    batch, groups, channels = x.shape[0], found.groups, geometry.channels // found.groups
    # The inner kernel is the same for all groups of channels, the outer one for all of the inner rows.
    kernel = _taps_last(inner[..., 0].reshape(r * m2, n2), channels, first)
    y = x.reshape(batch * groups, channels, *x.shape[2:])
    y = F.conv2d(y, kernel, None, first.stride, first.padding, first.dilation)
    y = y.reshape(batch, groups, r, m2, *y.shape[2:]).permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)
    kernel = outer[0].reshape(m1, n1, r)
    kernel = _taps_last(kernel.transpose(1, 2).reshape(m1 * r, n1), groups, second)
    kernel = kernel.reshape(m1, r, groups, *second.kernel).transpose(1, 2).flatten(1, 2)
    y = F.conv2d(y, kernel, None, second.stride, second.padding, second.dilation)
    y = y.reshape(batch, m2, m1, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def kernel_of(cores: Sequence[Tensor], geometry: Geometry) -> Tensor:
    """The kernel ``(out, in, height, width)``."""
    return _taps_last(ttm_to_matrix(cores), geometry.channels, geometry)


def patches(kernel: Tensor, taps_first: bool) -> Tensor:
    """A kernel ``(out, in, height, width)`` as the matrix ``(out, columns)`` that a train stands for."""
    return (kernel.permute(0, 2, 3, 1) if taps_first else kernel).reshape(kernel.shape[0], -1)


def patch_order(geometry: Geometry) -> Tensor:
    """For each column of the matrix, its place in a patch with channels first, as ``weight.flatten(1)`` has it."""
    count = geometry.channels * geometry.kernel[0] * geometry.kernel[1]
    return patches(torch.arange(count).reshape(1, geometry.channels, *geometry.kernel), geometry.taps_first)[0]


def _taps_last(matrix: Tensor, channels: int, geometry: Geometry) -> Tensor:
    """The inverse of :func:`patches`."""
    if not geometry.taps_first:
        return matrix.reshape(-1, channels, *geometry.kernel)
    return matrix.reshape(-1, *geometry.kernel, channels).permute(0, 3, 1, 2).contiguous()


def _factored(shapes: Sequence[Shape], geometry: Geometry) -> Iterator[tuple[int, Stages, int]]:
    """Each cut of the train that makes two stages, the stages, and the multiply-adds of merging the two sides."""
    for cut in range(1, len(shapes)):
        outer = merged(shapes[:cut])
        if (found := stages(outer[2], geometry)) is not None:
            parts = (shapes[:cut], shapes[cut:])
            yield cut, found, sum(a * b for part in parts for a, b, _ in joins(part, from_right(part)))


def _inner(shapes: Sequence[Shape], cut: int, found: Stages) -> int:
    """Multiply-adds of the inner stage for each place."""
    r, rows, cols, _ = merged(shapes[cut:])
    return found.groups * r * rows * cols


def _outer(shapes: Sequence[Shape], cut: int) -> int:
    """Multiply-adds of the outer stage for each place."""
    _, rows, cols, r = merged(shapes[:cut])
    return merged(shapes[cut:])[1] * rows * cols * r


def _area(size: Sequence[int]) -> int:
    return max(size[0], 0) * max(size[1], 0)
