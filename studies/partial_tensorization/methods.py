"""The candidates of this study, each made once for a layer: loops over thresholds share them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

from torch import Tensor, nn

import ttref
from book.workbook.store import cache_folder
from ttref import TTLinear, ttm_to_matrix
from ttref.fitting import Grams, collect_gram, fit_cores, output_error
from ttref.surgery import candidates
from ttref.surgery.candidates import Candidate

from .tasks import Task

UNKNOWNS = 2100  # of the largest system of a fit, which is solved in a fraction of a second
FITTED = ("fitted", "quick", "whitened", "gptq")
ON_DISK = ("fitted",)  # minutes for a model


class Shelf:
    """Candidates for the layers of a task, and the Gram matrices they are fitted to.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kept: dict[str, Candidate] = {}

    @functools.cached_property
    def grams(self) -> Grams:
        """Of the inputs of all linear layers."""
        return collect_gram(self._task.model, self._task.linears, self._task.calibration, progress=False)

    @staticmethod
    def needs_gram(name: str) -> bool:
        """Whether candidates of this name are fitted."""
        return name in FITTED

    def candidate(self, name: str, size: float) -> Candidate:
        """The candidate; its replacements are made once for each layer."""
        key = f"{name} {size:g}"
        if key not in self._kept:
            self._kept[key] = once(self.stored(made(name, size)) if name in ON_DISK else made(name, size))
        return self._kept[key]

    def stored(self, inner: Candidate) -> Candidate:
        """The candidate with its replacements in the cache folder, so that a run that was stopped goes on."""
        names = {id(self._task.model.get_submodule(name)): name for name in self._task.linears}
        folder = cache_folder() / "partial_tensorization"
        folder.mkdir(exist_ok=True)

        def build(layer: nn.Module, gram: Any) -> nn.Module:
            key = f"{type(self._task.model).__name__} {names[id(layer)]} {inner.name} {gram.tokens}"
            path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
            if not path.is_file():
                inner.build(layer, gram).save(path)
            return ttref.load(path)

        return dataclasses.replace(inner, build=build)


def once(inner: Candidate) -> Candidate:
    """The candidate with a memory of what it made."""
    known: dict[int, tuple[nn.Module, nn.Module]] = {}

    def build(layer: nn.Module, gram: Any) -> nn.Module:
        if id(layer) not in known:
            known[id(layer)] = layer, inner.build(layer, gram)  # the layer is kept, so that its identity is not reused
        return known[id(layer)][1]

    return dataclasses.replace(inner, build=build)


def made(name: str, size: float) -> Candidate:
    """A candidate by this study's name and size: eps below 1, else a ratio, or bits of integers."""
    if name == "int":
        return candidates.integer(int(size))
    if name == "gptq":
        return candidates.gptq(int(size))
    if name == "whitened":
        return candidates.whitened_svd(ratio=size)
    if name in FITTED:
        build = functools.partial(fitted, tries=1 if name == "quick" else 2)
        return Candidate(f"{name} {size:g}x", functools.partial(build, size), only_linear, needs_gram=True)
    how = {"ratio": size} if size > 1 else {"eps": size}
    return candidates.tensor_train(**how) if name == "tt" else candidates.svd(**how)


def only_linear(layer: nn.Module, gram: Any) -> str | None:
    """Why a layer is not fitted."""
    return None if isinstance(layer, nn.Linear) else "only linear layers are fitted here"


def fitted(ratio: float, layer: nn.Module, gram: Any, tries: int = 2) -> TTLinear:
    """A train of two cores fitted to the outputs; of a few modes the best after one sweep is finished."""
    w = layer.weight.detach()
    found = []
    for rows, cols, rank in modes(w, ratio)[:tries]:
        cores = fit_cores(w, gram, rows, cols, rank=rank, sweeps=1)
        found.append((output_error(w, ttm_to_matrix(cores), gram), rows, cols, rank, cores))
    _, rows, cols, rank, cores = min(found, key=lambda each: each[0])
    cores = fit_cores(w, gram, rows, cols, rank=rank, start=cores, sweeps=5 if tries > 1 else 2)
    return TTLinear.from_cores(cores, layer.bias)


def modes(w: Tensor, ratio: float) -> list[tuple[tuple[int, int], tuple[int, int], int]]:
    """Modes and ranks within the budget: blocks of inputs that share a projection, for all outputs and for quarters.

    Wide blocks fit best; their width is bounded by the size of the largest system that a fit solves.
    """
    m, n = w.shape
    found = []
    for rows in ((m, 1), (m // 4, 4)):
        for width in sorted((width for width in range(4, n // 2 + 1) if n % width == 0), reverse=True):
            cols = n // width, width
            rank = int(w.numel() / ratio / (rows[0] * cols[0] + rows[1] * cols[1]))
            if 1 <= rank <= min(rows[0] * cols[0], rows[1] * cols[1]) and max(cols) * rank <= UNKNOWNS:
                found.append((rows, cols, rank))
                break
    return found
