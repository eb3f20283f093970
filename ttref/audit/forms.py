"""Trains that one matrix could be, and how small each is, read off the spectra of its bonds.

The spectrum at a bond says what each rank loses there, and what the bonds lose adds up in squares (Oseledets 2011,
theorem 2.2). So one eigenproblem for each bond answers for all errors at once, and of the ranks that keep an error
those of the smallest train are taken; ``ttm_svd`` with these ranks stays within the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..advice.check import BLOCK, FORMS, modes_of
from ..precision import full_precision
from ..shapes import ttm_params
from ..truncation import bond_tolerance

WIDEST = 1536  # the smaller side of a cut: its eigenproblem takes a second on one core
PIECE = 1 << 18  # numbers that are in float64 at once, or as many as the Gram matrix that they are added to has
STRIPS = 4  # of a Gram matrix, of which the half above the diagonal is not computed: 5/8 of the operations
BLOCKS = (2, 4, 8, 16)  # rows in a block where a train is judged by what a layer sees
SVD = "SVD"


class Form(NamedTuple):
    """A way to write a matrix as a train: its name, and the modes of rows and columns that :func:`ttm_svd` takes."""

    name: str
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def cuts(self) -> list[tuple[int, int]]:
        """At each bond, how far rows and columns are split: the products of the modes on its left."""
        return [(math.prod(self.rows[:k]), math.prod(self.cols[:k])) for k in range(1, len(self.rows))]

    def params(self, ranks: Sequence[int]) -> int:
        """Numbers of the train with these ranks between its cores."""
        return ttm_params(self.rows, self.cols, (1, *ranks, 1))


def forms_of(m: int, n: int) -> list[Form]:
    """SVD, and the trains of :func:`does_a_train_pay`: rows in blocks, columns in blocks, TT-matrices of two and three.

    Where a cut of one of these would be too wide for its eigenproblem, as in a table of tokens, the modes are the next
    ones that are not: longer blocks, modes out of balance. A form for which there are none is left out.
    """
    found = []
    for name in FORMS:
        modes = modes_of(name, m, n)
        if name != SVD and (modes is None or _width(m, n, Form(name, *modes)) > WIDEST):
            modes = _narrower(name, m, n)
        if modes is not None:
            found.append(Form(name, *modes))
    return found


def seen_forms(m: int, n: int) -> list[Form]:
    """SVD, and rows in blocks of several lengths: trains whose last core holds whole rows.

    Only of these is the best train in the norm of a Gram matrix that of the matrix times its square root: the root can
    be taken out of the last core again.
    """
    blocks = [Form(f"rows in blocks of {b}", (m // b, b, 1), (1, 1, n)) for b in BLOCKS if m % b == 0 and m > b]
    return [Form(SVD, (m, 1), (1, n)), *(form for form in blocks if _width(m, n, form) <= max(WIDEST, min(m, n)))]


class Spectra:
    """The squared singular values of a matrix at the bonds of its forms, each cut once."""

    def __init__(self, matrix: Tensor, forms: Sequence[Form]) -> None:
        self.shape = tuple(matrix.shape)
        self.forms = forms
        self.at = {cut: energies(matrix, *cut) for cut in {cut for form in forms for cut in form.cuts()}}
        self._lost = {cut: shares_lost(held) for cut, held in self.at.items()}
        self._found: dict[tuple[Form, float], list[int]] = {}

    def ranks(self, form: Form, eps: float) -> list[int]:
        """The ranks of the smallest train whose cuts lose at most the error together; their squares add up.

        A form has one bond or two: of two, each rank at the first leaves the second a part of the error.
        """
        if (form, eps) not in self._found:
            self._found[form, eps] = self._smallest(form, bond_tolerance(eps, 1, torch.float32) ** 2)
        return self._found[form, eps]

    def _smallest(self, form: Form, allowed: float) -> list[int]:
        first, *others = (self._lost[cut] for cut in form.cuts())
        counts = torch.arange(1, len(first) + 1)
        if not others:
            return [int(counts[first <= allowed][0])]
        left = counts[first <= allowed]
        right = 1 + (others[0] > (allowed - first[left - 1]).unsqueeze(1)).sum(1)
        a, b, c = (m * n for m, n in zip(form.rows, form.cols, strict=True))
        best = (a * left + b * left * right + c * right).argmin()
        return [int(left[best]), int(right[best])]

    def gain(self, form: Form, eps: float) -> float:
        """Numbers of the matrix for each number of the train."""
        return math.prod(self.shape) / form.params(self.ranks(form, eps))

    def best(self, eps: float) -> tuple[Form, float]:
        """The train that is smallest, and its gain; SVD for a matrix too small for any other."""
        gains = [(self.gain(form, eps), form) for form in self.forms if form.name != SVD]
        gain, form = max(gains, key=lambda pair: pair[0], default=(self.svd(eps), self.forms[0]))
        return form, gain

    def svd(self, eps: float) -> float:
        """The gain of truncated SVD."""
        return self.gain(self.forms[0], eps)

    def entropies(self, form: Form) -> list[float]:
        """The entropy at each bond of a form, in bits: 2 to its power reads as an effective rank."""
        found = []
        for cut in form.cuts():
            weights = self.at[cut] / self.at[cut].sum().clamp(min=torch.finfo(torch.float64).tiny)
            found.append(torch.special.entr(weights).sum().clamp(min=0).item() / math.log(2))
        return found


def shares_lost(squares: Tensor) -> Tensor:
    """The share of the squares that is lost with 1, 2, ... singular values kept; none with all."""
    tails = squares.flip(0).cumsum(0).flip(0)
    return torch.cat([tails[1:], tails.new_zeros(1)]) / tails[0].clamp(min=torch.finfo(torch.float64).tiny)


@full_precision
@torch.no_grad()
def energies(matrix: Tensor, rows: int, cols: int) -> Tensor:
    """All squared singular values across a bond, in float64, descending, by the Gram matrix of the smaller side.

    On the left are the first ``rows`` of the row and ``cols`` of the column digits. Squares are exact for data of at
    most float32 (see :mod:`ttref.truncation`). The matrix is unfolded a piece at a time, so it is never there twice.
    """
    side = min(rows * cols, matrix.numel() // (rows * cols))
    gram = matrix.new_zeros(side, side, dtype=torch.float64)
    step = -(-side // STRIPS)
    for piece in _pieces(matrix, rows, cols):
        for k in range(0, side, step):  # the solver reads what is below the diagonal, so no more is made
            gram[k:, k : k + step].addmm_(piece[k:], piece[k : k + step].mT)
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def _pieces(matrix: Tensor, rows: int, cols: int) -> Iterator[Tensor]:
    """The matrix across a bond, its smaller side first, in float64 and in pieces of the larger side."""
    m, n = matrix.shape
    held = matrix.reshape(rows, m // rows, cols, n // cols)
    left, right = rows * cols, held.shape[1] * held.shape[3]
    axis = max((1, 3) if left <= right else (0, 2), key=lambda k: held.shape[k])
    numbers = max(PIECE, min(left, right) ** 2)  # fewer would take longer to add than to multiply
    for part in held.split(max(1, numbers * held.shape[axis] // matrix.numel()), axis):
        wide = part.permute(0, 2, 1, 3).to(torch.float64, memory_format=torch.contiguous_format)
        yield wide.view(left, -1) if left <= right else wide.view(-1, right).mT


def _width(m: int, n: int, form: Form) -> int:
    """The smaller side of the widest cut; that of the plain matrix is SVD's, and is needed anyway."""
    sides = [min(a * b, m * n // (a * b)) for a, b in form.cuts() if (a, b) != (m, 1)]
    return max(sides, default=0)


def _narrower(name: str, m: int, n: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Modes of a form whose cuts are narrow enough, or None."""
    if name == "rows in blocks":
        tried = (((m // b, b, 1), (1, 1, n)) for b in _divisors(m) if BLOCK <= b < m)
        return next((modes for modes in tried if _width(m, n, Form(name, *modes)) <= WIDEST), None)
    if name == "TT-matrix, 2 modes":
        pairs = [
            ((m // a, a), (n // b, b))
            for a in _divisors(m)
            for b in _divisors(n)
            if a not in (1, m) and b not in (1, n)
        ]
        pairs = [modes for modes in pairs if _width(m, n, Form(name, *modes)) <= WIDEST]
        return min(pairs, key=lambda modes: sum(a * b for a, b in zip(*modes, strict=True)), default=None)
    return None


def _divisors(n: int) -> list[int]:
    return [q for q in range(1, n + 1) if n % q == 0]
