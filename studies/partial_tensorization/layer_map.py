"""Which layers are safe to compress first: each layer alone, its drop, and what predicts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ttref import entanglement_entropy, factorize
from ttref.fitting import output_error
from ttref.surgery import edit

from ..orders import tau
from .loops import load

CANDIDATES = (("tt", 4.4), ("fitted", 4.4), ("tt", 2), ("svd", 4.4), ("whitened", 4.4))
PREDICTORS = ("weight_error", "output_error", "entropy", "entropy_of_modes", "depth")


def weight_of(layer: nn.Module) -> Tensor:
    """The dense weight of a layer or of a replacement."""
    return layer.weight.detach()


def entropies(w: Tensor) -> dict[str, float]:
    """Entanglement entropy in bits between rows and columns, and at the middle bond of a TT-matrix of two modes."""
    rows, cols = factorize(w.shape[0], 2), factorize(w.shape[1], 2)
    paired = w.reshape(rows[0], rows[1], cols[0], cols[1]).permute(0, 2, 1, 3).reshape(rows[0] * cols[0], -1)
    return {
        "entropy": entanglement_entropy(w, 1, base=2).item(),
        "entropy_of_modes": entanglement_entropy(paired.contiguous(), 1, base=2).item(),
    }


def layers(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``layers``: each layer alone, with each candidate."""
    bench = load(name, folder)
    task, grams = bench.task, bench.shelf.grams
    validation = task.splits["validation"]
    base = validation(task.model)
    dense = task.outputs(task.model).clone()
    for candidate, size in CANDIDATES:
        made = bench.shelf.candidate(candidate, size)
        for place, layer in enumerate(task.linears):
            key = f"{name} {layer} {candidate} {size:g}"
            if key in before:
                continue
            old = task.model.get_submodule(layer)
            w = weight_of(old)
            new = made.make(old, grams[layer])
            approximation = weight_of(new)
            row = {"key": key, "task": name, "layer": layer, "kind": kind(layer), "block": place // 6}
            row |= {"candidate": candidate, "ratio": size, "made_ratio": new.ratio}
            row |= {"weight_error": ((approximation - w).norm() / w.norm()).item()}
            row |= {"output_error": output_error(w, approximation, grams[layer])}
            row |= entropies(w) | {"depth": place // 6}
            with edit(task.model) as change:
                change.put({layer: new})
            scores = validation(task.model)
            row |= {"drop": (base - scores).mean().item(), "distance": distance(task.outputs(task.model), dense)}
            row |= {"harmful": int((scores < base).sum()), "beneficial": int((scores > base).sum())}
            change.undo()
            yield row


def distance(now: Tensor, dense: Tensor) -> float:
    """Mean of 1 - cos to the outputs of the dense model, which a single layer moves less coarsely than an accuracy."""
    return (1 - cosine_similarity(now, dense)).double().mean().item()


def kind(layer: str) -> str:
    """What a layer does, for both models."""
    end = layer.split(".", 3)[-1] if layer.startswith("encoder") else layer.rsplit(".", 1)[-1]
    return {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "out",
        "intermediate.dense": "up",
        "output.dense": "down",
        "linear1": "up",
        "linear2": "down",
    }.get(end, end)


def taus(rows: list[dict]) -> list[dict]:
    """For each task, candidate and ratio: how each predictor orders the layers, by the drop and by the distance."""
    found = []
    groups = sorted({(row["task"], row["candidate"], row["ratio"]) for row in rows})
    for group in groups:
        mine = [row for row in rows if (row["task"], row["candidate"], row["ratio"]) == group]
        row = dict(zip(("task", "candidate", "ratio"), group, strict=True)) | {"layers": len(mine)}
        for target in ("drop", "distance"):
            wanted = [each[target] for each in mine]
            row[target] = {name: tau([each[name] for each in mine], wanted) for name in PREDICTORS}
        row["drop_against_distance"] = tau([r["drop"] for r in mine], [r["distance"] for r in mine])
        found.append(row)
    return found
