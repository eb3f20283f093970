"""Whole models, layer by layer: what a gate accepts, which layers are safe, what healing gives back.

MiniLM (SST-2, MEDLARS, documentation), a vision transformer (CIFAR-10) and SmolLM2 (WikiText-2). Validation examples
drive every search; test examples are reported once. ``python -m studies.partial_tensorization`` measures what the
record lacks, so a run that was stopped continues; names such as ``loops:vit`` choose parts. About an hour on one core.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from book.tools import results
from book.workbook import sources

from ..resumed import add_rows
from ..toy_classifier.data import brief
from . import accepts, gains, healing, language, layer_map, loops, shares, speed

NAME = "partial_tensorization"
SECTIONS: dict[str, Callable] = {
    "loops": loops.loops,
    "more": loops.more_loops,
    "layers": layer_map.layers,
    "accepts": accepts.accepts,
    "gains": gains.gains,
    "healing": healing.healing,
    "language": language.language,
    "speed": speed.speed,
}
SECTION_OF = {"more": "loops"}  # parts that add rows to another's section
PARTS = (
    *("loops:vit", "layers:vit", "accepts:vit", "gains:vit", "healing:sst2", "language:smollm2"),
    *("loops:sst2", "layers:sst2", "accepts:sst2", "gains:sst2", "speed:sst2"),
    *("more:vit", "more:sst2", "loops:medlars", "loops:docstrings"),
)


def summed_up(values: dict) -> dict:
    """What follows from the rows."""
    found = {}
    if values.get("layers"):
        found["taus"] = layer_map.taus(values["layers"])
    if values.get("accepts"):
        found["accept_rates"] = accepts.rates(values["accepts"])
    return found


def recorded() -> dict:
    """The sections of the record."""
    before = results.read(NAME)
    return {name: before[name] for name in ("arithmetic", *SECTIONS, "seconds") if name in before}


def keep(values: dict) -> Path:
    """Write the record."""
    return results.write(
        NAME,
        brief(values | summed_up(values)),
        models=["all-MiniLM-L6-v2 without its pooler", "ViT (CIFAR-10)", "SmolLM2-135M-Instruct"],
        data=["SST-2 train", "MEDLARS", "WikiText-2 valid", "CIFAR-10 test part, first 761", "docstrings of libraries"],
        command=f"python -m studies.{NAME}",
    )


def run(part: str, folder: Path) -> None:
    """Measure the rows that a part of the record lacks."""
    measure, _, task = part.partition(":")
    section = SECTION_OF.get(measure, measure)
    values = recorded()
    if part == "arithmetic":
        if "arithmetic" not in values:
            keep(values | {"arithmetic": shares.arithmetic(folder)})
        return
    add_rows(values, section, part, lambda before: SECTIONS[measure](task, folder, before), keep)


def main(*names: str) -> None:
    """Run some parts, or all, and record them."""
    folder = sources.data_folder()
    if folder is None:
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the inputs behind gram do not span")  # patches of dark corners
    for part in names or ("arithmetic", *PARTS):
        print(f"-- {part}", flush=True)
        run(part, folder)
