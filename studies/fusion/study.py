"""Views of one example multiplied: trains, low-rank fusion, Tucker and a plain network at equal numbers.

Every layer gets the same splits, the same loop and the same grid of learning rates and weight decays. A validation part
of each split chooses among these, the epoch and the size. ``python -m studies.fusion`` takes about ten minutes on one
core.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from book.tools import results
from book.workbook.fusion import LowRankFusion, TensorFusion, TTFusion, TuckerFusion, concatenation
from book.workbook.training import fit
from ttref import tt_params, tt_ranks

from ..toy_classifier.data import Parts, brief, correct, mean_loss, spread
from .data import Task, parts_of, tasks

SEEDS = range(10)
RATES, DECAYS, BATCH = (3e-3, 1e-2, 3e-2), (1e-3, 1e-2), 128
EPOCHS = {"breast cancer": 60, "digits": 40, "planted product": 60}
RANKS = {"breast cancer": (8, 16), "digits": (2, 4), "planted product": (5,)}  # of LMF: they set the sizes
MARGIN = 0.05  # by which the numbers of a layer may differ from those of LMF
CONCATENATION, TT, LMF, TUCKER = "concatenation", "TT", "LMF", "Tucker"
LINEAR, TENSOR = "linear", "whole tensor"
CHOSEN = "chosen"
KEPT = ("validation_loss", "lr", "weight_decay", "epoch", "test_correct")  # of a run: where the loss is smallest

Make = Callable[[], nn.Module]


def train_ranks(task: Task, target: int) -> tuple[int, ...]:
    """Ranks of a train of about ``target`` numbers, as equal as can be."""
    modes = (*(n + 1 for n in task.sizes), task.scores)
    tried = itertools.product(range(1, 17), repeat=len(task.sizes))
    able = [ranks for ranks in tried if tt_ranks(modes, (1, *ranks, 1)) == (1, *ranks, 1)]
    return (1, *most_even(able, lambda ranks: tt_params(modes, (1, *ranks, 1)), target), 1)


def tucker_ranks(task: Task, target: int) -> tuple[int, ...]:
    """Ranks of a Tucker layer of about ``target`` numbers, as equal as can be."""

    def params(ranks: tuple[int, ...]) -> int:
        factors = sum((n + 1) * r for n, r in zip(task.sizes, ranks, strict=True))
        return factors + task.scores * math.prod(ranks)

    return most_even(itertools.product(range(1, 13), repeat=len(task.sizes)), params, target)


def most_even(
    tried: Iterable[tuple[int, ...]], params: Callable[[tuple[int, ...]], int], target: int
) -> tuple[int, ...]:
    """Among ranks within the margin of a number of parameters the most equal ones, then those nearest to it."""
    off = {ranks: abs(params(ranks) / target - 1) for ranks in tried}
    able = [ranks for ranks, share in off.items() if share <= MARGIN]
    return min(able, key=lambda ranks: (max(ranks) / min(ranks), off[ranks]))


def layers(task: Task, rank: int) -> dict[str, tuple[str, Make]]:
    """The four layers of about the numbers of LMF of a rank: what each is, in words, and how it is made."""
    given = (task.sizes, task.scores)
    target = LowRankFusion(*given, rank).params
    hidden = round((target - task.scores) / (sum(task.sizes) + 1 + task.scores))
    train, tucker = train_ranks(task, target), tucker_ranks(task, target)
    return {
        CONCATENATION: (f"{hidden} hidden units", partial(concatenation, *given, hidden)),
        TT: (f"ranks {train}", partial(TTFusion, *given, train)),
        LMF: (f"rank {rank}", partial(LowRankFusion, *given, rank)),
        TUCKER: (f"ranks {tucker}", partial(TuckerFusion, *given, tucker)),
    }


def references(task: Task) -> dict[str, tuple[str, Make]]:
    """What has one size only: a linear classifier of all features, and the tensor with every entry a parameter."""
    return {
        LINEAR: ("all views side by side", partial(nn.Linear, sum(task.sizes), task.scores)),
        TENSOR: ("every entry", partial(TensorFusion, task.sizes, task.scores)),
    }


def network(task: Task, make: Make, seed: int) -> nn.Module:
    """A new layer in float64; of two classes the first has the score zero."""
    torch.manual_seed(seed)
    layer = make().double()
    return nn.Sequential(layer, nn.ConstantPad1d((1, 0), 0.0)) if task.scores == 1 else layer


def run(task: Task, parts: Parts, make: Make, seed: int) -> dict:
    """Train once for each rate and weight decay; where the validation loss is smallest, and what is right there."""
    seen = []
    for rate, decay in itertools.product(RATES, DECAYS):
        net = network(task, make, seed)

        def look(epoch: int, net: nn.Module = net, setting: tuple[float, float] = (rate, decay)) -> None:
            seen.append((mean_loss(net, parts.validation), *setting, epoch, correct(net, parts.test)))

        options = {"epochs": EPOCHS[task.name], "batch_size": BATCH, "seed": seed}
        fit(net, *parts.train, lr=rate, weight_decay=decay, after_epoch=look, **options)
    return dict(zip(KEPT, min(seen), strict=True))


def measured(task: Task, seeds: Iterable[int], progress: tqdm) -> dict:
    """All layers of all sizes on all splits of a task, and their gains over concatenation."""
    progress.set_description(task.name)
    splits = {seed: parts_of(task, seed) for seed in seeds}
    groups = [*((size, layers(task, rank)) for size, rank in enumerate(RANKS[task.name])), (None, references(task))]
    rows = []
    for size, group in groups:
        for method, (setting, make) in group.items():
            runs = []
            for seed, parts in splits.items():
                runs.append(run(task, parts, make, seed))
                progress.update()
            params = sum(parameter.numel() for parameter in make().parameters())
            row = {"method": method, "size": size, "setting": setting, "params": params}
            rows.append(row | {key: [found[key] for found in runs] for key in KEPT})
    rows += [best_sizes([row for row in rows if row["method"] == name]) for name in (CONCATENATION, TT, LMF, TUCKER)]
    some = next(iter(splits.values()))
    for row in rows:
        row |= gains(row, rival(rows, row), len(some.test[1]))
    return {
        "name": task.name,
        "views": task.views,
        "sizes": task.sizes,
        "scores": task.scores,
        "dense_params": TensorFusion(task.sizes, task.scores).params,
        "examples": [len(y) for _, y in some],
        "epochs": EPOCHS[task.name],
        "rows": rows,
    }


def best_sizes(rows: list[dict]) -> dict:
    """Of one method's sizes the one with the smallest validation loss, on each split anew."""
    best = [
        min(range(len(rows)), key=losses.__getitem__)
        for losses in zip(*(r["validation_loss"] for r in rows), strict=True)
    ]
    kept = {key: [rows[k][key][split] for split, k in enumerate(best)] for key in KEPT}
    return {"method": rows[0]["method"], "size": CHOSEN, "setting": "size by validation", "sizes": best} | kept


def rival(rows: list[dict], row: dict) -> dict:
    """Concatenation of the row's size; for what has one size only, of the size that validation chose."""
    size = CHOSEN if row["size"] is None else row["size"]
    return next(other for other in rows if (other["method"], other["size"]) == (CONCATENATION, size))


def gains(row: dict, control: dict, total: int) -> dict:
    """Test accuracy, and its difference from the control's on the same splits, with its standard error."""
    gaps = [(a - b) / total for a, b in zip(row["test_correct"], control["test_correct"], strict=True)]
    gap = spread("gain", gaps)
    return {
        **spread("test_accuracy", [count / total for count in row["test_correct"]]),
        "gain": gap["gain"],
        "gain_error": gap["gain_sd"] / len(gaps) ** 0.5,
        "better": sum(each > 0 for each in gaps),
        "worse": sum(each < 0 for each in gaps),
    }


def main() -> None:
    """Run everything and record it."""
    torch.set_num_threads(1)
    with tqdm(disable=None) as progress:
        values = {
            "seeds": list(SEEDS),
            "rates": RATES,
            "decays": DECAYS,
            "batch": BATCH,
            "tasks": [measured(task, SEEDS, progress) for task in tasks()],
        }
    print(
        results.write(
            "fusion",
            brief(values),
            models=["linear layer", "one hidden layer", "TT, LMF and Tucker fusion", "tensor fusion"],
            data=["scikit-learn breast cancer", "scikit-learn digits", "planted products of Gaussian numbers"],
            packages=("torch", "scikit-learn", "numpy"),
            command="python -m studies.fusion",
        )
    )
