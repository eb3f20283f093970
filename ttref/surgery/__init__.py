"""Changing an existing model: one transaction with undo, which layers bear to be replaced, and by what.

`edit` has :class:`edit` and :func:`swap_layer`, `wrappers` the names of modules without wrappers, `ties` the parameters
that several modules share. `finding` lists the layers that can be replaced, `candidates` has the ways to do it (behind
them `sizing` and `making`), `sensing` measures what each of them costs the model (`sensed` is what it found), `budgets`
chooses among them, and `ordering` orders hidden units. `partial` is the search that keeps the replacements which a
metric bears, `gates` and `paired` say when it does, `searching`, `buffers`, `resuming` and
`layer_report` are its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .edit import edit, swap_layer  # at once, because a module of the same name would hide a name that comes late

if TYPE_CHECKING:
    from .budgets import search_ranks
    from .finding import find_layers
    from .gates import drop_gate, equivalence_gate, false_accepts
    from .ordering import order_units
    from .partial import partial_tensorize
    from .sensing import sensitivity

__all__ = [
    "drop_gate",
    "edit",
    "equivalence_gate",
    "false_accepts",
    "find_layers",
    "order_units",
    "partial_tensorize",
    "search_ranks",
    "sensitivity",
    "swap_layer",
]

# Late, because tables and adapters import the modules below, and `candidates` imports tables.
_HOME = {
    "budgets": ("search_ranks",),
    "finding": ("find_layers",),
    "gates": ("drop_gate", "equivalence_gate", "false_accepts"),
    "ordering": ("order_units",),
    "partial": ("partial_tensorize",),
    "sensing": ("sensitivity",),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
