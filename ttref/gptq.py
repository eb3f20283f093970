"""Rounding against what a layer sees: the error of each column is made good in the columns not rounded yet."""

from __future__ import annotations

import torch
from torch import Tensor

from .approximation import Baseline
from .checks import check_codes, check_matrix
from .codes import nearest, to_codes
from .fitting.gram import Gram, as_gram
from .precision import full_precision
from .rounding import Level, damped, fed_forward, fitted_scales, spreading

__all__ = ["gptq_quantize"]

DAMPING = 0.01  # added to the diagonal of the Gram matrix, whose mean is 1 here; so do the authors


@full_precision
@torch.no_grad()
def gptq_quantize(w: Tensor, gram: Gram | Tensor, bits: int, *, group: int | None = None) -> Baseline:
    """Round to signed integers so that the layer's outputs change least: the strong baseline at three bits and fewer.

    Columns are rounded one after another, those with the largest inputs first, and the error of each is spread over the
    columns that follow, as far as their inputs are correlated with it. Then the scales are fitted to the codes by least
    squares in the same norm, and the rounding is repeated with them. Each row keeps the best of all that was tried,
    rounding to nearest included.

    Args:
        w: The layer's weight ``(out, in)``.
        gram: Gram matrix of its inputs: a :class:`~ttref.fitting.gram.Gram`, or a tensor ``(in, in)``.
        bits: Width of a code, 1 to 8. One bit is a sign, without a zero.
        group: Entries of a row that share a scale, a divisor of ``in``; left out, the whole row.

    Returns:
        A :class:`Baseline` of the bytes of :func:`quantize_integer`: ``ceil(out in bits / 8)`` of codes and two for
        each scale. Groups are consecutive columns of ``w``, so that no order is stored.

    Raises:
        TypeError: ``w`` or ``gram`` is not a real floating-point tensor, or bits or group is not an integer.
        ValueError: bits outside 1 to 8; a group that does not divide ``in``; a Gram matrix of another width, not
            symmetric or with a negative eigenvalue; entries beyond the range of bfloat16; ``w`` is not a matrix, is
            empty, or holds NaN or Inf.

    Guarantee:
        With G the Gram matrix, ``tr((w - w') G (w - w')^T)`` is at most that of :func:`quantize_integer` with the same
        bits and group, with ``best`` and without, in each row and up to rounding.

    Cost:
        O(out in^2 + in^3) in float64, twice. Of scales, O(out (in / group)^3).

    Source:
        Frantar et al. (2023), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        arXiv:2210.17323; the scales are ours.

    Example:
        >>> w = torch.tensor([[0.3, 0.3, 0.3, 1.0]])     # the first three inputs are always equal
        >>> gram = Gram.from_inputs(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        >>> made = gptq_quantize(w, gram, 2)             # codes -1, 0, 1: one of the three speaks for all
        >>> made.name, made.nbytes, sorted(made.stored["codes"].flatten().tolist())
        ('GPTQ int2 per row', 3, [0, 0, 1, 1])
    """
    check_matrix("w", w)
    m, n = w.shape
    bits, size = check_codes(bits, group, n, least=1)
    gram = as_gram(gram, n).to(w.device)
    gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    exact = w.double().reshape(m, n // size, size)
    best = _Best(exact, gram)
    if bits == 1:
        signs, scales = torch.where(exact < 0, -1.0, 1.0).double(), exact.abs().mean(2).bfloat16()
        if not scales.isfinite().all():
            raise ValueError("a group's mean magnitude is too large for a bfloat16 scale; rescale w")
        best.try_(signs, scales)
    else:
        for clipped in (False, True):
            codes, scales = to_codes(exact, bits, best=clipped)
            best.try_(codes.double(), scales.squeeze(2))
    flat, (order, spread) = exact.flatten(1), spreading(damped(gram.clone(), DAMPING))
    for _ in range(2):
        levels = fed_forward(flat, best.scales, order, spread, _level(bits))
        codes = levels.reshape(exact.shape)
        best.try_(codes, best.scales)
        best.try_(codes, fitted_scales(flat, gram, levels, size))
    codes = best.codes if bits > 1 else (best.codes - 1) / 2
    name = f"GPTQ int{bits} per {'row' if group is None else f'group of {size}'}"
    return Baseline(name, {"codes": codes.to(torch.int8), "scales": best.scales}, w.dtype, bits)


class _Best:
    """Codes and scales of least weighted squared error in each row, of those tried."""

    def __init__(self, exact: Tensor, gram: Tensor) -> None:
        self.exact, self.gram = exact, gram
        self.codes = torch.zeros_like(exact)
        self.scales = torch.zeros(exact.shape[:2], dtype=torch.bfloat16, device=exact.device)
        self.error = torch.full(exact.shape[:1], torch.inf, dtype=torch.float64, device=exact.device)

    def try_(self, codes: Tensor, scales: Tensor) -> None:
        lost = (codes * scales.double().unsqueeze(2) - self.exact).flatten(1)
        error = ((lost @ self.gram) * lost).sum(1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.codes = torch.where(better[:, None, None], codes, self.codes)
        self.scales = torch.where(better[:, None], scales, self.scales)


def _level(bits: int) -> Level:
    """The grid: integers around zero; of one bit, signs."""
    if bits == 1:
        return lambda values, scales: torch.where(values < 0, -1.0, 1.0).to(values.dtype)
    return lambda values, scales: nearest(values, scales, 2 ** (bits - 1) - 1)
