"""Changing an existing model: one transaction with undo, and one rule for the names of its modules.

`edit` has :class:`edit` and :func:`swap_layer`, `wrappers` the names of modules without wrappers, `ties` the parameters
that several modules share.
"""

from .edit import edit, swap_layer

__all__ = ["edit", "swap_layer"]
