"""A call that waits for another package: made when that is imported, at once if it was, never if it is not."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["when_imported"]


def when_imported(awaited: str, module: str, function: str) -> None:
    """Call ``module.function()`` as soon as the module ``awaited`` has been imported.

    Neither is imported by this: until ``awaited`` comes, it costs one comparison for each import. A call that finds
    another version of the package than it needs warns, and does not break the import.

    Args:
        awaited: Full name of a module of another package.
        module: Full name of the module that has the function.
        function: Its name; it takes nothing.

    Example:
        >>> import sys
        >>> sys.modules.pop("this", None) and None
        >>> when_imported("colorsys", "gc", "collect")
    """
    if awaited in sys.modules:
        _call(awaited, module, function)
    else:
        sys.meta_path.insert(0, _Waiting(awaited, module, function))


class _Waiting:
    """A finder that finds a module as the others do, and has its loader make a call at the end.

    It stays: other threads walk along the list of finders, and an import that failed may be tried again.
    """

    def __init__(self, awaited: str, module: str, function: str) -> None:
        self._awaited, self._call = awaited, (awaited, module, function)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the next finder gives, for the awaited module; None for all others."""
        if name != self._awaited:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _call(*self._call)

            spec.loader.exec_module = exec_module  # on this loader, made for this import
        return spec


def _call(awaited: str, module: str, function: str) -> None:
    try:
        getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        warnings.warn(f"{module}.{function}() does not go with this {awaited.partition('.')[0]}: {error}", stacklevel=2)
