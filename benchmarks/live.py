"""Peak of the bytes alive at once in a layer's forward pass and in a training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttref.release.accepting.live import Live, peak_of


def forward_peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a layer's forward pass without gradients; parameters and ``x`` do not count."""
    return peak_of(lambda: layer(x), (x, *layer.parameters()))


def training_peak(layer: nn.Module, x: Tensor) -> int:
    """Peak bytes of a training step: forward, then backward to ``x`` and all parameters from a given gradient."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    with torch.no_grad():
        upstream = torch.ones_like(layer(x))
    with Live((x, upstream, *layer.parameters())) as live:
        y = layer(x)
        y.backward(upstream)
    layer.zero_grad(set_to_none=True)
    return live.peak
