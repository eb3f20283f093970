"""Jobs that outgrow one process: the same results on this machine's processes and on Ray."""

from __future__ import annotations

from .engine import run

__all__ = ["run"]
