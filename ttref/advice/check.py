"""One matrix: tensor trains beside SVD, noise and integers at an equal error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..baselines import gaussian_null, quantize_integer
from ..checks import check_matrix, check_real, whole
from ..matrices import ttm_svd
from ..precision import full_precision
from ..shapes import factorize
from .tree import IN_INT8, judged
from .tree import MARGIN_INTEGERS as MARGIN_INTEGERS

__all__ = ["Check", "does_a_train_pay"]

ROWS = 512
BLOCK = 8
BITS = (2, 3, 4, 5, 6, 8)

Modes = tuple[tuple[int, ...], tuple[int, ...]]


class Check(NamedTuple):
    """What :func:`does_a_train_pay` found for one matrix at one error.

    Attributes:
        verdict: ``"train"``, ``"SVD"``, ``"integers"``, or ``"none"`` where nothing makes the matrix smaller.
        train: Numbers of the matrix for each number of the best train.
        svd: The same for truncated SVD.
        noise: The same for that train on Gaussian noise with the row norms of the matrix.
        integers: Bytes of the matrix in float32 for each byte of integers with one scale a row; 1 if eight bits err
            more.
        bits: Bits of these integers; 0 if eight bits err more.
        form: What the best train is, in words: ``"rows in blocks"``, ``"columns in blocks"``, ``"TT-matrix, 2 modes"``
            or ``"TT-matrix, 3 modes"``; ``"SVD"`` for a matrix too small for any of them.
        eps: The relative error that all of them keep.
        rows: First row and row after the last that were looked at.
    """

    verdict: str
    train: float
    svd: float
    noise: float
    integers: float
    bits: int
    form: str
    eps: float
    rows: tuple[int, int]

    @property
    def smaller(self) -> float:
        """How many times smaller than float32 the matrix is in bytes if the verdict is followed."""
        ratios = {"train": IN_INT8 * self.train, "SVD": IN_INT8 * self.svd, "integers": self.integers, "none": 1.0}
        return ratios[self.verdict]


@full_precision
@torch.no_grad()
def does_a_train_pay(weight: Tensor, eps: float = 0.2, *, rows: int = ROWS) -> Check:
    """Compare tensor trains, SVD and integers on consecutive rows of a matrix, all at the same relative error.

    It looks at the middle rows. They must be *consecutive*: in a table of positions or a weight that reads pixels,
    neighbors are alike, and that order is what a train uses; a random sample would destroy it. To look elsewhere, or at
    a random order on purpose, pass the rows you want: ``does_a_train_pay(table[2000:2512])``.

    Four forms of train are tried, each by TT-SVD, and the best one counts: rows in blocks of 8, columns in blocks of
    8, and the interleaved TT-matrix of two and of three balanced modes. SVD is the train of two cores, one for the
    rows and one for the columns.

    The verdict is a judgment: in int8, trains and SVD take a quarter of the bytes of float32. Unless the better of them
    is then 1.5 times as small as integers, the verdict is integers, which are simpler and faster, and int8 cores err a
    little more. A train must be 1.1 times as small as SVD; less is not worth another format. These are the questions
    of ``ttref.advice.tree``.

    Args:
        weight: Matrix ``(m, n)``, float; it is compared in float32.
        eps: Relative Frobenius error allowed, in (0, 1).
        rows: How many rows to look at, at most.

    Returns:
        A :class:`Check` with ratios and the verdict. A ratio below 1 means that the method takes more room.

    Raises:
        TypeError: ``weight`` is not a real floating-point tensor (integers are integers already).
        ValueError: It is not a matrix, is empty, has NaN or Inf; eps outside (0, 1).

    Cost:
        Six decompositions of ``min(m, rows)`` x n: about 0.1 s for 512 x 384 on two cores.

    Accuracy:
        What some rows say need not hold for all. Beside four whole matrices, at two errors each (``estimates`` in
        ``book/results/advise.json``), the verdicts were the same. The ratios were not: the SVD of MiniLM's whole token
        table is 1.19 times smaller where 512 rows say 0.91, because tall factors are shared by more rows, and the
        middle half of GPT-2's positions compresses 148 times where the whole table reaches 115.

    Example:
        >>> import torch
        >>> time = torch.linspace(0, 3, 512).unsqueeze(1)
        >>> # smooth along the rows
        >>> does_a_train_pay(time * (time * torch.linspace(1, 6, 384)).sin()).verdict
        'train'
        >>> noise = torch.randn(512, 384, generator=torch.Generator().manual_seed(0))
        >>> does_a_train_pay(noise).verdict
        'integers'
    """
    check_matrix("weight", weight)
    check_real("eps", eps)
    if not 0 < eps < 1:
        raise ValueError(f"eps is the relative error allowed and must lie between 0 and 1, got {eps}")
    begin, end = middle_rows(len(weight), whole("rows", rows, least=1))
    part = weight.detach()[begin:end].float()
    forms = {form: modes for form in FORMS if (modes := modes_of(form, *part.shape))}
    ratios = {form: _ratio(part, modes, eps) for form, modes in forms.items()}
    svd = ratios.pop("SVD")
    form, train = max(ratios.items(), key=lambda item: item[1], default=("SVD", svd))
    noise = _ratio(gaussian_null(part), forms[form], eps)
    tried = ((bits, quantize_integer(part, bits)) for bits in BITS)
    bits, made = next(((bits, made) for bits, made in tried if made.relative_error(part) <= eps), (0, None))
    integers = 4 * part.numel() / made.nbytes if made else 1.0
    return Check(judged(train, svd, integers), train, svd, noise, integers, bits, form, eps, (begin, end))


FORMS = ("SVD", "rows in blocks", "columns in blocks", "TT-matrix, 2 modes", "TT-matrix, 3 modes")


def modes_of(form: str, m: int, n: int) -> Modes | None:
    """Row and column modes of a form for an m x n matrix, as :func:`ttm_svd` takes them; None if it does not fit."""
    if form == "SVD":
        return (m, 1), (1, n)
    if form == "rows in blocks":
        return ((m // BLOCK, BLOCK, 1), (1, 1, n)) if m % BLOCK == 0 and m > BLOCK else None
    if form == "columns in blocks":
        return ((m, 1, 1), (1, n // BLOCK, BLOCK)) if n % BLOCK == 0 and n > BLOCK else None
    count = int(form.split()[1])
    try:
        return factorize(m, count), factorize(n, count)
    except ValueError:  # too few prime factors
        return None


def middle_rows(m: int, rows: int) -> tuple[int, int]:
    """Consecutive rows around the middle, a multiple of the block where there are a few blocks."""
    count = min(m, rows)
    if count > 4 * BLOCK:
        count -= count % BLOCK
    begin = (m - count) // 2
    return begin, begin + count


def _ratio(matrix: Tensor, modes: Modes, eps: float) -> float:
    return matrix.numel() / sum(core.numel() for core in ttm_svd(matrix, *modes, eps=eps))
