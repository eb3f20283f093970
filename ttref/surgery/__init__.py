"""Changing a model that is there already: one transaction, and the names that modules have in it."""

from .edit import edit, swap_layer

__all__ = ["edit", "swap_layer"]
