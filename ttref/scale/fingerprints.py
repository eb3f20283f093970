"""Digits that tell values from others by what they hold, the same in every process: batches, functions, models."""

from __future__ import annotations

import dis
import hashlib
import pickle
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..files import digest

DIGITS = 16
PLAIN = frozenset([type(None), bool, int, float, complex, str, bytes, type, type(print)])  # what holds nothing else
Digits = Callable[[Any], str]
READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def fingerprint(value: Any) -> str:
    """Digits of what a value holds, as pickle sees it.

    Tensors and arrays are told by their numbers; modules, classes, and functions of a module by their names; other
    functions (a lambda, one within a function, one of the script or notebook) by their code, and by the values that
    they hold or read: defaults, variables of functions around them, global variables. Functions of the script among
    these are told in the same way.

    Not seen are the code of a module or a class, and the globals that it reads; what is read through a module
    (``settings.factor``); what lies behind ``functools.cache``; and files.

    Raises:
        TypeError: What pickle cannot write.

    Cost:
        O(what it holds); what it holds several times is hashed once.
    """
    try:
        try:
            return _Once().digits(value)  # without references: equal values are alike, whether they share or not
        except (_Circle, RecursionError):
            return _Followed({}).digits(value)
    except Exception as error:  # pickle raises what it likes
        what = f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()
        raise TypeError(
            f"a {what} cannot be told from others, as it cannot be pickled ({type(error).__name__}: {error})"
        ) from error


class _Circle(ValueError):
    """A value that holds itself."""


class _Once:
    """Digits of a value by those of its parts, each found once.

    Pickle alone would either write a part as often as it comes, which grows exponentially where parts share parts, or
    refer to the first, which tells ``[a, a]`` from ``[a, b]`` with ``a`` equal to ``b``.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, str]] = {}  # with the part itself, or another would get its id
        self.begun: set[int] = set()

    def digits(self, value: Any) -> str:
        """The digits of a part."""
        key = id(value)
        if key in self.begun:
            raise _Circle(f"a {type(value).__name__} holds itself")
        if key not in self.known:
            self.begun.add(key)
            waiting = [value]  # the part is pickled, and not what it holds

            def stands_for(one: Any) -> tuple | None:
                if type(one) in PLAIN:
                    return None
                if waiting and one is waiting[0]:
                    waiting.clear()
                    return _by_hand(one, self.digits, self.digits)
                return "part", self.digits(one)

            self.known[key] = value, _hash(value, stands_for, fast=True)
            self.begun.remove(key)
        return self.known[key][1]


class _Followed:
    """Digits of a value that holds itself: pickle refers to what it has written, and functions are numbered.

    Args:
        functions: The numbers of those that are hashed, by their ids.
    """

    def __init__(self, functions: dict[int, tuple[int, Any]]) -> None:
        self.functions = functions

    def digits(self, value: Any) -> str:
        """The digits of a value."""
        return _hash(value, self._stands_for, fast=False)

    def _stands_for(self, one: Any) -> Any:
        if isinstance(one, str):  # equal strings may be one object or several
            return one.encode(errors="surrogatepass")
        if isinstance(one, FunctionType):
            if id(one) in self.functions:
                return "function", self.functions[id(one)][0]
            if not _named(one):
                self.functions[id(one)] = len(self.functions), one
        return _by_hand(one, self.digits, self._apart)

    def _apart(self, one: Any) -> str:
        return _Followed(dict(self.functions)).digits(one)


def _hash(value: Any, stands_for: Callable[[Any], Any], *, fast: bool) -> str:
    made = hashlib.sha256()
    pickler = _Pickler(SimpleNamespace(write=made.update), protocol=4)
    pickler.fast, pickler.stands_for = fast, stands_for
    pickler.dump(value)
    return made.hexdigest()[:DIGITS]


class _Pickler(pickle.Pickler):
    """Pickle, with something in place of what it writes differently each time, or not at all."""

    stands_for: Callable[[Any], Any]

    def persistent_id(self, value: Any) -> Any:
        """What stands for a value; None lets pickle write it."""
        return self.stands_for(value)


def _by_hand(value: Any, digits: Digits, apart: Digits) -> tuple | None:
    """What stands for a value that pickle writes differently each time, or not at all; else None.

    Args:
        value: Any value.
        digits: The function that gives the digits of what it holds.
        apart: Likewise, for what is held in no order.
    """
    if isinstance(value, Tensor):
        return "tensor", *_tensor(value.detach())
    if isinstance(value, (set, frozenset)):  # their order differs from process to process
        return type(value).__qualname__, *sorted(apart(one) for one in value)
    if isinstance(value, UserDict):  # a tokenizer's holds beside its numbers how it came to them
        return type(value).__qualname__, digits(value.data)
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, FunctionType) and not _named(value):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        about = _code(value.__code__), value.__defaults__, value.__kwdefaults__, held
        return "function", value.__qualname__, digits(about), *_globals(value, digits)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray) and not value.dtype.hasobject:
        return "array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    return None


def _tensor(tensor: Tensor) -> Iterator[str]:
    if tensor.layout == torch.strided:
        yield digest(tensor)
    else:
        yield from (str(tensor.layout), str(list(tensor.shape)))
        tensor = tensor.to_sparse_coo().coalesce()
        yield from (digest(tensor.indices()), digest(tensor.values()))


def _named(function: FunctionType) -> bool:
    """True if a module has this function under its name."""
    found: Any = sys.modules.get(function.__module__) if function.__module__ != "__main__" else None
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _globals(function: FunctionType, digits: Digits) -> Iterator[str]:
    """Name and digits of each global variable that a function reads, or one within it; built-in names are none."""
    for name in sorted(set(_read(function.__code__)) & function.__globals__.keys()):
        try:
            yield f"{name} {digits(function.__globals__[name])}"
        except (_Circle, RecursionError):
            raise
        except Exception as error:
            raise TypeError(f"it reads the global {name}, {type(error).__name__}: {error}") from error


def _read(code: CodeType) -> Iterator[str]:
    """Names that code looks up among globals; those of attributes are none."""
    yield from (one.argval for one in dis.get_instructions(code) if one.opname in READS)
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _read(one)


def _code(code: CodeType) -> tuple:
    """What a function does, without where it stands."""
    held = [_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, held
