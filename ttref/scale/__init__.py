"""Jobs that outgrow one process: the same results on this machine's processes and on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .engine import run
    from .rows import compress_rows
    from .table import Table

__all__ = ["Table", "compress_rows", "run"]

_HOME = {
    "engine": ("run",),
    "rows": ("compress_rows",),
    "table": ("Table",),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
