"""Initializations of a layer's cores for training from scratch: Gaussian or orthogonal, at two scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import torch
from torch import Tensor, nn

from book.workbook.training import fit
from ttref import TTLinear, tt_orthogonalize, tt_to_tensor

from .data import correct, mean_loss, spread, start
from .training import LAYER

STEPS = (1, 2, 5, 10, 20)
MODES, RANKS = (4, 4, 4), (2, 8)
RATES = (1e-3, 1e-2)
SCALES = {"1/(3 in)": 1 / (3 * 64), "2/in": 2 / 64}  # mean square of the weight's entries: nn.Linear's, and He's


def gaussian_cores(layer: TTLinear) -> list[Tensor]:
    """The Gaussian cores of TTLinear."""
    return [core.detach().flatten(1, 2) for core in layer.cores]


def canonical_cores(layer: TTLinear) -> list[Tensor]:
    """The matrix that TTLinear draws, with all cores left-orthogonal but the last, which carries the norm."""
    return tt_orthogonalize(gaussian_cores(layer), len(layer.cores) - 1)


def orthogonal_cores(layer: TTLinear) -> list[Tensor]:
    """Every core uniform among left-orthogonal ones, the norm shared equally by all."""
    cores = []
    for core in gaussian_cores(layer):
        q, r = torch.linalg.qr(torch.randn(core.flatten(0, 1).shape))
        cores.append((q * r.diagonal().sign()).reshape(core.shape))
    return cores


DRAWS: dict[str, Callable[[TTLinear], list[Tensor]]] = {
    "Gaussian cores": gaussian_cores,
    "orthogonal cores": orthogonal_cores,
    "the Gaussian train in canonical form": canonical_cores,
}


def drawn(draw: str, scale: str, rank: int, seed: int) -> nn.Sequential:
    """A new network whose first weight has exactly the mean square ``SCALES[scale]``."""
    torch.manual_seed(seed)
    layer = TTLinear(MODES, MODES, rank)
    cores = DRAWS[draw](layer)
    norm = torch.linalg.vector_norm(tt_to_tensor(cores))
    factor = ((SCALES[scale] * LAYER) ** 0.5 / norm).item()
    if draw == "the Gaussian train in canonical form":
        cores[-1] = cores[-1] * factor
    else:
        cores = [core * factor ** (1 / len(cores)) for core in cores]
    shaped = [core.unflatten(1, (m, n)) for core, m, n in zip(cores, layer.out_shape, layer.in_shape, strict=True)]
    return nn.Sequential(TTLinear.from_cores(shaped, layer.bias), nn.ReLU(), nn.Linear(64, 10))


def losses(draw: str, scale: str, rank: int, rate: float, seed: int) -> tuple[list[float], float]:
    """Training loss after each of ``STEPS`` epochs, and validation accuracy after the last."""
    parts, _ = start(seed)
    net, seen = drawn(draw, scale, rank, seed), []

    def look(epoch: int) -> None:
        if epoch in STEPS:
            seen.append(mean_loss(net, parts.train))

    fit(net, *parts.train, epochs=STEPS[-1], lr=rate, seed=seed, after_epoch=look)
    return seen, correct(net, parts.validation) / len(parts.validation[1])


def record(seeds: Iterable[int], progress: Iterator) -> dict:
    """Three ways to draw the cores, at two scales, ranks and learning rates; differences are taken within a seed."""
    seeds, rows = list(seeds), []
    for rank, scale, rate in product(RANKS, SCALES, RATES):
        gaussian: list[list[float]] = []
        for draw in DRAWS:
            found = []
            for seed in seeds:
                found.append(losses(draw, scale, rank, rate, seed))
                progress.update()
            by_seed = [seen for seen, _ in found]
            gaussian = gaussian or by_seed
            steps = []
            for k, epoch in enumerate(STEPS):
                gaps = [mine[k] - theirs[k] for mine, theirs in zip(by_seed, gaussian, strict=True)]
                step = {"epoch": epoch} | spread("mean", [seen[k] for seen in by_seed])
                steps.append(step | spread("minus_gaussian", gaps))
            row = {"draw": draw, "scale": scale, "rank": rank, "lr": rate, "loss": steps}
            rows.append(row | spread("validation_accuracy", [height for _, height in found]))
    return {"seeds": seeds, "shape": "(4,4,4)x(4,4,4)", "weight_decay": 0.0, "rows": rows}
