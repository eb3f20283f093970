"""The update of one weight as a tensor train: its cores, how they start, and how they meet activations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ..canonical import tt_orthogonalize
from ..modules import Cores, cores_of
from ..precision import computable, full_precision
from ..trains import tt_svd
from . import forms
from .modes import layout


class TTDelta(nn.Module):
    """``alpha * TT(cores)``, read row-major as a matrix ``(out_features, in_features)``: what is added to a weight.

    :class:`TTLoRALinear` and the PEFT bridge both put this beside a frozen layer. The arguments are explained there.

    Attributes:
        cores: ``ParameterList`` of cores ``(r_{k-1}, n_k, r_k)``, output modes first.
        shape, ranks, params, boundary_rank: Modes, full ranks, numbers in the cores, and the rank of the bond between
            rows and columns (None where a mode straddles).
        alpha, init, dropout: As given; ``dropout`` is a module.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        rank: int | Sequence[int],
        alpha: float,
        shape: Sequence[int] | None = None,
        init: str = "zero_last",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, Real):
            raise TypeError(f"alpha must be a number, got {alpha!r} of type {type(alpha).__name__}")
        if not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"alpha multiplies the update and must be finite and not zero, got {alpha}")
        if init not in _STARTS:
            raise ValueError(f"init must be one of {', '.join(map(repr, _STARTS))}, got {init!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, Real):
            raise TypeError(f"dropout must be a number in [0, 1], got {dropout!r} of type {type(dropout).__name__}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability and must lie in [0, 1], got {dropout}")
        self.layout = layout(out_features, in_features, shape, rank)
        self.out_features, self.in_features = out_features, in_features
        self.alpha, self.init = float(alpha), init
        if isinstance(rank, Integral) and len(self.ranks) > 2 and rank > max(self.ranks):
            warnings.warn(
                f"rank {rank} exceeds what modes {self.shape} can use; it is clipped to {self.ranks}", stacklevel=3
            )
        self.dropout = nn.Dropout(float(dropout)) if dropout else nn.Identity()
        self.cores = Cores(torch.empty(core, device=device, dtype=dtype) for core in self.layout.cores)
        self.reset_parameters()

    @property
    def shape(self) -> tuple[int, ...]:
        """Modes, those of the outputs first."""
        return self.layout.shape

    @property
    def ranks(self) -> tuple[int, ...]:
        """Full ranks, ones at both ends."""
        return self.layout.ranks

    @property
    def params(self) -> int:
        """Numbers in the cores."""
        return self.layout.params

    @property
    def boundary_rank(self) -> int | None:
        """Rank of the bond between rows and columns, which bounds the matrix rank; None where a mode straddles."""
        return self.layout.boundary_rank

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new cores as ``init`` says."""
        if self.cores[0].is_meta:  # no numbers yet: to_empty and another call make them
            return
        drawn = _STARTS[self.init]([torch.empty_like(core, dtype=torch.float32) for core in self.cores], self)
        for core, start in zip(self.cores, drawn, strict=True):
            core.copy_(start)

    @full_precision
    def dense(self) -> Tensor:
        """The update ``(out_features, in_features)``, alpha included. Differentiable. O(out in r) multiply-adds."""
        left, right = self._matrices()
        update = ((left * self.alpha) @ right).reshape(self.out_features, self.in_features)
        return update.to(self.cores[0].dtype)

    @full_precision
    def add_to(self, weight: Tensor) -> Tensor:
        """``weight + update`` for a weight ``(out_features, in_features)``, in the weight's dtype. Differentiable."""
        left, right = self._matrices()
        wide = weight.to(torch.promote_types(weight.dtype, left.dtype))
        left, right = left.to(wide.dtype), right.to(wide.dtype)
        if self.layout.left == self.layout.right:
            return torch.addmm(wide, left, right, alpha=self.alpha).to(weight.dtype)
        return wide.add((left @ right).reshape(wide.shape), alpha=self.alpha).to(weight.dtype)

    def adapt(self, y: Tensor, x: Tensor, form: str) -> Tensor:
        """``y + alpha * update x`` for vectors ``(batch, out)`` and ``(batch, in)``, by "factors" or "cores"."""
        if form == "cores":
            return self._walked(y, x)
        left, right = self._matrices()
        left, right = left.to(y.dtype), right.to(y.dtype)
        return torch.addmm(y, nn.functional.linear(x.to(y.dtype), right), left.mT, alpha=self.alpha)

    def extra_repr(self) -> str:
        """Modes, ranks, alpha and parameters, as ``print(model)`` shows them."""
        return f"shape={self.shape}, ranks={self.ranks}, alpha={self.alpha:g}, params={self.params}"

    @full_precision  # the collapsed cores are small: under autocast they would lose digits and save no time
    def _matrices(self) -> tuple[Tensor, Tensor]:
        cores = [computable(core) for core in cores_of(self.cores)]
        return forms.matrices(cores, self.layout, self.out_features, self.in_features)

    @full_precision
    def _walked(self, y: Tensor, x: Tensor) -> Tensor:
        cores = [core.to(y.dtype) for core in cores_of(self.cores)]
        return y.add(forms.walk(cores, self.layout, x.to(y.dtype), self.out_features), alpha=self.alpha)


def _zero_last(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """Gaussian cores and a last one of zeros, so that the update starts as exactly nothing.

    The product of the others has the mean square 1 / (3 in_features) of the matrix that PEFT's LoRA starts with, so
    learning rates carry over from there.
    """
    spread = (3 * delta.in_features) ** (-1 / (2 * max(len(cores) - 1, 1)))
    for core in cores:
        core.normal_(std=spread / core.shape[0] ** 0.5)
    return [*cores[:-1], torch.zeros_like(cores[-1])]


def _orthogonal(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """As ``_zero_last``, but the other cores are orthogonal, times one number each that gives the same mean square."""
    drawn = tt_orthogonalize([core.normal_() for core in cores], len(cores) - 1)
    entries = delta.layout.rows * delta.layout.cols // cores[-1].shape[1]
    spread = (entries / (3 * delta.in_features)) ** (1 / (2 * max(len(cores) - 1, 1)))
    return [*[core * spread for core in drawn[:-1]], torch.zeros_like(cores[-1])]


def _paper(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """TT-SVD of a Kaiming-uniform matrix (a = sqrt 8), as in the method's published code: it does not start at zero."""
    bound = (2 / (3 * delta.in_features)) ** 0.5
    matrix = cores[0].new_empty(delta.layout.rows, delta.layout.cols).uniform_(-bound, bound)
    return tt_svd(matrix.reshape(delta.shape), rank=delta.ranks)


_STARTS: dict[str, Callable[[list[Tensor], TTDelta], list[Tensor]]] = {
    "zero_last": _zero_last,
    "orthogonal": _orthogonal,
    "paper": _paper,
}
