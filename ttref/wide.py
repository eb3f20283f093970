"""Double-double arithmetic: a number is the unevaluated sum ``high + low`` of two float64, a tensor a pair of tensors.

Only elementwise sums and products are used, which under IEEE 754 are equal on every machine; each costs about twenty
float64 operations. It is for trains with strong cancellation, where float64 has too few digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def orthonormal(matrix: Pair) -> tuple[Pair, Pair]:
    """Orthonormal columns ``q (*batch, m, n)`` and ``r = q^T matrix (*batch, n, n)`` with ``matrix = q r``.

    Gram-Schmidt with one reorthogonalization. A linearly dependent column becomes a zero column of q.

    Cost:
        O(m n^2) multiply-adds of pairs.
    """
    q: Pair = (torch.zeros_like(matrix[0]), torch.zeros_like(matrix[0]))
    for j in range(matrix[0].shape[-1]):
        column = matrix[0][..., j : j + 1], matrix[1][..., j : j + 1]
        sizes = [_norm(column)[0]]
        for _ in range(2):
            if j:
                before = q[0][..., :j], q[1][..., :j]
                column = _add(column, _negative(product(before, product(_transposed(before), column))))
            sizes.append(_norm(column)[0])
        # A dependent column leaves only rounding errors, of which the second pass removes most again.
        keep = (sizes[2] > 2.0**-96 * sizes[0]) & (sizes[2] > 0.5 * sizes[1])
        size = _norm(column)
        unit = _divide(column, (torch.where(keep, size[0], 1.0), torch.where(keep, size[1], 0.0)))
        for part, value in zip(q, unit, strict=True):
            part[..., j : j + 1] = torch.where(keep, value, 0.0)
    return q, product(_transposed(q), matrix)


def product(a: Pair, b: Pair) -> Pair:
    """Matrix product ``(*batch, m, k)`` times ``(*batch, k, n)``, column by column to save memory."""
    columns = zip(b[0].unbind(-1), b[1].unbind(-1), strict=True)
    sums = [_sum(_times(a, (high.unsqueeze(-2), low.unsqueeze(-2)))) for high, low in columns]
    return torch.stack([high for high, _ in sums], -1), torch.stack([low for _, low in sums], -1)


def _sum(x: Pair) -> Pair:
    """Sum over the last axis, by adding one half to the other until one entry is left."""
    while (count := x[0].shape[-1]) > 1:
        half = count // 2
        rest = x[0][..., 2 * half :], x[1][..., 2 * half :]
        total = _add((x[0][..., :half], x[1][..., :half]), (x[0][..., half : 2 * half], x[1][..., half : 2 * half]))
        x = torch.cat((total[0], rest[0]), -1), torch.cat((total[1], rest[1]), -1)
    return x[0][..., 0], x[1][..., 0]


def _transposed(x: Pair) -> Pair:
    return x[0].mT, x[1].mT


def _negative(x: Pair) -> Pair:
    return -x[0], -x[1]


def _two_sum(a: Tensor, b: Tensor) -> Pair:
    """The rounded sum and its rounding error, exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _split(a: Tensor) -> Pair:
    """Halves of 26 bits each, whose products are exact (Veltkamp)."""
    t = a * 134217729.0  # 2^27 + 1
    high = t - (t - a)
    return high, a - high


def _two_product(a: Tensor, b: Tensor) -> Pair:
    """The rounded product and its rounding error, exactly (Dekker)."""
    p = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def _add(a: Pair, b: Pair) -> Pair:
    s, error = _two_sum(a[0], b[0])
    t, low = _two_sum(a[1], b[1])
    s, error = _two_sum(s, error + t)
    return _two_sum(s, error + low)


def _times(a: Pair, b: Pair) -> Pair:
    p, error = _two_product(a[0], b[0])
    return _two_sum(p, error + (a[0] * b[1] + a[1] * b[0]))


def _divide(a: Pair, b: Pair) -> Pair:
    first = a[0] / b[0]
    rest = _add(a, _negative(_times((first, torch.zeros_like(first)), b)))
    return _two_sum(first, rest[0] / b[0])


def _norm(column: Pair) -> Pair:
    """Euclidean norm ``(*batch, 1, 1)`` of a column ``(*batch, m, 1)``."""
    square = product(_transposed(column), column)
    root = square[0].clamp(min=0).sqrt()
    rest = _add(square, _negative(_two_product(root, root)))
    safe = torch.where(root > 0, root, 1.0)
    return _two_sum(root, torch.where(root > 0, rest[0] / (2 * safe), 0.0))
