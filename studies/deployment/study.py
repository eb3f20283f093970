"""What a compressed model costs where it runs: time, tokens a second, memory, bytes moved; in torch and in ONNX.

MiniLM and SmolLM2 with half the numbers in the matrices of their blocks, in six forms, and a roofline beside each time.
``python -m studies.deployment make`` makes the files, which takes minutes and needs no quiet machine, and so do
``memory`` and ``exports``; ``python -m studies.deployment`` measures what the record lacks, so a run that was stopped
continues. To take all times anew, remove the record. About ten minutes on one core, six of them for the times.
"""

from __future__ import annotations

import functools
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
TIMED = ("minilm", "smollm2", "graph_layers", "graph_models")


def recorded() -> dict:
    """The sections of the record."""
    before = results.read(NAME)
    return {name: before[name] for name in ("machine", "ratio", "int8_engine", *SECTIONS, "seconds") if name in before}


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


def begun(values: dict, timed: bool) -> dict:
    """The record, with this machine's limits before times are taken; one of another machine is not continued."""
    known = values.get("machine", results.here())
    if known["processor"] != results.here()["processor"]:
        raise ValueError(
            f"book/results/{NAME}.json was begun on {known['processor']}; times of two processors do not belong into "
            "one record: remove it to take them all here"
        )
    if not timed or "bytes_per_s" in known:
        return values
    limits = machine()
    limits |= {"int8_ops_per_s": speeds.int8_speed(limits)}
    return values | {"machine": limits, "ratio": RATIO, "int8_engine": torch.backends.quantized.engine}


def main(*names: str) -> None:
    """Measure some sections, or all, and record them; ``make`` makes the files only."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="the inputs behind gram do not span")
    if names == ("make",):
        for model in INSIDE:
            for form in FORMS:
                print(f"-- {model} {form}: {folder(model, form).name}", flush=True)
        return
    values = recorded()
    for name in names or SECTIONS:
        print(f"-- {name}", flush=True)
        values = begun(values, name in TIMED)
        measure, limits = SECTIONS[name], values.get("machine", {})
        add_rows(values, name, name, functools.partial(measure, limits), keep)
