"""The same search through FAISS: it scans the codes, and the candidates that it finds are scored again here."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..rows.frame import AT_ONCE
from .grid import Grid
from .scanning import rescored, scanned

ALIKE = 1.5  # the largest scale over the median, up to which FAISS may order documents without their scales
TIMES = 16  # as many candidates as at first, when the scan here takes over


def faiss() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import faiss as found
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend='faiss' needs FAISS: install it with python -m pip install faiss-cpu, or leave backend at 'torch'",
            name=error.name,
        ) from error
    return found


def handed_over(grid: Grid, codes: Tensor) -> Any:
    """A FAISS index of the levels of all documents, exactly.

    Codes of 4 bits become those of a product quantizer for fast scans; its subquantizers hold as many coordinates as
    four bits do. Codes of 8 bits go to a scalar quantizer that has their levels (the one that takes signed bytes as
    they are cuts queries to whole numbers), coordinates in float32 to a flat index.
    """
    library = faiss()
    width = grid.bytes_each * (1 if grid.bits == 32 else grid.together)
    metric = library.METRIC_INNER_PRODUCT
    if grid.bits == 32:
        index = library.IndexFlat(width, metric)
    elif grid.bits == 8:
        index = library.IndexScalarQuantizer(width, library.ScalarQuantizer.QT_8bit_uniform, metric)
        least_and_span = torch.tensor([-128.0, 255.0])  # it decodes to least + code + 1/2
        library.copy_array_to_vector(least_and_span.numpy(), index.sq.trained)
        index.is_trained = True
    else:
        index = _fast_scan(library, grid, width)
    for part in codes.split(AT_ONCE):
        index.add(grid.levels(part).cpu().contiguous().numpy())
    return index


def _fast_scan(library: Any, grid: Grid, width: int) -> Any:
    """An empty product quantizer of 4 bits whose codewords are all combinations of levels."""
    each = 4 // grid.bits
    index = library.IndexPQFastScan(width, width // each, 4, library.METRIC_INNER_PRODUCT)
    levels = [code + grid.middle for code in range(2**grid.bits)]
    words = torch.tensor(list(itertools.product(levels, repeat=each)), dtype=torch.float32)
    library.copy_array_to_vector(words.repeat(width // each, 1).flatten().numpy(), index.pq.centroids)
    index.is_trained = True
    return index


class Scanner:
    """Candidates that FAISS finds in a copy of the codes.

    FAISS knows no scales of documents, so it is asked for more until none should be missing. Under cosine the scales
    are alike, and the first answer is taken without a check: of documents that are nearly equal, or differ along few
    axes without a rotation, it may lose some. Where lengths differ so much that FAISS would have to return a large part
    of the documents, they are scanned here. Of 4 bits and fewer FAISS itself rounds what it adds up.

    Args:
        grid: Turns codes into coordinates.
        codes: The documents, as :meth:`Grid.encode` gives them; at least one.
        scales: Theirs.
    """

    def __init__(self, grid: Grid, codes: Tensor, scales: Tensor) -> None:
        self.grid, self.codes, self.scales = grid, codes, scales
        self.index = handed_over(grid, codes)
        factors = grid.factors(scales) if grid.bits != 32 else torch.ones(1)
        self.least, self.largest = factors.min(), factors.max()
        self.alike = bool(self.largest <= ALIKE * factors.median())

    def find(self, turned: Tensor, k: int) -> Tensor:
        """Positions ``(b, c)``, the candidates of each query for its k best."""
        first = wanted = (4 * k + 32) * (4 if self.grid.bits < 4 else 1)  # scales of fewer bits differ more
        while wanted < min(len(self.codes), TIMES * first + 1):
            at = torch.from_numpy(self.index.search(turned.cpu().contiguous().numpy(), wanted)[1]).to(turned.device)
            if self.alike or self._complete(turned, at, k):
                return at
            wanted *= 4
        return scanned(self.grid, self.codes, self.scales)(turned, k)

    def _complete(self, turned: Tensor, at: Tensor, k: int) -> bool:
        """True if no other document can be better: its product is at most the last one, its scale the largest."""
        scores = rescored(self.grid, self.codes, self.scales, turned, at)
        products = (self.grid.levels(self.codes[at[:, -1]]) * turned).sum(1)
        beyond = products * torch.where(products > 0, self.largest, self.least)
        return bool((scores.topk(k, dim=1).values[:, -1] >= beyond).all())
