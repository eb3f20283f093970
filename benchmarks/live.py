"""Peak of the bytes alive at once in a computation: every storage is tracked from allocation to release."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that torch operations allocate, until they are released; the same in every run.

    Attributes:
        now, peak: Bytes alive now, and the most that were alive at once.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in known}  # inputs and parameters do not count

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation and count the storages of its results."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._held:
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._held.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


def forward_peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a layer's forward pass without gradients; parameters and ``x`` do not count."""
    with torch.no_grad(), Live(x, *layer.parameters()) as live:
        y = layer(x)  # held until the end, as by a caller
    del y
    return live.peak


def training_peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a training step: forward, then backward to ``x`` and all parameters from a given gradient."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    with torch.no_grad():
        upstream = torch.ones_like(layer(x))
    with Live(x, upstream, *layer.parameters()) as live:
        y = layer(x)
        y.backward(upstream)
    layer.zero_grad(set_to_none=True)
    return live.peak
