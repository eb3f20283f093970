"""What tells beforehand whether a train will pay: entropies and predicted errors against measured gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .pays import Row, rank_correlation

__all__ = ["Told", "by_layers", "by_map", "by_matrices", "by_ranks"]

Record = Mapping[str, Any]


class Told(NamedTuple):
    """How well a predictor orders objects by a gain.

    Attributes:
        predictor: What was known before.
        gain: What was measured.
        objects: Which, and how many.
        tau: Kendall's rank correlation: 1 is the same order, 0 none.
        chance: Two standard deviations of tau without any relation.
        count: How many objects.
    """

    predictor: str
    gain: str
    objects: str
    tau: float
    chance: float
    count: int


def _told(predictor: str, gain: str, objects: str, pairs: Sequence[tuple[float, float]]) -> Told:
    return Told(predictor, gain, objects, *rank_correlation(*zip(*pairs, strict=True)), len(pairs))


def by_ranks(rows: Sequence[Record], ratio: int) -> Told:
    """Missing entropy against the gain over noise, for matrices of MiniLM; ``rows`` of ``retrieval.ranks``.

    Example:
        >>> rows = [{"matrix": str(k), "noise": noise, "ratio": 4, "entropy_nats": [4 - (not noise) * k / 9],
        ...          "best": {"error": 0.8 + noise * k / 99}} for k in range(4) for noise in (False, True)]
        >>> by_ranks(rows, 4).tau
        1.0
    """
    real, noise = (
        {row["matrix"]: row for row in rows if row["ratio"] == ratio and row["noise"] is null} for null in (False, True)
    )
    pairs = [
        (
            sum(noise[matrix]["entropy_nats"]) - sum(real[matrix]["entropy_nats"]),
            noise[matrix]["best"]["error"] / real[matrix]["best"]["error"],
        )
        for matrix in real
    ]
    return _told("entropy missing to noise, all bonds", "train over noise", f"MiniLM, {ratio}× fewer numbers", pairs)


def by_matrices(rows: Sequence[Record], size: int) -> list[Told]:
    """Entropies against gains over noise and over SVD, weights alone; ``rows`` of ``pays.objects``.

    The share of a cut is its entropy divided by that of noise. Over noise, what counts is the smallest share of any
    cut; over SVD, by how much it lies below the share of the cut that SVD makes.

    Example:
        >>> row = {"entropy": {"rows | columns": [5.0, 6.0], "blocks | the rest": [4.0, 6.0]}}
        >>> rows = [row | {"at": {"4": {"train": 0.5, "svd": 0.5 + k, "noise": 0.6 + k}}} for k in range(3)]
        >>> [(told.gain, told.count) for told in by_matrices(rows, 4)]
        [('train over noise', 3), ('train over SVD', 3)]
    """
    over_noise, over_svd = [], []
    for row in rows:
        if at := row["at"].get(str(size)):
            shares = {cut: real / noise for cut, (real, noise) in row["entropy"].items()}
            least = min(shares.values())
            over_noise.append((-least, at["noise"] / at["train"]))
            over_svd.append((shares["rows | columns"] - least, at["svd"] / at["train"]))
    who = f"matrices of four models, {size}× fewer numbers"
    return [
        _told("least share of noise's entropy at a cut", "train over noise", who, over_noise),
        _told("the same, below the share at SVD's cut", "train over SVD", who, over_svd),
    ]


PAIRS = {"fitted": "whitened", "tt": "svd"}  # a train and its rival of the same size
SPOKEN = {"fitted": "fitted train over whitened SVD", "tt": "TT-SVD over SVD"}


def by_layers(rows: Sequence[Record], task: str, candidate: str, who: str, ratio: float = 4.4) -> list[Told]:
    """Predicted output errors and entropies against how far the *model* moves; ``rows`` of the study's ``layers``.

    The gain is how many times further the rival in the same layer moves the model's outputs.

    Example:
        >>> rows = [
        ...     {"task": "vit", "candidate": c, "ratio": 4.4, "layer": k, "entropy": k,
        ...      "output_error": 0.1 + k * (c == "whitened"), "distance": 0.2 + k * (c == "whitened")}
        ...     for c in ("fitted", "whitened") for k in range(3)]
        >>> [round(told.tau, 1) for told in by_layers(rows, "vit", "fitted", "ViT")]
        [1.0, -1.0]
    """
    mine, rival = (
        {row["layer"]: row for row in rows if (row["task"], row["candidate"], row["ratio"]) == (task, name, ratio)}
        for name in (candidate, PAIRS[candidate])
    )
    gains = {layer: rival[layer]["distance"] / mine[layer]["distance"] for layer in mine if layer in rival}
    errors = [(rival[layer]["output_error"] / mine[layer]["output_error"], gain) for layer, gain in gains.items()]
    entropies = [(-mine[layer]["entropy"], gain) for layer, gain in gains.items()]
    gain = SPOKEN[candidate]
    return [
        _told("predicted output errors, rival / train", gain, f"layers of {who}", errors),
        _told("entropy of the weight, low first", gain, f"layers of {who}", entropies),
    ]


def by_map(rows: Sequence[Row]) -> Told:
    """The gain over the null against the gain over the best rival, for the rows of the map that have a null.

    Example:
        >>> from book.workbook.pays import load
        >>> by_map(load()).count == sum(row.null is not None for row in load())
        True
    """
    pairs = [(row.over_null, row.gain) for row in rows if row.over_null]
    return _told("gain over the null", "train over the best rival", "rows of the map", pairs)
