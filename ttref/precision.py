"""The precision of all arithmetic, under autocast too: one rule for the whole package.

Under autocast torch computes float32 matrix products in half precision. That pays for a model's large layers, but not
for a train: its products are small and chained, and the result would have dtype float32 with the accuracy of bfloat16.
So every public function that decomposes, contracts or measures runs with autocast off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # device types with an autocast setting


def full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function or method compute with autocast off, on every device, whatever its caller set.

    Cost:
        Under a microsecond where no autocast is on; some microseconds where one is.

    Example:
        >>> @full_precision
        ... def product(a, b):
        ...     return a @ b
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     product(torch.ones(2, 2), torch.ones(2, 2)).dtype
        torch.float32
    """

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not any_autocast():
            return function(*args, **kwargs)
        for device in _DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):  # a plain `with`, which torch.compile can trace
                    return run(*args, **kwargs)  # again, because autocast of another device may be on as well
        return function(*args, **kwargs)

    return run


def any_autocast() -> bool:
    """True if autocast is on for any device; fast enough to ask at every call of a small layer."""
    return torch._C._is_any_autocast_enabled()


def under_autocast(x: Tensor) -> bool:
    """True if autocast is on for the device of ``x``; some devices, meta among them, have no autocast."""
    return (
        any_autocast()  # first, because the other two calls take microseconds, which count in a small layer
        and torch.amp.is_autocast_available(x.device.type)
        and torch.is_autocast_enabled(x.device.type)
    )


def computable(core: Tensor) -> Tensor:
    """``core`` in the dtype in which it is contracted: float32 for half precision, whose result is then cast back."""
    return core.float() if core.dtype in (torch.float16, torch.bfloat16) else core
