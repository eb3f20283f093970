"""TT-LoRA beside LoRA and beside no adapter: quality, effect of the settings, GLUE, a language model, the search.

``python -m studies.tt_lora`` measures the runs that the record lacks and keeps the others, so a study that was stopped
continues; ``python -m studies.tt_lora rates grid`` does so for these sections alone. To measure again, remove
``book/results/tt_lora.json``, or a section from it. On one core it takes about an hour and a half, most of it in
training steps of 32 short sentences; times are processor seconds of one thread, so other processes do not count.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

from book.tools import results
from book.workbook import sources

from .arms import ALL_LINEAR, BATCH, EPOCHS, Arm, run
from .glue import glue
from .llama import llama
from .tasks import DOCSTRING_TOKENS, SPLITS, Task, docstrings

Keep = Callable[[dict], object]

SEEDS = (0, 1, 2)
RANK = 4
RATES = {
    Arm("ttlora", RANK): (1e-3, 2e-3, 5e-3, 1e-2),
    Arm("lora", 8): (5e-4, 1e-3, 2e-3, 5e-3),
    Arm("head"): (3e-3, 1e-2, 3e-2),
    Arm("top"): (1e-4, 3e-4, 1e-3),
    Arm("full"): (1e-4, 3e-4),
}
ATTENTION = ("query", "key", "value", "attention.output.dense")


def grid_arms(lr: dict[str, float]) -> dict[str, list[Arm]]:
    """The methods side by side, with the head trained and with the head frozen at its random start.

    Each at its learning rate, which for TT-LoRA was chosen at rank 4; at rank 8 and beside a frozen head, where the
    update grows larger, half that rate is tried too.
    """
    tt = {rank: Arm("ttlora", rank, lr=lr["ttlora"]) for rank in (1, 2, RANK, 8)}
    lora = {rank: Arm("lora", rank, lr=lr["lora"]) for rank in (1, 8)}
    # 8 of the 12 matrices at rank 1 hold exactly as many numbers as TT-LoRA of rank 4 on all: 8 (384 + 384) = 6,144.
    matched = replace(lora[1], layers=(2, 3, 4, 5))
    others = [Arm("head", lr=lr["head"]), Arm("top", lr=lr["top"]), Arm("full", lr=lr["full"])]
    slow = replace(tt[RANK], lr=lr["ttlora"] / 2)
    return {
        "trained": [*others, lora[8], lora[1], matched, *tt.values(), replace(tt[8], lr=slow.lr)],
        "frozen": [replace(arm, head="frozen") for arm in (lora[8], tt[RANK], slow)],
    }


def ablation_arms(lr: dict[str, float]) -> dict[str, list[Arm]]:
    """One setting changed at a time; the first of each list is the default."""
    default = Arm("ttlora", RANK, lr=lr["ttlora"])
    return {
        "init": [default, replace(default, init="orthogonal"), replace(default, init="paper")]
        + [replace(default, init="paper", alpha=8.0)],
        "shape": [default, *(replace(default, shape=name) for name in ("straddling", "coarse", "fine"))],
        "alpha": [default, *(replace(default, alpha=alpha) for alpha in (0.25, 4.0, 8.0))],
        "targets": [default, replace(default, targets=ATTENTION), replace(default, targets=ALL_LINEAR)],
    }


def measure(groups: dict[str, list[Arm]], task: Task, known: dict, save: Callable, seeds_of: Callable) -> dict:
    """A point for each arm: its settings, its runs, their means. Known runs are not repeated."""
    made = {
        group: [point(arm, [each for each in known.get(arm.key, ()) if each["seed"] in seeds_of(arm)]) for arm in arms]
        for group, arms in groups.items()
    }
    for group, arms in groups.items():
        for place, arm in enumerate(arms):
            runs = made[group][place]["runs"]
            for seed in seeds_of(arm):
                if seed not in (done["seed"] for done in runs):
                    runs.append(one(arm, task, seed))
                    made[group][place] = point(arm, runs)
                    save(made)
    return made


def one(arm: Arm, task: Task, seed: int) -> dict:
    """The record of one run, or the reason of its failure."""
    try:
        return {"seed": seed} | run(arm, task, seed)[0]
    except FloatingPointError as error:
        return {"seed": seed, "failed": str(error).split(";")[0]}


def point(arm: Arm, runs: list[dict]) -> dict:
    """An arm and its runs, with means and the standard error over the seeds."""
    good = [each for each in runs if "failed" not in each]
    made = {"key": arm.key} | asdict(arm) | {"runs": runs, "failed": len(runs) - len(good)}
    if good:
        made |= {name: good[0][name] for name in ("adapter_params", "head_params")}
        made["cpu_seconds_per_step"] = round(mean(each["cpu_seconds_per_step"] for each in good), 3)
        made["last_loss"] = round(mean(each["losses"][-1] for each in good), 4)
        for split in SPLITS[1:]:
            values = [each[split] for each in good]
            made[split] = round(mean(values), 5)
            made[f"{split}_se"] = round(stdev(values) / len(values) ** 0.5, 5) if len(values) > 1 else None
        if "update" in good[0]:
            made["update"] = {
                "rank_max": max(each["update"]["rank_max"] for each in good),
                "rank_mean": round(mean(each["update"]["rank_mean"] for each in good), 2),
                "relative_norm": round(mean(each["update"]["relative_norm"] for each in good), 5),
            }
    return made


def known_runs(recorded: dict) -> dict[str, list[dict]]:
    """Runs on the docstring task by arm, from all sections: the default of an ablation stands in the grid too."""
    return {
        found["key"]: found["runs"]
        for section in ("rates", "grid", "ablations")
        for points in recorded.get(section, {}).get("points", {}).values()
        for found in points
    }


def rates(folder: Path | None, keep: Keep, recorded: dict) -> dict:
    """A learning rate for each method, by accuracy on validation; for TT-LoRA and LoRA over all seeds."""
    task = docstrings()
    values = {"task": described(task), "chosen": {}}
    groups = {arm.method: [replace(arm, lr=lr) for lr in tried] for arm, tried in RATES.items()}
    values["points"] = measure(
        groups,
        task,
        known_runs(recorded),
        lambda made: keep({"rates": values | {"points": made}}),
        lambda arm: SEEDS if arm.rank else SEEDS[:1],
    )
    for method, tried in values["points"].items():
        values["chosen"][method] = max(tried, key=lambda made: made.get("validation", 0.0))["lr"]
    return {"rates": values}


def described(task: Task) -> dict:
    """Classes, sizes and lengths of the task."""
    return {
        "classes": list(task.classes),
        **{split: len(task.labels[split]) for split in SPLITS},
        "tokens": DOCSTRING_TOKENS,
        "mean_tokens": round((task.ids["train"] != 0).sum(1).double().mean().item(), 1),
        "majority": task.majority(),
        "batch": BATCH,
        "epochs": EPOCHS,
        "steps": EPOCHS * -(-len(task.labels["train"]) // BATCH),
    }


def section(name: str, arms: Callable) -> Callable:
    """A section on the docstring task, at the learning rates chosen by ``rates``."""

    def measured(folder: Path | None, keep: Keep, recorded: dict) -> dict:
        found = measure(
            arms(recorded["rates"]["chosen"]),
            docstrings(),
            known_runs(recorded),
            lambda made: keep({name: {"points": made}}),
            lambda arm: SEEDS,
        )
        return {name: {"points": found}}

    return measured


def search(folder: Path | None, keep: Keep, recorded: dict) -> dict:
    """The search over settings, with Ray Tune where it is installed."""
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: the search is left out. Install with: python -m pip install 'ray[tune]'")
        return {}
    from .search import search as tuned

    return tuned(keep, recorded.get("search", {}))


SECTIONS = {
    "rates": rates,
    "grid": section("grid", grid_arms),
    "glue": glue,
    "ablations": section("ablations", ablation_arms),
    "llama": llama,
    "search": search,
}


def main(*names: str) -> None:
    """Run some sections, or all, and record them."""
    folder = sources.data_folder()

    def recorded() -> dict:
        before = results.read("tt_lora")
        return {name: before[name] for name in (*SECTIONS, "cpu_seconds", "libraries") if name in before}

    def keep(found: dict) -> Path:
        installed = [name for name in ("peft", "ray") if importlib.util.find_spec(name)]
        libraries = recorded().get("libraries", {}) | {name: version(name) for name in installed}
        return results.write(
            "tt_lora",
            recorded() | {"libraries": libraries} | found,
            models=["all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"],
            data=["docstrings of numpy, scipy, scikit-learn, matplotlib", "SST-2, MRPC, RTE, CoLA (training files)"],
            command="python -m studies.tt_lora",
        )

    for name in names or SECTIONS:
        print(f"-- {name}", flush=True)
        start = time.process_time()
        found = SECTIONS[name](folder, keep, recorded())
        spent = recorded().get("cpu_seconds", {})
        seconds = spent | {name: spent.get(name, 0) + round(time.process_time() - start)}
        print(keep(found | {"cpu_seconds": seconds}), flush=True)
