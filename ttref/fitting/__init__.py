"""Trains fitted to what a layer sees: Gram matrices of its inputs, and cores that change its outputs least.

`gram` holds Gram matrices and `collecting` takes them from a model; `als` fits cores of a given rank, `adaptive` finds
the ranks for a given error, `choosing` the modes; `errors` measures. Behind them: `starting` makes first cores,
`solving` solves for one core. Names are taken when they are asked for: modules below some of these need others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .als import fit_cores
    from .choosing import Chosen, choose_modes
    from .collecting import collect_gram
    from .errors import output_error
    from .gram import Gram, Grams, as_gram

__all__ = ["Chosen", "Gram", "Grams", "as_gram", "choose_modes", "collect_gram", "fit_cores", "output_error"]

_HOME = {
    "als": ("fit_cores",),
    "choosing": ("Chosen", "choose_modes"),
    "collecting": ("collect_gram",),
    "errors": ("output_error",),
    "gram": ("Gram", "Grams", "as_gram"),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
