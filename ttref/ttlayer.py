"""Base module of layers that stand in a dense layer's place: a TT-matrix as the weight, and a bias."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .checks import check_float
from .linears import computed
from .modules import owned
from .ttmatrix import TTMatrix


class TTLayer(TTMatrix):
    """A :class:`TTMatrix` with a bias for its rows, and a ``weight`` that can be read but not set.

    The base class of :class:`TTLinear` and :class:`TTConv2d`, not made by itself.
    """

    _INSTEAD: ClassVar[str]  # what to do in place of setting the weight, in messages
    _BIAS: ClassVar[dict[str, tuple[type, ...]]] = {"bias": (bool, type(None))}  # in a file: whether it is trainable

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight":
            raise AttributeError(
                f"the weight of a {self._KIND} is rebuilt from its cores and cannot be set; {self._INSTEAD}"
            )
        super().__setattr__(name, value)

    def _adopt_bias(self, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Store a copy of this bias; a frozen one stays frozen."""
        if bias is not None:
            check_float("bias", bias)
            if bias.shape != self._widths[:1]:
                raise ValueError(f"bias has shape {tuple(bias.shape)}, but the layer has {self._widths[0]} outputs")
            if bias.dtype != dtype:
                raise TypeError(f"bias is {bias.dtype} but the cores are {dtype}; convert one of them")
        self.register_parameter("bias", None if bias is None else owned(bias))

    def _as_dense(self, kind: type[nn.Module], *widths: int, **settings: Any) -> Any:
        """A dense layer of this kind with the same function, dtype, device and mode; trainable where all cores are."""
        weight = self.weight
        with torch.enable_grad():  # a parametrized bias is computed here, and would look frozen otherwise
            bias = computed(self, "bias")
        options = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
        dense = nn.utils.skip_init(kind, *widths, **settings, **options)
        parts = list(self.cores.parameters())  # integer cores have none
        dense.weight.copy_(weight).requires_grad_(bool(parts) and all(part.requires_grad for part in parts))
        if bias is not None:
            dense.bias.copy_(bias).requires_grad_(bias.requires_grad)
        return dense.train(self.training)

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, header = super()._content()
        if (bias := self.bias) is not None:
            tensors["bias"] = bias.detach()
        return tensors, header | {"bias": None if bias is None else bias.requires_grad}

    def _configured(self, header: dict[str, Any]) -> Self:
        if self.bias is not None:
            self.bias.requires_grad_(header["bias"])
        return super()._configured(header)
