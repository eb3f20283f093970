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

from ..checks import (
    check_input,
    check_matrix,
    check_matrix_train,
    check_modes,
    check_number,
    check_rank_or_eps,
    paired_modes,
    whole,
)
from ..precision import full_precision
from ..shapes import tt_ranks
from .adaptive import fitted_to_error
from .starting import better_start, plain_start
from .sweeping import stored_error, swept
from .weighting import as_weighting, ridged, spans

if TYPE_CHECKING:
    from .gram import Gram

__all__ = ["fit_cores"]

RIDGES = (1e-3, 3e-2, 0.3, 1.0)  # those tried on held-out inputs
LEAST_RIDGE, MOST_RIDGE = 1e-3, 1.0  # of those taken without them


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

    Minimizes ``tr((W - W') G (W - W')^T)``, the squared error of the outputs over all inputs behind G. Each core in
    turn solves its own least-squares problem, while the others are orthonormal around it, there and back.

    Args:
        weight: Matrix W ``(out, in)``, as ``nn.Linear.weight``.
        gram: Gram matrix G ``(in, in)`` of the layer's inputs, as ``collect_gram`` makes it; or non-negative weights
            ``(in,)``, the diagonal of one. For a table of tokens W is its transpose and the weights are frequencies.
        row_shape: Modes ``(m_1, ..., m_d)`` with product out.
        col_shape: Modes ``(n_1, ..., n_d)`` with product in.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends; clipped to what the shapes allow.
        eps: Relative output error allowed, in [0, 1), as :func:`output_error` measures it: few ranks are searched.
        start: ``"svd"`` is TT-SVD, or TT-SVD of the matrix whitened by a Kronecker product, whichever is better; or
            cores, whose ranks stay.
        sweeps: Most sweeps there and back. A fit that a sweep no longer changes stops before. Twenty in place of six
            brought little: an error of 0.393 in place of 0.403, on other inputs of the layer.
        ridge: Part of the mean eigenvalue of G that is added to it, so that directions which no input has shown stay
            close to W. ``"auto"`` takes in / tokens, kept between 0.001 and 1 (without a number of tokens 0.001), or
            with ``held_out`` the best of four on it. Inputs that were never on get at most 1 / tokens, so that many
            tokens spend no ranks on them.
        held_out: Gram matrix of other inputs of the same layer, to choose the ridge by; with ``rank``.

    Returns:
        d cores ``(r_{k-1}, m_k, n_k, r_k)`` in the dtype and on the device of ``weight``.

    Raises:
        TypeError: A tensor that is not real floating-point; a rank, mode or number of sweeps that is no integer.
        ValueError: Not exactly one of rank and eps; modes that do not make the matrix; a Gram matrix of another width,
            not symmetric, with a negative eigenvalue, or zero; negative weights; NaN or Inf; a start that does not fit
            modes or rank; ``start`` or ``held_out`` beside eps, which finds ranks and start itself.

    Warns:
        UserWarning: The inputs do not span their space (fewer tokens than ``in``, or dependent ones; those that
            were never on do not count), so that the fit leans on the ridge.

    Guarantee:
        The output error on ``gram`` is at most that of TT-SVD with these ranks, or of the cores given as ``start``. No
        update of a core raises the error, the ridge counted in. With ``eps`` the error on ``gram`` is at most
        ``eps + 10 d u``, u the machine epsilon of the dtype of ``weight``.

    Cost:
        All in float64. A core takes about 12 products with G, O(out in^2) each, or for few unknowns u = r m r a
        factorization, O(in^2 r^2 + u^3). 384 x 384 at a quarter of its numbers takes about a second on one core, 1536
        inputs 15 s; temporaries are some copies of G. With weights O(out in r) and no matrix ``in x in``. ``eps``
        costs about ten such fits.

    Source:
        Holtz, Rohwedder and Schneider (2012), The alternating linear scheme for tensor optimization in the tensor train
        format, for ALS and the merged cores; own preconditioner.

    Example:
        >>> import torch
        >>> from ttref import ttm_svd, ttm_to_matrix
        >>> from ttref.fitting import Gram, output_error
        >>> w = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
        >>> scales = torch.logspace(0, -2, 12)                          # inputs of very different sizes
        >>> seen = Gram.from_inputs(torch.randn(500, 12, generator=torch.Generator().manual_seed(1)) * scales)
        >>> plain, fitted = ttm_svd(w, (3, 4), (4, 3), rank=3), fit_cores(w, seen, (3, 4), (4, 3), rank=3)
        >>> output_error(w, ttm_to_matrix(fitted), seen) < output_error(w, ttm_to_matrix(plain), seen) / 2
        True
    """
    check_rank_or_eps(rank, eps)
    check_matrix("weight", weight)
    modes = paired_modes(row_shape, col_shape)
    rows, cols = check_modes("row_shape", row_shape), check_modes("col_shape", col_shape)
    made = (torch.Size(rows).numel(), torch.Size(cols).numel())
    if weight.shape != made:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but row_shape {rows} and col_shape {cols} make a "
            f"{made[0]} x {made[1]} matrix"
        )
    sweeps = whole("sweeps", sweeps, least=0)
    seen = as_weighting(gram, weight.shape[1], weight.device)
    other = None if held_out is None else as_weighting(held_out, weight.shape[1], weight.device, "held_out")
    if eps is not None and (other is not None or start != "svd"):
        raise ValueError("eps finds ranks and start by itself; give rank beside start and held_out")
    first = None if eps is not None else _start(start, rows, cols, tt_ranks(modes, rank))
    tokens = getattr(gram, "tokens", None)
    ridges = ridges_to_try(ridge, seen, tokens, other is not None)
    exact = weight.double()
    if eps is not None:
        return fitted_to_error(weight, seen, ridged(seen, ridges[0], tokens), rows, cols, eps, sweeps)
    plain = plain_start(weight, rows, cols, rank) if first is None else first

    def fit(value: float, sweeps: int) -> list[Tensor]:
        norm = ridged(seen, value, tokens)
        return swept(exact, norm, better_start(weight, norm, plain) if first is None else first, sweeps)

    best = ridges[0]
    if other is not None:  # two sweeps show which ridge is the best
        best = min(ridges, key=lambda value: stored_error(exact, fit(value, min(sweeps, 2)), other))
    stored = [[core.to(weight.dtype) for core in cores] for cores in (fit(best, sweeps), plain)]
    # The ridge is counted into what a sweep lowers, and a cast may round either way.
    return min(stored, key=lambda cores: stored_error(exact, cores, seen))


def _start(
    start: str | Sequence[Tensor], rows: tuple[int, ...], cols: tuple[int, ...], ranks: Sequence[int]
) -> list[Tensor] | None:
    """Cores to start from in float64, or None for those of an SVD."""
    if isinstance(start, str):
        if start != "svd":
            raise ValueError(f'start must be "svd" or a list of cores, got {start!r}')
        return None
    found_rows, found_cols, found = check_matrix_train(start)
    for k, core in enumerate(start):
        check_input(f"start[{k}]", core)
    if (found_rows, found_cols) != (rows, cols):
        raise ValueError(
            f"start has modes {found_rows} x {found_cols}, but row_shape is {rows} and col_shape {cols}; "
            "start from cores of these modes"
        )
    if any(r > cap for r, cap in zip(found, ranks, strict=True)):
        raise ValueError(f"start has ranks {found}, above the cap {tuple(ranks)}; tt_round cuts them")
    return [core.double() for core in start]


def ridges_to_try(ridge: float | str, gram: Tensor, tokens: int | None, held_out: bool) -> tuple[float, ...]:
    """Ridges to try; a warning where the inputs do not span and a plain fit would leave directions open."""
    if ridge != "auto":
        check_number("ridge", ridge)
        return (float(ridge),)
    if not spans(gram, tokens):
        seen = "" if tokens is None else f" ({tokens} tokens)"
        warnings.warn(
            f"the inputs behind gram do not span its width {len(gram)}{seen}, so the fit leans on a ridge; collect the "
            "Gram matrix over more texts, or give held_out or ridge",
            stacklevel=5,
        )
        tokens = tokens or 1
    if held_out:
        return RIDGES
    return (LEAST_RIDGE if tokens is None else min(max(len(gram) / tokens, LEAST_RIDGE), MOST_RIDGE),)
