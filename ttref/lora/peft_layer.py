"""The layer that ``peft.get_peft_model`` puts around a linear layer for TT-LoRA; used through ``ttref.lora.peft``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from .base import delta_for, merged_weight, oriented, quantized, updated_answer, widths
from .delta import TTDelta
from .model import modes_for


class TTLoraLayer(nn.Module, BaseTunerLayer):
    """A frozen layer with one :class:`TTDelta` for each adapter, with PEFT's methods."""

    # PEFT sets gradients, devices and active adapters through these names.
    adapter_layer_names = ("ttlora_delta",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PeftConfig, module: str) -> None:
        super().__init__()
        self.out_features, self.in_features = widths(base_layer)
        self.base_layer = base_layer
        self.ttlora_delta = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        # Read by a helper of PEFT; without effect here, where x is cast to the dtype of the base layer's output only.
        self.cast_input_dtype_enabled = True
        self.register_buffer("_kept", None, persistent=False)
        self.train(base_layer.training)
        self.update_layer(adapter_name, config, module)

    def update_layer(self, adapter_name: str, config: PeftConfig, module: str) -> None:
        """Add an adapter of this name, with new cores."""
        delta = delta_for(
            self.base_layer,
            rank=config.rank,
            alpha=config.alpha,
            shape=modes_for(module, config.shape),
            init=config.init,
            dropout=config.dropout,
        )
        self.ttlora_delta[adapter_name] = delta.train(self.training)
        # The cores are on the right device already; PEFT would convert them to 8 bits, or to meta, as the base.
        if not quantized(self.base_layer) and not self.base_layer.weight.is_meta:
            self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of one adapter, alpha included, in the orientation of the base weight."""
        with torch.no_grad():
            return oriented(self.base_layer, self.ttlora_delta[adapter].dense())

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the base weight; the old weight is kept, so that :meth:`unmerge` restores every bit."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.ttlora_delta]
        if not names:
            return
        weight = merged_weight(self.base_layer, [self.ttlora_delta[name] for name in names])
        if safe_merge and not weight.isfinite().all():
            raise ValueError(f"merging {', '.join(names)} would give NaN or infinite weights; nothing was merged")
        before = self.base_layer.weight.data, self._kept, list(self.merged_adapters)
        try:
            self.base_layer.weight.data = weight
            self._kept = before[0] if before[1] is None else before[1]
            self.merged_adapters += names
        except BaseException:
            self._restore(*before)
            raise

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("the adapters are not merged; nothing to do", stacklevel=2)
            return
        before = self.base_layer.weight.data, self._kept, list(self.merged_adapters)
        try:
            self._restore(self._kept, None, [])
        except BaseException:
            self._restore(*before)
            raise

    def _restore(self, weight: Tensor, kept: Tensor | None, merged: list[str]) -> None:
        self.base_layer.weight.data, self._kept = weight, kept
        self.merged_adapters[:] = merged

    @property
    def weight(self) -> Tensor:
        """The weight plus the active updates, for code that reads it; for a quantized layer, its weight alone."""
        deltas = [] if self.disable_adapters or self.merged or quantized(self.base_layer) else self._active_deltas()
        return merged_weight(self.base_layer, deltas) if deltas else self.base_layer.weight

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: PEFT may convert the update to plain LoRA by its own decomposition."""
        return True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(*batch, in_features)`` to ``(*batch, out_features)``."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        deltas = self._active_deltas()
        if self.disable_adapters or self.merged or not deltas:
            return self.base_layer(x, *args, **kwargs)
        return updated_answer(self.base_layer, deltas, x)

    def _active_deltas(self) -> list[TTDelta]:
        return [self.ttlora_delta[name] for name in self.active_adapters if name in self.ttlora_delta]


class TTLoraLinear(TTLoraLayer):
    """The same under a name with "Linear", by which PEFT's "all-linear" finds layers that are adapted already."""
