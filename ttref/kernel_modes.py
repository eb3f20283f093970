"""Modes of a convolution's kernel, chosen among those that make stages of it: how the patch is read, and the cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .convolving import Geometry, patch_order, patches
from .fitting.als import fit_cores
from .fitting.errors import relative
from .matrices import ttm_to_matrix
from .shapes import tt_params, tt_ranks

RIDGE = 1e-6  # of the mean of the Gram matrix's diagonal: channels that are never on have no inputs at all
COLUMNS = 1200  # of a core's least-squares problem; modes that need larger ones are not tried
LEAST = 0.8  # of the budget that modes must use
FINISHED, SWEEPS = 3, 8


class KernelModes(NamedTuple):
    """The order of the patch, the modes, fitted cores, and the relative output error."""

    taps_first: bool
    row_shape: tuple[int, ...]
    col_shape: tuple[int, ...]
    cores: list[Tensor]
    error: float


def kernel_modes(weight: Tensor, params: int, gram: Tensor | None = None) -> KernelModes:
    """The modes whose fitted cores change the outputs least: one sweep ranks, the best three are finished.

    Args:
        weight: Kernel ``(out, in, height, width)``.
        params: Numbers that the cores may have.
        gram: Gram matrix of the patches, channels first; left out, all patches count alike.

    Raises:
        ValueError: A budget too small for any of the modes tried.
    """
    columns = weight[0].numel()
    exact = weight.double()
    gram = torch.eye(columns, dtype=torch.float64, device=weight.device) if gram is None else gram
    seen = {}
    for taps in (False, True):
        geometry = Geometry(weight.shape[1], tuple(weight.shape[2:]), (1, 1), (0, 0), (1, 1), taps)
        order = patch_order(geometry).to(weight.device)
        seen[taps] = patches(exact, taps), gram[order][:, order]

    def fitted(taps: bool, rows: tuple, cols: tuple, sweeps: int) -> KernelModes:
        matrix, inputs = seen[taps]
        rank = rank_within(rows, cols, params)
        cores = fit_cores(matrix, inputs, rows, cols, rank=rank, sweeps=sweeps, ridge=RIDGE)
        return KernelModes(taps, rows, cols, cores, relative(matrix, ttm_to_matrix(cores), inputs))

    tried = [how for how in candidates(weight.shape) if _uses(*how[1:], params)]
    if not tried:
        raise ValueError(
            f"params={params} is too small for a {tuple(weight.shape)} kernel, or more than its trains can use; name "
            "modes and a rank instead"
        )
    ranked = sorted((fitted(*how, 1) for how in tried), key=lambda found: found.error)
    best = min((fitted(*found[:3], SWEEPS) for found in ranked[:FINISHED]), key=lambda found: found.error)
    return best._replace(cores=[core.to(weight.dtype) for core in best.cores])


def candidates(shape: torch.Size) -> Iterator[tuple[bool, tuple[int, ...], tuple[int, ...]]]:
    """Orders of the patch and modes to try: two cores that cut outputs and patch, and Tucker's three."""
    outs, ins, height, width = shape
    count = ins * height * width
    for taps in (False, True) if height * width > 1 else (False,):
        for m in sorted({1, 2, outs // 2, outs}):
            for n in range(1, count + 1):
                if count % n == 0 and outs % max(m, 1) == 0 and m and m * n > 1 and (outs // m) * (count // n) > 1:
                    yield taps, (m, outs // m), (n, count // n)
    if height * width > 1:
        yield True, (outs, 1, 1), (1, height * width, ins)


def rank_within(rows: tuple[int, ...], cols: tuple[int, ...], params: float) -> int:
    """The largest rank whose train has at most so many numbers, at least 1."""
    paired = [m * n for m, n in zip(rows, cols, strict=True)]
    low, high = 1, max(tt_ranks(paired, math.prod(paired)))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tt_params(paired, middle) <= params else (low, middle - 1)
    return low


def _uses(rows: tuple[int, ...], cols: tuple[int, ...], params: int) -> bool:
    """True if a train of these modes uses the budget up, nearly, and its cores are small enough for a search."""
    rank = rank_within(rows, cols, params)
    used = tt_params([m * n for m, n in zip(rows, cols, strict=True)], rank)
    return LEAST * params <= used <= params and rank * max(cols) <= COLUMNS
