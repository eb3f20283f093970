"""GLUE with MiniLM: head alone, LoRA and TT-LoRA, on subsets that two cores can train on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor

from .arms import BATCH, EPOCHS, Arm, accuracy, run
from .tasks import GLUE, SPLITS, Task, load_glue

SEEDS = (0, 1, 2)


def arms(name: str, lr: dict[str, float]) -> list[Arm]:
    """Arms at the learning rates chosen on the docstring task's validation texts; tasks of pairs get one rank."""
    tt = [Arm("ttlora", rank, lr=lr["ttlora"]) for rank in ((4,) if name in ("mrpc", "rte") else (4, 2))]
    return [Arm("head", lr=lr["head"]), Arm("lora", 8, lr=lr["lora"]), *tt]


def metrics(name: str, answers: Tensor, labels: Tensor) -> dict:
    """Accuracy, the task's own metric beside it, and the mean of the two that the method's public code reports.

    That code asks ``data == "mrpc" or "qqp"``, which is always true, and so reports (metric + micro-F1) / 2 for every
    task; micro-F1 over all classes is the accuracy. For SST-2 and RTE the metric is the accuracy, so nothing changes.
    """
    found = {"accuracy": accuracy(answers, labels)}
    if name == "mrpc":
        found["f1"] = float(f1_score(labels, answers))
    if name == "cola":
        found["matthews"] = float(matthews_corrcoef(labels, answers))
    own = found.get("f1", found.get("matthews", found["accuracy"]))
    return {key: round(value, 6) for key, value in (found | {"mixed": (own + found["accuracy"]) / 2}).items()}


def measured(arm: Arm, task: Task, seed: int) -> dict:
    """One run with the metrics of its test texts."""
    found, answers = run(arm, task, seed)
    return {"seed": seed} | found | {"test": metrics(task.name, answers["test"], task.labels["test"])}


def point(arm: Arm, runs: list[dict], count: int) -> dict:
    """An arm with the means of its metrics, their standard errors over seeds, and that of ``count`` test texts."""
    values = {name: [each["test"][name] for each in runs] for name in runs[0]["test"]}
    share = mean(values["accuracy"])
    return {
        "key": arm.key,
        "method": arm.method,
        "rank": arm.rank,
        "lr": arm.lr,
        "adapter_params": runs[0]["adapter_params"],
        "head_params": runs[0]["head_params"],
        "validation": round(mean(each["validation"] for each in runs), 5),
        "test": {name: round(mean(found), 5) for name, found in values.items()},
        "seed_se": {
            name: round(stdev(found) / len(found) ** 0.5, 5) if len(found) > 1 else None
            for name, found in values.items()
        },
        "binomial_se": round((share * (1 - share) / count) ** 0.5, 5),
        "runs": runs,
    }


def glue(folder: Path | None, keep: Callable[[dict], object], recorded: dict) -> dict:
    """Results of four tasks, the cheap ones first."""
    if folder is None and importlib.util.find_spec("datasets") is None:
        print("GLUE needs TTREF_DATA, or the library that reads it from the hub: python -m pip install datasets")
        return {}
    values = dict(recorded.get("glue", {}))
    for name in GLUE:
        task = load_glue(name, folder)
        count = len(task.labels["test"])
        runs = {made["key"]: made["runs"] for made in values.get(name, {}).get("points", [])}
        chosen = arms(name, recorded["rates"]["chosen"])
        for arm in chosen:
            done = runs.setdefault(arm.key, [])
            for seed in SEEDS[len(done) :]:
                done.append(measured(arm, task, seed))
                points = [point(each, runs[each.key], count) for each in chosen if runs.get(each.key)]
                values[name] = described(task) | {"points": points}
                keep({"glue": values})
        values[name] = described(task) | {"points": [point(each, runs[each.key], count) for each in chosen]}
    return {"glue": values}


def described(task: Task) -> dict:
    """Sizes, and the scores of always predicting the more frequent class."""
    answers = task.labels["test"].new_full(task.labels["test"].shape, task.labels["train"].bincount().argmax())
    return {
        "classes": list(task.classes),
        **{split: len(task.labels[split]) for split in SPLITS},
        "tokens": GLUE[task.name].tokens,
        "mean_tokens": round((task.ids["train"] != 0).sum(1).double().mean().item(), 1),
        "batch": BATCH,
        "epochs": EPOCHS,
        "majority": metrics(task.name, answers, task.labels["test"]),
    }
