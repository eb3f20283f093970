"""Dense weights that are rebuilt at every access: a write into one would be lost, so it is an error."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .tracing import recorded

_HARMLESS = {"requires_grad_", "detach_", "share_memory_"}  # in-place by name, yet nothing is written
_WRITING = {"__setitem__", *(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor".split())}
# Views, through which torch.nn.init and .data write.
_VIEWS = set(
    "detach view view_as reshape __getitem__ t transpose permute flatten ravel unflatten squeeze unsqueeze narrow "
    "select expand expand_as diagonal unbind split chunk swapaxes movedim".split()
)
_SHOWING = {Tensor.data, Tensor.T, Tensor.mT, Tensor.H, Tensor.mH}


class _OfEveryTensor(type(Tensor)):
    """``torch.testing.assert_close`` compares related classes only, a parameter and a rebuilt weight among them."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor)


class Rebuilt(Tensor, metaclass=_OfEveryTensor):
    """A tensor that can be read but not written: results are plain tensors, a write raises."""

    advice: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the function on plain tensors, unless it writes into one of this class."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # an argument of a compiled function, which traces plain tensors
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name, target = func.__name__, args[0] if args else next(iter(kwargs.values()), None)
        writes = name in _WRITING or (name.endswith("_") and not name.endswith("__") and name not in _HARMLESS)
        writes = writes or (name == "__set__" and func.__self__ is Tensor.data)
        for written in (target if writes else None, kwargs.get("out")):
            for tensor in written if isinstance(written, (tuple, list)) else [written]:
                if type(tensor) is Rebuilt:
                    raise RuntimeError(tensor.advice)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        if type(target) is Rebuilt and (name in _VIEWS or (name == "__get__" and func.__self__ in _SHOWING)):
            mark = functools.partial(_marked, advice=target.advice)
            return type(found)(map(mark, found)) if isinstance(found, (tuple, list)) else mark(found)
        return found

    @property
    def _is_param(self) -> bool:
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        self.__class__ = nn.Parameter  # nn.Parameter(weight) means a parameter of these numbers, to be written to

    def __repr__(self, **kwargs: Any) -> str:
        return self.as_subclass(Tensor).__repr__(**kwargs)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).__deepcopy__(memo)


def rebuilt(weight: Tensor, owner: object, instead: str) -> Tensor:
    """A freshly rebuilt weight as a tensor that refuses writes, which would be lost.

    Args:
        weight: The weight, plain.
        owner: The module, whose class the message names.
        instead: The remedy, for the message.

    Returns:
        The same numbers, differentiable as before. Reading, computing and ``clone()`` make plain tensors.

    Cost:
        Some microseconds for each function of torch that takes it.

    Example:
        >>> import torch
        >>> weight = rebuilt(torch.ones(2, 2), torch.nn.ReLU(), "write elsewhere")
        >>> type(weight + 1).__name__
        'Tensor'
        >>> torch.nn.init.zeros_(weight)
        Traceback (most recent call last):
            ...
        RuntimeError: the weight of this ReLU is rebuilt at every access, so what is written into it is lost; write ...
    """
    if torch.compiler.is_compiling() or recorded() or type(weight) is not Tensor or weight.is_meta:
        return weight  # tracers need plain tensors, and a meta tensor has no numbers to lose
    return _marked(
        weight,
        f"the weight of this {type(owner).__name__} is rebuilt at every access, so what is written into it is lost; "
        f"{instead}, or .clone() for a copy to write to",
    )


def _marked(weight: Tensor, advice: str) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        weight = weight.as_subclass(Rebuilt)
    weight.__dict__["advice"] = advice
    return weight
