"""Names of a package that are imported when they are asked for (PEP 562): one rule for ``ttref`` and its parts.

A name whose module needs a package that is not installed is *not there*: ``hasattr`` is False, and ``dir``, ``help``,
``inspect.getmembers`` and a completing editor pass it over. ``from ttref import TTLoraConfig`` asks for it by name, and
is told what to install.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, home: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: The package's own ``__name__``, wherever it was copied to.
        home: Names by the module that holds them, relative to the package.

    Returns:
        The two functions. A name is kept in the package once it was asked for.

    Example:
        >>> get, _ = lazy_names("ttref", {"shapes": ("factorize",)})
        >>> get("factorize")(12)
        (2, 2, 3)
    """
    module_of = {name: module for module, names in home.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        except ImportError as error:
            # An AttributeError says "not there" to hasattr and its kin. `from package import name` would swallow it and
            # the install line with it, and say no more than "cannot import name": there, the cause itself is raised.
            if sys._getframe(1).f_code.co_name == "_handle_fromlist":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r} here: {error}") from error
        vars(sys.modules[package])[name] = value
        return value

    def names() -> list[str]:
        present = vars(sys.modules[package])
        return sorted({*present, *present["__all__"]})

    return get, names
