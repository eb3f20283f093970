"""Ways to replace one layer of a model by a smaller one, and the layers of a model that can be replaced.

A :class:`Candidate` makes one replacement from one layer; the model is not touched. Ready ones::

    from ttref.surgery import candidates

    candidates.tensor_train(ratio=4)   candidates.svd(ratio=4)            candidates.integer(4)
    candidates.fitted(ratio=4)         candidates.whitened_svd(ratio=4)   candidates.gptq(4)

Those of the second line are fitted to what the layer sees, and need the Gram matrix of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..baselines import quantize_integer, truncated_svd
from ..checks import whole
from ..fitting.choosing import choose_modes
from ..gptq import gptq_quantize
from ..linears import weight_and_bias
from .finding import CONVOLUTION, LINEAR, TABLE, matrix_of
from .making import cannot_round, conv_missing, conv_of, kind_missing, layer_of, rounded, search_missing, train_of
from .sizing import TWO_FACTORS, Modes, Shape, Size

__all__ = ["Candidate", "fitted", "gptq", "integer", "svd", "tensor_train", "whitened_svd"]


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
    core_bits: int = 32,
) -> Candidate:
    """A tensor train by TT-SVD: :class:`TTLinear`, :class:`TTConv2d`, or :class:`TTMEmbedding` for tables.

    Args:
        eps: Relative error allowed for the weight, in [0, 1).
        ratio: How many times fewer numbers: the largest rank that keeps it. Give exactly one of eps, ratio and rank.
        rank: Cap on the ranks.
        order: Number of modes on either side, balanced. Left at three, a convolution has outputs, inputs and taps as
            modes; at a ratio, its modes are searched.
        modes: Row modes and column modes, in place of ``order``; layers of other widths are not replaced.
        core_bits: 1 to 8 for integer cores, which only convolutions have.

    Returns:
        The candidate.

    Raises:
        TypeError, ValueError: Not exactly one of the three, or one out of its range.

    Example:
        >>> made = tensor_train(ratio=4, order=2).make(nn.Linear(64, 48))
        >>> made.modes, made.ranks
        (((6, 8), (8, 8)), (1, 6, 1))
    """
    size = Size(eps, ratio, rank)
    shape = Shape(whole("order", order, least=1), modes)
    integers = _integer_cores(core_bits)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return conv_of(layer, size, shape, core_bits=core_bits)
        return train_of(layer, size, shape)

    return Candidate(f"TT {size}{shape}{integers}", build, _train_missing(size, shape, core_bits))


def svd(*, eps: float | None = None, ratio: float | None = None, rank: int | None = None) -> Candidate:
    """Truncated SVD: two factors, as a train with modes ``(m, 1)`` and ``(1, n)``. Arguments as :func:`tensor_train`.

    Example:
        >>> svd(rank=8).make(nn.Linear(64, 48)).params
        896
    """
    size = Size(eps, ratio, rank)

    def check(layer: nn.Module, gram: Any) -> str | None:
        missing = kind_missing(layer, LINEAR, CONVOLUTION, TABLE) or conv_missing(layer)
        return missing or size.missing(layer, TWO_FACTORS)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return conv_of(layer, size, TWO_FACTORS)
        return train_of(layer, size, TWO_FACTORS)

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
    bits, group = _codes(bits, group, least=2)

    def check(layer: nn.Module, gram: Any) -> str | None:
        return kind_missing(layer, LINEAR, CONVOLUTION, TABLE) or cannot_round(layer, group)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        return rounded(layer, quantize_integer(matrix_of(layer), bits, group=group, best=bits <= 4))

    return Candidate(f"int{bits}{f' / {group}' if group else ''}", build, check)


def fitted(
    *,
    eps: float | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    order: int = 3,
    modes: Modes | str | None = None,
    core_bits: int = 32,
) -> Candidate:
    """A train whose cores are fitted to what the layer sees (:func:`fit_cores`). It needs the Gram matrix.

    Of a table, the frequencies of its rows stand in place of that: a tensor of one axis.

    Args:
        eps: Relative error allowed for the outputs, in [0, 1).
        ratio: As for :func:`tensor_train`.
        rank: As for :func:`tensor_train`.
        order: As for :func:`tensor_train`.
        modes: As for :func:`tensor_train`; or ``"search"``: :func:`choose_modes` tries many at this ratio, which takes
            some tens of fits; not of a table. A convolution's modes are searched at a ratio where none are given.
        core_bits: As for :func:`tensor_train`; integer cores are rounded against the Gram matrix.

    Raises:
        TypeError, ValueError: As :func:`tensor_train`; ``"search"`` without a ratio.

    Example:
        >>> import torch
        >>> from ttref.fitting import Gram
        >>> layer, gram = nn.Linear(36, 24), Gram.from_inputs(torch.eye(36))
        >>> fitted(ratio=3).make(layer, gram).params <= 36 * 24 / 3, fitted(ratio=3).make(layer) is None
        (True, True)
    """
    size, search = Size(eps, ratio, rank), modes == "search"
    if search and ratio is None:
        raise ValueError("modes='search' needs a ratio: modes are compared at an equal number of parameters")
    shape = Shape(whole("order", order, least=1), None if search else modes)
    integers = _integer_cores(core_bits)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return conv_of(layer, size, shape, gram, core_bits)
        if not search or isinstance(layer, nn.Embedding):
            return train_of(layer, size, shape, gram)
        weight, bias = weight_and_bias(layer)
        budget = int(weight.numel() / size.ratio)
        return layer_of(choose_modes(weight.detach(), gram, params=budget, progress=False).cores, layer, bias)

    modes_said = ", modes searched" if search else shape
    missing = _train_missing(size, shape, core_bits)
    return Candidate(f"fitted TT {size}{modes_said}{integers}", build, missing, needs_gram=True)


def whitened_svd(*, ratio: float | None = None, rank: int | None = None) -> Candidate:
    """The best two factors for what the layer sees: :func:`truncated_svd` with the Gram matrix. It needs that.

    Example:
        >>> import torch
        >>> from ttref.fitting import Gram
        >>> whitened_svd(rank=5).make(nn.Linear(36, 24), Gram.from_inputs(torch.eye(36))).ranks
        (1, 5, 1)
    """
    size = Size(None, ratio, rank)

    def check(layer: nn.Module, gram: Any) -> str | None:
        missing = kind_missing(layer, LINEAR, CONVOLUTION) or conv_missing(layer)
        return missing or size.missing(layer, TWO_FACTORS)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return conv_of(layer, size, TWO_FACTORS, gram)
        weight, bias = weight_and_bias(layer)
        stored = truncated_svd(weight.detach(), rank=size.rank_of(layer, TWO_FACTORS), gram=gram).stored
        return layer_of([stored["left"][None, :, None], stored["right"][:, None, :, None]], layer, bias)

    return Candidate(f"whitened SVD {size}", build, check, needs_gram=True)


def gptq(bits: int, *, group: int | None = None) -> Candidate:
    """Integers rounded against what the layer sees (:func:`gptq_quantize`). It needs the Gram matrix.

    The replacement is as that of :func:`integer`; bits from 1, which are signs with a scale.

    Example:
        >>> import torch
        >>> from ttref.fitting import Gram
        >>> gptq(3).make(nn.Linear(36, 24), Gram.from_inputs(torch.eye(36))).nbytes
        372
    """
    bits, group = _codes(bits, group, least=1)

    def check(layer: nn.Module, gram: Any) -> str | None:
        missing = kind_missing(layer, LINEAR, CONVOLUTION) or conv_missing(layer)
        return missing or cannot_round(layer, group)

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        return rounded(layer, gptq_quantize(matrix_of(layer), gram, bits, group=group))

    return Candidate(f"GPTQ int{bits}{f' / {group}' if group else ''}", build, check, needs_gram=True)


def _train_missing(size: Size, shape: Shape, core_bits: int) -> Callable[[nn.Module, Any], str | None]:
    """The check of a candidate that is a train: why a layer cannot become one of this size and shape."""

    def check(layer: nn.Module, gram: Any) -> str | None:
        missing = kind_missing(layer, LINEAR, CONVOLUTION, TABLE) or conv_missing(layer, core_bits)
        return missing or shape.missing(layer) or size.missing(layer, shape) or search_missing(layer, size, shape)

    return check


def _integer_cores(core_bits: int) -> str:
    if core_bits != 32 and not 1 <= whole("core_bits", core_bits) <= 8:
        raise ValueError(f"core_bits must be 32 (cores in the dtype of the weight) or 1 to 8, got {core_bits}")
    return "" if core_bits == 32 else f", int{core_bits} cores"


def _codes(bits: int, group: int | None, *, least: int) -> tuple[int, int | None]:
    if not least <= (bits := whole("bits", bits)) <= 8:
        raise ValueError(f"bits must lie between {least} and 8, got {bits}")
    return bits, None if group is None else whole("group", group, least=1)
