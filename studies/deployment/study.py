"""What a compressed model costs where it runs: time, tokens a second, memory, bytes moved; in torch and in ONNX.

MiniLM and SmolLM2 with half the numbers in the matrices of their blocks, in six forms, and a roofline beside each time.
``python -m studies.deployment make`` makes the files, which takes minutes and needs no quiet machine, and so do
``memory`` and ``exports``; ``python -m studies.deployment`` measures what the record lacks, so a run that was stopped
continues. To take all times anew, remove the record.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import machine
from book.tools import results

from ..resumed import add_rows
from ..toy_classifier.data import brief
from . import exports, graphs, memory, speeds
from .variants import FORMS, INSIDE, RATIO, folder

NAME = "deployment"
SECTIONS: dict[str, Callable] = {
    "exports": exports.exports,
    "memory": memory.memory,
    "minilm": speeds.minilm,
    "smollm2": speeds.smollm2,
    "graph_layers": graphs.layers,
    "graph_models": graphs.models,
}


def recorded() -> dict:
    """The sections of the record."""
    before = results.read(NAME)
    return {name: before[name] for name in ("machine", "ratio", *SECTIONS, "seconds") if name in before}


def keep(values: dict) -> Path:
    """Write the record."""
    return results.write(
        NAME,
        brief(values),
        models=["all-MiniLM-L6-v2 without its pooler", "SmolLM2-135M-Instruct"],
        data=["descriptions of data sets in scikit-learn, for the fits of MiniLM"],
        command=f"python -m studies.{NAME}",
        packages=("torch", "transformers", "numpy", "onnx", "onnxruntime", "onnxscript"),
    )


def begun() -> dict:
    """The record, with this machine's limits; a record of another machine or with other limits is not continued."""
    values = recorded()
    if "machine" not in values:
        limits = machine()
        values = {"machine": limits | {"int8_ops_per_s": speeds.int8_speed(limits)}, "ratio": RATIO} | values
        keep(values)
    elif values["machine"]["processor"] != results.here()["processor"]:
        raise ValueError(
            f"book/results/{NAME}.json was begun on {values['machine']['processor']}; times of two processors do not "
            "belong into one record: remove it to take them all here"
        )
    return values


def main(*names: str) -> None:
    """Measure some sections, or all, and record them; ``make`` makes the files only."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the inputs behind gram do not span")
    if names == ("make",):
        for model in INSIDE:
            for form in FORMS:
                print(f"-- {model} {form}: {folder(model, form).name}", flush=True)
        return
    values = begun()
    limits = values["machine"]
    for name in names or SECTIONS:
        print(f"-- {name}", flush=True)
        measure = SECTIONS[name]
        add_rows(values, name, name, lambda before, measure=measure: measure(limits, before), keep)
