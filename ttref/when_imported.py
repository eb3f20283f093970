"""A module that waits for another package: imported when that is, at once if it was, never if it is not."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["when_imported"]


def when_imported(awaited: str, module: str) -> None:
    """Import ``module`` as soon as the module ``awaited`` has been imported; its import may register what it has there.

    Until ``awaited`` comes, this costs one comparison for each import. A ``module`` that finds another version of the
    package than it needs gives a warning, and does not break the import.

    Args:
        awaited: Full name of a module of another package.
        module: Full name of the module to import.

    Example:
        >>> when_imported("json", "ttref.shapes")       # was imported before, so at once
        >>> "ttref.shapes" in sys.modules
        True
    """
    if awaited in sys.modules:
        _import(awaited, module)
    else:
        sys.meta_path.insert(0, _Waiting(awaited, module))


class _Waiting:
    """A finder that finds a module as those behind it do, and has its loader import another one at the end.

    It stays: other threads walk along the list of finders, and an import that failed may be tried again.
    """

    def __init__(self, awaited: str, module: str) -> None:
        self._awaited, self._module = awaited, module

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the next finder gives, for the awaited module; None for all others."""
        if name != self._awaited:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]  # those before it were asked already
        spec = next((spec for finder in behind if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _import(self._awaited, self._module)

            spec.loader.exec_module = exec_module  # of this loader, which was made for this import
        return spec


def _import(awaited: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        package = awaited.partition(".")[0]
        warnings.warn(f"{module} does not go with this version of {package}: {error}", stacklevel=2)
