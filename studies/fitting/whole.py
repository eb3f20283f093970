"""All matrices exchanged at once: what is left of a classifier's answers, and of sentence vectors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from book.workbook import sources
from ttref import quantize_integer, truncated_svd, ttm_to_matrix
from ttref.fitting.choosing import choose_modes
from ttref.gptq import gptq_quantize
from ttref.integer_cores import quantize_cores

from ..cifar import pixels
from ..elsewhere.networks import ViT
from ..embeddings.encoder import pooled
from . import data
from .data import Layer
from .methods import GROUP, balanced, best_tt_svd, fitted, shared, tt_svd

HALF = torch.bfloat16  # factors take 16 bits

# Methods and their sizes: ratios of numbers, or bits.
PICTURE_KEYS = [
    ("dense", 1),
    *((method, ratio) for ratio in (2, 4, 8) for method in ("svd", "whitened", "tt_svd", "balanced", "searched")),
    *((method, bits) for method in ("rounding", "gptq") for bits in (4, 3, 2)),
    ("gptq", 1),
]
SENTENCE_KEYS = [
    *((method, 4) for method in ("svd", "whitened", "tt_svd_balanced", "balanced", "shared")),
    *(("rounding", 4), ("gptq", 4), ("gptq", 2)),
]


def replaced(method: str, size: int, layer: Layer, modes: tuple | None = None) -> tuple[Tensor, float]:
    """A matrix by a method at a ratio (or of so many bits), and the bits it takes."""
    weight, budget = layer.weight, layer.weight.numel() // size
    if method == "rounding":
        made = quantize_integer(weight, size, group=GROUP, best=True)
        return made.approximation, 8 * made.nbytes
    if method == "gptq":
        made = gptq_quantize(weight, layer.gram, size, group=GROUP)
        return made.approximation, 8 * made.nbytes
    if method in ("svd", "whitened"):
        made = truncated_svd(weight, params=budget, gram=layer.gram if method == "whitened" else None)
        left, right = (made.stored[side].to(HALF).float() for side in ("left", "right"))
        return left @ right, 16 * made.params
    if method == "tt_svd":
        cores = best_tt_svd(layer, budget)
    elif method == "tt_svd_balanced":
        cores = tt_svd(layer, balanced(*weight.shape), budget)
    elif method.startswith("searched") and modes is None:
        cores = choose_modes(weight, layer.gram, params=budget, progress=False).cores
    else:
        cores = fitted(layer, modes or {"balanced": balanced, "shared": shared}[method](*weight.shape), budget)
    if method.endswith("int4"):
        codes, scales, cores = quantize_cores(cores, weight, layer.gram, 4)
        return ttm_to_matrix(cores), sum(4 * code.numel() for code in codes) + sum(16 * part.numel() for part in scales)
    return ttm_to_matrix([core.to(HALF).float() for core in cores]), 16 * sum(core.numel() for core in cores)


def read_modes(rows: list[dict], name: str, ratio: int) -> tuple | None:
    """The modes that a recorded search chose: ``128x2 1x64`` as row and column modes."""
    for row in rows:
        if (row["layer"], row["ratio"]) == (name, ratio):
            pairs = [tuple(map(int, pair.split("x"))) for pair in row["modes"].split()]
            return tuple(zip(*pairs, strict=True))
    return None


class Pictures:
    """The ViT judged on the 761 test pictures."""

    def __init__(self, net: ViT, folder: Path) -> None:
        self.net, (self.x, self.y) = net, pixels(folder, "test")
        self.before = net.answers(self.x)

    def measure(self, key: tuple[str, int], layers: list[Layer], chosen: list[dict]) -> dict:
        """Right answers, answers as before, and bits for each weight."""
        method, size = key
        dense, bits = {}, 0.0
        for layer in layers:
            if method == "dense":
                dense[layer.name], taken = layer.weight, 32 * layer.weight.numel()
            else:
                modes = read_modes(chosen, layer.name, size) if method.startswith("searched") else None
                dense[layer.name], taken = replaced(method, size, layer, modes)
            bits += taken
        answers = self.net.having(data.put(self.net, dense)).answers(self.x)
        return {
            "method": method,
            "size": size,
            "bits": bits / sum(layer.weight.numel() for layer in layers),
            "right": int((answers == self.y).sum()),
            "as_before": int((answers == self.before).sum()),
            "total": len(self.y),
        }


class Sentences:
    """MiniLM judged by its vectors of sentences that no fit has seen."""

    def __init__(self, loaded: sources.LoadedModel, folder: Path) -> None:
        self.loaded, self.lines = loaded, data.other_texts(folder)
        self.before = self.vectors()

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """One for each sentence, of norm 1."""
        made = []
        for k in range(0, len(self.lines), data.AT_ONCE):
            batch = data.tokens(self.loaded, self.lines[k : k + data.AT_ONCE])
            made.append(pooled(self.loaded.model, batch["input_ids"], batch["attention_mask"]))
        return torch.cat(made)

    def measure(self, key: tuple[str, int], layers: list[Layer]) -> dict:
        """Mean cosine to the dense vectors, and bits for each weight."""
        method, size = key
        kept, bits = {}, 0.0
        try:
            for layer in layers:
                held = self.loaded.model.get_submodule(f"encoder.layer.{layer.name}").weight
                dense, taken = replaced(method, size, layer)
                kept[layer.name], bits = held.detach().clone(), bits + taken
                with torch.no_grad():
                    held.copy_(dense)
            cosine = (self.vectors() * self.before).sum(1).mean().item()
        finally:
            for name, before in kept.items():
                with torch.no_grad():
                    self.loaded.model.get_submodule(f"encoder.layer.{name}").weight.copy_(before)
        return {
            "method": method,
            "size": size,
            "bits": bits / sum(layer.weight.numel() for layer in layers),
            "cosine": cosine,
        }
