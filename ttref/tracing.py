"""Detects tracing and function transforms, by names that not every version of torch has."""

from __future__ import annotations

import torch

try:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
except ImportError:  # torch 2.4: any active dispatch mode may be one that traces

    def get_proxy_mode() -> object | None:
        """The active tracing mode, or None."""
        return torch._C._len_torch_dispatch_stack() or None


# torch 2.6 does not tell an exporter from a compiler, which may make one graph for each range of sizes.
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

# If torch cannot tell, assume a transform: that costs time, but no accuracy.
transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def recorded() -> bool:
    """True while operations are traced; ``torch.compile`` and ``torch.export`` have a flag that callers ask first."""
    return torch.jit.is_tracing() or get_proxy_mode() is not None


def exported(size: int) -> bool:
    """True for a size that ``torch.export`` leaves open: one graph serves all, so no choice may follow the size."""
    return _exporting() and isinstance(size, torch.SymInt)


def forward_mode() -> bool:
    """True inside forward-mode differentiation, such as ``torch.func.jvp``."""
    return torch.autograd.forward_ad._current_level >= 0
