"""False accepts: layers replaced one after another, and what both gates say of each step on small validation sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ttref.surgery import edit
from ttref.surgery.gates import false_accepts

from .loops import Bench, load
from .tasks import Task

CHAINS = {"vit": (("fitted", 4.4),), "sst2": (("fitted", 4.4),)}
SIZES, MAX_DROP, RESAMPLINGS = (100, 200, 400), 0.05, 20


def everything(task: Task) -> Tensor:
    """Scores of all labeled examples, validation and test: nothing is chosen by them here."""
    return torch.cat([scores(task.model) for scores in task.splits.values()])


def chain(bench: Bench, candidate: str, size: float) -> Iterator[dict]:
    """Replace one layer more at every step, the first block first, and let both gates judge it 20 times."""
    task, made = bench.task, bench.shelf.candidate(candidate, size)
    grams = bench.shelf.grams if bench.shelf.needs_gram(candidate) else {}
    start, done = everything(task), []
    try:
        for step, layer in enumerate(task.linears):
            new = made.make(task.model.get_submodule(layer), grams.get(layer))
            with edit(task.model) as change:
                change.put({layer: new})
            done.append(change)
            now = everything(task)
            row = {
                "key": f"{task.name} {candidate} {size:g} {step}",
                "task": task.name,
                "candidate": candidate,
                "size": size,
                "layer": layer,
                "examples": len(now),
            }
            row |= {"true_drop": (start - now).mean().item()}
            for count in SIZES:
                found = false_accepts(start, now, size=count, max_drop=MAX_DROP, resamplings=RESAMPLINGS)
                row |= {f"drop_{count}": found.drop, f"equivalence_{count}": found.equivalence}
            yield row
    finally:
        for change in reversed(done):
            change.undo()


def accepts(task: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``accepts``; a chain that was stopped begins anew."""
    for candidate, size in CHAINS[task]:
        keys = {f"{task} {candidate} {size:g} {step}" for step in range(len(load(task, folder).task.linears))}
        if not keys <= before.keys():
            yield from list(chain(load(task, folder), candidate, size))


def rates(rows: list[dict]) -> list[dict]:
    """For each task and number of examples, how many of the harmful steps each gate let pass, and of the harmless."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for count in SIZES:
            mine = [row for row in rows if row["task"] == task]
            harmful = [row for row in mine if row["true_drop"] > MAX_DROP]
            near = [row for row in harmful if row["true_drop"] <= 2 * MAX_DROP]
            harmless = [row for row in mine if row["true_drop"] <= MAX_DROP]
            row = {"task": task, "examples": count, "harmful": len(harmful), "near": len(near)}
            row |= {"harmless": len(harmless), "resamplings": RESAMPLINGS}
            for gate in ("drop", "equivalence"):
                for name, part in (("harmful", harmful), ("near", near), ("harmless", harmless)):
                    total = RESAMPLINGS * len(part)
                    passed = sum(each[f"{gate}_{count}"] for each in part)
                    row[f"{gate}_accepts_{name}"] = passed / total if total else None
            found.append(row)
    return found
