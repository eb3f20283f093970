"""The loop as published and its reverse, with both gates: what is accepted, how small it gets, what it scores."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ttref.surgery.partial import partial_tensorize

from . import tasks
from .methods import Shelf
from .networks import mark


class Setting(NamedTuple):
    """One run of the loop."""

    task: str
    candidate: str
    size: float | None  # eps of trains and SVD, ratio of fitted ones, bits of integers
    max_drop: float
    order: str = "forward"
    gate: str = "drop"

    @property
    def key(self) -> str:
        """For finding a recorded row."""
        return f"{self.task} {self.candidate} {self.size:g} {self.max_drop:g} {self.order} {self.gate}"


DROPS, EPS = (0.02, 0.05, 0.1), (0.1, 0.3, 0.5, 0.7)
SMALL, LARGE = 2, 4.4  # ratios of what is fitted
OTHERS = (("restore", "drop"), ("forward", "equivalence"), ("restore", "equivalence"))


def settings(task: str) -> list[Setting]:
    """The runs for a task, telling ones first."""
    found = [Setting(task, "tt", 0.5, 0.05), Setting(task, "fitted", LARGE, 0.05)]
    if task == "docstrings":
        return found
    found += [Setting(task, name, size, 0.05) for name, size in (("whitened", LARGE), ("int", 4))]
    found += [Setting(task, "tt", 0.5, 0.05, order, gate) for order, gate in OTHERS[:2]]
    return found


def more(task: str) -> list[Setting]:
    """Runs with other thresholds, sizes and orders."""
    found = [Setting(task, "tt", eps, 0.05) for eps in EPS if eps != 0.5]
    found += [Setting(task, "tt", 0.5, drop) for drop in DROPS if drop != 0.05]
    found.append(Setting(task, "fitted", LARGE, 0.05, *OTHERS[1]))
    found += [Setting(task, name, 0.5 if name == "tt" else LARGE, 0.05, *OTHERS[2]) for name in ("tt", "fitted")]
    found.append(Setting(task, "fitted", LARGE, 0.05, *OTHERS[0]))
    return found + [Setting(task, name, size, 0.05) for name, size in (("svd", 0.5), ("int", 8), ("fitted", SMALL))]


class Memory:
    """Scores of a model by its modules: loops with other thresholds begin with the same steps."""

    def __init__(self, scores: Callable[[nn.Module], Tensor]) -> None:
        self._scores, self._known = scores, {}
        self.calls = self.computed = 0

    def __call__(self, model: nn.Module) -> Tensor:
        """One score for each example."""
        key, held = mark(model)
        self.calls += 1
        if key not in self._known:
            self._known[key] = self._scores(model), held
            self.computed += 1
        return self._known[key][0]


class Bench:
    """A task with its dense scores and its candidates."""

    def __init__(self, name: str, folder: Path) -> None:
        self.task = tasks.load(name, folder)
        self.shelf = Shelf(self.task)
        self.validation = Memory(self.task.splits["validation"])
        self.dense = {split: self.task.score(split) for split in self.task.splits}

    def run(self, setting: Setting) -> dict:
        """One run: its decisions, sizes and scores; the model is dense again afterwards."""
        task, start = self.task, time.perf_counter()
        done = self.validation.computed
        report = partial_tensorize(
            task.model,
            self.validation,
            layers=(*task.tables, *task.linears),
            candidate=self.shelf.candidate(setting.candidate, setting.size),
            grams=self.shelf.grams if self.shelf.needs_gram(setting.candidate) else None,
            max_drop=setting.max_drop,
            order=setting.order,
            gate=setting.gate,
            progress=False,
        )
        row = {"key": setting.key} | setting._asdict()
        row |= sizes(report.layers, report.params_before)
        row |= {"validation": report.verdict.after, "test": task.score("test")}
        row |= {f"dense_{split}": score for split, score in self.dense.items()}
        row |= {key: getattr(report.verdict, key) for key in ("p", "harmful", "beneficial")}
        row |= {"evaluations": report.evaluations, "computed": self.validation.computed - done}
        report.undo()
        return row | {"seconds": time.perf_counter() - start}


def sizes(layers: list[dict], params: int) -> dict:
    """Decisions, and ratios of numbers and bytes of the whole model, float32 where nothing was replaced."""
    taken = [row for row in layers if row["decision"] == "accepted"]
    saved, saved_bytes = (
        sum(row[f"{key}_before"] - row[f"{key}_after"] for row in taken) for key in ("params", "nbytes")
    )
    letters = {"accepted": "a", "rejected": "r", "skipped": "s"}
    return {
        "decisions": "".join(letters[row["decision"].partition(":")[0]] for row in layers),
        "accepted": len(taken),
        "layers": len(layers),
        "metrics": [row["metric"] for row in layers],
        "tables_accepted": sum("table" in row["kind"] for row in taken),
        "params": params - saved,
        "params_ratio": params / (params - saved),
        "bytes_ratio": 4 * params / (4 * params - saved_bytes),
    }


def loops(task: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``loops``, those that are not recorded."""
    yield from rows(settings(task), folder, before)


def more_loops(task: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Further rows of the section ``loops``."""
    yield from rows(more(task), folder, before)


def rows(wanted: list[Setting], folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """One row for each run that is not recorded."""
    bench = None
    for setting in wanted:
        if setting.key in before:
            continue
        bench = bench or load(setting.task, folder)
        row = bench.run(setting)
        print(
            f"{setting.key:44} {row['accepted']}/{row['layers']} {row['params_ratio']:.2f}x numbers "
            f"{row['bytes_ratio']:.2f}x bytes  validation {row['dense_validation']:.3f} -> {row['validation']:.3f}  "
            f"test {row['dense_test']:.3f} -> {row['test']:.3f}  {row['seconds']:.0f} s",
            flush=True,
        )
        yield row


@functools.cache
def load(name: str, folder: Path) -> Bench:
    """The bench of a task, made once: sections share what its shelf has made."""
    return Bench(name, folder)
