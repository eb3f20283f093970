"""The record of a search: its settings, what is known of each layer, and every metric, in one JSON file.

A search is decided by its metrics alone. Run again with those of the file, it comes to the place where it was killed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import replace
from .gates import as_scores

FORMAT, VERSION = "ttref.partial", 1
_WEIGHT = 1e-5  # relative difference of norms up to which a weight is the same one, on another machine


class Record:
    """What a search knows; with a path it is written, whole or not at all, after every metric.

    Attributes:
        settings: What must be the same for the search to go on.
        layers: What is known of each layer by name, as JSON has it.
        metrics: Every metric in the order of the search: what was tried, ``scores``, ``seconds``.
        done: How many of the metrics this run has used; those after it stand in the file.
    """

    def __init__(self, settings: dict[str, Any], path: str | Path | None) -> None:
        self.settings, self.path, self.done = settings, path, 0
        self.layers: dict[str, dict[str, Any]] = {}
        self.metrics: list[dict[str, Any]] = []
        if path is not None and Path(path).exists():
            self._read(Path(path))
        elif path is not None:
            self.write(path)  # now, if it cannot be written

    def known(self, name: str, norm: float) -> dict[str, Any] | None:
        """What the file knows of a layer, if its weight is still the one of this norm."""
        if (facts := self.layers.get(name)) is None:
            return None
        if not math.isclose(facts["norm"], norm, rel_tol=_WEIGHT):
            raise ValueError(
                f"{self.path} is of another model: the weight of {name} had the norm {facts['norm']:.6g} and has "
                f"{norm:.6g}; load the model that the search began with, or give a new path"
            )
        return facts

    def next(self, tried: str) -> Tensor | None:
        """The next metric in the file, None if the search must measure it."""
        if self.done == len(self.metrics):
            return None
        entry = self.metrics[self.done]
        if entry["tried"] != tried:
            raise ValueError(
                f"{self.path} is damaged, or of another search: its metric {self.done} is of {entry['tried']!r}, "
                f"where this search measures {tried!r}; give a new path"
            )
        self.done += 1
        return as_scores(entry["scores"])

    def add(self, tried: str, scores: Tensor, seconds: float) -> None:
        """A metric that was measured, and the file with it."""
        self.metrics.append({"tried": tried, "scores": scores.tolist(), "seconds": round(seconds, 4)})
        self.done += 1
        if self.path is not None:
            self.write(self.path)

    def write(self, path: str | Path, **more: Any) -> None:
        """Write everything to one JSON file; errors as :meth:`TTLinear.save`."""
        replace(path, [(json.dumps(self.as_dict() | more, indent=1, allow_nan=False) + "\n").encode()])

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "layers": list(self.layers.values()),
            "metrics": self.metrics,
        }

    def _read(self, path: Path) -> None:
        """Take up a file; ValueError if it is damaged, or of a search with other settings."""
        content = path.read_bytes()
        try:
            found = json.loads(content)
            if found["format"] != FORMAT or found["version"] != VERSION:
                raise ValueError(f"it holds {found['format']} of version {found['version']}")
            settings, layers, metrics = found["settings"], found["layers"], found["metrics"]
            for facts in layers:
                if not _ROW <= facts.keys() or not isinstance(facts["norm"], float):
                    raise ValueError(f"a layer has {', '.join(facts)}")
            for entry in metrics:
                if not isinstance(entry["tried"], str) or not isinstance(entry["seconds"], (int, float)):
                    raise ValueError("a metric without what was tried, or without its time")
                as_scores(entry["scores"])
            settings = dict(settings)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no search saved by partial_tensorize, or is damaged ({type(error).__name__}: {error}); "
                "give the path of another file, or of none, to begin anew"
            ) from error
        for name in self.settings | settings:
            before, now = settings.get(name), json.loads(json.dumps(self.settings.get(name)))
            if before != now:
                if isinstance(before, list) and isinstance(now, list):
                    before, now = (_without(one, other) for one, other in ((before, now), (now, before)))
                raise ValueError(
                    f"{path} is of a search with {name} = {before!r}, and this one has {now!r}; go on with the same, "
                    "or give a new path"
                )
        self.layers, self.metrics = {facts["name"]: facts for facts in layers}, metrics


_ROW = {"name", "shape", "norm", "modes", "ranks", "params_after", "nbytes_after", "skipped", "seconds"}


def _without(one: list[Any], other: list[Any]) -> list[Any]:
    """The first entries that the other list lacks: the difference is easier to read than the lists."""
    return [entry for entry in one if entry not in other][:3]


def norm_of(weight: Tensor) -> float:
    """The norm of a weight, by which a search recognizes it."""
    return torch.linalg.vector_norm(weight.detach(), dtype=torch.float64).item()
