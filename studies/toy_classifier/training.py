"""A tensor-train layer trained after TT-SVD or from scratch, and its baselines at equal size."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median_high, stdev
from typing import NamedTuple

import torch
from scipy.stats import t
from torch import Tensor, nn

from book.workbook.training import fit
from ttref import TTLinear, swap_layer, tt_ranks, tt_svd, tt_to_tensor

from .data import Parts, correct, shuffled, spread, start
from .ranks import SOURCE_MODES

EPOCHS = 60  # after 40 the trains still gain on dense, by the validation parts of 16 tuning seeds
WEIGHT_DECAY = 1e-3  # for every arm; the tuning table holds the comparison with none
RATES = (3e-3, 1e-2)
TUNING_SEEDS = (1000, 1001)  # their splits and weights are used for tuning only
MARGIN = 0.005
LAYER = 64 * 64  # numbers in the dense weight
NETWORK = LAYER + 64 + 64 * 10 + 10

DENSE, NARROW, FROZEN = "dense", "narrower dense", "random and frozen"
TT, TT3 = "TT-matrix (8,8)x(8,8)", "TT-matrix (4,4,4)x(4,4,4)"
SVD, SOURCE = "SVD", "source form (4,16,4,16)"
HEALED, SCRATCH = "healed", "from scratch"
SHUFFLED = ", pixels shuffled"
UNEVEN = (1, 1, 12, 3, 1)  # few numbers too, but a matrix of rank 12


class Arm(NamedTuple):
    """A form of network and the origin of its weights. ``size`` is a rank, or the width of a narrower network."""

    family: str
    size: int | tuple[int, ...] | None
    start: str


ARMS = [
    Arm(DENSE, None, HEALED),
    Arm(DENSE, None, SCRATCH),
    *(Arm(TT, rank, form) for rank in (1, 2, 3, 4, 6, 8) for form in (HEALED, SCRATCH)),
    *(Arm(TT3, 4, form) for form in (HEALED, SCRATCH)),
    *(Arm(TT + SHUFFLED, rank, SCRATCH) for rank in (1, 3)),
    *(Arm(SVD, rank, HEALED) for rank in (1, 2, 3, 4, 6, 8)),
    Arm(SVD, 3, SCRATCH),
    *(Arm(SOURCE, 4, form) for form in (HEALED, SCRATCH)),
    Arm(SOURCE, UNEVEN, HEALED),
    *(Arm(NARROW, width, SCRATCH) for width in (11, 14, 23)),  # as many numbers as TT networks of rank 1, 3 and 8
    Arm(FROZEN, None, SCRATCH),
]
TARGET = [Arm(DENSE, None, HEALED), *(Arm(TT, 3, form) for form in (HEALED, SCRATCH)), Arm(TT3, 4, HEALED)]


class SourceForm(nn.Module):
    """A linear layer whose weight, in x out, is a train of modes (4, 16, 4, 16): no input mode meets its output mode.

    The train's middle bond cuts the matrix into rows and columns, so its rank bounds the rank of the matrix.
    """

    in_features = out_features = 64

    def __init__(self, cores: list[Tensor], bias: Tensor) -> None:
        super().__init__()
        self.cores = nn.ParameterList(nn.Parameter(core.detach().clone()) for core in cores)
        self.bias = nn.Parameter(bias.detach().clone())

    def matrix(self) -> Tensor:
        """The weight, in x out."""
        return tt_to_tensor(list(self.cores)).reshape(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 64)`` to ``(batch, 64)``."""
        return x @ self.matrix() + self.bias


def new_source_form(rank: int | tuple[int, ...]) -> SourceForm:
    """Gaussian cores, scaled so that the weight has the mean square of ``nn.Linear``."""
    ranks = tt_ranks(SOURCE_MODES, rank)
    cores = [torch.randn(r, n, q) for r, n, q in zip(ranks, SOURCE_MODES, ranks[1:], strict=False)]
    share = ((LAYER / (3 * 64)) ** 0.5 / torch.linalg.vector_norm(tt_to_tensor(cores))) ** (1 / len(cores))
    return SourceForm([core * share for core in cores], nn.Linear(64, 64).bias)


def low_rank_pair(layer: nn.Linear, rank: int, trained: bool = True) -> nn.Sequential:
    """Two layers with the best approximation of rank ``rank``, or Gaussian factors with its mean square."""
    outs, ins = layer.weight.shape
    if trained:
        u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        down, up = s[:rank, None].sqrt() * v[:rank], u[:, :rank] * s[:rank].sqrt()
    else:
        share = (3 * ins * rank) ** -0.25
        down, up = torch.randn(rank, ins) * share, torch.randn(outs, rank) * share
    pair = nn.Sequential(nn.Linear(ins, rank, bias=False), nn.Linear(rank, outs))
    with torch.no_grad():
        for parameter, value in ((pair[0].weight, down), (pair[1].weight, up), (pair[1].bias, layer.bias)):
            parameter.copy_(value)
    return pair


def network(arm: Arm, seed: int) -> tuple[Parts, nn.Sequential]:
    """The digits of this seed, and the arm's network: the trained one with another first layer, or a new one."""
    parts, net = start(seed)
    torch.manual_seed(seed)
    if arm.start == SCRATCH:
        width = arm.size if arm.family == NARROW else 64
        net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    if arm.family == FROZEN:
        net[0].weight.requires_grad_(False)
    elif arm.family.startswith((TT, TT3)):
        modes = (4, 4, 4) if arm.family == TT3 else (8, 8)
        if arm.start == HEALED:
            swap_layer(net, "0", TTLinear.from_linear(net[0], rank=arm.size, in_shape=modes, out_shape=modes))
        else:
            swap_layer(net, "0", TTLinear(modes, modes, arm.size))
    elif arm.family == SVD:
        swap_layer(net, "0", low_rank_pair(net[0], arm.size, trained=arm.start == HEALED))
    elif arm.family == SOURCE and arm.start == HEALED:
        cores = tt_svd(net[0].weight.detach().mT, SOURCE_MODES, rank=arm.size)
        swap_layer(net, "0", SourceForm(cores, net[0].bias))
    elif arm.family == SOURCE:
        swap_layer(net, "0", new_source_form(arm.size))
    return shuffled(parts, seed) if arm.family.endswith(SHUFFLED) else parts, net


def weights(layer: nn.Module) -> int:
    """Number of trainable parameters of the layer's weight, without the bias."""
    named = layer.named_parameters()
    return sum(value.numel() for name, value in named if not name.endswith("bias") and value.requires_grad)


def course(parts: Parts, net: nn.Module, rate: float, seed: int, weight_decay: float) -> dict[str, list[int]]:
    """Train all parameters that are not frozen; correct answers before and after every epoch."""
    seen: dict[str, list[int]] = {"validation": [], "test": []}

    def look(_: int) -> None:
        seen["validation"].append(correct(net, parts.validation))
        seen["test"].append(correct(net, parts.test))

    look(0)
    fit(net, *parts.train, epochs=EPOCHS, lr=rate, weight_decay=weight_decay, seed=seed, after_epoch=look)
    return seen


def tuned(progress: Iterator) -> tuple[dict[tuple[str, str], float], list[dict]]:
    """A learning rate for each family and start: the best mean validation accuracy over the last ten epochs."""
    rates, table = {}, []
    for family, form in dict.fromkeys((arm.family, arm.start) for arm in ARMS):
        sizes = [arm.size for arm in ARMS if (arm.family, arm.start) == (family, form)]
        arm = Arm(family, 3 if 3 in sizes else sizes[0], form)
        heights = {}
        # The effect of weight decay is measured on two arms only.
        for decay in (0.0, WEIGHT_DECAY) if form == HEALED and family in (DENSE, TT) else (WEIGHT_DECAY,):
            for rate in RATES:
                counts = []
                for seed in TUNING_SEEDS:
                    parts, net = network(arm, seed)
                    counts += course(parts, net, rate, seed, decay)["validation"][-10:]
                    progress.update()
                heights[rate, decay] = fmean(counts) / len(parts.validation[1])
                row = {"family": family, "size": arm.size, "start": form, "lr": rate, "weight_decay": decay}
                table.append(row | {"validation_accuracy": heights[rate, decay]})
        rates[family, form] = max(RATES, key=lambda rate: heights[rate, WEIGHT_DECAY])  # noqa: B023
    return rates, table


def healing(seeds: int, target_seeds: int, progress: Iterator) -> dict:
    """Every arm on the first ``seeds`` seeds, and the arms that decide on the target on ``target_seeds``.

    Differences are taken within a seed, against dense with the same extra epochs.
    """
    rates, tuning = tuned(progress)
    runs: dict[Arm, list[dict]] = {arm: [] for arm in ARMS}
    named = {}
    for arm in ARMS:
        for seed in range(target_seeds if arm in TARGET else seeds):
            parts, net = network(arm, seed)
            runs[arm].append(course(parts, net, rates[arm.family, arm.start], seed, WEIGHT_DECAY))
            if arm.family == SOURCE:
                bound = arm.size if isinstance(arm.size, int) else max(arm.size)
                assert torch.linalg.matrix_rank(net[0].matrix().detach(), rtol=1e-5) <= bound
            progress.update()
        named[arm] = described(arm, net) | {"lr": rates[arm.family, arm.start]}
    totals = {name: len(getattr(parts, name)[1]) for name in ("validation", "test")}
    dense = runs[ARMS[0]]
    before = {name: [run[name][0] / total for run in dense[:seeds]] for name, total in totals.items()}
    return {
        "seeds": seeds,
        "epochs": EPOCHS,
        "weight_decay": WEIGHT_DECAY,
        "margin": MARGIN,
        "validation_total": totals["validation"],
        "test_total": totals["test"],
        "tuning": tuning,
        "dense_before_extra_epochs": spread("validation_accuracy", before["validation"])
        | spread("test_accuracy", before["test"]),
        "arms": [named[arm] | compared(runs[arm][:seeds], dense[:seeds], totals) for arm in ARMS],
        "target": {
            "seeds": target_seeds,
            "ratio": LAYER / named[TARGET[1]]["params"],
            "arms": [named[arm] | outcome(runs[arm], dense, totals) for arm in TARGET],
        },
    }


def described(arm: Arm, net: nn.Sequential) -> dict:
    """The arm's settings and number of trained parameters; ``rank`` or, for a narrower network, ``width``."""
    layer, total = weights(net[0]), sum(value.numel() for value in net.parameters() if value.requires_grad)
    size = {"rank": None, "width": arm.size} if arm.family == NARROW else {"rank": arm.size}
    return {
        "family": arm.family,
        "start": arm.start,
        **size,
        "params": layer,
        "ratio": LAYER / layer if layer else None,
        "network_params": total,
        "network_ratio": NETWORK / total,
    }


def outcome(runs: list[dict], control: list[dict], totals: dict[str, int]) -> dict:
    """Final accuracies of an arm's runs, and their differences from dense."""
    found = {}
    for name, total in totals.items():
        last = [run[name][-1] / total for run in runs]
        found |= spread(f"{name}_accuracy", last)
        for other, epoch in (("dense", -1), ("dense_before", 0)):
            gaps = [mine - peer[name][epoch] / total for mine, peer in zip(last, control, strict=True)]
            found |= spread(f"{name}_minus_{other}", gaps)
        found[f"{name}_correct"] = [run[name][-1] for run in runs]
    error = found["test_minus_dense_sd"] / len(runs) ** 0.5
    low, high = (found["test_minus_dense"] + side * t.ppf(0.975, len(runs) - 1) * error for side in (-1, 1))
    # "undecided" if the mean over more seeds could fall on the other side of the margin.
    verdict = "yes" if low >= -MARGIN else "no" if high < -MARGIN else "undecided"
    return found | {
        "standard_error": error,
        "interval_95": [low, high],
        "within_margin": found["test_minus_dense"] >= -MARGIN,
        "within_margin_by_interval": verdict,
    }


def compared(runs: list[dict], control: list[dict], totals: dict[str, int]) -> dict:
    """The outcome, the course of the accuracies, and the epochs that the runs need to reach dense.

    ``epochs_to_dense`` is the first epoch whose validation accuracy is within the margin of the trained network's.
    """
    floor = MARGIN * totals["validation"]
    reached = [
        next((epoch for epoch, count in enumerate(run["validation"]) if count >= peer["validation"][0] - floor), None)
        for run, peer in zip(runs, control, strict=True)
    ]
    middle = median_high(EPOCHS + 1 if epoch is None else epoch for epoch in reached)
    found = outcome(runs, control, totals) | {
        "epochs_to_dense": reached,
        "seeds_that_reach_dense": sum(epoch is not None for epoch in reached),
        "median_epochs_to_dense": middle if middle <= EPOCHS else None,
    }
    by_epoch = {name: list(zip(*(run[name] for run in runs), strict=True)) for name in totals}
    for name, total in totals.items():
        found[f"{name}_curve"] = [fmean(counts) / total for counts in by_epoch[name]]
    found["validation_curve_sd"] = [stdev(counts) / totals["validation"] for counts in by_epoch["validation"]]
    return found
