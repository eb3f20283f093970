"""Modes of a convolution's kernel, chosen among those that make stages of it: how the patch is read, and the cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import whole
from .convolving import Geometry, patch_order, patches
from .fitting.als import fit_cores
from .fitting.errors import relative
from .fitting.gram import Gram, as_gram
from .matrices import ttm_svd, ttm_to_matrix
from .shapes import largest, tt_params, tt_ranks

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


class KernelCores(NamedTuple):
    """Cores of a kernel, and the matrix and the Gram matrix they are made for, columns in the order of the patch."""

    cores: list[Tensor]
    taps_first: bool
    matrix: Tensor
    inputs: Tensor


def kernel_cores(
    weight: Tensor,
    rank: int | Sequence[int] | None,
    eps: float | None,
    params: int | None,
    shapes: tuple[Sequence[int] | None, Sequence[int] | None],
    taps_first: bool,
    gram: Gram | Tensor | None,
) -> KernelCores:
    """Cores of a kernel ``(out, in, height, width)`` by TT-SVD, or fitted to a Gram matrix; with params, modes too."""
    given = [name for name, value in (("rank", rank), ("eps", eps), ("params", params)) if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of rank, eps and params, got {' and '.join(given) or 'none'}")
    seen = None if gram is None else as_gram(gram, weight[0].numel()).to(weight.device)
    tokens = getattr(gram, "tokens", None)
    cores = None
    if params is not None:
        if shapes != (None, None):
            raise ValueError("params searches the modes: leave row_shape and col_shape out, or give rank or eps")
        found = kernel_modes(weight, whole("params", params, least=1), seen)
        taps_first, cores = found.taps_first, found.cores
    elif None in shapes:
        raise ValueError(
            "with rank or eps, row_shape and col_shape are needed, such as (out, 1) and (height * width, in) with "
            "taps_first; with params=, modes are searched"
        )
    matrix, inputs = read(weight, seen, taps_first)
    if cores is None and gram is None:
        cores = ttm_svd(matrix, *shapes, rank=rank, eps=eps)
    elif cores is None:
        known = inputs if tokens is None else Gram(inputs, tokens)  # the ridge follows their number
        cores = fit_cores(matrix, known, *shapes, rank=rank, eps=eps)
    return KernelCores(cores, bool(taps_first), matrix, inputs)


def read(weight: Tensor, gram: Tensor | None, taps_first: bool) -> tuple[Tensor, Tensor]:
    """A kernel as a matrix, and the Gram matrix with its columns in the same order; the identity if there is none."""
    columns = weight[0].numel()
    if gram is None:
        return patches(weight, taps_first), torch.eye(columns, dtype=torch.float64, device=weight.device)
    geometry = Geometry(weight.shape[1], tuple(weight.shape[2:]), (1, 1), (0, 0), (1, 1), taps_first)
    order = patch_order(geometry).to(weight.device)
    return patches(weight, taps_first), gram[order][:, order]


def kernel_modes(weight: Tensor, params: int, gram: Tensor | None = None) -> KernelModes:
    """The modes whose fitted cores change the outputs least: one sweep ranks, the best three are finished.

    Args:
        weight: Kernel ``(out, in, height, width)``.
        params: Numbers that the cores may have.
        gram: Gram matrix of the patches, channels first; left out, all patches count alike.

    Raises:
        ValueError: A budget too small for any of the modes tried.
    """
    seen = {taps: read(weight.double(), gram, taps) for taps in (False, True)}

    def fitted(taps: bool, rows: tuple, cols: tuple, sweeps: int) -> KernelModes:
        matrix, inputs = seen[taps]
        rank = rank_within(rows, cols, params)
        cores = fit_cores(matrix, inputs, rows, cols, rank=rank, sweeps=sweeps, ridge=RIDGE)
        return KernelModes(taps, rows, cols, cores, relative(matrix, ttm_to_matrix(cores), inputs))

    tried = modes_to_try(weight.shape, params)
    ranked = sorted((fitted(*how, 1) for how in tried), key=lambda found: found.error)
    best = min((fitted(*found[:3], SWEEPS) for found in ranked[:FINISHED]), key=lambda found: found.error)
    return best._replace(cores=[core.to(weight.dtype) for core in best.cores])


def modes_to_try(shape: torch.Size, params: int) -> list[tuple[bool, tuple[int, ...], tuple[int, ...]]]:
    """The candidates that use the budget up, nearly; ValueError if there are none. Nothing is fitted."""
    tried = [how for how in candidates(shape) if _uses(*how[1:], params)]
    if not tried:
        raise ValueError(
            f"params={params} is too small for a {tuple(shape)} kernel, or more than its trains can use; name "
            "modes and a rank instead"
        )
    return tried


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
    most = max(tt_ranks(paired, math.prod(paired)))
    return max(largest(lambda rank: tt_params(paired, rank) <= params, most), 1)


def _uses(rows: tuple[int, ...], cols: tuple[int, ...], params: int) -> bool:
    """True if a train of these modes uses the budget up, nearly, and its cores are small enough for a search."""
    rank = rank_within(rows, cols, params)
    used = tt_params([m * n for m, n in zip(rows, cols, strict=True)], rank)
    return LEAST * params <= used <= params and rank * max(cols) <= COLUMNS
