"""Changing an existing model: one transaction with undo, which layers bear to be replaced, and by what.

`edit` has :class:`edit` and :func:`swap_layer`, `wrappers` the names of modules without wrappers, `ties` the parameters
that several modules share. `finding` lists the layers that can be replaced, `candidates` has the ways to do it, and
`sensing` measures what each of them costs the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .edit import edit, swap_layer  # at once, because a module of the same name would hide a name that comes late

if TYPE_CHECKING:
    from .finding import find_layers
    from .sensing import sensitivity

__all__ = ["edit", "find_layers", "sensitivity", "swap_layer"]

# Late, because tables and adapters import the modules below, and `candidates` imports tables.
_HOME = {
    "finding": ("find_layers",),
    "sensing": ("sensitivity",),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
