"""Digits in three parts, the initial networks of the toy studies, and means and spreads of counts."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

Examples = tuple[Tensor, Tensor]  # inputs (count, features) and classes (count,)


class Parts(NamedTuple):
    """Examples for training, validation and test."""

    train: Examples
    validation: Examples
    test: Examples


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 digits of scikit-learn, pixels between 0 and 1, and their classes."""
    data = load_digits()
    return data.data / 16, data.target


def mlp(x: np.ndarray, y: np.ndarray, seed: int, hidden: tuple[int, ...] = (64,)) -> MLPClassifier:
    """A network as in the source, trained by scikit-learn for 300 epochs on one thread."""
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 epochs are the setting, converged or not
        return MLPClassifier(hidden, random_state=seed, max_iter=300).fit(x, y)


def three_parts(x: np.ndarray, y: np.ndarray, sizes: tuple[float | int, float | int], seed: int) -> Parts:
    """Float32 tensors: first the test part is split off, then the validation part; ``sizes`` as scikit-learn's."""
    x, x_test, y, y_test = train_test_split(x, y, test_size=sizes[1], random_state=seed)
    x, x_validation, y, y_validation = train_test_split(x, y, test_size=sizes[0], random_state=seed)
    pairs = ((x, y), (x_validation, y_validation), (x_test, y_test))
    return Parts(*((torch.from_numpy(a).float(), torch.from_numpy(b).long()) for a, b in pairs))


@lru_cache(maxsize=64)
def _start(seed: int, hidden: tuple[int, ...]) -> tuple[Parts, nn.Sequential]:
    parts = three_parts(*digits(), (0.25, 0.3), seed)
    trained = mlp(*(side.numpy() for side in parts.train), seed, hidden)
    widths = [64, *hidden, 10]
    layers = []
    for inputs, outputs, weight, bias in zip(widths, widths[1:], trained.coefs_, trained.intercepts_, strict=False):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, nn.ReLU()]
    return parts, nn.Sequential(*layers[:-1])


def start(seed: int, hidden: tuple[int, ...] = (64,)) -> tuple[Parts, nn.Sequential]:
    """942 / 315 / 540 digits and a copy of the network that scikit-learn trained on the 942; one seed for both."""
    parts, network = _start(seed, hidden)
    return parts, copy.deepcopy(network)


def shuffled(parts: Parts, seed: int) -> Parts:
    """The same examples with all pixels in one random order, which destroys only the picture's neighborhoods."""
    order = torch.randperm(parts.train[0].shape[1], generator=torch.Generator().manual_seed(seed))
    return Parts(*((x[:, order], y) for x, y in parts))


@torch.no_grad()
def correct(network: nn.Module, examples: Examples) -> int:
    """Number of examples that the network classifies correctly."""
    x, y = examples
    return int((network(x).argmax(-1) == y).sum())


@torch.no_grad()
def mean_loss(network: nn.Module, examples: Examples) -> float:
    """Cross-entropy in nats."""
    x, y = examples
    return nn.functional.cross_entropy(network(x), y).item()


def spread(name: str, values: Iterable[float]) -> dict[str, float]:
    """Mean and sample standard deviation, under ``name`` and ``name_sd``."""
    values = [float(value) for value in values]
    return {name: statistics.fmean(values), f"{name}_sd": statistics.stdev(values)}


def brief(value: object) -> object:
    """The same with every float rounded to six digits: further ones depend on the machine's arithmetic."""
    if isinstance(value, dict):
        return {key: brief(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [brief(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
