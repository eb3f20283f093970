"""Accuracy against size when the first layer of the digit network is compressed without further training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ttref import gaussian_null, quantize_integer, truncated_svd, tt_svd, tt_to_tensor, ttm_svd, ttm_to_matrix

from .data import correct, mean_loss, spread, start

SOURCE, NOISE = "TT as in the source", "noise of equal size"
SOURCE_MODES = (4, 16, 4, 16)
SETTINGS = {  # settings of the methods: a cap on the ranks, or bits
    SOURCE: range(1, 17),
    "TT-matrix (4,16)x(4,16)": range(1, 17),
    "TT-matrix (8,8)x(8,8)": range(1, 33),
    "SVD": range(1, 33),
    "integers": (8, 4, 3, 2),
    NOISE: range(1, 17),
}
MARGINS = (0.005, 0.02)  # accuracy that a choice may cost on the validation part
ERRORS = (0.3, 0.5, 0.65)


class Compressed(NamedTuple):
    """An approximation of the weight, and its storage."""

    weight: Tensor
    params: int
    nbytes: int


def as_in_the_source(weight: Tensor, rank: int) -> Compressed:
    """Train of the weight laid out in x out, as scikit-learn keeps it, cut into (4, 16, 4, 16)."""
    cores = tt_svd(weight.mT, SOURCE_MODES, rank=rank)
    params = sum(core.numel() for core in cores)
    rebuilt = tt_to_tensor(cores).reshape(weight.mT.shape).mT
    return Compressed(rebuilt, params, params * weight.element_size())


def compress(method: str, weight: Tensor, setting: int, seed: int) -> Compressed:
    """A weight (out, in) after one method at one setting; ``seed`` draws the noise."""
    if method == SOURCE:
        return as_in_the_source(weight, setting)
    if method == NOISE:
        residual = torch.linalg.vector_norm(as_in_the_source(weight, setting).weight - weight)
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        noise *= residual / torch.linalg.vector_norm(noise)
        return Compressed(weight + noise, weight.numel(), weight.numel() * weight.element_size())
    if method == "SVD":
        made = truncated_svd(weight, rank=setting)
    elif method == "integers":
        made = quantize_integer(weight, setting)
    else:
        shape = (4, 16) if "(4,16)" in method else (8, 8)
        cores = ttm_svd(weight, shape, shape, rank=setting)
        params = sum(core.numel() for core in cores)
        return Compressed(ttm_to_matrix(cores), params, params * weight.element_size())
    return Compressed(made.approximation, made.params, made.nbytes)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative Frobenius distance of b from a."""
    return (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a)).item()


class Measured(NamedTuple):
    """One method at one setting in one network."""

    params: int
    nbytes: int
    weight_error: float
    output_error: float
    null_error: float | None
    validation_correct: int
    validation_loss: float
    test_correct: int


@torch.no_grad()
def measure(seed: int, method: str, setting: int) -> Measured:
    """All errors of the network of this seed with its first layer compressed.

    ``output_error`` is that of the layer's outputs (bias included) on the training inputs.
    """
    parts, network = start(seed)
    layer, (x, _) = network[0], parts.train
    dense, before = layer.weight.clone(), layer(x)
    made = compress(method, dense, setting, seed)
    null_error = None
    if method != NOISE:
        null = gaussian_null(dense, seed=seed)
        null_error = distance(null, compress(method, null, setting, seed).weight)
    layer.weight.copy_(made.weight)
    return Measured(
        made.params,
        made.nbytes,
        distance(dense, made.weight),
        distance(before, layer(x)),
        null_error,
        correct(network, parts.validation),
        mean_loss(network, parts.validation),
        correct(network, parts.test),
    )


def sizes(seed: int) -> tuple[int, int, int, int]:
    """Numbers of validation and of test examples, of weights in the first layer and in the whole network."""
    parts, network = start(seed)
    weights = network[0].weight.numel(), sum(parameter.numel() for parameter in network.parameters())
    return len(parts.validation[1]), len(parts.test[1]), *weights


def points() -> list[tuple[str, int]]:
    return [(method, setting) for method, settings in SETTINGS.items() for setting in settings]


def record(seeds: Iterable[int], progress: Iterator) -> dict[str, dict]:
    """The ranks, and how well errors predict accuracy, each under its name."""
    seeds = list(seeds)
    found = {point: [] for point in points()}
    dense: dict[str, list[int]] = {"validation": [], "test": []}
    for seed in seeds:
        parts, network = start(seed)
        dense["validation"].append(correct(network, parts.validation))
        dense["test"].append(correct(network, parts.test))
        for point, rows in found.items():
            rows.append(measure(seed, *point))
        progress.update()
    validated, tested, layer, network = sizes(seeds[0])
    rows = []
    for (method, setting), measured in found.items():
        first = measured[0]
        rows.append(
            {
                "method": method,
                "bits" if method == "integers" else "rank": setting,
                "params": first.params,
                "nbytes": first.nbytes,
                "ratio": 4 * layer / first.nbytes,
                "network_ratio": 4 * network / (first.nbytes + 4 * (network - layer)),
                **spread("weight_error", [row.weight_error for row in measured]),
                **spread("output_error", [row.output_error for row in measured]),
                **({} if method == NOISE else spread("null_error", [row.null_error for row in measured])),
                **spread("validation_accuracy", [row.validation_correct / validated for row in measured]),
                **spread("validation_loss", [row.validation_loss for row in measured]),
                **spread("test_accuracy", [row.test_correct / tested for row in measured]),
                "validation_correct": [row.validation_correct for row in measured],
                "test_correct": [row.test_correct for row in measured],
            }
        )
    return {
        "ranks": {
            "seeds": seeds,
            "train_total": 942,
            "validation_total": validated,
            "test_total": tested,
            "dense": {
                **spread("validation_accuracy", [count / validated for count in dense["validation"]]),
                **spread("test_accuracy", [count / tested for count in dense["test"]]),
                "validation_correct": dense["validation"],
                "test_correct": dense["test"],
            },
            "points": rows,
            "chosen": chosen(found, dense, validated, tested, layer),
        },
        "calibration": calibration(found, validated),
    }


def chosen(found: dict, dense: dict, validated: int, tested: int, layer: int) -> list[dict]:
    """The choice of validation: for each seed the fewest bytes within the margin, and its loss of test accuracy."""
    rows = []
    for margin in MARGINS:
        for method in SETTINGS:
            if method == NOISE:
                continue
            settings, ratios, lost, without = [], [], [], 0
            for k, (floor, best) in enumerate(zip(dense["validation"], dense["test"], strict=True)):
                able = [
                    (measured[k].nbytes, setting, measured[k].test_correct)
                    for (name, setting), measured in found.items()
                    if name == method and measured[k].validation_correct >= floor - margin * validated
                ]
                if not able:
                    without += 1
                    continue
                nbytes, setting, count = min(able)
                settings.append(setting)
                ratios.append(4 * layer / nbytes)
                lost.append((best - count) / tested)
            row = {"margin": margin, "method": method, "settings": settings, "seeds_without_choice": without}
            if len(ratios) > 1:
                row |= spread("ratio", ratios) | spread("test_accuracy_lost", lost)
            rows.append(row)
    return rows


def calibration(found: dict, validated: int) -> dict:
    """Rank correlation between an error and the validation accuracy, over the settings of each seed's network."""
    count = len(next(iter(found.values())))
    groups = {method: [method] for method in SETTINGS if method != "integers"}  # four points tell nothing
    groups["all methods"] = [method for method in SETTINGS if method != NOISE]
    groups["all methods and noise"] = list(SETTINGS)
    correlations = []
    for group, methods in groups.items():
        for error in ("weight_error", "output_error"):
            row = {"group": group, "error": error, "points": sum(len(SETTINGS[method]) for method in methods)}
            for target in ("validation_correct", "validation_loss"):
                values = [
                    spearmanr(
                        *(
                            [getattr(rows[k], name) for (method, _), rows in found.items() if method in methods]
                            for name in (error, target)
                        )
                    ).statistic
                    for k in range(count)
                ]
                row |= spread(target.replace("correct", "accuracy"), values)
            correlations.append(row)
    return {
        "about": "Spearman rank correlation over the settings, mean and sd over seeds; -1 is perfect for accuracy",
        "correlations": correlations,
        "accuracy_at_equal_error": at_equal_error(found, validated),
    }


def at_equal_error(found: dict, validated: int) -> list[dict]:
    """Validation accuracy of each method at a given error, interpolated between its settings."""
    rows = []
    for error in ("weight_error", "output_error"):
        for value in ERRORS:
            for method in SETTINGS:
                accuracies = []
                for k in range(len(next(iter(found.values())))):
                    pairs = sorted(
                        (getattr(measured[k], error), measured[k].validation_correct / validated)
                        for (name, _), measured in found.items()
                        if name == method
                    )
                    errors, heights = zip(*pairs, strict=True)
                    if errors[0] <= value <= errors[-1]:
                        accuracies.append(float(np.interp(value, errors, heights)))
                if len(accuracies) > 1:
                    row = {"error": error, "value": value, "method": method, "seeds": len(accuracies)}
                    rows.append(row | spread("validation_accuracy", accuracies))
    return rows
