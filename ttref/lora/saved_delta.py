"""One update in a file: its settings in the header, checked before memory is allocated for it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from ..checks import check_float
from ..files import MOST_MODES, check_finite, check_header, write

KIND = "TTDelta"  # the kind in files, also for subclasses
MOST_FEATURES = 1 << 27  # no layer is wider
_LAYER = {
    "shape": (list,),
    "ranks": (list,),
    "alpha": (int, float),
    "init": (str,),
    "dropout": (int, float),
    "features": (list,),
    "automatic": (bool,),
}


class SavedDelta(nn.Module):
    """Base class of :class:`TTDelta`: its files."""

    def about(self) -> dict[str, Any]:
        """The settings of this update, for the header of a file."""
        return {
            "shape": self.shape,
            "ranks": self.ranks,
            "alpha": self.alpha,
            "init": self.init,
            "dropout": getattr(self.dropout, "p", 0.0),
            "features": [self.out_features, self.in_features],
            "automatic": math.prod(self.shape) != self.out_features * self.in_features,
        }

    def save(self, path: str | Path) -> None:
        """Write the cores of this one update to a safetensors file, which ``ttref.load`` reads: all of them trainable.

        Raises:
            ValueError: Numbers that are NaN or infinite.
            FileNotFoundError, OSError: No such folder; a folder, a full disk, missing permissions. The old file stays.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        """
        write(path, KIND, {f"update.cores.{k}": core for k, core in enumerate(self.cores)}, self.about(), self._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        made = cls.made_of("update", header, tensors)
        if len(tensors) != len(made.cores):
            raise ValueError(f"it holds {', '.join(sorted(tensors))}")
        check_finite(tensors)
        return made

    @classmethod
    def made_of(cls, name: str, about: dict[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The update with the cores ``name.cores.k``, checked against the settings ``about``."""
        cores = _cores(name, about, tensors)
        # A padded shape cannot be passed in, so it is chosen again.
        shape = None if about["automatic"] else about["shape"]
        options = {key: about[key] for key in ("alpha", "init", "dropout")}
        # Building it without memory checks all the rest: ranges, and whether shape and ranks go together.
        made = cls(*about["features"], rank=about["ranks"], shape=shape, device="meta", **options)
        if made.shape != tuple(about["shape"]) or made.ranks != tuple(about["ranks"]):
            raise ValueError(f"{name} has modes {about['shape']} and ranks {about['ranks']}, which do not go together")
        for k, core in enumerate(cores.values()):
            made.cores[k] = nn.Parameter(core)
        return made


def _cores(name: str, about: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The cores of one layer by name, checked against its header before memory is allocated."""
    check_header(about, _LAYER)
    shape, ranks, features = about["shape"], about["ranks"], about["features"]
    if {type(size) for size in (*shape, *ranks, *features)} != {int} or len(features) != 2:
        raise TypeError(f"the header's entry for {name} has a value of the wrong type")
    if not 1 <= min(features) <= max(features) <= MOST_FEATURES:
        raise ValueError(f"the header's entry for {name} has widths {features}")
    if not 1 <= len(shape) <= MOST_MODES or len(ranks) != len(shape) + 1:
        raise ValueError(f"the header's entry for {name} has {len(shape)} modes and {len(ranks)} ranks")
    # Padding less than doubles a width.
    if not math.prod(features) <= math.prod(shape) < 4 * math.prod(features):
        raise ValueError(f"{name} has modes {reprlib.repr(shape)}, which do not fit its widths {features}")
    cores = {key: tensors[key] for key in (f"{name}.cores.{k}" for k in range(len(shape)))}
    for (key, core), wanted in zip(cores.items(), zip(ranks[:-1], shape, ranks[1:], strict=True), strict=True):
        check_float(key, core)
        if core.shape != wanted:
            raise ValueError(f"{key} has shape {tuple(core.shape)}, and the header says {wanted}")
    if len({core.dtype for core in cores.values()}) > 1:
        raise ValueError(f"the cores of {name} have several dtypes")
    return cores
