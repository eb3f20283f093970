"""The hash of data: sha256 over one way to write numbers, texts, tensors, lists and dictionaries."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...files import digest
from ...surgery.wrappers import bare_state


def hash_of(value: Any, name: str = "data") -> str:
    """sha256 of a value, 64 digits: equal for equal values, in every process and on every machine.

    Lists and tuples are one kind, and so are tensors and arrays of numbers; the order of a dictionary does not count.
    All else does: ``1``, ``1.0``, ``True`` and ``"1"`` are four different values, and a tensor counts with its dtype
    and shape.

    Args:
        value: None, booleans, numbers, texts, bytes, tensors, arrays, and lists, tuples and dictionaries of these.
        name: What a message calls it.

    Raises:
        TypeError: Anything else, with its place; a dictionary whose keys are no texts or integers.
        ValueError: A list that holds itself.
        ModuleNotFoundError: Tensors, where safetensors is not installed.

    Cost:
        O(bytes).

    Example:
        >>> hash_of(["a", {"x": 1, "y": (2, 3)}]) == hash_of(("a", {"y": [2, 3], "x": 1}))
        True
        >>> hash_of([1]) == hash_of([1.0])
        False
    """
    found = hashlib.sha256()
    try:
        _write(value, name, found.update)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply to be hashed; does a list hold itself?") from None
    return found.hexdigest()


def state_hash(model: nn.Module) -> str:
    """sha256 of a model's state: the hash of each of its tensors with numbers, by its name without wrappers.

    Cost:
        O(bytes), one tensor on the CPU at a time.
    """
    state = bare_state(model).items()
    return hash_of({name: digest(one) for name, one in state if isinstance(one, Tensor) and not one.is_meta}, "a state")


def _write(value: Any, where: str, out: Callable[[bytes], object]) -> None:
    """A letter for the kind, the length where it varies, and the content: no two values are written alike."""
    if value is None:
        out(b"n")
    elif isinstance(value, bool):
        out(b"b1" if value else b"b0")
    elif isinstance(value, int):
        out(b"i%d;" % int(value))
    elif isinstance(value, float):
        out(b"f%b;" % float(value).hex().encode())
    elif isinstance(value, str):
        _counted(b"s", value.encode("utf-8", "surrogatepass"), out)
    elif isinstance(value, (bytes, bytearray)):
        _counted(b"y", bytes(value), out)
    elif isinstance(value, Tensor) or hasattr(value, "__array_interface__"):
        _write_tensor(value, where, out)
    elif isinstance(value, Mapping):
        _write_mapping(value, where, out)
    elif isinstance(value, (list, tuple)):
        out(b"l%d;" % len(value))
        for k, part in enumerate(value):
            _write(part, f"{where}[{k}]", out)
    else:
        raise TypeError(
            f"{where} is {reprlib.repr(value)} of type {type(value).__name__}, which has no fixed bytes to hash; give "
            "texts, numbers, tensors, and lists and dictionaries of these"
        )


def _counted(kind: bytes, content: bytes, out: Callable[[bytes], object]) -> None:
    out(b"%b%d;" % (kind, len(content)))
    out(content)


def _write_tensor(value: Any, where: str, out: Callable[[bytes], object]) -> None:
    try:
        tensor = torch.as_tensor(value).detach()
        content = digest(tensor.resolve_conj().resolve_neg())
    except ModuleNotFoundError:
        raise
    except (TypeError, ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        raise TypeError(f"{where} is a {type(value).__name__} that cannot be hashed: {error}") from error
    out(b"t" + content.encode())


def _write_mapping(value: Mapping[Any, Any], where: str, out: Callable[[bytes], object]) -> None:
    for key in value:
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise TypeError(f"{where} has the key {key!r}; the keys of what is hashed must be texts or integers")
    out(b"d%d;" % len(value))
    for key in sorted(value, key=lambda key: (isinstance(key, str), key)):
        _write(key, where, out)
        _write(value[key], f"{where}[{key!r}]", out)
