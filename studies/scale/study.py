"""The same job on processes of one machine and on Ray: speed, overhead, memory, and a kill in the middle.

A synthetic table of 768 columns is compressed row by row. ``python -m studies.scale`` measures what the record lacks,
so a run that was stopped continues; ``python -m studies.scale runs`` measures one section. To take all times anew,
remove the record. About half an hour on two cores with nothing else on them; ``large`` needs 19 GB where ``TMPDIR`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import machine
from book.tools import results

from ..resumed import add_rows
from ..toy_classifier.data import brief
from . import sections
from .large import large

NAME = "scale"
SECTIONS: dict[str, Callable] = {
    "core": sections.core,
    "audits": sections.audits,
    "large": large,
    "engines": sections.engines,
    "runs": sections.runs,
    "overhead": sections.overhead,
}


def recorded() -> dict:
    """The sections of the record."""
    before = results.read(NAME)
    return {name: before[name] for name in ("machine", *SECTIONS, "seconds") if name in before}


def keep(values: dict) -> Path:
    """Write the record."""
    return results.write(
        NAME,
        brief(values),
        models=["all-MiniLM-L6-v2, for the audit"],
        data=["Gaussian rows of 768 columns, a seed a file"],
        command=f"python -m studies.{NAME}",
        packages=("torch", "numpy", "safetensors", "ray", "pyarrow"),
    )


def begun(values: dict) -> dict:
    """The record with this machine's limits; one of another machine is not continued."""
    if "machine" not in values:
        return values | {"machine": machine()}
    if values["machine"]["processor"] != results.processor():
        raise ValueError(
            f"book/results/{NAME}.json was begun on {values['machine']['processor']}; times of two processors do not "
            "belong into one record: remove it to take them all here"
        )
    return values


def main(*names: str) -> None:
    """Measure some sections, or all, and record them."""
    torch.set_num_threads(1)
    values = begun(recorded())
    for name in names or SECTIONS:
        print(f"-- {name}", flush=True)
        add_rows(values, name, name, SECTIONS[name], keep)
