"""An index of documents: a train whose first mode is the document, in codes of a few bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..checks import check_modes, several, whole
from ..precision import full_precision
from .account import Held
from .grid import Grid
from .handover import Scanner
from .inputs import to_ids, to_matrix, to_unit
from .scanning import QUERIES, Candidates, nearest, scanned
from .settings import check_parameters, check_search
from .shared import SharedCores
from .stored import Stored

__all__ = ["TTIndex"]


class TTIndex(Held):
    """Nearest documents by cosine or inner product, with scikit-learn's neighbor grammar.

    The documents, minus their mean, are a train whose first mode is the document; the other cores are shared. With one
    shared core, the default, that is principal component analysis: for single vectors nothing of this kind is better.
    A query is carried through the shared cores once, after which a document is a product of ``n_components`` integers.
    The bond between documents and shared cores has a gauge, and a random rotation there, which costs no bytes, makes
    codes of 4 bits and fewer work.

    Args:
        n_components: The bond r, at most the width, which it is cut to; None takes the width.
        bits: Of a coordinate: 1, 2, 4 or 8; 32 keeps float32.
        metric: ``"cosine"`` or ``"inner_product"``.
        rotate: Rotate the bond at random. Without, coordinates are principal components.
        core_bits: 8 for shared cores in int8, 32 for float32.
        shape: Modes of a document, which multiply to its width, for shared cores that are a train; None for one core.
        rank: Cap on the ranks between the shared cores; only with shape. None cuts nothing.
        engine: ``"int8"`` scans with integers and scores the best candidates again in float32, ``"float"`` scans in
            float32, ``"auto"`` takes int8 on a CPU unless bits is 32 or rotate is False. Distances are those of float32
            in each case; where integers leave a doubt about a neighbor, floating point decides.
        backend: ``"torch"``, or ``"faiss"``, which scans a copy of the codes with FAISS (faiss-cpu); its candidates are
            scored again here. It may lose some of many nearly equal documents. The copy is made at the first search
            after a change, and is not saved.
        random_state: Seed of the rotation.

    After a fit it has ``n_features_in_`` (width of a document, flattened), ``n_components_`` (the bond),
    ``n_samples_fit_`` (documents held now) and ``ids_``, int64 ``(n,)``. ``params`` and ``nbytes`` count all that is
    stored: codes, scales, ids, mean, shared cores, ranges; ids 0, 1, ..., n - 1 take no bytes, and FAISS's copy of the
    codes comes on top. ``ratio`` is the numbers of the dense matrix for each of them, ``code_nbytes`` the bytes of a
    document (codes, scale and id); ``ranks``, ``modes`` and ``dense_nbytes`` are those of :class:`Compressed`.

    Cost:
        fit: O(n width^2 + width^3). A search: O(width r) for each query and O(n r) for each query and all documents, in
        integers; working memory of some 50 MB, however many there are of either.

    Source:
        Scales that are right on average: Gao and Long (2024), RaBitQ, arXiv:2405.12497.

    Example:
        >>> documents = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
        >>> index = TTIndex(n_components=64, bits=8).fit(documents)
        >>> distances, ids = index.kneighbors(documents[[7, 250]], 3)
        >>> ids[:, 0].tolist(), distances.shape
        ([7, 250], torch.Size([2, 3]))
        >>> index.add(-documents[:1])
        tensor([300])
        >>> index.remove([7]).kneighbors(documents[7:8], 1)[1].item() != 7, index.n_samples_fit_
        (True, 300)
    """

    def __init__(
        self,
        n_components: int | None = 192,
        *,
        bits: int = 4,
        metric: str = "cosine",
        rotate: bool = True,
        core_bits: int = 8,
        shape: Sequence[int] | None = None,
        rank: int | Sequence[int] | None = None,
        engine: str = "auto",
        backend: str = "torch",
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.bits = bits
        self.metric = metric
        self.rotate = rotate
        self.core_bits = core_bits
        self.shape = shape
        self.rank = rank
        self.engine = engine
        self.backend = backend
        self.random_state = random_state

    @full_precision
    @torch.no_grad()
    def fit(self, X: Any, y: Any = None, *, ids: Any = None) -> Self:
        """Index documents from nothing: shared cores, ranges and codes.

        Args:
            X: ``(n, width)``, or a stack ``(n, views, dim)``, whose views are coded together. A tensor, an array, a
                data frame of numbers or nested lists.
            y: Ignored; it stands there for scikit-learn.
            ids: Integers from 0 on, one for each document; left out, 0, 1, ..., n - 1.

        Returns:
            The index itself.

        Raises:
            TypeError: Entries or ids that are no numbers, a sparse matrix, a parameter of wrong type.
            ValueError: NaN or Inf, a zero vector under cosine, no documents, equal ids, a parameter of wrong value.
            ModuleNotFoundError: ``backend="faiss"`` without FAISS.
        """
        check_parameters(self)
        x, shape = to_matrix(X, "X")
        x = to_unit(x, "X") if self.metric == "cosine" else x
        given = None if ids is None else to_ids(ids, len(x))
        modes = None if self.shape is None else check_modes("shape", self.shape)
        width = x.shape[1]
        if modes is not None and math.prod(modes) != width:
            raise ValueError(f"shape {modes} multiplies to {math.prod(modes)}, but documents have {width} entries")
        count = width if self.n_components is None else min(int(self.n_components), width)
        bits, seed = int(self.core_bits), int(self.random_state)
        shared = SharedCores.of(x, count, shape=modes, rank=self.rank, rotate=self.rotate, bits=bits, seed=seed)
        grid = Grid.of(shared.projected(x), int(self.bits), alike=self.metric == "cosine")
        codes, scales = grid.encode(x.new_empty(0, shared.rank))
        empty = Stored(shared, grid, codes, scales, None, 0, shape, self.metric)
        self._hold(empty.with_documents(x, given)[0])
        return self

    def partial_fit(self, X: Any, y: Any = None, *, ids: Any = None) -> Self:
        """:meth:`fit` the first time, :meth:`add` afterwards; returns the index itself."""
        if self._stored is None:
            return self.fit(X, ids=ids)
        self.add(X, ids=ids)
        return self

    @full_precision
    @torch.no_grad()
    def add(self, X: Any, ids: Any = None) -> Tensor:
        """Add documents. Shared cores and ranges stay those of the fit, and codes of the old documents bit for bit.

        Args:
            X: Documents, as in :meth:`fit`.
            ids: Integers that the index does not hold; left out, those after the largest that it ever held.

        Returns:
            The ids of the new documents, int64.

        Raises:
            TypeError, ValueError: As in :meth:`fit`; another width; an id that is there already. Nothing is added then.

        Cost:
            One product with the shared cores, O(width r) a document, and a copy of all codes.
        """
        held, x = self._held(), self._matching(X)
        grown, ids = held.with_documents(x, None if ids is None else to_ids(ids, len(x)))
        self._hold(grown)
        return ids

    def remove(self, ids: Any) -> Self:
        """Remove documents by their ids; returns the index itself. Codes of the others stay, and all that is shared.

        Raises:
            KeyError: An id that is not there; nothing is removed.
            TypeError, ValueError: Ids that are no integers, or equal ones.
        """
        held = self._held()
        self._hold(held.without(to_ids(ids if several(ids) else [ids], None)))
        return self

    @full_precision
    @torch.no_grad()
    def kneighbors(self, X: Any, n_neighbors: int = 5, return_distance: bool = True) -> Any:
        """The nearest documents of each query, nearest first.

        Args:
            X: Queries, ``(b, width)`` or ``(b, views, dim)``. One alone gives what it gives in a batch, to rounding.
            n_neighbors: How many, at most the number of documents.
            return_distance: False returns the ids alone.

        Returns:
            ``distances`` float32 and ``ids`` int64, both ``(b, n_neighbors)``; tensors if X is one, else arrays. The
            distance is 1 minus the cosine, or minus the inner product, of the query and the document as it is stored,
            a row of :meth:`dense`, whose norm is about 1: a distance may be a little below 0. Equal distances come in
            the order in which the documents were added; which of them are among the neighbors is open where more than
            ``n_neighbors + 16`` tie.

        Raises:
            TypeError: Queries that are no numbers.
            ValueError: Not fitted, no documents, more neighbors than documents, another width, NaN or Inf, a zero
                vector under cosine.

        Cost:
            O(n r) integer operations a query. The first search after a change also looks for the longest document,
            O(n r). Documents that are nearly equal may take two more scans, one of them in floating point.
        """
        held = self._held()
        count = whole("n_neighbors", n_neighbors, least=1)
        if count > held.count:
            raise ValueError(
                f"n_neighbors is {count}, but the index holds {held.count} documents; "
                + ("ask for fewer or add documents" if held.count else "add documents first")
            )
        q = self._matching(X)
        find = self._finder(held)
        scores, positions = [], []
        for part in q.split(QUERIES):
            found, at = nearest(held.grid, held.codes, held.scales, held.shared.carried(part), count, find)
            scores.append(found + (part @ held.shared.mean).unsqueeze(1))
            positions.append(at)
        distances = torch.cat(scores).neg_()
        if held.metric == "cosine":
            distances += 1
        ids = torch.cat(positions)
        if held.ids is not None:
            ids = held.ids.to(ids.device)[ids].long()
        if not isinstance(X, Tensor):
            try:
                distances, ids = distances.cpu().numpy(), ids.cpu().numpy()
            except RuntimeError:  # torch without NumPy: tensors are all there is
                pass
        return (distances, ids) if return_distance else ids

    @full_precision
    @torch.no_grad()
    def dense(self) -> Tensor:
        """The documents as they are stored, decoded: float32 ``(n, width)``, of norm about 1 under cosine."""
        return self._held().documents()

    def _matching(self, X: Any) -> Tensor:
        """Vectors as wide as the documents, of norm 1 under cosine, where the documents are."""
        held = self._held()
        x, shape = to_matrix(X, "X")
        if x.shape[1] != held.shared.width:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting {held.shared.width} features as "
                f"input, those of the documents of its fit, of shape {held.shape}"
            )
        if len(shape) == len(held.shape) == 2 and shape != held.shape:
            raise ValueError(f"X is a stack of {shape} views and entries, but the documents are of {held.shape}")
        x = x.to(held.codes.device)
        return to_unit(x, "X") if held.metric == "cosine" else x

    def _finder(self, held: Stored) -> Candidates:
        """What finds candidates: FAISS, integers or floating point."""
        check_search(self, held.grid.bits)
        if self.backend == "faiss":
            scanner = self._scanner
            if scanner is None or scanner.codes is not held.codes:
                scanner = self._scanner = Scanner(held.grid, held.codes, held.scales)
            return scanner.find
        on_cpu = held.codes.device.type == "cpu"
        # Without a rotation a query has a few large coordinates, in whose scale the others are mostly rounded away.
        suits = held.grid.bits != 32 and self.rotate and on_cpu
        integers = self.engine == "int8" or (self.engine == "auto" and suits)
        return scanned(held.grid, held.codes, held.scales, reach=held.reach if integers else None)
