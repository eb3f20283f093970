"""Digits layers in eight bits: trains, an SVD, narrow layers and shuffled pixels, all about as large in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from book.workbook.sources import load_digits_split
from book.workbook.training import fit
from ttref.fixedpoint import QuantizedTT
from ttref.layers import TTLinear

SEEDS = range(10)
CLASSES = 10


class Layer(NamedTuple):
    """A first layer: modes of its outputs and inputs, rank, bits of its weights, and whether pixels are shuffled."""

    outs: tuple[int, ...]
    ins: tuple[int, ...]
    rank: int = 1
    bits: int = 8
    shuffled: bool = False


LAYERS = {
    "train, 2 cores": Layer((8, 8), (8, 8), rank=3),
    "train, 3 cores": Layer((4, 4, 4), (4, 4, 4), rank=4),
    "train, 2 cores, pixels shuffled": Layer((8, 8), (8, 8), rank=3, shuffled=True),
    "SVD": Layer((64, 1), (1, 64), rank=3),
    "narrow": Layer((14,), (64,)),
    "narrow, four bits": Layer((25,), (64,), bits=4),
}


def run(layer: Layer, seed: int) -> dict[str, float | int]:
    """Train the network in float64, and count what it reads rightly with its first layer in integers."""
    digits = load_digits_split()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)) if layer.shuffled else torch.arange(64)
    train_x, test_x = (x.double()[:, order] for x in (digits.train_x, digits.test_x))
    torch.manual_seed(seed)
    hidden = int(np.prod(layer.outs))
    first = TTLinear(layer.ins, layer.outs, layer.rank, dtype=torch.float64)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, CLASSES, dtype=torch.float64))
    fit(network, train_x, digits.train_y, epochs=60, lr=3e-3, weight_decay=1e-4, seed=seed)
    cores = [core.detach().numpy().copy() for core in first.cores]
    widths = {"weight_width": layer.bits, "act_width": 8}
    made = QuantizedTT.from_float(cores, **widths, calibration=train_x.numpy())
    with torch.no_grad():
        inner = torch.from_numpy(made.matvec_float(test_x.numpy())) + first.bias
        scores = network[2](inner.relu())
        plain = network(test_x)
    rest = hidden + CLASSES * (hidden + 1)  # biases and the second layer, in eight bits
    return {
        "right": int((scores.argmax(1) == digits.test_y).sum()),
        "right_float": int((plain.argmax(1) == digits.test_y).sum()),
        "total": len(digits.test_y),
        "layer_numbers": int(sum(core.size for core in cores)),
        "bytes": layer.bits * int(sum(core.size for core in cores)) / 8 + rest,
    }


def rows(known: dict[str, dict]) -> Iterable[dict]:
    """Every layer with every seed."""
    for seed in SEEDS:
        for name, layer in LAYERS.items():
            key = f"{name}, {seed}"
            if key not in known:
                yield {"key": key, "layer": name, "seed": seed, "bits": layer.bits, **run(layer, seed)}
