"""A frozen linear layer with a trainable update in tensor-train form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn

from ..costs import Plan
from .base import delta_for, device_of, merged_weight, one_product_does, oriented, quantized, updated_answer, widths
from .delta import TTDelta

__all__ = ["TTLoRALinear"]


class TTLoRALinear(nn.Module):
    """``y = x (W + alpha * TT(cores))^T + b`` with W and b frozen and a small tensor train to be trained.

    The update starts at exactly zero unless ``init="paper"``, so the adapted model starts as the model was.

    Args:
        base_layer: ``nn.Linear`` or GPT-2's ``Conv1D``; it becomes ``.base_layer``, is not copied, and is frozen:
            weight and bias stop requiring a gradient, in other layers that share them too, and stay so when the layer
            is merged or taken out. A quantized layer with ``in_features`` and ``out_features`` is adapted too: it is
            only called, so the update cannot be merged into its weight.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends. A cap above the largest useful rank
            is clipped; ``ranks`` holds the ranks used, and a warning says so if no bond can use the cap.
        alpha: The update is multiplied by it, as in the method's published code. PEFT's LoRA multiplies by alpha / r:
            give that quotient here.
        shape: Modes of the rows (outputs), then of the columns (inputs), product ``out_features * in_features``. Left
            out, modes of at most 12 are chosen with a bond exactly between rows and columns.
        init: "zero_last": Gaussian cores and a last one of zeros; the others' product has the mean square
            1 / (3 in_features) of the matrix that PEFT's LoRA starts with. "orthogonal": the same with orthogonal
            cores. "paper": TT-SVD of a Kaiming-uniform matrix (a = sqrt 8), which changes the model at step 0.
        dropout: Probability of dropping an entry of x before the update, while training.

    Attributes:
        base_layer: The frozen layer.
        cores: ``ParameterList`` of cores ``(r_{k-1}, n_k, r_k)``, float32 beside a base in half precision.
        shape, ranks, rank, alpha: Modes, full ranks, the largest of them, the factor.
        modes, params, nbytes, dense_nbytes, ratio: Pairs of row and column modes, numbers and bytes of the cores, bytes
            of the dense update in their dtype, and its numbers for each number in the cores.
        boundary_rank: Rank of the bond between rows and columns: no update has a larger matrix rank. None where a mode
            straddles the boundary.
        merged: True while the base weight contains the update.
        order: "auto", or the order that ``forward`` must multiply in (see :func:`plan_contraction`); "dense" adds the
            update to the weight where possible. A graph that ``torch.export`` makes for any batch size has one order;
            with "auto" that of 32 vectors.

    Raises:
        TypeError: A base layer that is parametrized, pruned, already adapted or of another kind; wrong types.
        ValueError: A shape that does not multiply to the weight's entries, a rank below 1, an alpha of zero or NaN.

    Cost:
        ``layer.plan(batch)`` tells. For a batch B, "two-gemm" takes B r (out + in) multiply-adds beside the base's
        B out in; "dense" takes out in r for any batch, and for a gradient one more product of the base's size.

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
        self._hold(base_layer, delta_for(base_layer, rank=rank, alpha=alpha, shape=shape, init=init, dropout=dropout))

    @classmethod
    def from_delta(cls, base_layer: nn.Module, delta: TTDelta) -> TTLoRALinear:
        """An adapter from a layer, which is frozen, and an existing update, such as a loaded one."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(base_layer, delta.to(device_of(base_layer)))
        return layer

    def _hold(self, base_layer: nn.Module, delta: TTDelta) -> None:
        self.delta, self.base_layer = delta, base_layer
        self.out_features, self.in_features = widths(base_layer)
        self.order = "auto"
        self.train(base_layer.training)
        # The weight before a merge, because subtracting the update would not restore every bit; no part of the state.
        self.register_buffer("_kept", None, persistent=False)
        base_layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if self.merged:
            return self.base_layer(x)
        return updated_answer(self.base_layer, [self.delta], x, self.order)

    def plan(self, batch: int) -> Plan:
        """The order and costs of the update in ``forward`` for ``batch`` vectors; the frozen layer's are not included.

        With gradients on, backward is counted too; under ``torch.no_grad()`` it is not, and the order may differ.
        """
        return self.delta.plan(batch, self.order, added=one_product_does(self.base_layer, [self.delta]))

    @torch.no_grad()
    def get_delta_weight(self) -> Tensor:
        """The update in the orientation of ``base_layer.weight``: ``(out, in)``, and ``(in, out)`` for Conv1D."""
        return oriented(self.base_layer, self.delta.dense())

    def dense(self) -> Tensor:
        """The update ``(out, in)``, alpha included. Differentiable."""
        return self.delta.dense()

    @torch.inference_mode(False)  # a weight made in inference mode could never be trained through again
    @torch.no_grad()
    def merge(self, safe_merge: bool = False) -> None:
        """Add the update to the base weight: inference then costs as much as the base layer.

        The old weight is kept, in as much memory again, until :meth:`unmerge` or :func:`merge_tt_lora`. Meanwhile
        ``state_dict()`` holds the merged weight: unmerge before saving it. A step that an optimizer takes on the merged
        weight is lost when it is unmerged.

        Args:
            safe_merge: Refuse a sum that is not finite, and leave the weight as it is.

        Raises:
            TypeError: The base layer is quantized.
            ValueError: Not finite, with ``safe_merge``; a base weight that accelerate has offloaded.
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
        except BaseException:  # an interrupt between the two would leave a merged weight with merged == False
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
        """True while the base weight contains the update."""
        return self._kept is not None

    @property
    def weight(self) -> Tensor:
        """The weight plus the update, for code that reads it; rebuilt at every access unless merged.

        A model that reads it in each forward pass (T5 does, for its dtype) pays out in r multiply-adds every time. For
        a quantized layer, its weight without the update.
        """
        if self.merged or quantized(self.base_layer):
            return self.base_layer.weight
        return merged_weight(self.base_layer, [self.delta])

    bias = property(attrgetter("base_layer.bias"), doc="The base layer's bias.")
    cores = property(attrgetter("delta.cores"), doc="The trainable cores.")
    shape = property(attrgetter("delta.shape"), doc="Modes, those of the outputs first.")
    ranks = property(attrgetter("delta.ranks"), doc="Full ranks, ones at both ends.")
    rank = property(lambda self: max(self.ranks), doc="The largest rank.")
    boundary_rank = property(attrgetter("delta.boundary_rank"), doc="Rank of the bond between rows and columns.")
    alpha = property(attrgetter("delta.alpha"), doc="Factor of the update.")
    modes = property(attrgetter("delta.modes"), doc="Pairs of row and column mode, straddling cores merged into one.")
    params = property(attrgetter("delta.params"), doc="Numbers in the cores.")
    nbytes = property(attrgetter("delta.nbytes"), doc="Bytes of the cores.")
    dense_nbytes = property(attrgetter("delta.dense_nbytes"), doc="Bytes of the dense update in their dtype.")
    ratio = property(attrgetter("delta.ratio"), doc="Numbers in the dense update for each number in the cores.")

    def save(self, path: str | Path) -> None:
        """Write the update to one file, as :meth:`TTDelta.save`; :func:`save_tt_lora` writes those of a model."""
        self.delta.save(path)

    def extra_repr(self) -> str:
        """The state of the merge, as ``print(model)`` shows it."""
        return f"merged={self.merged}"
