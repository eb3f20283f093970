"""Modes of a fitted train chosen for one layer: many are fitted for one sweep, the best few to the end.

Which modes fit best depends on the layer's inputs as much as on its matrix. The family that wins most often shares one
projection among blocks of the inputs::

    modes (m, 1) and (k, n / k):    y = sum over blocks b of  A_b (P x_b)     x = (x_1, ..., x_k)

P is stored once, so more of the budget is left for A. It pays where a few directions carry most of the inputs: then
nearly any projection that keeps enough numbers of x keeps what y depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bars import bar
from ..checks import check_matrix, whole
from ..matrices import ttm_to_matrix
from ..precision import full_precision
from ..printed import text_table
from ..shapes import balanced_modes, largest, tt_params, tt_ranks
from .als import fit_cores, ridges_to_try
from .errors import output_error
from .weighting import as_weighting

if TYPE_CHECKING:
    from .gram import Gram

__all__ = ["Chosen", "Tried", "choose_modes"]

BLOCKS, BALANCED = 4, 4  # at most so many numbers of blocks, and of balanced splits, are tried
SWEEPS = 8  # of the finished fits; they stop where a sweep changes nothing


@dataclass(frozen=True)
class Tried:
    """Modes that were tried: their ranks within the budget, and the output errors measured.

    Attributes:
        row_shape, col_shape: The modes, ``(m_1, ..., m_d)`` and ``(n_1, ..., n_d)``.
        ranks: ``(1, r_1, ..., 1)``, the largest equal cap within the budget, clipped.
        params: Numbers stored.
        ranked: Output error after one sweep.
        error: Output error of the finished fit; None if it was not finished.
    """

    row_shape: tuple[int, ...]
    col_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    params: int
    ranked: float
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The best modes found for a layer, and the fitted cores. Printed, it is the table of what was tried.

    Attributes:
        row_shape, col_shape: The modes.
        ranks: The ranks ``(1, r_1, ..., 1)``.
        cores: Cores ``(r_{k-1}, m_k, n_k, r_k)`` in the dtype of the weight.
        error: Relative output error, on ``held_out`` if that was given, else on ``gram``.
        tried: What was tried, best first: the finished fits, then the others by their error after one sweep.

    Example:
        >>> chosen = choose_modes(torch.eye(4), torch.eye(4), params=16)     # a Kronecker product: rank 1 will do
        >>> chosen.params <= 16, chosen.error < 1e-6, len(str(chosen).splitlines()) - len(chosen.tried)
        (True, True, 1)
    """

    row_shape: tuple[int, ...]
    col_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    cores: list[Tensor]
    error: float
    tried: tuple[Tried, ...]

    @property
    def params(self) -> int:
        """Numbers stored."""
        return sum(core.numel() for core in self.cores)

    @property
    def nbytes(self) -> int:
        """Bytes stored, in the dtype of the cores."""
        return sum(core.numel() * core.element_size() for core in self.cores)

    def __str__(self) -> str:
        heads = ["row modes", "column modes", "ranks", "numbers", "one sweep", "finished"]
        rows = [
            [
                *(" x ".join(map(str, shape)) for shape in (one.row_shape, one.col_shape, one.ranks[1:-1])),
                f"{one.params:,}",
                f"{one.ranked:.4f}",
                "" if one.error is None else f"{one.error:.4f}",
            ]
            for one in self.tried
        ]
        return "\n".join(text_table(heads, rows, left=2))


@full_precision
@torch.no_grad()
def choose_modes(
    weight: Tensor,
    gram: Gram | Tensor,
    *,
    params: int | None = None,
    nbytes: int | None = None,
    held_out: Gram | Tensor | None = None,
    finish: int = 3,
    progress: bool = True,
) -> Chosen:
    """Fit a layer's matrix within a budget, and choose the modes by the error of its outputs.

    For every modes tried, the ranks are the largest that the budget allows. One sweep of :func:`fit_cores` ranks them;
    the ``finish`` best are fitted on from there.

    Args:
        weight: Matrix W ``(out, in)``.
        gram: Gram matrix ``(in, in)`` of the layer's inputs, or weights ``(in,)``, as for :func:`fit_cores`.
        params: Budget of numbers.
        nbytes: Budget of bytes: the same with cores in the dtype of ``weight``.
        held_out: Gram matrix of other inputs, on which modes and ridge are chosen; left out, on ``gram``.
        finish: How many are finished.
        progress: Show a bar where somebody may be watching.

    Returns:
        :class:`Chosen`: modes, ranks, cores, error, and what was tried. On the inputs that it is chosen on, its error
        is never above that of the whitened SVD of the same budget and ridge, which is one of the modes tried. Without
        a ridge that may be lower there, of few tokens by a third, and higher on others.

    Raises:
        TypeError: A matrix that is not a real floating-point tensor, a budget or ``finish`` that is not an integer.
        ValueError: Not exactly one of params and nbytes; a budget too small for rank 1 of any modes tried; ``finish``
            below 1; a matrix of one row or column, or with NaN or Inf; a Gram matrix of another width.

    Warns:
        UserWarning: The inputs do not span; then fits are regularized.

    Cost:
        One sweep for each of at most 17 modes and eight for each finished fit. They are the matrix ``(m, 1) (1, n)``;
        one projection shared by two to six blocks of the inputs, contiguous ``(m, 1) (k, n / k)`` or interleaved
        ``(1, n / k) (m, k)``, also with its own train and with half of the outputs; balanced splits into two, and two
        into three. Blocks of outputs that share a basis are left out: they lose everywhere.

    Source:
        Own search; trains of matrices, with modes of equal size, are in Novikov et al. (2015), section 3.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 4, generator=generator) @ torch.randn(4, 16, generator=generator)
        >>> x += 0.1 * torch.randn(500, 16, generator=generator)        # four directions carry most of the inputs
        >>> w = torch.randn(16, 16, generator=generator)
        >>> chosen = choose_modes(w, x.T @ x, params=128)
        >>> chosen.params <= 128, chosen.error <= min(one.ranked for one in chosen.tried)
        (True, True)
    """
    check_matrix("weight", weight)
    m, n = weight.shape
    if min(m, n) < 2:
        raise ValueError(f"a {m} x {n} weight has no modes to choose: it needs two rows and two columns at least")
    budget = _budget(weight, params, nbytes)
    finish = whole("finish", finish, least=1)
    seen = as_weighting(gram, n, weight.device)
    judge = gram if held_out is None else held_out
    as_weighting(judge, n, weight.device, "gram" if held_out is None else "held_out")
    # Once, not for all modes: it warns of inputs that do not span.
    ridges = ridges_to_try("auto", seen, getattr(gram, "tokens", None), held_out is not None)
    sizes = [(rows, cols, within(rows, cols, budget)) for rows, cols in candidates(m, n)]
    sizes = [(rows, cols, ranks) for rows, cols, ranks in sizes if ranks]
    if not sizes:
        least = min(_params(rows, cols, 1) for rows, cols in candidates(m, n))
        raise ValueError(
            f"a budget of {budget} numbers is too small: the smallest train tried for a {m} x {n} matrix takes {least}"
        )

    def fitted(rows, cols, ranks, **how) -> tuple[float, list[Tensor]]:
        cores = fit_cores(weight, gram, rows, cols, rank=ranks, **how)
        return output_error(weight, ttm_to_matrix(cores), judge), cores

    found = []
    for rows, cols, ranks in bar(sizes, progress, "modes"):
        error, cores = fitted(rows, cols, ranks, sweeps=1, ridge=ridges[min(1, len(ridges) - 1)])
        found.append((error, (rows, cols, ranks), cores))
        found.sort(key=lambda each: each[0])
        found[finish:] = [(*each[:2], None) for each in found[finish:]]  # only the best cores are kept
    ends = []
    for ranked, size, start in bar(found[:finish], progress, "finishing"):
        fits = [fitted(*size, sweeps=SWEEPS, ridge=ridge, start=start) for ridge in ridges]
        error, cores = min([*fits, (ranked, start)], key=lambda each: each[0])
        ends.append((error, size, cores, ranked))
    ends.sort(key=lambda each: each[0])
    tried = [Tried(*size, _params(*size), ranked, error) for error, size, _, ranked in ends]
    tried += [Tried(*size, _params(*size), ranked) for ranked, size, _ in found[finish:]]
    error, size, cores, _ = ends[0]
    return Chosen(*size, cores, error, tuple(tried))


def _budget(weight: Tensor, params: int | None, nbytes: int | None) -> int:
    """The budget in numbers."""
    given = {"params": params, "nbytes": nbytes}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"give exactly one of params and nbytes, got {' and '.join(chosen) or 'none'}")
    value = whole(chosen[0], given[chosen[0]], least=1)
    return value if nbytes is None else value // weight.element_size()


def candidates(m: int, n: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Row and column modes to try for an ``m x n`` matrix, each once."""
    listed = dict.fromkeys([((m, 1), (1, n)), *_shared(m, n), *_balanced(m, n), *_three(m, n)])
    yield from (modes for modes in listed if min(a * b for a, b in zip(*modes, strict=True)) > 1)


def _shared(m: int, n: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """One projection for k blocks of inputs: contiguous, interleaved, and for each half of the outputs its own."""
    for k in islice((k for k in range(2, n) if n % k == 0), BLOCKS):
        yield (m, 1), (k, n // k)
        yield (1, m), (n // k, k)
        if m % 2 == 0 and k == 2:
            yield (m // 2, 2), (k, n // k)


def _balanced(m: int, n: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two cores of nearly equal modes, which have the largest ranks; those with the most even columns first."""
    center = math.sqrt(m * n)
    rows = [k for k in range(1, m + 1) if m % k == 0]
    splits = []
    for k in (k for k in range(2, n) if n % k == 0):
        row = min(rows, key=lambda each, k=k: abs(math.log(each * k / center)))
        if max(row * k, m * n // (row * k)) <= 2 * min(row * k, m * n // (row * k)):
            splits.append(((row, m // row), (k, n // k)))
    yield from sorted(splits, key=lambda modes: abs(math.log(modes[1][0] ** 2 / n)))[:BALANCED]


def _three(m: int, n: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Three cores: balanced modes, both ways round, and a shared projection that is a train itself."""
    if math.prod(rows := balanced_modes(m)) == m and math.prod(cols := balanced_modes(n)) == n:
        yield rows, cols
        yield rows, cols[::-1]
    k = next((k for k in range(2, n) if n % k == 0 and (n // k) % k == 0), None)
    if k and k * k < n:
        yield (m, 1, 1), (k, k, n // (k * k))


def within(rows: Sequence[int], cols: Sequence[int], budget: int) -> tuple[int, ...] | None:
    """The ranks of the largest equal cap within the budget; None if rank 1 is beyond it."""
    cap = largest(lambda rank: _params(rows, cols, rank) <= budget, min(budget, math.prod(rows) * math.prod(cols)))
    return tt_ranks([a * b for a, b in zip(rows, cols, strict=True)], cap) if cap else None


def _params(rows: Sequence[int], cols: Sequence[int], rank: int | Sequence[int]) -> int:
    """Numbers stored."""
    return tt_params([a * b for a, b in zip(rows, cols, strict=True)], rank)
