"""Cores fitted to what a layer sees: alternating least squares in the norm of its inputs.

TT-SVD minimizes ``||W - W'||``; a layer needs ``||(W - W') X||`` small, X its inputs. That is the same problem in the
norm of their Gram matrix ``G = X X^T``, has no closed form for a train, and is linear in each core alone::

    W' = o--C--o        the cores o fixed and orthonormal, C solves one least-squares problem; then the next
         |  |  |
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..canonical import canonical
from ..checks import check_matrix, check_matrix_train, check_number, check_rank_or_eps, paired_modes, whole
from ..matrices import ttm_svd, ttm_to_matrix
from ..powers import times_power
from ..precision import full_precision
from ..shapes import tt_ranks
from .errors import relative
from .parts import paired
from .solving import solved
from .starting import whitened_svd
from .weighting import as_weighting, spans, times_gram

if TYPE_CHECKING:
    from .gram import Gram

__all__ = ["fit_cores"]

SMALL_RIDGE = 1e-6
RIDGES = (1e-6, 1e-3, 1e-2, 1e-1)
UNSEEN_RIDGE = 1e-2
SETTLED = 1e-4  # a sweep that lowers the squared error by less, relative to itself, is the last


@full_precision
@torch.no_grad()
def fit_cores(
    weight: Tensor,
    gram: Gram | Tensor,
    row_shape: Sequence[int],
    col_shape: Sequence[int],
    *,
    rank: int | Sequence[int] | None = None,
    eps: float | None = None,
    start: str | Sequence[Tensor] = "svd",
    sweeps: int = 6,
    ridge: float | str = "auto",
    held_out: Gram | Tensor | None = None,
) -> list[Tensor]:
    """Cores of a TT-matrix that change a layer's outputs least, by alternating least squares.

    Args:
        weight: Matrix W ``(out, in)``.
        gram: Gram matrix G ``(in, in)`` of the layer's inputs, as ``collect_gram`` makes; or non-negative weights
            ``(in,)``, a diagonal G: for a table of tokens, ``weight`` is its transpose and G the tokens' frequencies.
        row_shape: Modes ``(m_1, ..., m_d)`` with product out.
        col_shape: Modes ``(n_1, ..., n_d)`` with product in.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends.
        eps: Relative output error allowed, in [0, 1).
        start: ``"svd"``: TT-SVD, or TT-SVD after whitening by a Kronecker product where that is better. Or cores.
        sweeps: Passes there and back at most; it stops where a pass changes nothing any more.
        ridge: Relative to the mean eigenvalue, added to G, so that what no input has shown is kept close to W.
            ``"auto"``: the best of a few on ``held_out``, or a small one.
        held_out: Gram matrix of other inputs, to choose the ridge.

    Returns:
        d cores ``(r_{k-1}, m_k, n_k, r_k)`` in the dtype of ``weight``.
    """
    check_rank_or_eps(rank, eps)
    check_matrix("weight", weight)
    modes = paired_modes(row_shape, col_shape)
    rows, cols = tuple(map(int, row_shape)), tuple(map(int, col_shape))
    sweeps = whole("sweeps", sweeps, least=0)
    seen = as_weighting(gram, weight.shape[1], weight.device)
    tokens = getattr(gram, "tokens", None)
    other = None if held_out is None else as_weighting(held_out, weight.shape[1], weight.device, "held_out")
    exact = weight.double()
    if eps is not None:
        raise NotImplementedError("eps comes with ttref.fitting.adaptive")
    ranks = tt_ranks(modes, rank)
    first = _starts(weight, seen, rows, cols, ranks, start)
    fits = [
        _fitted(exact, ridged(seen, value), rows, cols, first, sweeps) for value in ridges(ridge, seen, tokens, other)
    ]
    judge = seen if other is None else other
    made = min(fits, key=lambda cores: relative(exact, ttm_to_matrix(cores), judge))
    made = [core.to(weight.dtype) for core in made]
    before = [core.to(weight.dtype) for core in first]
    worse = _error(exact, made, seen) > _error(exact, before, seen)
    return before if worse else made


def _error(weight: Tensor, cores: Sequence[Tensor], gram: Tensor) -> float:
    """Relative output error of cores as they are stored."""
    return relative(weight, ttm_to_matrix([core.double() for core in cores]), gram)


def _starts(weight, gram, rows, cols, ranks, start) -> list[Tensor]:
    """First cores in float64: those given, or the better of the two closed forms."""
    if not isinstance(start, str):
        check_matrix_train(start)
        return [core.double() for core in start]
    if start != "svd":
        raise ValueError(f'start must be "svd" or a list of cores, got {start!r}')
    exact = weight.double()
    candidates = [ttm_svd(exact, rows, cols, rank=ranks), whitened_svd(exact, gram, rows, cols, ranks)]
    return min(candidates, key=lambda cores: _error(exact, cores, gram))


def ridges(ridge: float | str, gram: Tensor, tokens: int | None, held_out: Tensor | None) -> tuple[float, ...]:
    """Ridges to try; says so where the inputs do not span and a plain fit would leave directions open."""
    if ridge != "auto":
        check_number("ridge", ridge)
        return (float(ridge),)
    if spans(gram, tokens):
        return (SMALL_RIDGE,) if held_out is None else RIDGES
    warnings.warn(
        f"the inputs behind gram do not span its width {gram.shape[0]}"
        f"{'' if tokens is None else f' ({tokens} tokens)'}: the fit is regularized; collect more texts",
        stacklevel=3,
    )
    return (UNSEEN_RIDGE,) if held_out is None else RIDGES


def ridged(gram: Tensor, ridge: float) -> Tensor:
    """The Gram matrix with mean eigenvalue 1, plus the ridge."""
    if gram.ndim == 1:
        return gram / gram.mean() + ridge
    made = gram / gram.diagonal().mean()
    made.diagonal().add_(ridge)
    return made


def _fitted(weight, gram, rows, cols, first, sweeps) -> list[Tensor]:
    """Sweeps there and back over float64 cores, the core that is solved for always the center of the train."""
    target = paired(times_gram(weight, gram), rows, cols)
    moved, exponent = canonical([core.flatten(1, 2) for core in first], 0)
    cores = [core.reshape(core.shape[0], m, n, -1) for core, m, n in zip(moved, rows, cols, strict=True)]
    cores[0] = times_power(moved[0], exponent).reshape(cores[0].shape)
    error = weight - ttm_to_matrix(cores)
    loss = (times_gram(error, gram) * error).sum().item()
    for _ in range(sweeps):
        before = loss
        loss = _swept(gram, target, cores, loss)
        if before - loss <= SETTLED * before:
            break
    return cores


def _swept(gram, target, cores, loss) -> float:
    """One pass to the right and one back; cores change in place, the squared error that is left is returned."""
    d = len(cores)
    if d == 1:
        cores[0], gain = solved(gram, target, cores, 0)
        return loss - gain
    for k, step in [*((k, 1) for k in range(d - 1)), *((k, -1) for k in range(d - 1, 0, -1))]:
        cores[k], gain = solved(gram, target, cores, k)
        loss -= gain
        _move_center(cores, k, step)
    return loss


def _move_center(cores: list[Tensor], k: int, step: int) -> None:
    """Make core k orthonormal, towards its neighbor, which takes the triangular factor; the train stays the same."""
    left, m, n, right = cores[k].shape
    if step == 1:
        q, r = torch.linalg.qr(cores[k].reshape(-1, right))
        cores[k] = q.reshape(left, m, n, -1)
        cores[k + 1] = torch.einsum("ab,bmnc->amnc", r, cores[k + 1])
    else:
        q, r = torch.linalg.qr(cores[k].reshape(left, -1).mT)
        cores[k] = q.mT.reshape(-1, m, n, right)
        cores[k - 1] = torch.einsum("amnb,cb->amnc", cores[k - 1], r)
