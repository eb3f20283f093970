"""Cores rounded to integers against a Gram matrix: the error of what is rounded goes into what is still free.

The squared output error ``tr((W - W') G (W - W')^T)`` is quadratic in one core ``(r, m, n, r')``, and its rows m share
one matrix over the columns ``(r, n, r')``. So a core is rounded as GPTQ rounds a layer: column by column, the error of
a column spread over those not rounded yet. Then the cores that are left are solved for again::

    o--o--o  fitted      x--o--o  one on its grid, the rest solved again      x--x--o      x--x--x

A code of b bits is one of ``2^b`` integers; it stands for ``scale (code + 1/2)``, so that no level is left unused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn

from .canonical import canonical
from .checks import check_input, check_matrix, check_matrix_train, whole
from .codes import pack_bits, packed_size, unpack_bits
from .fitting.gram import as_gram
from .fitting.parts import paired, right_side
from .fitting.solving import solve
from .matrices import ttm_to_matrix
from .powers import times_power
from .precision import full_precision
from .rounding import damped, nearest_divisor, round_rows
from .walks import merge

if TYPE_CHECKING:
    from .fitting import Gram

__all__ = ["quantize_cores"]

MOST_COLUMNS = 6000  # of a core's matrix: 300 MB and some seconds; larger ones take long
SETTLED = 1e-3  # a round that lowers the squared error by less, relative to itself, is the last


class IntegerCore(NamedTuple):
    """``codes`` int8 ``(r, m, n, r')``; ``scales`` bfloat16 ``(m, groups)``, groups of equal size along (r, n, r')."""

    codes: Tensor
    scales: Tensor

    def core(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The core that they stand for."""
        r, m, n, q = self.codes.shape
        groups = self.codes.transpose(0, 1).reshape(*self.scales.shape, -1)
        wide = (groups.to(dtype) + 0.5) * self.scales.to(dtype).unsqueeze(2)
        return wide.reshape(m, r, n, q).transpose(0, 1).contiguous()


class IntegerCores(nn.Module):
    """Integer cores in the place of a layer's list of cores; every access makes them anew. They are not trainable."""

    def __init__(self, cores: Sequence[IntegerCore], dtype: torch.dtype) -> None:
        super().__init__()
        self.count = len(cores)
        for k, (codes, scales) in enumerate(cores):
            self.register_buffer(f"codes{k}", codes)
            self.register_buffer(f"scales{k}", scales.to(dtype))  # exact, and converted with the layer

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return (part.core(self.scales0.dtype) for part in self.parts())

    def forward(self) -> list[Tensor]:
        """All cores; a package that moves codes to the processor when a module is called asks for them so."""
        return list(self)

    def parts(self) -> list[IntegerCore]:
        """Codes and scales."""
        return [IntegerCore(getattr(self, f"codes{k}"), getattr(self, f"scales{k}")) for k in range(self.count)]

    @property
    def numbers(self) -> int:
        """Codes and scales, counted."""
        return sum(tensor.numel() for part in self.parts() for tensor in part)

    def nbytes(self, bits: int) -> int:
        """Bytes of the codes, packed core by core, and of the scales in bfloat16."""
        return sum(packed_size(codes.numel(), bits) + 2 * scales.numel() for codes, scales in self.parts())

    def packed(self, bits: int) -> dict[str, Tensor]:
        """Tensors for a file."""
        found = {}
        for k, (codes, scales) in enumerate(self.parts()):
            found |= {f"codes.{k}": pack_bits(codes, bits), f"scales.{k}": scales.bfloat16()}
        return found

    @classmethod
    def unpacked(
        cls, tensors: dict[str, Tensor], shapes: Sequence[Sequence[int]], bits: int, dtype: torch.dtype
    ) -> Self:
        """What :meth:`packed` gave; a ValueError for tensors that do not fit the shapes."""
        cores = []
        for k, (r, m, n, q) in enumerate(shapes):
            codes = unpack_bits(tensors.pop(f"codes.{k}"), bits, r * m * n * q, signed=True)
            scales = tensors.pop(f"scales.{k}")
            if scales.dtype != torch.bfloat16 or scales.ndim != 2 or len(scales) != m or r * n * q % scales.shape[1]:
                raise ValueError(f"the scales of core {k} are {scales.dtype} {tuple(scales.shape)}")
            cores.append(IntegerCore(codes.to(torch.int8).reshape(r, m, n, q), scales))
        if tensors:
            raise ValueError(f"it holds {', '.join(tensors)} too")
        return cls(cores, dtype)


@full_precision
@torch.no_grad()
def quantize_cores(
    cores: Sequence[Tensor],
    weight: Tensor,
    gram: Gram | Tensor,
    bits: int,
    *,
    group: int = 64,
    rounds: int = 1,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Round the cores of a TT-matrix to integers so that a layer's outputs change least.

    One core after the other is rounded, with the error of each column fed into the columns that follow, and those left
    are solved for again; the smallest core first. Then each core is rounded anew, the others on their grids, while that
    helps.

    Args:
        cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``, as :func:`fit_cores` makes them. A single core ``(1, m, n, 1)`` is
            the dense matrix.
        weight: The matrix ``(m, n)`` that they stand for.
        gram: Gram matrix ``(n, n)`` of the layer's inputs, as for :func:`fit_cores`.
        bits: Width of a code, 1 to 8.
        group: Numbers that share a scale, about: the divisor of a row's length ``r n r'`` that is nearest.
        rounds: Times that every core is rounded again.

    Returns:
        For each core the codes, int8 ``(r_{k-1}, m_k, n_k, r_k)`` from ``-2^(bits-1)`` to ``2^(bits-1) - 1``; the
        scales, bfloat16 ``(m_k, groups)``, one for each group of consecutive entries of ``core[:, i]``; and the core
        ``scale (code + 1/2)`` in the dtype of ``weight``.

    Raises:
        TypeError, ValueError: No TT-matrix, or one of another shape than ``weight``; a Gram matrix of another width;
            bits outside 1 to 8; NaN or Inf; a core with so many columns ``r n r'`` that its matrix would not fit.

    Cost:
        For each core, order and round O(m N^2 + N^3), with ``N = r n r'`` columns: a second or two for a 64 x 576
        kernel at half its numbers. Float64.

    Source:
        Frantar et al. (2023), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        arXiv:2210.17323, for one matrix. The order of the cores and the solving between them is ours.

    Example:
        >>> from ttref import ttm_svd
        >>> w, x = torch.randn(12, 20), torch.randn(500, 20)
        >>> codes, scales, cores = quantize_cores(ttm_svd(w, (4, 3), (4, 5), rank=4), w, x.mT @ x, 4)
        >>> [tuple(part.shape) for part in codes], codes[0].dtype
        ([(1, 4, 4, 4), (4, 3, 5, 1)], torch.int8)
    """
    check_matrix("weight", weight)
    rows, cols, _ = check_matrix_train(cores)
    for k, core in enumerate(cores):
        check_input(f"cores[{k}]", core)
    bits, group, rounds = whole("bits", bits, least=1), whole("group", group, least=1), whole("rounds", rounds, least=0)
    if bits > 8:
        raise ValueError(f"bits must lie between 1 and 8, got {bits}")
    if (math.prod(rows), math.prod(cols)) != tuple(weight.shape):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but the cores have row modes {rows} and column modes {cols}"
        )
    task = _Task(cores, weight, as_gram(gram, weight.shape[1]), bits, group)
    best = task.rounded(rounds)
    made = [part.core().to(weight.dtype) for part in best]
    return [part.codes for part in best], [part.scales for part in best], made


class _Task:
    """One train to round: what stays the same over all orders and rounds."""

    def __init__(self, cores: Sequence[Tensor], weight: Tensor, gram: Tensor, bits: int, group: int) -> None:
        self.bits, self.group = bits, group
        self.weight, self.gram = weight.double(), gram.to(weight.device)
        rows, cols, _ = check_matrix_train(cores)
        self.target = paired(self.weight @ self.gram, rows, cols)
        # All cores but the last orthonormal: their entries are alike, and groups of the last lie along a bond.
        moved, exponent = canonical([core.double().flatten(1, 2) for core in cores], len(cores) - 1)
        moved[-1] = times_power(moved[-1], exponent)
        self.start = [c.reshape(c.shape[0], m, n, c.shape[-1]) for c, m, n in zip(moved, rows, cols, strict=True)]
        # Without column modes on its left, and those cores orthonormal, the bonds of a core do not mix.
        self.apart = [k > 0 and math.prod(cols[:k]) == 1 for k in range(len(cores))]
        self.columns = [core.shape[0] * core.shape[2] * core.shape[3] for core in self.start]

    def order(self) -> list[int]:
        """The smallest core first: the largest is best at making good for the others' errors."""
        sizes = [core.numel() for core in self.start]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        large = [k for k in order if self.columns[k] > MOST_COLUMNS]
        last = len(sizes) - 1
        if large == [last] and self.apart[last] and self.columns[last] // self.start[last].shape[0] <= MOST_COLUMNS:
            order = [last, *order[:-1]]  # its bonds are apart only while the others are free
        elif large:
            raise ValueError(
                f"core {large[0]} has {self.columns[large[0]]} columns (rank, mode, rank); more than {MOST_COLUMNS} "
                "would take too much memory and time: choose other modes or smaller ranks"
            )
        return order

    def rounded(self, rounds: int) -> list[IntegerCore]:
        """Round one core after the other, then each again."""
        cores, held = list(self.start), [None] * len(self.start)
        for k in self.order():
            held[k] = self.on_grid(cores, k, free=not any(part is not None for part in held))
            cores[k] = held[k].core()
            self.settle(cores, [j for j in range(len(cores)) if held[j] is None])
        loss = self.loss(held)
        for _ in range(rounds):
            before = loss
            for k in [k for k in range(len(cores)) if self.columns[k] <= MOST_COLUMNS]:
                old = cores[k], held[k]
                self.settle(cores, [k])
                held[k] = self.on_grid(cores, k)
                cores[k] = held[k].core()
                if (found := self.loss(held)) < loss:
                    loss = found
                else:
                    cores[k], held[k] = old
            if before - loss <= SETTLED * before:
                break
        return held

    def settle(self, cores: list[Tensor], free: Sequence[int]) -> None:
        """Solve for the cores that are free, the others as they are; once if one is free, else a few times around."""
        for _ in range(1 if len(free) == 1 else 4):
            for k in [k for k in free if self.columns[k] <= MOST_COLUMNS]:
                matrix, old = _matrix(self.gram, cores, k), cores[k].transpose(0, 1).flatten(1)
                missing = right_side(self.target, cores, k).transpose(0, 1).flatten(1) - old @ matrix
                # The change is solved for: what no input has shown stays as it is.
                new = old + solve(damped(matrix, 1e-9), missing.mT).mT
                cores[k] = new.reshape(cores[k].transpose(0, 1).shape).transpose(0, 1).contiguous()

    def loss(self, held: Sequence[IntegerCore]) -> float:
        """Squared output error."""
        error = ttm_to_matrix([part.core() for part in held]) - self.weight
        return ((error @ self.gram) * error).sum().item()

    def on_grid(self, cores: Sequence[Tensor], k: int, free: bool = False) -> IntegerCore:
        """Core k rounded. ``free``: the others are as they were at the start, so that bonds may be apart."""
        r, m, n, q = cores[k].shape
        size = nearest_divisor(n * q if self.apart[k] else r * n * q, self.group)
        x = cores[k].transpose(0, 1)
        if free and self.apart[k]:  # the bonds are rows of their own
            matrix, x = _matrix(self.gram, [x.reshape(1, m * r, n, q), *cores[k + 1 :]], 0), x.reshape(m * r, -1)
        else:
            matrix, x = _matrix(self.gram, cores, k), x.reshape(m, -1)
        codes, scales = round_rows(x, matrix, self.bits, size)
        return IntegerCore(codes.reshape(m, r, n, q).transpose(0, 1).contiguous(), scales.reshape(m, -1))


def _matrix(gram: Tensor, cores: Sequence[Tensor], k: int) -> Tensor:
    """The matrix ``(r n r', r n r')`` of the squared output error in each row of core k, the others as they are."""
    left, right = _product(cores[:k], gram), _product(cores[k + 1 :], gram)
    n = cores[k].shape[2]
    s, r = left.shape[1], right.shape[1]
    made = _through(gram.reshape(s * n, r, s * n, r), right)  # (s n, q) twice
    q = made.shape[1]
    made = made.reshape(s, n * q, s, n * q).permute(1, 0, 3, 2)
    made = _through(made, left).permute(1, 0, 3, 2)
    return made.reshape(left.shape[2] * n * q, -1)


def _product(cores: Sequence[Tensor], gram: Tensor) -> Tensor:
    """Cores on one side as ``(rows, columns, bond)``, the bond towards the core between; of none, a one."""
    if not cores:
        return gram.new_ones(1, 1, 1)
    made = merge(cores)
    return made[0] if made.shape[0] == 1 else made[..., 0].permute(1, 2, 0)


def _through(four: Tensor, part: Tensor) -> Tensor:
    """``sum four[x, c, y, d] part[i, c, b] part[i, d, e]`` as ``(x, b, y, e)``, the cheaper way."""
    x, c = four.shape[:2]
    rows, _, b = part.shape
    if rows < b:  # row by row, because the squares of many columns are large
        made = four.new_zeros(x, x, b, b)
        for piece in part:
            half = (four.reshape(-1, c) @ piece).reshape(x, c, x, b)
            made += (half.permute(0, 2, 3, 1).reshape(-1, c) @ piece).reshape(x, x, b, b).mT
        return made.permute(0, 2, 1, 3)
    flat = part.reshape(rows, c * b)
    squares = (flat.mT @ flat).reshape(c, b, c, b).transpose(1, 2).reshape(c * c, b * b)
    return (four.transpose(1, 2).reshape(x * x, c * c) @ squares).reshape(x, x, b, b).transpose(1, 2)
