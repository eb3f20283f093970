"""Ways to replace one layer of a model by a smaller one, and the layers of a model that can be replaced.

A :class:`Candidate` makes one replacement from one layer; the model is not touched. Ready ones::

    from ttref.surgery import candidates

    candidates.tensor_train(ratio=4)   candidates.svd(ratio=4)   candidates.integer(4)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..approximation import Baseline
from ..baselines import quantize_integer
from ..checks import check_number, check_rank_or_eps, whole
from ..embeddings.ttm import TTMEmbedding
from ..layers import TTLinear
from ..linears import conv1d_of
from ..modes import NOMINAL_RANK, choose_modes
from ..shapes import factorize, ttm_params
from .finding import CONVOLUTION, LINEAR, TABLE, kind_of_layer, matrix_of, sizes_of

__all__ = ["Candidate", "integer", "svd", "tensor_train"]

Modes = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A named way to replace one layer.

    Attributes:
        name: For tables: ``"TT 4x"``.
        build: From the layer and its Gram matrix (or None) to the replacement, which shares no memory with the layer.
        check: From the same to the reason why this layer cannot be replaced so, None if it can. It computes nothing.
        needs_gram: True if the Gram matrix of the layer's inputs is needed.

    Example:
        >>> layer = nn.Linear(64, 48)
        >>> candidate = tensor_train(ratio=4)
        >>> candidate.name, candidate.make(layer).params <= 64 * 48 / 4
        ('TT 4x', True)
        >>> candidate.why_not(nn.ReLU())
        'ReLU is no linear layer, convolution or table'
    """

    name: str
    build: Callable[[nn.Module, Any], nn.Module]
    check: Callable[[nn.Module, Any], str | None] = lambda layer, gram: None
    needs_gram: bool = False

    def why_not(self, layer: nn.Module, gram: Any = None) -> str | None:
        """The reason why ``make`` gives None for this layer; None if it gives a replacement."""
        if self.needs_gram and gram is None:
            return "it needs the Gram matrix of the layer's inputs (collect_gram), and there is none for this layer"
        return self.check(layer, gram)

    def make(self, layer: nn.Module, gram: Any = None) -> nn.Module | None:
        """The replacement, in the dtype, on the device and in the training mode of the layer, which is only read.

        Args:
            layer: ``nn.Linear``, GPT-2's ``Conv1D``, ``nn.Conv2d`` or ``nn.Embedding``.
            gram: Gram matrix of its inputs, for candidates that fit the outputs; others ignore it.

        Returns:
            The replacement, or None where this layer cannot be replaced this way; :meth:`why_not` tells why.

        Raises:
            TypeError, ValueError: NaN or Inf in the weight, a layer that computes more than its kind, a weight that is
                quantized or not here.
        """
        return None if self.why_not(layer, gram) else self.build(layer, gram)


def tensor_train(
    *,
    eps: float | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    order: int = 3,
    modes: Modes | None = None,
) -> Candidate:
    """A tensor train by TT-SVD: :class:`TTLinear` for linear layers, :class:`TTMEmbedding` for tables.

    Args:
        eps: Relative error allowed for the weight, in [0, 1).
        ratio: How many times fewer numbers: the largest rank that keeps it. Give exactly one of eps, ratio and rank.
        rank: Cap on the ranks.
        order: Number of modes on either side, balanced.
        modes: Row modes and column modes, in place of ``order``; layers of other widths are not replaced.

    Returns:
        The candidate.

    Raises:
        TypeError, ValueError: Not exactly one of the three, or one out of its range.

    Example:
        >>> made = tensor_train(ratio=4, order=2).make(nn.Linear(64, 48))
        >>> made.modes, made.ranks
        (((6, 8), (8, 8)), (1, 6, 1))
    """
    size = _Size(eps, ratio, rank)
    shape = _Shape(whole("order", order, least=1), modes)

    def check(layer: nn.Module, gram: Any) -> str | None:
        return _kind_missing(layer, LINEAR, TABLE) or shape.missing(layer) or size.missing(layer, shape)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        return _train(layer, *shape.of(layer, rank := size.rank_of(layer, shape)), rank=rank, eps=eps)

    return Candidate(f"TT {size}{shape}", build, check)


def svd(*, eps: float | None = None, ratio: float | None = None, rank: int | None = None) -> Candidate:
    """Truncated SVD: two factors, as a train with modes ``(m, 1)`` and ``(1, n)``. Arguments as :func:`tensor_train`.

    Example:
        >>> svd(rank=8).make(nn.Linear(64, 48)).params
        896
    """
    size = _Size(eps, ratio, rank)

    def check(layer: nn.Module, gram: Any) -> str | None:
        return _kind_missing(layer, LINEAR, TABLE) or size.missing(layer, _TWO_FACTORS)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        return _train(layer, *_TWO_FACTORS.of(layer), rank=size.rank_of(layer, _TWO_FACTORS), eps=eps)

    return Candidate(f"SVD {size}", build, check)


def integer(bits: int, *, group: int | None = None) -> Candidate:
    """Integers of ``bits`` bits, the scale searched at four bits and fewer (:func:`quantize_integer`).

    The replacement is a dense layer with rounded weights, of the layer's own class: its ``params`` and ``nbytes`` are
    what the integers would take, and it is neither faster nor smaller in memory.

    Args:
        bits: 2 to 8.
        group: Entries of a row that share a scale; left out, the whole row. Layers of other widths are not replaced.

    Example:
        >>> made = integer(4).make(nn.Linear(64, 48))
        >>> type(made).__name__, made.nbytes
        ('Linear', 1632)
    """
    if not 2 <= (bits := whole("bits", bits)) <= 8:
        raise ValueError(f"bits must lie between 2 and 8, got {bits}")
    group = None if group is None else whole("group", group, least=1)

    def check(layer: nn.Module, gram: Any) -> str | None:
        return _kind_missing(layer, LINEAR, CONVOLUTION, TABLE) or _cannot_round(layer, group)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        return rounded(layer, quantize_integer(matrix_of(layer), bits, group=group, best=bits <= 4))

    return Candidate(f"int{bits}{f' / {group}' if group else ''}", build, check)


class _Size:
    """How small a replacement must be: by eps, ratio or rank."""

    def __init__(self, eps: float | None, ratio: float | None, rank: int | None) -> None:
        given = [
            f"{name}={value}" for name, value in (("eps", eps), ("ratio", ratio), ("rank", rank)) if value is not None
        ]
        if len(given) != 1:
            raise ValueError(f"give exactly one of eps, ratio and rank, got {' and '.join(given) or 'none'}")
        if ratio is not None:
            check_number("ratio", ratio, positive=True)
        else:
            check_rank_or_eps(None if rank is None else whole("rank", rank, least=1), eps)
        self.eps, self.ratio, self.rank = eps, ratio, rank

    def __str__(self) -> str:
        return (
            f"{self.ratio:g}x"
            if self.ratio is not None
            else f"eps {self.eps:g}"
            if self.rank is None
            else f"rank {self.rank}"
        )

    def rank_of(self, layer: nn.Module, shape: _Shape) -> int | None:
        """The rank cap for this layer, None for eps."""
        return self.rank if self.ratio is None else _largest_rank(math.prod(sizes_of(layer)) / self.ratio, layer, shape)

    def missing(self, layer: nn.Module, shape: _Shape) -> str | None:
        if self.ratio is None or self.rank_of(layer, shape):
            return None
        least, numbers = ttm_params(*shape.of(layer, 1), 1), math.prod(sizes_of(layer))
        return f"rank 1 already takes {least} of its {numbers} numbers, {numbers / least:.3g}x"


class _Shape:
    """Row and column modes for a layer: given, or balanced."""

    def __init__(self, order: int, modes: Modes | None) -> None:
        self.order, self.modes = order, modes

    def __str__(self) -> str:
        if self.modes is not None:
            return f", {'x'.join(map(str, self.modes[0]))} | {'x'.join(map(str, self.modes[1]))}"
        return "" if self.order == 3 else f", {self.order} modes"

    def of(self, layer: nn.Module, rank: int | None = None) -> Modes:
        """Row modes and column modes; the order of three balanced ones depends on the rank, as in :class:`TTLinear`."""
        m, n = sizes_of(layer)
        if self.modes is not None:
            return self.modes
        if self.order == 3:
            return choose_modes(n, m, rank or NOMINAL_RANK)[::-1]
        return factorize(m, self.order), factorize(n, self.order)

    def missing(self, layer: nn.Module) -> str | None:
        try:
            rows, cols = self.of(layer)
        except ValueError as error:
            return str(error)
        if self.modes is not None and (math.prod(rows), math.prod(cols)) != sizes_of(layer):
            m, n = sizes_of(layer)
            return f"the modes multiply to {math.prod(rows)} x {math.prod(cols)}, not {m} x {n}"
        return None


class _Factors(_Shape):
    """The modes of a matrix product of two."""

    def of(self, layer: nn.Module, rank: int | None = None) -> Modes:
        m, n = sizes_of(layer)
        return (m, 1), (1, n)


_TWO_FACTORS = _Factors(2, None)


def _largest_rank(numbers: float, layer: nn.Module, shape: _Shape) -> int:
    """The largest rank whose train has at most so many numbers; 0 if there is none."""

    def fits(rank: int) -> bool:
        return ttm_params(*shape.of(layer, rank), rank) <= numbers

    low, high = 0, max(sizes_of(layer))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _kind_missing(layer: nn.Module, *kinds: str) -> str | None:
    kind = kind_of_layer(layer)
    if kind is None:
        return f"{type(layer).__name__} is no linear layer, convolution or table"
    return None if kind in kinds else f"a {kind} cannot be replaced in this way"


def _cannot_round(layer: nn.Module, group: int | None) -> str | None:
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other numbers (pruned, parametrized): make that permanent first"
    columns = sizes_of(layer)[1]
    return f"groups of {group} do not divide its {columns} columns" if group and columns % group else None


def _train(
    layer: nn.Module, rows: Sequence[int], cols: Sequence[int], *, rank: int | None, eps: float | None
) -> nn.Module:
    """The layer as a TT-matrix with these modes."""
    if kind_of_layer(layer) == TABLE:
        return TTMEmbedding.from_embedding(layer, row_shape=rows, col_shape=cols, rank=rank, eps=eps)
    m, n = sizes_of(layer)
    padded = math.prod(rows) != m or math.prod(cols) != n  # such modes are chosen by the layer itself, and only there
    shapes = {} if padded else {"out_shape": rows, "in_shape": cols}
    return TTLinear.from_linear(layer, rank=rank, eps=eps, **shapes)


@torch.no_grad()
def rounded(layer: nn.Module, baseline: Baseline) -> nn.Module:
    """A copy of the layer with these weights; its ``params`` and ``nbytes`` are those of the integers."""
    weight = baseline.approximation.mT if conv1d_of(layer) else baseline.approximation
    weight = nn.Parameter(weight.reshape(layer.weight.shape).contiguous(), requires_grad=layer.weight.requires_grad)
    made = copy.deepcopy(layer, {id(layer.weight): weight})
    made.params, made.nbytes = baseline.params, baseline.nbytes
    return made
