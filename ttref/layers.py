"""A linear layer whose weight is a TT-matrix: fewer numbers, and the interface of ``nn.Linear``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_input, check_modes, check_rank_or_eps
from .costs import Plan
from .files import check_finite, check_header
from .fitting.gram import Gram
from .linears import weight_and_bias
from .modules import cores_of, listed
from .precision import full_precision, under_autocast
from .rebuilt import rebuilt
from .starts import draw
from .ttlayer import TTLayer

__all__ = ["TTLinear"]


class TTLinear(TTLayer):
    """``y = x W^T + b`` with W stored as the cores of a TT-matrix; ``forward`` rebuilds W only where that is cheaper.

    Args:
        in_shape: Input modes ``(n_1, ..., n_d)``, or the width as an int. For an int, three balanced modes are chosen
            (a width with a large prime factor is padded with zeros, and ``extra_repr`` says so), in the order that
            needs the fewest operations. The order also decides which matrices a given rank can represent.
        out_shape: Output modes ``(m_1, ..., m_d)``, or the width as an int.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends. A cap above the largest useful rank
            is clipped; ``ranks`` holds the ranks used.
        bias: Add a bias if True.
        device, dtype: As in ``nn.Linear``.

    Attributes:
        cores: ``ParameterList`` of d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        bias: ``(out_features,)`` or None.
        in_features, out_features, in_shape, out_shape, ranks: Widths, modes and ranks.
        params, nbytes, dense_nbytes, ratio: Numbers and bytes of the cores, bytes of the dense weight in their dtype,
            and its numbers for each number in the cores; the bias is in none of them.
        order: "auto", or the order that ``forward`` must contract in (see :func:`plan_contraction`). A graph that
            ``torch.export`` makes for any batch size has one order; with "auto" that of 32 vectors.
        recompute: False. If True, a training step computes intermediate results twice instead of keeping them: less
            memory, more time, as ``plan`` tells. Without effect while a compiler traces.

    Raises:
        TypeError, ValueError: Modes or ranks that are no positive integers, or unequally many modes.
        RuntimeError: While computing: cores on the meta device, offloaded and not brought back.

    Initialization:
        Gaussian cores, scaled so that the entries of W have exactly the mean square 1 / (3 in_features) that
        ``nn.Linear`` starts with, for any rank and order; with padding this holds for the padded W, and for W itself
        on average. The bias starts as that of ``nn.Linear``.

    Cost:
        ``layer.plan(batch)`` tells multiply-adds and peak bytes. The cheapest order is chosen for each batch size.
        Half precision, under autocast too, is contracted in float32 and rounded at the end: no faster than float32,
        also on a GPU, whose tensor cores stay idle. A thread that computes without gradients on a CPU keeps up to
        2 x 32 MB of buffers from call to call, as in :func:`ttm_matvec`.

    Saving:
        ``layer.save(path)`` writes one safetensors file with cores, bias, widths, ``order`` and ``recompute``;
        ``ttref.load(path)`` makes the layer from it. ``state_dict`` holds the cores and the bias only: it loads into a
        layer made with the same modes and ranks, or, if a width is padded, into one made by :meth:`from_cores`.

    Source:
        Novikov et al. (2015), Tensorizing Neural Networks.

    Example:
        >>> import torch
        >>> layer = TTLinear((8, 8, 12), (12, 16, 16), rank=8)
        >>> layer(torch.randn(5, 768)).shape, layer.ranks, round(layer.ratio)
        (torch.Size([5, 3072]), (1, 8, 8, 1), 225)

        Saved and loaded:

        >>> import tempfile, ttref
        >>> made, x = TTLinear.from_linear(torch.nn.Linear(64, 48), eps=0.5), torch.randn(5, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(f"{folder}/layer.safetensors")
        ...     loaded = ttref.load(f"{folder}/layer.safetensors")
        >>> torch.allclose(loaded(x), made(x))
        True
    """

    _SHAPES = "out_shape", "in_shape"
    _WIDTHS = "out_features", "in_features"
    _KIND = "TTLinear"
    _INSTEAD = "compress another weight with TTLinear.from_linear, or write to the cores"
    _SETTINGS = {"in_features": (int,), "out_features": (int,)}

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        rank: int | Sequence[int],
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._begin((out_shape, in_shape), rank, device=device, dtype=dtype)
        bias = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.reset_parameters()

    @classmethod
    def from_cores(
        cls,
        cores: Sequence[Tensor],
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
    ) -> TTLinear:
        """A layer with copies of the cores ``(r_{k-1}, m_k, n_k, r_k)`` of a TT-matrix, after rounding for example.

        Args:
            cores: d cores.
            bias: ``(out_features,)`` or None.
            in_features: Input width, if the modes multiply to more (the rest is padding).
            out_features: Output width, likewise.

        Returns:
            The layer, in the dtype and on the device of the cores; a frozen core or bias stays frozen.

        Raises:
            TypeError, ValueError: Cores that are no TT-matrix, widths that exceed the modes, a bias of wrong shape.

        Example:
            >>> import torch
            >>> cores = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
            >>> TTLinear.from_cores(cores)(torch.ones(15)).tolist()
            [30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0]
        """
        cores = listed(cores)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(cores, out_features, in_features)
        layer._adopt_bias(bias, cores[0].dtype)
        return layer

    @classmethod
    @full_precision
    @torch.no_grad()
    def from_linear(
        cls,
        layer: nn.Module,
        *,
        rank: int | Sequence[int] | None = None,
        eps: float | None = None,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        gram: Gram | Tensor | None = None,
    ) -> TTLinear:
        """Compress a trained layer by TT-SVD, or by a fit to its inputs. The layer stays and shares no memory with it.

        Args:
            layer: ``nn.Linear`` or GPT-2's ``Conv1D`` (whose weight is stored in x out).
            rank: Cap on the TT-ranks.
            eps: Relative Frobenius error allowed for the weight, in [0, 1). Give exactly one of rank and eps.
            in_shape: Input modes; chosen as in :class:`TTLinear` when left out (with eps, for a rank of 16).
            out_shape: Output modes, likewise. For a Gram matrix :func:`~ttref.fitting.choosing.choose_modes` finds
                better ones.
            gram: Gram matrix of the layer's inputs, from :func:`~ttref.fitting.collecting.collect_gram`: the cores are
                fitted by :func:`~ttref.fitting.als.fit_cores`, and eps is the error of the outputs on those inputs.

        Returns:
            A layer with the dtype, device, training mode and ``requires_grad`` of the old one.

        Raises:
            TypeError: Another kind of layer; one that computes more than ``x W^T + b`` (an overridden forward, forward
                hooks); one whose weight is no plain tensor, or not built yet. Masks and parametrizations are applied.
            ValueError: Modes that do not multiply to the widths, NaN or Inf in the weight, a weight on the meta device
                (offloaded), a Gram matrix of another width, and as :func:`ttm_svd`.

        Guarantee:
            As :func:`ttm_svd`. With a Gram matrix as :func:`~ttref.fitting.als.fit_cores`: with modes without padding,
            the outputs on those inputs err no more than TT-SVD's of the same rank.

        Cost:
            As :func:`ttm_svd`, or as :func:`~ttref.fitting.als.fit_cores`.

        Example:
            >>> import torch
            >>> dense, x = torch.nn.Linear(64, 48), torch.randn(7, 64)
            >>> layer = TTLinear.from_linear(dense, eps=0)
            >>> torch.allclose(layer(x), dense(x), atol=1e-5)
            True
        """
        weight, bias = weight_and_bias(layer)
        check_rank_or_eps(rank, eps)
        check_input("layer.weight", weight)
        shapes = out_shape, in_shape
        for name, modes, width in zip(cls._SHAPES, shapes, weight.shape, strict=True):
            if modes is not None and math.prod(modes := check_modes(name, modes)) != width:
                raise ValueError(
                    f"{name} {modes} multiplies to {math.prod(modes)}, but the layer's width there is {width}; "
                    "leave it out and modes are chosen, with padding if need be"
                )
        cores = cls._decomposed(weight, shapes, rank, eps, gram=gram)
        made = cls.from_cores(cores, bias, in_features=weight.shape[1], out_features=weight.shape[0])
        made.cores.requires_grad_(weight.requires_grad)
        return made.train(layer.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense layer with the same function, in the same dtype and on the same device.

        Example:
            >>> import torch
            >>> layer, x = TTLinear(64, 48, rank=4), torch.randn(7, 64)
            >>> torch.allclose(layer.to_linear()(x), layer(x), atol=1e-5)
            True
        """
        return self._as_dense(nn.Linear, self.in_features, self.out_features)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new cores and a new bias; see Initialization.

        Raises:
            RuntimeError: A core is computed from other numbers (pruned, parametrized), so there is none to draw.
        """
        entries = math.prod(self.in_shape) * math.prod(self.out_shape)
        draw(self.cores, (entries / (3 * self.in_features)) ** 0.5)
        if self.bias is not None and not self.bias.is_meta:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must hold in_features = {self.in_features}")
        cores = cores_of(self.cores)
        autocast = under_autocast(x) and x.is_floating_point()
        if x.dtype != cores[0].dtype:
            if not autocast:
                raise TypeError(f"x is {x.dtype} but the cores are {cores[0].dtype}; convert one of them")
            x = x.to(cores[0].dtype)
        y = self._multiplied(cores, x.reshape(-1, self.in_features), self.bias)
        if self._padding[0]:
            y = y.contiguous()
        if autocast and y.dtype != torch.float64:  # as nn.Linear, which leaves float64 as it is
            y = y.to(torch.get_autocast_dtype(x.device.type))
        return y.reshape(*x.shape[:-1], self.out_features)

    def plan(self, batch: int) -> Plan:
        """The order and costs of ``forward`` for ``batch`` vectors; ``print`` shows them beside a dense layer's."""
        return super().plan(batch)._replace(bias=0 if self.bias is None else self.out_features)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``(out_features, in_features)``, rebuilt at every access; ``forward`` does without it.

        For code that reads this attribute of ``nn.Linear``, such as torch's transformer layers, which then pay for
        the rebuilding. Writing into it is a RuntimeError and assigning to it an AttributeError, because the layer
        would not change: compress another weight with :meth:`from_linear`, or write to ``cores``. ``weight.clone()``
        is a plain tensor.
        """
        return rebuilt(self.dense(), self, self._INSTEAD)

    @property
    def in_features(self) -> int:
        """Width of the vectors."""
        return self._widths[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self._widths[0]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Input modes."""
        return self.col_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Output modes."""
        return self.row_shape

    def extra_repr(self) -> str:
        """Widths, modes, ranks, padding if any, and the ratio, as ``print(model)`` shows them."""
        padded = [
            f"{name} padded from {width} to {math.prod(modes)}"
            for name, width, modes in (
                ("input", self.in_features, self.in_shape),
                ("output", self.out_features, self.out_shape),
            )
            if width != math.prod(modes)
        ]
        parts = [f"in_features={self.in_features}", f"out_features={self.out_features}"]
        parts += [f"in_shape={self.in_shape}", f"out_shape={self.out_shape}", f"ranks={self.ranks}"]
        parts += [f"bias={self.bias is not None}", *padded, f"ratio={self.ratio:.3g}"]
        return ", ".join(parts)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> TTLinear:
        check_header(header, cls._SETTINGS | cls._OPTIONS | cls._BIAS)
        check_finite(tensors)
        bias = None if header["bias"] is None else tensors.pop("bias")
        cores = [tensors[f"cores.{k}"] for k in range(len(tensors))]
        return cls.from_cores(cores, bias, **{name: header[name] for name in cls._SETTINGS})._configured(header)
