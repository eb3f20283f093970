"""Gains: compressed models that score better than the original, beside equally large random changes of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ttref.surgery import edit

from .accepts import everything
from .loops import Bench, load

EPS = (0.1, 0.3)
SEEDS = {"vit": 8, "sst2": 5}
SPLITS, SIZE = 200, 200  # draws of a validation set, and its examples


@torch.no_grad()
def with_weight(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """A dense layer with another weight."""
    made = nn.Linear(layer.in_features, layer.out_features)
    made.weight.copy_(weight)
    made.bias.copy_(layer.bias)
    return made.eval()


def truncated(w: Tensor, eps: float) -> Tensor:
    """The smallest truncated SVD with this relative error."""
    left, values, right = torch.linalg.svd(w.double(), full_matrices=False)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / values.norm()
    rank = max(int((tails > eps).sum()), 1)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).to(w.dtype)


def noisy(w: Tensor, error: float, draw: torch.Generator) -> Tensor:
    """The weight with Gaussian noise of this relative size."""
    noise = torch.randn(w.shape, generator=draw)
    return w + noise * (error * w.norm() / noise.norm())


def told(start: Tensor, now: Tensor, seed: int = 0) -> dict:
    """The gain on all examples, and its spread over small validation sets drawn from them."""
    draw = torch.Generator().manual_seed(seed)
    gained = now - start
    drawn = torch.stack([gained[torch.randperm(len(gained), generator=draw)[:SIZE]].mean() for _ in range(SPLITS)])
    return {
        "gain": gained.mean().item(),
        "splits_sd": drawn.std().item(),
        "splits_above_0": (drawn > 0).double().mean().item(),
        "splits_at_least_2_points": (drawn >= 0.02 - 1e-9).double().mean().item(),
        "largest_split": drawn.max().item(),
        "harmful": int((gained < 0).sum()),
        "beneficial": int((gained > 0).sum()),
    }


def gains(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``gains``: all linear layers changed at once, by SVD, by a train, or by noise."""
    bench = load(name, folder)
    start = everything(bench.task)
    for eps in EPS:
        for kind, seed in (("svd", 0), ("tt", 0), *(("noise", seed) for seed in range(SEEDS[name]))):
            key = f"{name} {kind} {eps:g} {seed}"
            if key not in before:
                row = {"key": key, "task": name, "kind": kind, "eps": eps, "seed": seed}
                yield row | changed(bench, kind, eps, seed, start)


def changed(bench: Bench, kind: str, eps: float, seed: int, start: Tensor) -> dict:
    """Change every linear layer, measure, and change it back."""
    task, draw, new, errors = bench.task, torch.Generator().manual_seed(seed), {}, []
    for name in task.linears:
        old = task.model.get_submodule(name)
        w = old.weight.detach()
        if kind == "tt":
            made = bench.shelf.candidate("tt", eps).make(old).weight.detach()
        else:
            made = truncated(w, eps) if kind == "svd" else noisy(w, eps, draw)
        errors.append(((made - w).norm() / w.norm()).item())
        new[name] = with_weight(old, made)
    with edit(task.model) as change:
        change.put(new)
    found = told(start, everything(task)) | {"error": sum(errors) / len(errors)}
    change.undo()
    return found
