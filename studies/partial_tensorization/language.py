"""SmolLM2 with all linear layers of its blocks replaced: loss where the whole network is 1.6 and 1.94 times smaller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from book.workbook import sources
from ttref.fitting import Gram, Grams, collect_gram, output_error

from ..embeddings import data
from .methods import made

WHOLE = (1.94, 1.6)  # times fewer numbers in the whole network
METHODS = ("tt", "whitened", "quick")  # quick: a fitted train with modes given
ROUNDED = ("int", "gptq")
CALIBRATION, SCORED, LENGTH = 32, 12, 128  # windows of WikiText-2's halves


class Language:
    """The model, its linear layers, and the text it is scored on."""

    def __init__(self, folder: Path, calibration: int = CALIBRATION, scored: int = SCORED) -> None:
        self.lm = sources.load_language_model()
        self.model = self.lm.model
        layers = {name: m for name, m in self.model.model.layers.named_modules() if isinstance(m, nn.Linear)}
        self.layers = {f"model.layers.{name}": layer for name, layer in layers.items()}
        self.total = sum(p.numel() for p in self.model.parameters())
        self.inside = sum(layer.weight.numel() for layer in self.layers.values())
        halves = data.wikitext(folder)
        seen, held = (
            torch.stack(data.windows(self.lm.tokenizer, text, count=count, length=LENGTH))
            for text, count in zip(halves, (calibration, scored), strict=True)
        )
        self.calibration, self.windows = list(seen.split(4)), held

    def loss(self) -> float:
        """Nats for each token, of windows no fit has seen."""
        return sources.language_model_loss(self.model, self.windows)

    def grams(self) -> Grams:
        """Gram matrices of all inputs."""
        return collect_gram(self.model, list(self.layers), self.calibration, progress=False)

    def linears_ratio(self, whole: float) -> float:
        """How much smaller the linear layers must be, if the table stays as it is."""
        return self.inside / (self.total / whole - (self.total - self.inside))


@torch.no_grad()
def replaced(language: Language, name: str, size: float, grams: Grams) -> dict:
    """Loss with every linear layer replaced, and the mean error of their outputs; the weights come back."""
    start = time.perf_counter()
    candidate, kept, params, nbytes, errors = made(name, size), {}, 0, 0, []
    for layer_name, layer in language.layers.items():
        gram: Gram = grams[layer_name]
        new = candidate.make(layer, gram)
        weight: Tensor = new.weight.detach()
        errors.append(output_error(layer.weight.detach(), weight, gram))
        params, nbytes = params + new.params, nbytes + new.nbytes
        kept[layer_name] = layer.weight.detach().clone()
        layer.weight.copy_(weight)
    seconds = time.perf_counter() - start
    try:
        loss = language.loss()
    finally:
        for layer_name, weight in kept.items():
            language.layers[layer_name].weight.copy_(weight)
    rest = language.total - language.inside
    return {
        "method": name,
        "size": size,
        "linears_ratio": language.inside / params,
        "whole_ratio": language.total / (rest + params),
        "whole_bytes": 4 * language.total / (4 * rest + nbytes),
        "output_error": sum(errors) / len(errors),
        "loss": loss,
        "seconds_made": seconds,
    }


def language(task: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``language``."""
    model, grams = None, None
    wanted = [("dense", 1.0), *((method, WHOLE[0]) for method in METHODS), *((method, 4) for method in ROUNDED)]
    wanted += [(method, WHOLE[1]) for method in METHODS] + [(method, 3) for method in ROUNDED]
    for method, size in wanted:
        key = f"{method} {size:g}"
        if key in before:
            continue
        if model is None:
            model = Language(folder)
        if method == "dense":
            row = {"method": "dense", "size": 1.0, "loss": model.loss(), "params": model.total, "inside": model.inside}
        else:
            grams = grams or model.grams()
            row = replaced(model, method, size if method in ROUNDED else model.linears_ratio(size), grams)
            row["whole"] = size
        print(key, row, flush=True)
        yield {"key": key} | row
