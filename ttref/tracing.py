"""Whether torch records or transforms what is computed now, asked by names that not every torch has."""

from __future__ import annotations

import torch

try:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
except ImportError:  # torch 2.4: any mode that sees all operations may be one that records them

    def get_proxy_mode() -> object | None:
        """What records operations now, or None."""
        return torch._C._len_torch_dispatch_stack() or None


# Where torch does not tell, the answer is the one that costs time and no digits: yes.
transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def recorded() -> bool:
    """Whether a tracer takes the operations down; ``torch.compile`` and ``torch.export`` say so themselves."""
    return torch.jit.is_tracing() or get_proxy_mode() is not None


def forward_mode() -> bool:
    """Whether derivatives are taken along with the numbers, as ``torch.func.jvp`` does."""
    return torch.autograd.forward_ad._current_level >= 0
