"""Replacements of one layer from cores or from rounded weights, and the reasons why there is none."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..approximation import Baseline
from ..conv import TTConv2d
from ..convolving import parts_of
from ..embeddings.ttm import TTMEmbedding
from ..kernel_modes import modes_to_try
from ..layers import TTLinear
from ..linears import conv1d_of
from .finding import CONVOLUTION, TABLE, kind_of_layer, sizes_of
from .sizing import Shape, Size


def kind_missing(layer: nn.Module, *kinds: str) -> str | None:
    """The reason why a layer is not replaced if it is of none of these kinds."""
    kind = kind_of_layer(layer)
    if kind is None:
        return f"{type(layer).__name__} is no linear layer, convolution or table"
    return None if kind in kinds else f"a {kind} cannot be replaced in this way"


def conv_missing(layer: nn.Module, core_bits: int = 32) -> str | None:
    """The reason why a convolution cannot become a train, or another layer has no integer cores."""
    if kind_of_layer(layer) != CONVOLUTION:
        return "integer cores are made for convolutions only" if core_bits < 32 else None
    try:
        parts_of(layer)
    except ValueError as error:
        return str(error)
    return None


def search_missing(layer: nn.Module, size: Size, shape: Shape) -> str | None:
    """The reason why a search finds no modes for a convolution."""
    if isinstance(layer, nn.Conv2d) and _searched(size, shape):
        try:
            modes_to_try(layer.weight.shape, _budget(layer, size))
        except ValueError as error:
            return str(error)
    return None


def cannot_round(layer: nn.Module, group: int | None) -> str | None:
    """The reason why a layer's own weight cannot be rounded in groups of this size."""
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other numbers (pruned, parametrized): make that permanent first"
    columns = sizes_of(layer)[1]
    return f"groups of {group} do not divide its {columns} columns" if group and columns % group else None


def conv_of(layer: nn.Conv2d, size: Size, shape: Shape, gram: Any = None, core_bits: int = 32) -> TTConv2d:
    """The convolution as a train; modes are searched at a ratio where none are asked for."""
    settings = {"gram": gram, "core_bits": core_bits}
    if _searched(size, shape):
        return TTConv2d.from_conv(layer, params=_budget(layer, size), **settings)
    rows, cols = shape.of(layer, rank := size.rank_of(layer, shape))
    return TTConv2d.from_conv(layer, rank=rank, eps=size.eps, row_shape=rows, col_shape=cols, **settings)


def _searched(size: Size, shape: Shape) -> bool:
    """True if a convolution's modes are searched."""
    return size.ratio is not None and shape.free


def _budget(layer: nn.Conv2d, size: Size) -> int:
    return int(layer.weight.numel() / size.ratio)


def train_of(layer: nn.Module, size: Size, shape: Shape, gram: Any = None) -> nn.Module:
    """The layer or the table as a train, fitted to the Gram matrix or to the frequencies of rows if they are given."""
    rows, cols = shape.of(layer, rank := size.rank_of(layer, shape))
    if kind_of_layer(layer) == TABLE:
        modes = {"row_shape": rows, "col_shape": cols}
        return TTMEmbedding.from_embedding(layer, **modes, rank=rank, eps=size.eps, weight=gram)
    padded = (math.prod(rows), math.prod(cols)) != sizes_of(layer)  # such modes are chosen by the layer itself only
    modes = {} if padded else {"out_shape": rows, "in_shape": cols}
    return TTLinear.from_linear(layer, **modes, rank=rank, eps=size.eps, gram=gram)


@torch.no_grad()
def layer_of(cores: Sequence[Tensor], layer: nn.Module, bias: Tensor | None) -> TTLinear:
    """A layer of these cores with what the old one had beside its weight."""
    made = TTLinear.from_cores([core.to(layer.weight.dtype) for core in cores], bias)
    made.cores.requires_grad_(layer.weight.requires_grad)
    return made.train(layer.training)


@torch.no_grad()
def rounded(layer: nn.Module, baseline: Baseline) -> nn.Module:
    """A copy of the layer with these weights; its ``params`` and ``nbytes`` are those of the integers."""
    weight = baseline.approximation.mT if conv1d_of(layer) else baseline.approximation
    weight = nn.Parameter(weight.reshape(layer.weight.shape).contiguous(), requires_grad=layer.weight.requires_grad)
    made = copy.deepcopy(layer, {id(layer.weight): weight})
    made.params, made.nbytes = baseline.params, baseline.nbytes
    return made
