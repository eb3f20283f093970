"""Digits that tell values from others by what they hold, the same in every process: batches, functions, models."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections import UserDict
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor

from ..files import digest

DIGITS = 16


def fingerprint(value: Any) -> str:
    """Digits of what a value holds, as pickle sees it.

    Tensors and arrays are told by their numbers, classes and functions of a module by their names, other functions (a
    lambda, one within a function, one of the script or notebook) by their code and by what they hold. Not seen are the
    code of a module, global variables, and files.

    Raises:
        TypeError: What pickle cannot write.
    """
    try:
        try:
            return _hash(value, fast=True)  # without references: equal values are alike, whether they share or not
        except (ValueError, RecursionError):  # what holds itself
            return _hash(value, fast=False)
    except Exception as error:  # pickle raises what it likes
        what = f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()
        raise TypeError(
            f"a {what} cannot be told from others, as it cannot be pickled ({type(error).__name__}: {error})"
        ) from error


def _hash(value: Any, *, fast: bool) -> str:
    made = hashlib.sha256()
    pickler = _Pickler(SimpleNamespace(write=made.update), protocol=4)
    pickler.fast = fast
    pickler.dump(value)
    return made.hexdigest()[:DIGITS]


class _Pickler(pickle.Pickler):
    """Pickle, with digits in place of what it writes differently each time, or not at all."""

    def persistent_id(self, value: Any) -> tuple | None:
        """What stands for a value; None lets pickle write it."""
        if isinstance(value, Tensor):
            return "tensor", digest(value.detach())
        if isinstance(value, (set, frozenset)):  # their order differs from process to process
            return type(value).__qualname__, *sorted(_hash(one, fast=self.fast) for one in value)
        if isinstance(value, UserDict):  # a tokenizer's holds beside its numbers how it came to them
            return type(value).__qualname__, _hash(value.data, fast=self.fast)
        if isinstance(value, FunctionType) and not _named(value):
            held = [cell.cell_contents for cell in value.__closure__ or ()]
            about = _code(value.__code__), value.__defaults__, value.__kwdefaults__, held
            return "function", value.__qualname__, _hash(about, fast=self.fast)
        if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray) and not value.dtype.hasobject:
            return "array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
        return None


def _named(function: FunctionType) -> bool:
    """True if a module has this function under its name."""
    found: Any = sys.modules.get(function.__module__) if function.__module__ != "__main__" else None
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _code(code: CodeType) -> tuple:
    """What a function does, without where it stands."""
    held = [_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, held
