"""A frozen linear layer with a trainable update in tensor-train form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import adapted, delta_for, device_of, may_be_dense, merged_weight, plan, quantized, stored, widths
from .delta import TTDelta
from .forms import LoRAPlan

__all__ = ["TTLoRALinear"]


class TTLoRALinear(nn.Module):
    """``y = x (W + alpha * TT(cores))^T + b`` with W and b frozen and a small tensor train to be trained.

    The update starts as exactly zero unless ``init="paper"``, so the first step sees the model as it was.

    Args:
        base_layer: ``nn.Linear`` or GPT-2's ``Conv1D``; it becomes ``.base_layer``, is not copied, and is frozen:
            weight and bias stop requiring a gradient, in other layers that share them too, and stay so when the layer
            is merged or taken out. A quantized layer with ``in_features`` and ``out_features`` will do as well: it is
            only called, so "dense" and :meth:`merge` are not to be had.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends. What exceeds the largest useful rank
            is clipped; ``ranks`` holds what is left, and a warning says so if no bond can use the cap.
        alpha: The update is multiplied by it, as in the method's published code. PEFT's LoRA multiplies by alpha / r:
            give that quotient here.
        shape: Modes of the rows (outputs), then of the columns (inputs), product ``out_features * in_features``. Left
            out, modes of at most 12 are chosen with a bond exactly between rows and columns.
        init: "zero_last": Gaussian cores and a last one of zeros; the others' product has the mean square
            1 / (3 in_features) of the matrix that PEFT's LoRA starts with. "orthogonal": the same with orthogonal
            cores. "paper": TT-SVD of a Kaiming-uniform matrix (a = sqrt 8), which changes the model at step 0.
        dropout: Probability of dropping an entry of x on the adapter's way, while training.

    Attributes:
        base_layer: The frozen layer.
        cores: ``ParameterList`` of cores ``(r_{k-1}, n_k, r_k)``, float32 beside a base in half precision.
        shape, ranks, rank, alpha, params: Modes, full ranks, the largest of them, the factor, numbers in the cores.
        boundary_rank: Rank of the bond between rows and columns: no update has a larger matrix rank. None where a mode
            straddles the boundary.
        merged: Whether the base weight holds the update now.
        form: "auto", or the form that ``forward`` must take: "factors", "cores" or "dense". Name one before exporting
            with a dynamic batch, which "auto" would cut at the sizes where the cheapest form changes.

    Raises:
        TypeError: A base layer that is parametrized, pruned, already adapted or of another kind; wrong types.
        ValueError: A shape that does not multiply to the weight's entries, a rank below 1, an alpha of zero or NaN.

    Cost:
        ``layer.plan(batch)`` tells. For a batch B, "factors" takes B r (out + in) multiply-adds beside the base's
        B out in; "dense" takes out in r and no more, but one more product of the base's size for a gradient.

    Source:
        Anjum et al. (2024), Tensor Train Low-rank Approximation (TT-LoRA). Hu et al. (2021), LoRA, for the zero start.

    Example:
        >>> import torch
        >>> base, x = nn.Linear(384, 384), torch.randn(5, 384)
        >>> layer = TTLoRALinear(base, rank=4, alpha=2)
        >>> torch.equal(layer(x), base(x)), layer.shape, layer.params
        (True, (8, 8, 6, 6, 8, 8), 512)
    """

    def __init__(
        self,
        base_layer: nn.Module,
        *,
        rank: int | Sequence[int],
        alpha: float,
        shape: Sequence[int] | None = None,
        init: str = "zero_last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._adopt(base_layer, delta_for(base_layer, rank=rank, alpha=alpha, shape=shape, init=init, dropout=dropout))

    @classmethod
    def around(cls, base_layer: nn.Module, delta: TTDelta) -> TTLoRALinear:
        """A layer from a layer, frozen here, and an update that exists already, as loading makes it; none is drawn."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(base_layer, delta.to(device_of(base_layer)))
        return layer

    def _adopt(self, base_layer: nn.Module, delta: TTDelta) -> None:
        self.delta, self.base_layer = delta, base_layer
        self.out_features, self.in_features = widths(base_layer)
        self.form = "auto"
        self.train(base_layer.training)
        # The weight as it was before a merge, not part of the state: subtracting again would not give the same bits.
        self.register_buffer("_kept", None, persistent=False)
        base_layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_features)`` to ``(*batch, out_features)``."""
        return self.base_layer(x) if self.merged else adapted(self.base_layer, [self.delta], x, self.form)

    def plan(self, batch: int) -> LoRAPlan:
        """The form that ``forward`` takes for ``batch`` vectors, and what it costs beside the frozen layer.

        With gradients on, backward is counted too; under ``torch.no_grad()`` it is not, and the answer may differ.
        """
        return plan(self.delta, batch, self.form, may_be_dense(self.base_layer, [self.delta]))

    @torch.no_grad()
    def get_delta_weight(self) -> Tensor:
        """The update, alpha included, as ``base_layer.weight`` lies: ``(out, in)``, and ``(in, out)`` for Conv1D."""
        return stored(self.base_layer, self.delta.dense())

    @torch.inference_mode(False)  # a weight made in inference mode could never be trained through again
    @torch.no_grad()
    def merge(self, safe_merge: bool = False) -> None:
        """Add the update to the base weight: inference then costs what the base costs.

        The weight as it was is kept, which takes its memory once more, until :meth:`unmerge` or until
        :func:`merge_tt_lora` drops it. Meanwhile ``state_dict()`` holds the merged weight: unmerge before saving that.
        A step that an optimizer takes on the merged weight is lost when it is unmerged.

        Args:
            safe_merge: Refuse a sum that is not finite, and leave the weight as it is.

        Raises:
            TypeError: The base layer is quantized.
            ValueError: Not finite, with ``safe_merge``; a base weight that accelerate keeps elsewhere.
        """
        if self.merged:
            warnings.warn("the adapter is merged already; nothing to do", stacklevel=2)
            return
        weight = merged_weight(self.base_layer, [self.delta])
        if safe_merge and not weight.isfinite().all():
            raise ValueError("the base weight plus the update has NaN or infinite entries; nothing was merged")
        before = self.base_layer.weight.data
        try:
            self.base_layer.weight.data = weight
            self._kept = before
        except BaseException:  # an interrupt between the two would leave a weight that is not what merged says
            self.base_layer.weight.data, self._kept = before, None
            raise

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("the adapter is not merged; nothing to do", stacklevel=2)
            return
        weight, kept = self.base_layer.weight.data, self._kept
        try:
            self.base_layer.weight.data = kept
            self._kept = None
        except BaseException:
            self.base_layer.weight.data, self._kept = weight, kept
            raise

    @property
    def merged(self) -> bool:
        """Whether the base weight holds the update now."""
        return self._kept is not None

    @property
    def weight(self) -> Tensor:
        """The weight that ``forward`` multiplies by, for code that reads it; rebuilt at every access unless merged.

        A model that reads it in each forward pass (T5 does, for its dtype) pays out in r multiply-adds every time. A
        quantized layer's is its own, without the update.
        """
        if self.merged or quantized(self.base_layer):
            return self.base_layer.weight
        return merged_weight(self.base_layer, [self.delta])

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias

    @property
    def cores(self) -> nn.ParameterList:
        """The trainable cores."""
        return self.delta.cores

    @property
    def shape(self) -> tuple[int, ...]:
        """Modes, those of the outputs first."""
        return self.delta.shape

    @property
    def ranks(self) -> tuple[int, ...]:
        """Full ranks, ones at both ends."""
        return self.delta.ranks

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(self.ranks)

    @property
    def alpha(self) -> float:
        """What the update is multiplied by."""
        return self.delta.alpha

    @property
    def params(self) -> int:
        """Numbers in the cores."""
        return self.delta.params

    @property
    def boundary_rank(self) -> int | None:
        """Rank of the bond between rows and columns, or None."""
        return self.delta.boundary_rank

    def extra_repr(self) -> str:
        """Whether the update is merged."""
        return f"merged={self.merged}"
