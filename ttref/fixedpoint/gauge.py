"""The gauge of a train: the choice of the cores to round, among all cores that make the same train. NumPy, float64.

Inserting an invertible matrix and its inverse into a bond leaves the train unchanged, but not its rounding: one large
column makes the LSB of a core too coarse for all its other columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .stages import real_cores

__all__ = ["right_orthogonal", "fill_ranges"]


def right_orthogonal(cores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same train with every core but the first right-orthogonal: all channels of a bond have equal variance.

    A contraction from the right then multiplies by orthonormal rows only. For uncorrelated inputs of equal variance,
    all entries of an intermediate array have the same variance, and one binary point fits them all. Core 0 carries the
    norm.

    Args:
        cores: Matrix cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, first core first.

    Returns:
        New float64 cores. A bond larger than the cores to its right can fill becomes smaller, without truncation. Signs
        are fixed: the triangular factor has no negative diagonal entry.

    Raises:
        TypeError: Cores that are not real.
        ValueError: Cores that do not chain to a train, or hold NaN or infinity.

    Cost:
        O(d m n r^3).

    Source:
        The right-to-left sweep of Oseledets, "Tensor-train decomposition" (2011), Algorithm 2, first half.

    Example:
        >>> cores = [np.full((1, 2, 1, 1), 3.0), np.full((1, 2, 1, 1), 0.5)]
        >>> [float(np.linalg.norm(core).round(3)) for core in right_orthogonal(cores)]
        [3.0, 1.0]
    """
    swept = real_cores(cores)
    for k in range(len(swept) - 1, 0, -1):
        *batch, r0, m, n, r1 = swept[k].shape
        rows = swept[k].reshape(*batch, r0, m * n * r1)
        q, r = np.linalg.qr(np.swapaxes(rows, -1, -2))
        signs = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
        q, r = q * signs[..., None, :], r * signs[..., :, None]
        swept[k] = np.swapaxes(q, -1, -2).reshape(*batch, q.shape[-1], m, n, r1)
        swept[k - 1] = np.einsum("...amnb,...cb->...amnc", swept[k - 1], r)
    return swept


def fill_ranges(cores: Sequence[np.ndarray], widths: Sequence[int]) -> list[np.ndarray]:
    """The same train, each core but the first scaled to the largest integer of its width.

    Binary points move in steps of a factor of two, so an unscaled core may leave half of its codes unused. Scaling
    costs nothing: core 0 is divided by the factors.

    Args:
        cores: Matrix cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, first core first. Each train of a batch has its own
            scales.
        widths: Bits of each core.

    Returns:
        New float64 cores.

    Raises:
        TypeError: Cores that are not real.
        ValueError: Cores that do not chain to a train or hold NaN or infinity, or not one width for each core.

    Cost:
        O(entries).

    Example:
        >>> cores = [np.full((1, 2, 1, 1), 3.0), np.full((1, 2, 1, 1), 0.6)]
        >>> cores = fill_ranges(cores, [8, 8])
        >>> [float(np.abs(core).max().round(4)) for core in cores]
        [1.8142, 0.9922]
    """
    filled = real_cores(cores)
    if np.ndim(widths) != 1 or len(widths) != len(filled):
        raise ValueError(f"widths needs {len(filled)} numbers, one for each core, got {widths!r}")
    for k in range(1, len(filled)):
        largest = np.abs(filled[k]).max((-4, -3, -2, -1), keepdims=True)
        scale = np.where(largest > 0, max(0.5, 1 - 2.0 ** (1 - widths[k])) / np.where(largest > 0, largest, 1), 1.0)
        filled[k] = filled[k] * scale
        filled[0] = filled[0] / scale
    return filled
