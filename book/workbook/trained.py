"""Trains of trained weights for the hardware chapter and its study: a digits layer and rows of a token table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ttref.layers import TTLinear
from ttref.trains import tt_svd

from .models import load_encoder
from .sources import DigitsSplit, load_digits_split
from .training import fit

__all__ = ["DigitsLayer", "digits_layer", "token_trains"]


class DigitsLayer(NamedTuple):
    """A trained 64-64-10 network whose first layer is a train, its cores, and the digits.

    ``network`` is float64: ``TTLinear``, ReLU, ``Linear``. ``cores`` are NumPy matrix cores
    ``(r_{k-1}, m_k, n_k, r_k)``.
    """

    network: nn.Sequential
    cores: list[np.ndarray]
    digits: DigitsSplit


def digits_layer(
    rank: int,
    *,
    outs: tuple[int, ...] = (4, 4, 4),
    ins: tuple[int, ...] = (4, 4, 4),
    seed: int = 0,
    epochs: int = 60,
) -> DigitsLayer:
    """Train a 64-64-10 network on the digits, its first layer a train.

    Args:
        rank: Cap of the layer's ranks.
        outs: Modes of the 64 outputs. With ``(64, 1)`` and ``ins=(1, 64)`` the train is a product of two thin matrices.
        ins: Modes of the 64 inputs.
        seed: Of the first weights and of the order of examples.
        epochs: Passes over the 1,437 training images, with Adam at 3e-3 and a weight decay of 1e-4.

    Returns:
        The network, its cores and the digits. About 2 s on one thread.

    Example:
        >>> subject = digits_layer(1, epochs=1)
        >>> [core.shape for core in subject.cores]
        [(1, 4, 4, 1), (1, 4, 4, 1), (1, 4, 4, 1)]
    """
    digits = DigitsSplit(*(part.double() if part.is_floating_point() else part for part in load_digits_split()))
    torch.manual_seed(seed)
    first = TTLinear(ins, outs, rank, dtype=torch.float64)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(64, 10, dtype=torch.float64))
    fit(network, digits.train_x, digits.train_y, epochs=epochs, lr=3e-3, weight_decay=1e-4, seed=seed)
    return DigitsLayer(network, [core.detach().numpy().copy() for core in network[0].cores], digits)


def token_trains(count: int, rank: int, *, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of MiniLM's token table, drawn without replacement, and the train of each.

    Args:
        count: Rows, of 30,522.
        rank: Cap of the ranks.
        seed: Of the draw.

    Returns:
        The rows, float64 ``(count, 384)``, and cores ``(count, r_{k-1}, m_k, 1, r_k)`` with modes (6, 8, 8): matrix
        cores with one column, so that a row is the train times the number one.

    Raises:
        ValueError: ``count`` is not among 1 to 30,522.
        ModuleNotFoundError: The model's wheel is not installed; the message holds the install line.

    Example:
        >>> rows, cores = token_trains(5, 2)
        >>> rows.shape, [core.shape for core in cores]
        ((5, 384), [(5, 1, 6, 1, 2), (5, 2, 8, 1, 2), (5, 2, 8, 1, 1)])
    """
    if not 1 <= count <= 30522:
        raise ValueError(f"the table has 30,522 rows; count must be 1 to 30522, got {count}")
    table = load_encoder().model.get_input_embeddings().weight.detach().double()
    chosen = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:count]
    rows = table[chosen]
    train = tt_svd(rows, (6, 8, 8), rank=rank, batch_dims=1)
    return rows.numpy(), [core.unsqueeze(-2).numpy() for core in train]
