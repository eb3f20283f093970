"""In which precision numbers are computed, whatever the caller runs under: one rule for the whole package.

Under autocast torch hands float32 matrix products to half precision. That is a bargain for a model's large layers and
none for a train: its products are small, they follow one another, and the result would still say float32 while holding
the digits of bfloat16. So everything public here that decomposes, contracts or measures runs with autocast off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # each has an autocast of its own


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
                with torch.autocast(device, enabled=False):  # a plain statement, which a tracing compiler can follow
                    return run(*args, **kwargs)  # another device's may be on as well
        return function(*args, **kwargs)

    return run


def any_autocast() -> bool:
    """Whether autocast is on for any device: a quick question that small layers can afford at every call."""
    return torch._C._is_any_autocast_enabled()


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x lies; some devices, meta among them, know no autocast."""
    return (
        any_autocast()  # the other two questions take microseconds, which a small layer feels
        and torch.amp.is_autocast_available(x.device.type)
        and torch.is_autocast_enabled(x.device.type)
    )


def computable(core: Tensor) -> Tensor:
    """Half-precision cores are contracted in float32 and cast back."""
    return core.float() if core.dtype in (torch.float16, torch.bfloat16) else core
