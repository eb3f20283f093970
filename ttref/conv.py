"""A convolution whose kernel is a TT-matrix: fewer numbers, and where the modes allow it fewer multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .approximation import FLOATS
from .checks import whole
from .convolving import ConvPlan, Geometry, convolved, kernel_of, pair, parts_of, plan_conv
from .files import check_finite, check_header
from .integer_cores import IntegerCore, IntegerCores, quantize_cores
from .kernel_modes import kernel_cores
from .modules import cores_of, listed
from .precision import computable, full_precision, under_autocast
from .rebuilt import rebuilt
from .ttlayer import TTLayer

if TYPE_CHECKING:
    from .fitting import Gram

__all__ = ["TTConv2d"]

_PAIRS = ("kernel_size", "stride", "padding", "dilation")


class TTConv2d(TTLayer):
    """``nn.Conv2d`` with the kernel stored as the cores of a TT-matrix: rows are outputs, columns the patch.

    Made by :meth:`from_conv` or :meth:`from_cores`. A patch is read with channels first, (in, height, width), as
    ``weight.flatten(1)`` has it, or taps first, (height, width, in). ``forward`` rebuilds the kernel, or runs two
    convolutions where a cut of the train lies between two axes of the patch and saves a third of the multiply-adds.

    Attributes:
        cores: ``ParameterList`` of d cores ``(r_{k-1}, m_k, n_k, r_k)``; integer cores are no parameters.
        bias: ``(out_channels,)`` or None.
        in_channels, out_channels, kernel_size, stride, padding, dilation: As in ``nn.Conv2d``, pairs of ints.
        taps_first: How the patch is read.
        row_shape, col_shape, ranks, modes: Modes of outputs and of the patch; TT-ranks.
        core_bits: 32, or the width of the codes of integer cores.
        params, nbytes, dense_nbytes, ratio: Numbers and bytes of the cores (codes bit by bit, two bytes a scale),
            bytes of the dense kernel in their dtype, its numbers for each number stored; the bias is in none of them.

    Cost:
        ``layer.plan((batch, in, height, width))`` tells the multiply-adds of either way and of the dense convolution.
        Half precision, under autocast too, is computed in float32 and rounded at the end.

    Saving:
        ``layer.save(path)`` and ``ttref.load(path)``, integer codes packed bit by bit.

    Source:
        Garipov et al. (2016), Ultimate tensorization: compressing convolutional and FC layers alike, section 3, for the
        kernel as a TT-matrix; the two stages are those of Tucker and channel-wise SVD where the modes are theirs.

    Example:
        >>> conv = nn.Conv2d(16, 32, 3, padding=1)
        >>> layer = TTConv2d.from_conv(conv, rank=8, row_shape=(32, 1), col_shape=(9, 16), taps_first=True)
        >>> layer(torch.randn(2, 16, 10, 10)).shape, layer.ranks, layer.params
        (torch.Size([2, 32, 10, 10]), (1, 8, 1), 2432)
        >>> plan = layer.plan((2, 16, 10, 10))     # 16 to 8 channels in one place, then 3 x 3 taps from 8 to 32
        >>> plan.way, plan.macs, plan.dense
        ('factored', 486400, 921600)
    """

    _WIDTHS = "out_channels", "patch"
    _KIND = "TTConv2d"
    _INSTEAD = "compress another convolution with TTConv2d.from_conv, or write to the cores"
    _SETTINGS = {name: (list,) for name in _PAIRS} | {"taps_first": (bool,)}

    core_bits = 32

    @classmethod
    def from_cores(
        cls,
        cores: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        taps_first: bool = False,
    ) -> TTConv2d:
        """A convolution with copies of these cores, whose column modes multiply to ``in height width``.

        Args:
            cores: d cores ``(r_{k-1}, m_k, n_k, r_k)``.
            bias: ``(out_channels,)`` or None.
            kernel_size: An int or a pair, as in ``nn.Conv2d``.
            stride: Likewise.
            padding: Likewise, of zeros.
            dilation: Likewise.
            taps_first: The columns are (height, width, in) instead of (in, height, width).

        Raises:
            TypeError, ValueError: Cores that are no TT-matrix, columns that are no multiple of the kernel's area, a
                bias of wrong shape or dtype, settings that ``nn.Conv2d`` does not take.

        Example:
            >>> cores = [torch.ones(1, 2, 3, 2), torch.ones(2, 2, 3, 1)]
            >>> TTConv2d.from_cores(cores, kernel_size=3)(torch.ones(1, 1, 3, 3)).flatten().tolist()
            [18.0, 18.0, 18.0, 18.0]
        """
        cores = listed(cores)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(cores, None, None)
        settings = kernel_size, stride, padding, dilation
        for name, value, least in zip(_PAIRS, settings, (1, 1, 0, 1), strict=True):
            setattr(layer, name, pair(name, value, least))
        layer.out_channels, columns = layer._widths
        area = math.prod(layer.kernel_size)
        if columns % area:
            raise ValueError(
                f"the column modes {layer.col_shape} multiply to {columns}, no multiple of the {area} taps of a kernel "
                f"of size {layer.kernel_size}"
            )
        layer.in_channels, layer.taps_first = columns // area, bool(taps_first)
        layer._adopt_bias(bias, cores[0].dtype)
        return layer

    @classmethod
    @full_precision
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | Sequence[int] | None = None,
        eps: float | None = None,
        params: int | None = None,
        row_shape: Sequence[int] | None = None,
        col_shape: Sequence[int] | None = None,
        taps_first: bool = False,
        gram: Gram | Tensor | None = None,
        core_bits: int = 32,
        group: int = 64,
    ) -> TTConv2d:
        """Compress a trained convolution, which stays as it is and shares no memory with the result.

        Args:
            conv: ``nn.Conv2d`` without groups, padded with zeros.
            rank: Cap on the TT-ranks.
            eps: Relative error allowed, of the weight, or with ``gram`` of the outputs. The error of integers is not
                in it.
            params: Numbers that the cores may have; modes and the order of the patch are then searched among some
                dozen. Exactly one of rank, eps and params.
            row_shape: Modes of the outputs, needed with rank and eps.
            col_shape: Modes of the patch, likewise.
            taps_first: The columns are (height, width, in) instead of (in, height, width); ``params`` decides itself.
            gram: Gram matrix of the patches, channels first, as :func:`~ttref.fitting.collecting.collect_gram` makes
                it: cores are fitted to these, and rounded against them. Left out, TT-SVD of the weight.
            core_bits: 32: cores in the dtype of the weight. 1 to 8: integers, by :func:`quantize_cores`; they are not
                trainable.
            group: Numbers that share a scale, about.

        Returns:
            A layer with the dtype, device, training mode and ``requires_grad`` of the old one.

        Raises:
            TypeError: Another kind of layer, or one that computes more (hooks, an overridden forward).
            ValueError: Groups, another padding than zeros, "same" where it is lopsided; not exactly one of rank, eps,
                params; modes left out or of wrong product; core_bits beyond these; a Gram matrix of another width; NaN.

        Cost:
            As :func:`ttm_svd`, or :func:`fit_cores` with ``gram``; with ``params``, that for some dozen modes.

        Example:
            >>> conv, x = nn.Conv2d(8, 12, 3), torch.randn(1, 8, 6, 6)
            >>> layer = TTConv2d.from_conv(conv, eps=0, row_shape=(4, 3), col_shape=(8, 9))
            >>> torch.allclose(layer(x), conv(x), atol=1e-5)
            True
            >>> small = TTConv2d.from_conv(conv, rank=4, row_shape=(12, 1), col_shape=(8, 9), core_bits=4)
            >>> small.params, small.nbytes, small.dense_nbytes     # codes and scales; bytes; bytes of the dense kernel
            (433, 236, 3456)
        """
        weight, bias, settings = parts_of(conv)
        if core_bits != 32 and not 1 <= whole("core_bits", core_bits) <= 8:
            raise ValueError(f"core_bits must be 32 (cores in the dtype of the weight) or 1 to 8, got {core_bits}")
        found = kernel_cores(weight, rank, eps, params, (row_shape, col_shape), taps_first, gram)
        made = cls.from_cores(found.cores, bias, **settings, taps_first=found.taps_first)
        if core_bits < 32:
            codes, scales, _ = quantize_cores(found.cores, found.matrix, found.inputs, core_bits, group=group)
            made.cores = IntegerCores(list(map(IntegerCore, codes, scales)), weight.dtype)
            made.core_bits = core_bits
        made.cores.requires_grad_(weight.requires_grad)
        return made.train(conv.training)

    @torch.no_grad()
    def to_conv(self) -> nn.Conv2d:
        """The dense convolution with the same function, in the same dtype and on the same device.

        Example:
            >>> conv = nn.Conv2d(8, 12, 3)
            >>> layer = TTConv2d.from_conv(conv, rank=4, row_shape=(12, 1), col_shape=(1, 72))
            >>> x = torch.randn(1, 8, 6, 6)
            >>> torch.allclose(layer.to_conv()(x), layer(x), atol=1e-5)
            True
        """
        settings = {name: getattr(self, name) for name in _PAIRS}
        return self._as_dense(nn.Conv2d, self.in_channels, self.out_channels, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in, height, width)``, or one picture without batch, to the pictures of ``nn.Conv2d``."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must be (batch, {self.in_channels}, height, width), batch or not"
            )
        cores = cores_of(self.cores)
        dtype, autocast = cores[0].dtype, under_autocast(x) and x.is_floating_point()
        if x.dtype != dtype and not autocast:
            raise TypeError(f"x is {x.dtype} but the cores are {dtype}; convert one of them")
        plan = self.plan(x.shape if x.ndim == 4 else (1, *x.shape))
        y = self._convolved(cores, x.to(dtype) if x.ndim == 4 else x.to(dtype).unsqueeze(0), plan)
        if autocast and y.dtype != torch.float64:  # as nn.Conv2d, which leaves float64 as it is
            y = y.to(torch.get_autocast_dtype(x.device.type))
        return y if x.ndim == 4 else y.squeeze(0)

    @full_precision
    def _convolved(self, cores: Sequence[Tensor], x: Tensor, plan: ConvPlan) -> Tensor:
        dtype, bias = x.dtype, self.bias
        bias = None if bias is None else computable(bias)
        return convolved([computable(core) for core in cores], computable(x), bias, self._geometry, plan).to(dtype)

    def plan(self, shape: Sequence[int]) -> ConvPlan:
        """The way and the multiply-adds of ``forward`` for pictures ``(batch, in, height, width)``."""
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(f"shape must be (batch, {self.in_channels}, height, width), got {tuple(shape)}")
        return plan_conv(self._shapes, self._geometry, shape[0], shape[2:])

    @property
    def weight(self) -> Tensor:
        """The dense kernel ``(out, in, height, width)``, rebuilt at every access, not to be written to."""
        return rebuilt(kernel_of(cores_of(self.cores), self._geometry), self, self._INSTEAD)

    @property
    def params(self) -> int:
        """Numbers in the cores, or codes and scales."""
        return super().params if self.core_bits == 32 else self.cores.numbers

    @property
    def nbytes(self) -> int:
        """Bytes of the cores, or of codes bit by bit and two for each scale."""
        return super().nbytes if self.core_bits == 32 else self.cores.nbytes(self.core_bits)

    @property
    def ratio(self) -> float:
        """Numbers in the dense kernel for each number stored."""
        return math.prod(self._widths) / self.params

    def extra_repr(self) -> str:
        """Channels, settings, modes, ranks and the ratio, as ``print(model)`` shows them."""
        parts = [f"{self.in_channels}, {self.out_channels}"]
        parts += [f"{name}={getattr(self, name)}" for name in _PAIRS]
        parts += [f"{name}={getattr(self, name)}" for name in ("row_shape", "col_shape", "taps_first", "ranks")]
        parts += [f"bias={self.bias is not None}", f"core_bits={self.core_bits}", f"ratio={self.ratio:.3g}"]
        return ", ".join(parts)

    @property
    def _geometry(self) -> Geometry:
        return Geometry(self.in_channels, *(getattr(self, name) for name in _PAIRS), self.taps_first)

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, header = super()._content()
        if self.core_bits < 32:
            kept = {"bias": tensors["bias"]} if "bias" in tensors else {}
            tensors = self.cores.packed(self.core_bits) | kept
        header |= {name: list(header[name]) for name in _PAIRS}
        more = {"core_bits": self.core_bits, "shapes": [list(shape) for shape in self._shapes]}
        return tensors, header | more | {"dtype": str(self.dtype)[6:]}

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> TTConv2d:
        more = {"core_bits": (int,), "shapes": (list,), "dtype": (str,)}
        check_header(header, cls._SETTINGS | cls._OPTIONS | cls._BIAS | more)
        check_finite({name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()})
        bias = None if header["bias"] is None else tensors.pop("bias")
        bits, integers = header["core_bits"], None
        if bits == 32:
            cores = [tensors[f"cores.{k}"] for k in range(len(tensors))]
        else:
            integers = IntegerCores.unpacked(tensors, header["shapes"], bits, FLOATS[header["dtype"]])
            cores = list(integers)
        made = cls.from_cores(cores, bias, **{name: header[name] for name in cls._SETTINGS})
        if [list(shape) for shape in made._shapes] != header["shapes"] or str(made.dtype)[6:] != header["dtype"]:
            raise ValueError(f"its cores are {made._shapes} in {made.dtype}, its header says {header['shapes']}")
        if integers is not None:
            made.cores, made.core_bits = integers, bits
        return made._configured(header)
