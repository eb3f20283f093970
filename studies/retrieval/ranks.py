"""Ranks of MiniLM's matrices at equal numbers: uniform, from entropies, from eps, and the best there are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from book.workbook.quantum import budget_line, ranks_for, train_errors
from ttref import entanglement_entropy, gaussian_null, tt_params
from ttref.shapes import balanced_modes, largest

from ..partial_tensorization.tasks import minilm

RATIOS = (4, 16)  # of the matrix's numbers to the train's
RULES = ("uniform", "entropy", "eps")


def matrices() -> dict[str, tuple[str, Tensor]]:
    """Kind and weight of the matrices that are tried, by name: queries, feed-forward layers, two tables."""
    model = minilm().model
    found = {}
    for k, layer in enumerate(model.encoder.layer):
        found[f"query {k}"] = "query", layer.attention.self.query.weight
        found[f"feed-forward {k}"] = "feed-forward", layer.intermediate.dense.weight
    tables = model.embeddings
    found["tokens"] = "table", tables.word_embeddings.weight
    found["positions"] = "table", tables.position_embeddings.weight
    return {name: (kind, weight.detach()) for name, (kind, weight) in found.items()}


def folded(w: Tensor) -> Tensor:
    """A matrix in three modes, each of rows and columns together; rows of zeros are added where they do not split."""
    modes = [balanced_modes(side) for side in w.shape]
    rows, columns = modes
    padded = pad(w, (0, math.prod(columns) - w.shape[1], 0, math.prod(rows) - w.shape[0]))
    return (
        padded.reshape(*rows, *columns).permute(0, 3, 1, 4, 2, 5).reshape([m * n for m, n in zip(*modes, strict=True)])
    )


def shared_out(x: Tensor, errors: Tensor, params: int) -> dict:
    """Ranks, numbers and error of each rule, and of the best ranks of all."""
    line = budget_line(errors, x.shape, params=params)
    chosen = {rule: ranks_for(x, params=params, by=rule) for rule in RULES} | {"best": min(line, key=line.get)}
    return {
        rule: {
            "ranks": list(ranks[1:3]),
            "params": tt_params(x.shape, ranks),
            "error": errors[ranks[1] - 1, ranks[2] - 1].item(),
        }
        for rule, ranks in chosen.items()
    }


def budget(shape: Sequence[int], numbers: int) -> int:
    """What a train of the largest uniform rank within these numbers holds: that rule wastes nothing."""
    return tt_params(shape, largest(lambda rank: tt_params(shape, rank) <= numbers, max(shape)))


def rows(_name: str, _folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``ranks``: every matrix, and Gaussian noise with the norms of its rows, at both ratios."""
    for matrix, (kind, weight) in matrices().items():
        for noise in (False, True):
            keys = {ratio: f"{matrix}, {ratio} times fewer" + ", noise" * noise for ratio in RATIOS}
            if all(key in before for key in keys.values()):
                continue
            x = folded(gaussian_null(weight) if noise else weight)
            errors = train_errors(x)
            entropies = [entanglement_entropy(x, bond, base=math.e).item() for bond in (1, 2)]
            for ratio, key in keys.items():
                if key not in before:
                    params = budget(x.shape, weight.numel() // ratio)
                    row = {"key": key, "matrix": matrix, "kind": kind, "noise": noise, "ratio": ratio}
                    row |= {"modes": list(x.shape), "entropy_nats": entropies, "params": params}
                    row |= shared_out(x, errors, params)
                    print(key, *(f"{rule} {row[rule]['error']:.4f}" for rule in (*RULES, "best")), flush=True)
                    yield row
