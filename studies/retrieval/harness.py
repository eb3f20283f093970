"""The index within BitBudget (MIT), a harness for compressed vectors, where that is installed.

Its accounts are its own: bytes of a document without what all share, gains of ``2^grade - 1``, and one bit with
rescoring is billed without the float32 vectors that it rescores with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ttref.retrieval import TTIndex

from . import data

NAME = "bitbudget"
SIZES = ((384, 4), (192, 4), (192, 2), (96, 4), (96, 2))  # width and bits
Scored = tuple[np.ndarray, float]


def tt(demb: np.ndarray, qemb: np.ndarray, *, width: int, bits: int) -> Scored:
    """Scores of all documents for each query, and the bytes of a document, in the harness's grammar."""
    index = TTIndex(width, bits=bits).fit(demb)
    distances, ids = index.kneighbors(qemb, len(demb))
    scores = np.empty((len(qemb), len(demb)), dtype=np.float32)
    np.put_along_axis(scores, ids, 1 - distances, axis=1)
    return scores, index.code_nbytes


def plug_in(method: Callable) -> None:
    """Register the index under the harness's decorator."""
    for width, bits in SIZES:
        function = partial(tt, width=width, bits=bits)
        method(f"tt-{width}x{bits}", bits=bits)(function)


def rows(name: str, folder: Path, before: dict[str, dict]) -> Iterator[dict]:
    """Rows of the section ``harness``: all of its methods, and the index."""
    if all(f"{name}: tt-{width}x{bits}" in before for width, bits in SIZES):
        return
    import bitbudget

    plug_in(bitbudget.method)
    found = data.collection(name, folder)
    vectors = (part[:, -1].contiguous().numpy() for part in (found.documents, found.queries))
    judgments = {
        str(query): {str(k): int(gains[k]) for k in torch.nonzero(gains).flatten().tolist()}
        for query, gains in enumerate(found.gains)
    }
    for row in bitbudget.evaluate(*vectors, range(found.gains.shape[1]), range(len(found.gains)), judgments):
        key = f"{name}: {row['method']}"
        if key not in before:
            yield {"key": key, "collection": name} | row
