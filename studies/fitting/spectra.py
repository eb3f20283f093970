"""What decides whether a shared projection pays: the spectrum of the inputs, on real layers and on planted ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from book.workbook import sources
from ttref import truncated_svd, ttm_to_matrix
from ttref.fitting.errors import output_error
from ttref.fitting.gram import Gram, Grams

from . import data
from .data import Layer
from .methods import fitted, shared

RATIO, MANY = 4, 10**6
PLANTED = [(width, RATIO, decay) for width in (128, 384) for decay in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
TEXTS = (10, 30, 100, 300, 1000)
MATRICES = ("0.attention.self.query", "3.attention.self.value", "5.attention.output.dense")


def effective_rank(gram: Tensor) -> float:
    """The number of equal directions with as much entropy: exp of the entropy of the eigenvalues' shares."""
    share = torch.linalg.eigvalsh(gram).clamp(min=0)
    share = share / share.sum()
    return torch.special.entr(share).sum().exp().item()


def gain(layer: Layer, ratio: int = RATIO) -> dict[str, float]:
    """Output errors, on calibration, of the whitened SVD and of one projection for both halves of the inputs."""
    budget = layer.weight.numel() // ratio
    svd = truncated_svd(layer.weight, params=budget, gram=layer.gram).approximation
    train = ttm_to_matrix(fitted(layer, shared(*layer.weight.shape), budget))
    return {
        "whitened": output_error(layer.weight, svd, layer.gram),
        "shared": output_error(layer.weight, train, layer.gram),
    }


def row(model: str, name: str, layer: Layer) -> dict:
    """A real layer: its effective ranks, and the gain with its weights or Gaussian ones, its inputs or white ones."""
    gram, weight, (m, n) = layer.gram.matrix, layer.weight.double(), layer.weight.shape
    found = {"model": model, "layer": name, "rows": m, "width": n, "inputs_rank": effective_rank(gram)}
    found["outputs_rank"] = effective_rank(weight @ gram @ weight.mT)
    found |= gain(layer)
    if name.startswith("3."):  # enough to see it
        turn = orthogonal(n)
        cases = {
            "noise": layer.noise(),
            "turned": Layer("", (weight @ turn.mT).float(), symmetric(turn @ gram @ turn.mT), {}),
            "white": Layer("", layer.weight, symmetric(torch.eye(n, dtype=torch.float64)), {}),
        }
        for case, other in cases.items():
            made = gain(other)
            found |= {f"{case}_whitened": made["whitened"], f"{case}_shared": made["shared"]}
    return found


def orthogonal(width: int) -> Tensor:
    """A random orthogonal matrix."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def symmetric(matrix: Tensor) -> Gram:
    """A Gram matrix as if of many tokens, its rounding taken out."""
    return Gram((matrix + matrix.mT) / 2, MANY)


def planted(key: tuple) -> dict:
    """Gaussian weights of a width, inputs whose k-th direction has variance ``k^-decay``."""
    width, ratio, decay = key
    weight = torch.randn(width, width, generator=torch.Generator().manual_seed(1))
    turn = orthogonal(width)
    gram = symmetric((turn * torch.arange(1, width + 1, dtype=torch.float64) ** -decay) @ turn.mT)
    found = {"width": width, "ratio": ratio, "decay": decay, "inputs_rank": effective_rank(gram.matrix)}
    return found | gain(Layer("", weight, gram, {}), ratio)


def with_texts(count: int, loaded: sources.LoadedModel, folder: Path, others: Grams) -> dict:
    """Held-out errors of whitened SVD and of the shared projection, from so many sentences of calibration."""
    lines = data.minilm_texts(folder, count)
    grams = data.text_grams(loaded, lines)
    found: dict = {"texts": count}
    layers = {layer.name: layer for layer in data.minilm_layers(loaded.model, grams, others, others)}
    for name in MATRICES:
        layer = layers[name]
        found["tokens"] = layer.gram.tokens
        budget = layer.weight.numel() // RATIO
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ten sentences do not span is what is measured here
            train = ttm_to_matrix(fitted(layer, shared(*layer.weight.shape), budget))
        svd = truncated_svd(layer.weight, params=budget, gram=layer.gram).approximation
        found[f"{name} whitened"] = output_error(layer.weight, svd, layer.held_out[""])
        found[f"{name} shared"] = output_error(layer.weight, train, layer.held_out[""])
    return found
