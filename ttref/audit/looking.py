"""One matrix: trains beside SVD, integers and noise, at several errors, and whether noise could have done as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..advice.check import BITS, Check, judged
from ..baselines import gaussian_null, quantize_integer
from ..codes import packed_size
from ..precision import full_precision
from ..threads import CHUNK_BYTES, map_chunks
from .forms import PIECE, Form, Spectra, forms_of

DRAWS = 3  # of noise for each matrix
NULLS = 19  # of noise for a matrix that would be a train or an SVD: as good as none of them has p = 1/20
LEVEL = 0.05
STEP = 1 << 33  # between the seeds of pieces of one matrix; those of matrices are smaller
ENTRIES = 1 << 22  # of a matrix that is large enough to keep all threads busy by itself
WORDS = {"train": "tt", "SVD": "svd", "integers": "quantize", "none": "leave"}


@full_precision
@torch.no_grad()
def look(
    matrix: Tensor,
    errors: Sequence[float],
    *,
    seed: int = 0,
    forms: Sequence[Form] | None = None,
    root: Tensor | None = None,
) -> dict[str, Any]:
    """Everything there is to say of one matrix at each error, as plain numbers in lists.

    Args:
        matrix: float32 ``(m, n)``, finite.
        errors: Relative errors.
        seed: Of the first draw of noise; the others follow.
        forms: Trains to try, SVD first; left out, :func:`forms_of`.
        root: Square root ``(n, n)`` of the Gram matrix of the inputs, for errors of a layer's outputs; left out, errors
            are those of the weight.

    Returns:
        ``train``, ``svd``, ``noise`` (the mean of the draws), ``noise_most``, ``integers`` (bytes in float32 for each
        byte) and ``bits`` at each error; the ``form`` that is best at each, with its ``row_shape``, ``col_shape`` and
        ``ranks``; ``int8`` and ``int4``, their errors; ``entropy`` at each bond of the form that is best at the middle
        error, that of the noise, and the most that such a bond could have; ``p``, how often noise does as well; and the
        ``verdicts`` at each error, with how many times ``smaller`` than float32 each makes the matrix in bytes.

    Cost:
        An eigenproblem for each bond, for the matrix and for each of the draws; 16 draws more for a matrix that would
        be a train or an SVD.
    """
    forms = forms_of(*matrix.shape) if forms is None else forms

    def seen(one: Tensor) -> Tensor:
        return one if root is None else (one.double() @ root).float()

    spectra, *noise = _spectra(matrix, forms, [None, *range(seed + 1, seed + 1 + DRAWS)], seen)
    best, svd = [spectra.best(eps) for eps in errors], [spectra.svd(eps) for eps in errors]
    lost = integer_errors(matrix, seen)
    integers = [_integers(lost, eps, matrix) for eps in errors]
    words = [judged(gain, svd[k], integers[k][0]) for k, (_, gain) in enumerate(best)]
    # Only what would win has to be better than that much noise; SVD needs only its own spectrum of it.
    more = range(seed + 1 + DRAWS, seed + 1 + NULLS)
    if "train" in words:
        noise += _spectra(matrix, forms, more, seen)
    factors = [*noise]
    if "SVD" in words and "train" not in words:
        factors += _spectra(matrix, forms[:1], more, seen)
    p = [_chance([one.best(eps)[1] for one in noise], best[k][1]) for k, eps in enumerate(errors)]
    p_svd = [_chance([one.svd(eps) for one in factors], svd[k]) for k, eps in enumerate(errors)]
    checks = []
    for k, (eps, (form, gain)) in enumerate(zip(errors, best, strict=True)):
        word = _judged(gain, svd[k], integers[k][0], p[k], p_svd[k])
        mean = sum(one.best(eps)[1] for one in noise) / len(noise)
        checks.append(Check(word, gain, svd[k], mean, *integers[k], form.name, eps, (0, len(matrix))))
    middle = best[len(best) // 2][0]
    return {
        "train": [check.train for check in checks],
        "svd": [check.svd for check in checks],
        "noise": [check.noise for check in checks],
        "noise_most": [max(one.best(eps)[1] for one in noise) for eps in errors],
        "draws": len(factors),
        "integers": [check.integers for check in checks],
        "bits": [check.bits for check in checks],
        "smaller": [check.smaller for check in checks],
        "form": [check.form for check in checks],
        "row_shape": [list(form.rows) for form, _ in best],
        "col_shape": [list(form.cols) for form, _ in best],
        "ranks": [[1, *spectra.ranks(form, eps), 1] for eps, (form, _) in zip(errors, best, strict=True)],
        "int8": lost[8],
        "int4": lost[4],
        "entropy": spectra.entropies(middle),
        "entropy_noise": noise[0].entropies(middle),
        "entropy_most": [_most(matrix, *cut) for cut in middle.cuts()],
        "p": p,
        "p_svd": p_svd,
        "verdicts": [WORDS[check.verdict] for check in checks],
    }


def _judged(train: float, svd: float, integers: float, p: float, p_svd: float) -> str:
    """The rule of :func:`does_a_train_pay`; what noise does as well is no structure.

    Then a train falls back to SVD, and SVD to integers.
    """
    word = judged(train if p <= LEVEL else min(train, svd), svd, integers)
    if word == "SVD" and p_svd > LEVEL:
        return "integers" if integers > 1 else "none"
    return word


def _spectra(
    matrix: Tensor, forms: Sequence[Form], seeds: Sequence[int | None], seen: Callable[[Tensor], Tensor]
) -> list[Spectra]:
    """The spectra of noise with these seeds, or of the matrix itself; small ones are shared out among the threads."""
    found: dict[int, Spectra] = {}

    def work(part: slice) -> None:
        for k in range(part.start, part.stop):
            found[k] = Spectra(seen(matrix if seeds[k] is None else _noise(matrix, seeds[k])), forms)

    if matrix.numel() < ENTRIES:
        map_chunks(work, len(seeds), CHUNK_BYTES, matrix.device)
    else:  # one after the other: memory for one, and torch's own threads have enough to do
        work(slice(0, len(seeds)))
    return [found[k] for k in range(len(seeds))]


def _noise(matrix: Tensor, seed: int) -> Tensor:
    """:func:`gaussian_null`, in pieces of a tall table, which take less memory."""
    made = torch.empty_like(matrix)
    step = _rows(matrix, ENTRIES)
    for k, (rows, of) in enumerate(zip(made.split(step), matrix.split(step), strict=True)):
        rows.copy_(gaussian_null(of, seed=seed + STEP * k))
    return made


def _rows(matrix: Tensor, numbers: int) -> int:
    return max(1, numbers // matrix.shape[1])


def _chance(of_noise: Sequence[float], gain: float) -> float:
    """How often noise does as well as the matrix: the p-value of a Monte Carlo test, which is never too small."""
    return (1 + sum(one >= gain for one in of_noise)) / (1 + len(of_noise))


def integer_errors(matrix: Tensor, seen: Callable[[Tensor], Tensor]) -> dict[int, float]:
    """The relative error of integers of each width, with one scale a row."""
    squares, total = dict.fromkeys(BITS, 0.0), 0.0
    for rows in matrix.split(_rows(matrix, PIECE)):
        total += _square(seen(rows))
        for bits in BITS:
            squares[bits] += _square(seen(rows - quantize_integer(rows, bits).approximation))
    return {bits: math.sqrt(square / total) if total else 0.0 for bits, square in squares.items()}


def _square(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item() ** 2


def _integers(lost: dict[int, float], eps: float, matrix: Tensor) -> tuple[float, int]:
    """Bytes in float32 for each byte of the narrowest integers within an error, and their bits; 1 and 0 if none are."""
    m, n = matrix.shape
    bits = next((bits for bits in BITS if lost[bits] <= eps), 0)
    return (4 * m * n / (packed_size(m * n, bits) + 2 * m), bits) if bits else (1.0, 0)


def _most(matrix: Tensor, rows: int, cols: int) -> float:
    """The entropy of a bond that cannot be higher: the logarithm of its smaller side."""
    return math.log2(min(rows * cols, matrix.numel() // (rows * cols)))
