"""Names of a package that are imported on first access (PEP 562), in ``ttref`` and in ``ttref.fixedpoint``.

A name whose module needs a package that is not installed is *absent*: ``hasattr`` is False, and ``dir``, ``help``,
``inspect.getmembers`` and an editor's completion skip it. ``from ttref.fixedpoint import TTMatvec`` raises the
ImportError that says what to install.
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
        package: The package's ``__name__``, also where it is a copy under another name.
        home: Names by the module that defines them, relative to the package.

    Returns:
        The two functions. A name is stored in the package on first access.

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
            # hasattr and the like need an AttributeError. `from package import name` would replace that by "cannot
            # import name", without the line that says what to install: there, the cause itself is raised.
            if sys._getframe(1).f_code.co_name == "_handle_fromlist":
                raise
            raise AttributeError(f"module {package!r} has no attribute {name!r} here: {error}") from error
        vars(sys.modules[package])[name] = value
        return value

    def names() -> list[str]:
        present = vars(sys.modules[package])
        return sorted({*present, *present["__all__"]})

    return get, names
