"""Ways to store a table that the chapter on the frontier and its study share; each gives an approximation and bytes.

Integers, one row for all, parts by frequency, and codes of a few bits on the optimal levels of the normal distribution,
after transforms that make numbers normal: the cores of a TT-matrix, principal coordinates, rows under a random
rotation, groups of entries. Codes are counted, not packed: what is compared are sizes and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from ttref import quantize_integer, ttm_svd, ttm_to_matrix

__all__ = [
    "coded_axes",
    "coded_groups",
    "coded_rows",
    "coded_train",
    "gaussian_levels",
    "integers",
    "mean_row",
    "parts",
    "rounded",
    "row_scales",
]

Made = tuple[Tensor, int]  # approximation, bytes
INDEX = 5  # bytes a row for its part and its place in it, as in MPSEmbedding
SPLIT = (96, 4)  # row and column mode of the first core


def integers(table: Tensor, bits: int, group: int | None = None, best: bool = False) -> Made:
    """Integers with a scale for each row or group: :func:`ttref.quantize_integer`.

    Example:
        >>> approximation, nbytes = integers(torch.ones(3, 4), 8)
        >>> bool((approximation - 1).abs().max() < 0.01), nbytes
        (True, 18)
    """
    made = quantize_integer(table, bits, group=group, best=best)
    return made.approximation, made.nbytes


def mean_row(table: Tensor) -> Made:
    """One row for all.

    Example:
        >>> mean_row(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        (tensor([[2., 4.],
                [2., 4.]]), 8)
    """
    return table.mean(0).expand(table.shape), 4 * table.shape[1]


def parts(table: Tensor, order: Tensor, sizes: Sequence[int], ways: Sequence[Callable[[Tensor], Made]]) -> Made:
    """Rows in an order, cut into parts; each part is stored in its way, with five bytes a row to find it.

    Args:
        table: ``(rows, columns)``.
        order: A permutation of the rows, frequent ones first.
        sizes: Rows in each part but the last.
        ways: One more than the sizes.

    Example:
        >>> table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = parts(table, torch.arange(6), (2,), (lambda rows: integers(rows, 8), mean_row))
        >>> torch.equal(approximation[2:], table[2:].mean(0).expand(4, 4)), nbytes
        (True, 58)
    """
    approximation, nbytes = torch.empty_like(table), INDEX * len(table)
    for mine, way in zip(order.split([*sizes, len(order) - sum(sizes)]), ways, strict=True):
        approximation[mine], used = way(table[mine])
        nbytes += used
    return approximation, nbytes


@cache
def gaussian_levels(bits: int) -> Tensor:
    """The ``2^bits`` levels of least squared error for a standard normal number.

    Source:
        Max, "Quantizing for Minimum Distortion", 1960; Lloyd, "Least Squares Quantization in PCM", 1982.

    Example:
        >>> [round(level, 2) for level in gaussian_levels(2).tolist()]
        [-1.51, -0.45, 0.45, 1.51]
    """
    sample = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    levels = torch.special.ndtri((torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits)
    for _ in range(200):
        nearest = torch.bucketize(sample, (levels[1:] + levels[:-1]) / 2)
        sums = torch.zeros_like(levels).index_add_(0, nearest, sample)
        levels = sums / torch.bincount(nearest, minlength=2**bits)
    return levels.float()


def rounded(values: Tensor, bits: int) -> Tensor:
    """Values of variance 1, each replaced by the nearest level.

    Example:
        >>> [round(value, 2) for value in rounded(torch.tensor([0.3, -2.0]), 1).tolist()]
        [0.8, -0.8]
    """
    levels = gaussian_levels(bits)
    return levels[torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)]


def water_fill(variances: Tensor, bits: float) -> Tensor:
    """Whole bits, 0 to 8, for each component, ``bits`` on average: each next bit to the largest remaining error."""
    widths, left = torch.zeros(len(variances), dtype=torch.long), variances.clone()
    for _ in range(int(bits * len(variances))):
        k = int(left.argmax())
        widths[k] += 1
        left[k] = 0 if widths[k] == 8 else left[k] / 4
    return widths


def by_variance(components: Tensor, bits: float) -> tuple[Tensor, int, Tensor]:
    """Components (one per line) in 0 to 8 bits each: their values, the bytes with one scale each, the bits of each."""
    scales = components.double().square().mean(1).sqrt()
    widths, stored = water_fill(scales.square(), bits), torch.zeros_like(components)
    for width in widths[widths > 0].unique().tolist():
        mine = (widths == width).nonzero().squeeze(1)
        unit = scales[mine].float().unsqueeze(1)
        stored[mine] = rounded(components[mine] / unit, width) * unit
    return stored, -(-int(widths.sum()) * components.shape[1] // 8) + 4 * len(scales), widths


def row_scales(rows: Tensor) -> Tensor:
    """Root mean square of each row, rounded to bfloat16: one column.

    Example:
        >>> row_scales(torch.tensor([[3.0, -3.0], [0.5, 0.5]])).squeeze(1).tolist()
        [3.0, 0.5]
    """
    return rows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12).bfloat16().float()


def coded_train(table: Tensor, bits: float, *, by_row: bool = False) -> Made:
    """A TT-matrix of two cores: the orthogonal one in float16, the other in codes, bits by the Schmidt values.

    Slice k of the second core, which must be the larger one, belongs to Schmidt value k. Large ones get many bits, the
    last ones none: the bond ends with the last slice that gets bits. The mean row is stored too, and a scale for each
    row if wanted.

    Args:
        table: ``(rows, columns)``, at least 384² entries; the columns are a multiple of four.
        bits: Bits a weight, on average.
        by_row: Whether rows are divided by their length first.

    Returns:
        The approximation, and the bytes that must be stored.

    Example:
        >>> table = torch.randn(3840, 48, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = coded_train(table, 4)
        >>> bool((approximation - table).norm() / table.norm() < 0.12), nbytes
        (True, 388800)
    """
    (rows, columns), (count, width) = SPLIT, table.shape
    mean = table.mean(0)
    inner, nbytes = table - mean, 4 * width + 2 * count * by_row
    scales = row_scales(inner) if by_row else 1
    padded = pad(inner / scales, (0, 0, 0, -count % rows))
    shapes = (rows, len(padded) // rows), (columns, width // columns)
    first, second = ttm_svd(padded, *shapes, rank=rows * columns)
    # The gauge in which the slices do not overlap: their norms are the Schmidt values.
    turn = torch.linalg.eigh((second.flatten(1) @ second.flatten(1).mT).double())[1].flip(1)
    first = (first.double() @ turn).half().float()
    second = (turn.mT @ second.flatten(1).double()).float().view(second.shape)
    slices, used, widths = by_variance(second.flatten(1), bits)
    nbytes += used + 2 * rows * columns * int((widths > 0).sum())
    return ttm_to_matrix([first, slices.view(second.shape)])[:count] * scales + mean, nbytes


def coded_axes(table: Tensor, bits: float) -> Made:
    """Principal coordinates in codes, bits by the variances; the axes in float16, mean row, a scale for each row.

    Example:
        >>> table = torch.randn(960, 8, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = coded_axes(table, 4)
        >>> bool((approximation - table).norm() / table.norm() < 0.12), nbytes
        (True, 5952)
    """
    mean, width = table.mean(0), table.shape[1]
    scales = row_scales(table - mean)
    inner = (table - mean) / scales
    axes = torch.linalg.eigh(inner.double().mT @ inner.double())[1].flip(1).half().float()
    stored, nbytes, widths = by_variance((inner @ axes).mT.contiguous(), bits)
    nbytes += 4 * width + 2 * len(table) + 2 * width * int((widths > 0).sum())
    return (axes @ stored).mT * scales + mean, nbytes


def coded_rows(table: Tensor, bits: int) -> Made:
    """Rows under a random rotation (its seed is stored), in codes with a bfloat16 scale for each row.

    Example:
        >>> table = torch.randn(960, 8, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = coded_rows(table, 4)
        >>> bool((approximation - table).norm() / table.norm() < 0.12), nbytes
        (True, 5792)
    """
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(table.shape[1], table.shape[1], generator=generator))[0]
    mean = table.mean(0)
    inner = (table - mean) @ turn
    scales = row_scales(inner)
    approximation = (rounded(inner / scales, bits) * scales) @ turn.mT + mean
    return approximation, -(-table.numel() * bits // 8) + 2 * len(table) + 4 * table.shape[1]


def coded_groups(table: Tensor, bits: int, group: int = 48) -> Made:
    """The same codes after subtracting the mean row only: a bfloat16 scale for each group.

    Example:
        >>> table = torch.randn(960, 8, generator=torch.Generator().manual_seed(0))
        >>> approximation, nbytes = coded_groups(table, 4, group=8)
        >>> bool((approximation - table).norm() / table.norm() < 0.12), nbytes
        (True, 5792)
    """
    mean = table.mean(0)
    inner = (table - mean).reshape(-1, group)
    scales = row_scales(inner)
    approximation = (rounded(inner / scales, bits) * scales).reshape(table.shape) + mean
    return approximation, -(-table.numel() * bits // 8) + 2 * len(inner) + 4 * table.shape[1]
