"""A compressed model as something to ship: accepted by tests, derived from its source, loaded in one line, undone.

============  ==========================================================================================
`accepting`   :class:`AcceptanceSuite`: margins declared first, then evidence
`saving`      :func:`save_release`: a folder with tensors, origins, acceptance and the way back
`verifying`   :func:`verify`: every train derived again from the source, every other tensor compared
`loading`     :func:`load_release`: hashes first, then the model
`undoing`     :func:`rollback`: the dense model, bit for bit
`signing`     :func:`sign`: who made it, for those who have the public key
`drift`       :class:`Shadow`: the dense model beside the compressed one, and an alarm
`described`   :func:`describe` and :func:`build`: compressed layers in plain JSON
`quantizer`   the same for transformers: ``from_pretrained`` reads the folder
============  ==========================================================================================

Behind them: `manifest` (what is in the folder), `folders` (written whole or not at all), `sources` (dense tensors by
name), `origins` (where tensors come from), `deriving` (a layer made again and compared), `verified` (what a check
found), `configs` (configurations compared), `contents` (what a model holds), `makers` (layers of descriptions),
`places` and `placing` (layers put into a model without numbers) and `card` (the model card).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .accepting import AcceptanceReport, AcceptanceSuite, Metric, Scored, frequency_slices, length_slices
    from .described import build, describe
    from .drift import Look, Shadow
    from .loading import load_release
    from .saving import save_release
    from .signing import sign
    from .undoing import rollback
    from .verified import VerifyReport
    from .verifying import verify

__all__ = [
    "AcceptanceReport",
    "AcceptanceSuite",
    "Look",
    "Metric",
    "Scored",
    "Shadow",
    "VerifyReport",
    "build",
    "describe",
    "frequency_slices",
    "length_slices",
    "load_release",
    "rollback",
    "save_release",
    "sign",
    "verify",
]

# Late: the acceptance suite needs no safetensors, and loading needs no scipy.
_HOME = {
    "accepting": (
        "AcceptanceReport",
        "AcceptanceSuite",
        "Metric",
        "Scored",
        "frequency_slices",
        "length_slices",
    ),
    "described": ("build", "describe"),
    "drift": ("Look", "Shadow"),
    "loading": ("load_release",),
    "saving": ("save_release",),
    "signing": ("sign",),
    "undoing": ("rollback",),
    "verified": ("VerifyReport",),
    "verifying": ("verify",),
}
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
