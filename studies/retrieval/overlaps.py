"""Squared overlaps, which a quantum measurement would show, against cosines: what a ranking loses with the sign.

Among documents of non-negative cosine both give one order. Those of negative cosine can only overtake them, and are
reversed among themselves. So it matters how many there are, and how far below zero: few pairs of MiniLM's vectors, more
than half of all once their mean is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import data
from .methods import ordered
from .metrics import judged, overlap

FIRST = 10  # documents that a reader sees


def views(x: Tensor, q: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Documents and queries as they are encoded, and with the documents' mean taken off, of norm 1 again."""
    mean = x.mean(0)
    return {"as encoded": (x, q), "centered": (normalize(x - mean, dim=1), normalize(q - mean, dim=1))}


def compared(x: Tensor, q: Tensor, gains: Tensor) -> dict[str, float]:
    """Counts of negative cosines and of what moves, and measures of the squared ranking against that by cosine.

    Args:
        x: Documents of norm 1, ``(n, width)`` in float32.
        q: Queries likewise, ``(b, width)``.
        gains: What each document is worth to each query, ``(b, n)``.
    """
    cosines = q @ x.mT
    # Squares of float32 numbers are exact in float64: rounding makes no two scores equal.
    by_cosine, by_square = ordered(cosines), ordered(cosines.double().square())
    entered = ((1 - overlap(by_square, by_cosine, FIRST)) * FIRST).round()
    rest = [ranking[cosines.gather(1, ranking) >= 0] for ranking in (by_cosine, by_square)]
    return {
        "pairs": cosines.numel(),
        "negative": int((cosines < 0).sum()),
        "least": cosines.min().item(),
        "tenth": cosines.gather(1, by_cosine)[:, FIRST - 1].mean().item(),
        "others_keep_their_order": torch.equal(*rest),
        "queries": len(q),
        "queries_changed": int((entered > 0).sum()),
        "entered": int(entered.sum()),
    } | judged(by_square, by_cosine, gains)


def rows(_name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``overlaps``: both collections, in both views."""
    for name in data.READERS:
        found = data.collection(name, folder)
        x, q = (part[:, -1].contiguous() for part in (found.documents, found.queries))
        for view, vectors in views(x, q).items():
            key = f"{name}: {view}"
            if key not in before:
                row = {"key": key, "collection": name, "vectors": view} | compared(*vectors, found.gains)
                print(f"{key:24} {row['negative']} of {row['pairs']} negative, {row['entered']} entered", flush=True)
                yield row
