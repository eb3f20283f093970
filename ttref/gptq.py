"""Rounding against what a layer sees: the error of each column is made good in the columns not rounded yet."""

from __future__ import annotations

import torch
from torch import Tensor

from .approximation import Baseline
from .checks import check_codes, check_matrix
from .codes import nearest, to_codes
from .fitting.gram import Gram, as_gram
from .precision import full_precision
from .rounding import Level, best_rounding, half_levels, nearest_half

__all__ = ["gptq_quantize"]


@full_precision
@torch.no_grad()
def gptq_quantize(
    w: Tensor, gram: Gram | Tensor, bits: int, *, group: int | None = None, zero: bool | None = None
) -> Baseline:
    """Round to integers so that the layer's outputs change least: the strong baseline at three bits and fewer.

    Columns are rounded one after another, those with the largest inputs first, and the error of each is spread over the
    columns that follow, as far as their inputs are correlated with it. Then the scales are fitted to the codes by least
    squares in the same norm, and the rounding is repeated with them; at last each column is rounded once more, all
    others as they are. Each row keeps the best of all that was tried, rounding to nearest included.

    Args:
        w: The layer's weight ``(out, in)``.
        gram: Gram matrix of its inputs: a :class:`~ttref.fitting.gram.Gram`, or a tensor ``(in, in)``.
        bits: Width of a code, 1 to 8.
        group: Entries of a row that share a scale, a divisor of ``in``; left out, the whole row.
        zero: True has zero among the levels, and one of ``2^bits`` unused: -1, 0, 1 of two bits. False uses them all,
            at odd numbers: -3, -1, 1, 3. Left out, both are tried, and the matrix takes the better.

    Returns:
        A :class:`Baseline` of the bytes of :func:`quantize_integer`: ``ceil(out in bits / 8)`` of codes and two for
        each scale. Groups are consecutive columns of ``w``, so that no order is stored.

    Raises:
        TypeError: ``w`` or ``gram`` is not a real floating-point tensor, bits or group is not an integer, or ``zero``
            is not True, False or None.
        ValueError: bits outside 1 to 8; ``zero`` with one bit, which has two levels; a group that does not divide
            ``in``; a Gram matrix of another width, not symmetric or with a negative eigenvalue; entries beyond the
            range of bfloat16; ``w`` is not a matrix, is empty, or holds NaN or Inf.

    Guarantee:
        With G the Gram matrix, ``tr((w - w') G (w - w')^T)`` is at most that of :func:`quantize_integer` with the same
        bits (2 or more) and group, with ``best`` and without, up to rounding; with ``zero=True`` in each row. With
        ``zero=False`` there is none: that grid cannot keep a zero.

    Cost:
        O(out in^2 + in^3) in float64, three times for each grid. Of scales, O(out (in / group)^3).

    Source:
        Frantar et al. (2023), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        arXiv:2210.17323; the scales, the grid without zero and the last pass are ours.

    Example:
        >>> w = torch.tensor([[0.3, 0.3, 0.3, 1.0]])     # the first three inputs are always equal
        >>> gram = Gram.from_inputs(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        >>> made = gptq_quantize(w, gram, 2, zero=True)  # codes -1, 0, 1: one of the three speaks for all
        >>> made.name, made.nbytes, sorted(made.stored["codes"].flatten().tolist())
        ('GPTQ int2 per row', 3, [0, 0, 1, 1])
    """
    check_matrix("w", w)
    m, n = w.shape
    bits, size = check_codes(bits, group, n, least=1)
    if zero is not None and not isinstance(zero, bool):
        raise TypeError(f"zero must be True, False or None, got {zero!r}")
    if zero and bits == 1:
        raise ValueError("one bit has two levels, a sign, and no zero; use bits=2, or leave zero out")
    gram = as_gram(gram, n).to(w.device)
    gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    flat = w.double()
    if not (flat.abs().amax() / (2**bits - 1)).bfloat16().isfinite():
        raise ValueError("an entry of w is too large for a bfloat16 scale; rescale w")
    grids = (False,) if bits == 1 else (True, False) if zero is None else (zero,)
    tried = [_on_grid(flat, gram, bits, size, grid) for grid in grids]
    (levels, scales, _), with_zero = min(zip(tried, grids, strict=True), key=lambda each: each[0][2].sum().item())
    codes = (levels if with_zero else levels - 0.5).reshape(m, -1, size).to(torch.int8)
    name = f"GPTQ int{bits} per {'row' if group is None else f'group of {size}'}"
    return Baseline(name, {"codes": codes, "scales": scales}, w.dtype, bits, not with_zero)


def _on_grid(x: Tensor, gram: Tensor, bits: int, size: int, zero: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, scales and costs on one grid, from rounding to nearest on it. Halves are fitted to x / 2, for 2c + 1."""
    if not zero:
        levels, scales, cost = best_rounding(x / 2, gram, half_levels(bits), [nearest_half(x / 2, bits, size)])
        return levels, scales, 4 * cost
    found = (to_codes(x.reshape(len(x), -1, size), bits, best=clipped) for clipped in (False, True))
    starts = [(codes.double().flatten(1), scales.squeeze(2)) for codes, scales in found]
    return best_rounding(x, gram, whole_levels(bits), starts)


def whole_levels(bits: int) -> Level:
    """The grid of the integers from ``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``."""
    return lambda values, scales: nearest(values, scales, 2 ** (bits - 1) - 1)
