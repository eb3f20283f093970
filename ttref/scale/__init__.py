"""Jobs that outgrow one process: the same results on this machine's processes and on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .audits import audit
    from .engine import run
    from .fits import Fitted, fit_cores
    from .grams import collect_gram
    from .ray_cluster import cluster
    from .rows import compress_rows
    from .table import Table

__all__ = ["Fitted", "Table", "audit", "cluster", "collect_gram", "compress_rows", "fit_cores", "run"]

_HOME = {
    "audits": ("audit",),
    "engine": ("run",),
    "fits": ("Fitted", "fit_cores"),
    "grams": ("collect_gram",),
    "ray_cluster": ("cluster",),
    "rows": ("compress_rows",),
    "table": ("Table",),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
