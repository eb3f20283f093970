"""Dependence of TT-LoRA's quality on the search over settings, and the selection bias of its reported result.

The tuner is that of the method's published code, Ray Tune. Here validation sentences choose among the trials, and only
the chosen trial is reported on the test sentences. Every trial's predictions are recorded one by one, so that the
choice can be repeated with fewer trials or fewer examples. ``python -m studies.tt_lora search`` runs it; killed and
started again, it continues.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from statistics import fmean, median, stdev

import numpy as np
import ray
import torch
from ray import tune
from scipy.stats import spearmanr

from book.workbook.store import cache_folder
from ttref import tt_params
from ttref.lora.modes import automatic_modes

from .arms import QUERY_VALUE, SHAPES, run_trial
from .selection import flattering, pack, standard_error, unpack
from .tasks import docstrings, encoder
from .tuner import cluster, trials

SPLITS = ("validation", "test")
WIDTH = 384
MODES = SHAPES | {"automatic": sum(automatic_modes(WIDTH, WIDTH), ()), "two and two": (16, 24, 24, 16)}
RANKS, ALPHAS, RATES = (1, 2, 4, 8, 16), (1, 2, 4, 8, 16), (1e-4, 1e-2)
FACTORS = ("shape", "rank", "alpha", "lr")
SAMPLES, EPOCHS, SEED = 24, 4, 0
SEEDS = range(1, 9)
GLUE_VALIDATION = {"rte": 277, "mrpc": 408}  # examples
DRAWS = 4000


def train(config: dict, report: Callable[[dict], None]) -> None:
    """One trial: TT-LoRA on query and value, and the head, on the sentences of documentation."""
    torch.set_num_threads(1)

    def pass_on(values: dict) -> None:
        report(
            {f"{split}_accuracy": values[split] for split in SPLITS}
            | {f"{split}_right": pack(values["right"][split]) for split in SPLITS}
        )

    run_trial(config | {"shape": MODES[config["shape"]]}, pass_on, splits=SPLITS)


def search(keep: Callable[[dict], None], recorded: dict) -> dict:
    """Search, then train the chosen settings with other seeds; recorded results are not measured again."""
    if "flattering" in recorded:
        return {"search": recorded}
    totals = {split: len(docstrings().labels[split]) for split in SPLITS}
    values = dict(recorded)
    if "trials" not in values:
        space = {
            "shape": tune.choice(list(MODES)),
            "rank": tune.choice(list(RANKS)),
            "alpha": tune.choice(list(ALPHAS)),
            "lr": tune.loguniform(*RATES),
        }
        plan = {
            "ray": ray.__version__,
            "scheduler": {"name": "ASHA", "rungs": [1, 2, 4], "reduction_factor": 2},
            "space": {"shape": MODES, "rank": RANKS, "alpha": ALPHAS, "lr": RATES},
            "seed": SEED,
            "samples": SAMPLES,
            "epochs": EPOCHS,
        }
        found, cpus = tuned("search", plan, space | {"seed": SEED}, samples=SAMPLES, epochs=EPOCHS)
        values |= plan | {"cpus": cpus} | {f"{split}_total": total for split, total in totals.items()}
        values["trials"] = [
            row(trial, FACTORS) | {"params": params(trial["config"]["shape"], trial["config"]["rank"])}
            for trial in found
        ]
        values |= outcome(values["trials"], totals)
        keep({"search": values})
    if "seeds" not in values:
        config, epochs = {name: values["reported"][name] for name in FACTORS}, values["reported"]["epochs"]
        space = config | {"seed": tune.grid_search(list(SEEDS))}
        plan = {"config": config, "epochs": epochs, "seeds": list(SEEDS)}
        found, cpus = tuned("seeds", plan, space, samples=1, epochs=epochs, grace=epochs)
        values["seeds"] = plan | {"cpus": cpus, "trials": [row(trial, ("seed",)) for trial in found]}
        values["seeds"] |= spread(values["seeds"]["trials"])
        keep({"search": values})
    groups = {"search": values["trials"], "seeds": values["seeds"]["trials"]}
    sizes = sorted({50, 100, *GLUE_VALIDATION.values(), totals["validation"]})
    values["flattering"] = {"draws": DRAWS, "glue_validation": GLUE_VALIDATION}
    for name, rows in groups.items():
        values["flattering"][name] = list(flattering(answers(rows, totals), sizes, DRAWS))
    keep({"search": values})
    shutil.rmtree(cache_folder() / "tt_lora_search", ignore_errors=True)
    return {"search": values}


def tuned(name: str, plan: dict, space: dict, *, epochs: int, **options) -> tuple[list[dict], int]:
    """The trials, and the number that ran at a time. Each plan is a separate search with a separate state."""
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "tt_lora_search" / f"{name}-{digest}"
    with cluster() as cpus:
        space = space | {"epochs": epochs}
        found = trials(train, space, folder, cpus=cpus, epochs=epochs, seed=SEED, description=name, **options)
    return found, cpus


def row(trial: dict, names: tuple[str, ...]) -> dict:
    """The record of a trial: its settings, accuracy after each epoch, last predictions."""
    reports = trial["reports"]
    last = reports[-1] if reports else {}
    return {
        "number": trial["number"],
        **{name: trial["config"][name] for name in names},
        "epochs": len(reports),
        **{split: [round(report[f"{split}_accuracy"], 6) for report in reports] for split in SPLITS},
        **{f"{split}_right": last.get(f"{split}_right") for split in SPLITS},
        "error": trial["error"],
    }


def params(shape: str, rank: int) -> int:
    """Numbers in the cores of all adapters: one for query and one for value in every layer."""
    return len(QUERY_VALUE) * encoder().model.config.num_hidden_layers * tt_params(MODES[shape], rank)


def ended(rows: list[dict]) -> list[dict]:
    """The trials that did not fail."""
    return [row for row in rows if row["error"] is None]


def answers(rows: list[dict], totals: dict[str, int]) -> np.ndarray:
    """Correctness of the predictions of all trials that did not fail, validation examples first, then test examples."""
    return np.array(
        [np.concatenate([unpack(row[f"{split}_right"], totals[split]) for split in SPLITS]) for row in ended(rows)]
    )


def outcome(rows: list[dict], totals: dict[str, int]) -> dict:
    """The trial chosen by validation, and its result on test; and the effect of the settings."""
    best = max(ended(rows), key=lambda row: row["validation"][-1])
    reported = {name: best[name] for name in ("number", *FACTORS, "params", "epochs")}
    for split in SPLITS:
        reported[f"{split}_accuracy"] = best[split][-1]
        reported[f"{split}_standard_error"] = standard_error(best[split][-1], totals[split])
    other = max(ended(rows), key=lambda row: row["test"][-1])
    on_test = {"number": other["number"]} | {f"{split}_accuracy": other[split][-1] for split in SPLITS}
    return {
        "reported": reported,
        "chosen_on_test": on_test,
        "sensitivity": sensitivity(ended(rows), reported["validation_standard_error"]),
    }


def sensitivity(rows: list[dict], error: float) -> dict:
    """Spread of the validation accuracy: at the end of the trials, and after the first epoch, which all of them had."""
    last, first = ([row["validation"][epoch] for row in rows] for epoch in (-1, 0))
    near = sum(value >= max(last) - error for value in last)
    products = [row["alpha"] * row["lr"] for row in rows]
    numbers = {name: [row[name] for row in rows] for name in ("lr", "alpha", "rank", "params")} | {"alpha_lr": products}
    edges = np.geomspace(*RATES, 4)
    thirds = [edges[k : k + 2].tolist() for k in range(3)]
    by = {
        name: [group(value, [row for row in rows if row[name] == value]) for value in values]
        for name, values in {"shape": MODES, "rank": RANKS, "alpha": ALPHAS}.items()
    }
    by["lr"] = [group(third, [row for row in rows if third[0] <= row["lr"] < third[1]]) for third in thirds]
    return {
        "trials": len(rows),
        "standard_error": error,
        "within_one_standard_error": near,
        "share": near / len(rows),
        "spread": {"min": min(last), "median": median(last), "max": max(last), "sd": stdev(last)},
        "rank_correlation": {name: float(spearmanr(values, first).statistic) for name, values in numbers.items()},
        "by": by,
    }


def group(value: object, rows: list[dict]) -> dict:
    """Validation accuracy after the first epoch of the trials that share a setting."""
    first = [row["validation"][0] for row in rows]
    return {
        "value": value,
        "trials": len(first),
        "mean": fmean(first) if first else None,
        "sd": stdev(first) if len(first) > 1 else None,
        "best": max(first, default=None),
    }


def spread(rows: list[dict]) -> dict:
    """Mean and spread of the accuracies over seeds."""
    found = {}
    for split in SPLITS:
        values = [row[split][-1] for row in ended(rows)]
        found |= {f"{split}_mean": fmean(values), f"{split}_sd": stdev(values)}
    return found
