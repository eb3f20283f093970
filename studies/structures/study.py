"""Layers of four structures trained from scratch at equal compute: who learns most from the same multiply-adds?

A small transformer on characters of Shakespeare and on patches of CIFAR-10. Its linear layers are dense, of low rank,
TT-matrices, or block tensor trains; the cheaper a layer for its width, the wider the network, so that all spend about
the same multiply-adds on the same examples. Rates are tuned for every structure at the smallest size, on other examples
than those reported. ``python -m studies.structures`` takes hours on one core; ``characters`` or ``pictures`` behind it
measures one of the two, and what is recorded is not measured again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from book.tools import results
from book.workbook import sources

from ..resumed import add_rows
from ..toy_classifier.data import brief
from .layers import BlockTensorTrain, Dense, LowRank, Make, TTMatrix
from .network import HEADS, Form, Network
from .tasks import TASKS, Task

STEPS, WARM_UP = 600, 60
RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)  # of the factors of layers
RESTS = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.256)  # of embedding, norms, biases, head: tuned on the dense network, for all
TUNING_STEPS = 300
ROUNDS, WARM, TIMED = 5, 2, 10  # of the times, in steps
DENSE_WIDTHS = {"small": 64, "medium": 96, "large": 128}
SEEDS = dict.fromkeys(DENSE_WIDTHS, (0, 1, 2))
ALLOWED = 1.03  # of the dense network's multiply-adds
# Widths with two modes that are nearly equal.
SQUARES = sorted(a * b for a in range(6, 26) for b in (a, a - 1, a - 2) if a * b % HEADS == 0)


class Arm(NamedTuple):
    """A structure: its layer for a width of the network, the widths that it may have, how its steps are scaled."""

    make: type
    share: float = 0  # rank of a low-rank layer, as a share of the width
    rank: int = 0
    scaled: bool = True

    def maker(self, width: int) -> Make:
        """Makes this structure's layers in a network of that width."""
        rank = self.rank or round(self.share * width)
        return partial(self.make, rank=rank) if rank else self.make

    def width(self, form: Form, target: int) -> int:
        """The widest network within the multiply-adds that are allowed."""
        widths = SQUARES if self.rank else range(32, 400, 8)
        return max(w for w in widths if Network(form, w, self.maker(w), 0).macs() <= ALLOWED * target)


ARMS = {
    "dense": Arm(Dense),
    "low rank, a quarter": Arm(LowRank, share=1 / 4),
    "low rank, an eighth": Arm(LowRank, share=1 / 8),
    "TT-matrix, rank 1": Arm(TTMatrix, rank=1),
    "TT-matrix, rank 2": Arm(TTMatrix, rank=2),
    "block tensor train, rank 1": Arm(BlockTensorTrain, rank=1),
    "block tensor train, rank 2": Arm(BlockTensorTrain, rank=2),
    "block tensor train, rank 1, one rate": Arm(BlockTensorTrain, rank=1, scaled=False),
    "dense, one rate": Arm(Dense, scaled=False),
}


def rate_at(step: int, steps: int) -> float:
    """A linear rise, then a cosine to a tenth."""
    warm = WARM_UP * steps // STEPS
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / (steps - warm))


def train(
    task: Task, network: Network, rate: float, *, scaled: bool, seed: int, rest: float | None = None, steps: int = STEPS
) -> None:
    """Adam with clipped gradients; the seed decides the batches."""
    adam = torch.optim.Adam(network.groups(rate, scaled, rest), betas=(0.9, 0.95), foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: rate_at(step, steps))
    for _, (x, y) in zip(range(steps), task.batches(seed), strict=False):
        adam.zero_grad()
        F.cross_entropy(network(x).flatten(0, -2), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        schedule.step()


def run(
    task: Task,
    name: str,
    size: str,
    rate: float,
    seed: int,
    *,
    part: str,
    rest: float | None = None,
    steps: int = STEPS,
) -> dict:
    """Train one network and judge it."""
    arm = ARMS[name]
    target = Network(task.form, DENSE_WIDTHS[size], Dense, 0).macs()
    width = arm.width(task.form, target)
    network = Network(task.form, width, arm.maker(width), seed)
    start = perf_counter()
    train(task, network, rate, scaled=arm.scaled, seed=seed, rest=rest, steps=steps)
    seconds = perf_counter() - start
    return {
        "arm": name,
        "size": size,
        "rate": rate,
        "rest": rest,
        "seed": seed,
        "width": width,
        "macs": network.macs(),
        "layer_params": sum(held.numel() for layer in network.structured().values() for held in layer.parameters()),
        "params": sum(held.numel() for held in network.parameters()),
        "seconds": brief(seconds),
        **{what: brief(value) for what, value in task.scores(network, part).items()},
    }


def rested(task: Task, known: dict[str, dict]) -> Iterable[dict]:
    """The dense network at every pair of rates, at the smallest size, judged on the validation half."""
    for rest in tqdm(RESTS, desc="the rest"):
        for rate in RATES:
            key = f"{rate:g}, {rest:g}"
            if key not in known:
                yield {"key": key} | run(
                    task, "dense", "small", rate, 0, part="validation", rest=rest, steps=TUNING_STEPS
                )


def tuned(task: Task, rest: float, known: dict[str, dict]) -> Iterable[dict]:
    """Every arm at every rate, at the smallest size, judged on the validation half."""
    for name in tqdm(ARMS, desc="rates"):
        for rate in RATES:
            key = f"{name}, {rate:g}, {rest:g}"
            if key not in known:
                yield {"key": key} | run(task, name, "small", rate, 0, part="validation", rest=rest, steps=TUNING_STEPS)


def compared(task: Task, rates: dict[str, float], rest: float, known: dict[str, dict]) -> Iterable[dict]:
    """Every arm at its best rate, at every size and with every seed, judged on the test half."""
    for size, seeds in SEEDS.items():
        for seed in seeds:
            for name in tqdm(ARMS, desc=f"{size}, seed {seed}"):
                key = f"{name}, {size}, {seed}"
                if key not in known:
                    yield {"key": key, **run(task, name, size, rates[name], seed, part="test", rest=rest)}


def timed(task: Task, known: dict[str, dict]) -> Iterable[dict]:
    """What a step of training takes, in ms: the median of rounds, each of which times all arms of a size."""
    for size, width in DENSE_WIDTHS.items():
        if all(f"{name}, {size}" in known for name in ARMS):
            continue
        target = Network(task.form, width, Dense, 0).macs()
        seconds: dict[str, list[float]] = {name: [] for name in ARMS}
        for _ in tqdm(range(ROUNDS), desc=f"times, {size}"):
            for name, arm in ARMS.items():
                width = arm.width(task.form, target)
                network = Network(task.form, width, arm.maker(width), 0)
                train(task, network, 1e-3, scaled=arm.scaled, seed=0, steps=WARM)
                start = perf_counter()
                train(task, network, 1e-3, scaled=arm.scaled, seed=0, steps=TIMED)
                seconds[name].append((perf_counter() - start) / TIMED)
        for name, found in seconds.items():
            if f"{name}, {size}" not in known:
                yield {"key": f"{name}, {size}", "arm": name, "size": size, "ms": brief(1000 * median(found))}


def best_rates(rows: Iterable[dict]) -> dict[str, float]:
    """The rate of the smallest validation loss for each arm."""
    found: dict[str, dict] = {}
    for row in rows:
        if row["arm"] not in found or row["loss"] < found[row["arm"]]["loss"]:
            found[row["arm"]] = row
    return {name: row["rate"] for name, row in found.items()}


def main() -> None:
    """Measure what is missing."""
    folder = sources.data_folder()
    if folder is None:
        return print("structures: skipped, TTREF_DATA names no folder with tinyshakespeare and cifar10")
    torch.set_num_threads(1)
    values = results.read("structures")
    values = {name: values[name] for name in (*TASKS, "seconds") if name in values}

    settings = {
        "steps": STEPS,
        "tuning_steps": TUNING_STEPS,
        "rates": list(RATES),
        "rests": list(RESTS),
        "seeds": {size: list(seeds) for size, seeds in SEEDS.items()},
    }

    def keep(values: dict) -> None:
        results.write(
            "structures",
            values | settings,
            command="python -m studies.structures",
            models=["a transformer of two blocks, from scratch"],
            data=["tiny Shakespeare, 1,115,394 characters", "CIFAR-10, 3,044 training and 761 test pictures"],
            packages=("torch", "numpy"),
        )

    for name, make in TASKS.items():
        if name not in (sys.argv[1:] or TASKS):
            continue
        task = make(folder)
        held = values.setdefault(name, {})

        def keep_part(part: dict, held: dict = held) -> None:
            held.update(part)
            keep(values)

        add_rows(held, "rests", "rests", partial(rested, task), keep_part)
        rest = min(held["rests"], key=lambda row: row["loss"])["rest"]
        add_rows(held, "tuning", "tuning", partial(tuned, task, rest), keep_part)
        rates = best_rates(held["tuning"])
        add_rows(held, "runs", "runs", partial(compared, task, rates, rest), keep_part)
        add_rows(held, "times", "times", partial(timed, task), keep_part)
