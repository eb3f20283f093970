"""An embedding table with one tensor train (matrix product state) for every row: TensorGPT's format."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checks import check_caps, check_input, whole
from ..precision import computable, full_precision
from ..rows.frame import Frame
from ..rows.packed import RowLayout
from ..rows.sorting import sorted_rows
from ..rows.store import RowStore, gaussian
from .row_table import RowTable, padding_of
from .settings import RowSettings, row_modes
from .tables import table_of

__all__ = ["MPSEmbedding"]

TURN = threading.RLock()  # appends are serialized: each must start from the store of the one before


class MPSEmbedding(RowTable):
    """A look-up table like ``nn.Embedding`` with one tensor train for each row.

    Made from a trained table by :meth:`from_embedding`, or with random rows to be trained. Rows whose trains have equal
    ranks share a bucket. With more than one bucket, an index of 5 bytes a row holds the bucket and place of each.

    ``state_dict`` loads into any table of the same sizes and ``shape``, however it was made: ranks, mean, rotation and
    pieces are taken from the state, all or nothing. If they differ from the table's, its parameters are replaced, so
    load before making an optimizer.

    Args:
        num_embeddings, embedding_dim, padding_idx, sparse, device, dtype: As in ``nn.Embedding``.
        rank: Cap on the TT-ranks of all rows, one int or d+1 of them.
        shape: Modes of a row, as in :meth:`from_embedding`.

    Attributes:
        num_embeddings, embedding_dim, padding_idx, sparse: As in ``nn.Embedding``. Looking up row ``padding_idx``
            gives it no gradient; it is approximated like any other row.
        shape: Modes of a row, which is padded with zeros if they multiply to more than the width.
        core_bits: 8 for int8 cores, 32 for cores in the dtype of the table.
        store: ``store.buckets`` with the cores, ``store.frame`` with ``mean`` and ``rotation`` or None for either (a
            row is ``train @ rotation + mean``, unless it is stored densely), and the index.
        params, nbytes, ratio: Numbers and bytes stored, everything included (cores, scales, mean, rotation, index),
            and numbers of the dense table for each number stored.
        ranks, modes, dense_nbytes: As in :class:`Compressed`.

    Initialization:
        Gaussian rows as those of ``nn.Embedding`` (zeros at ``padding_idx``), each decomposed by TT-SVD at these
        ranks.

    Source:
        Xu, Xu and Mandic (2023), TensorGPT, arXiv:2307.00526v1. Buckets, the bound on the error, centering, rotation
        and int8 cores are ours.

    Example:
        >>> table = nn.Embedding(100, 768)
        >>> mps = MPSEmbedding.from_embedding(table, rank=1)
        >>> mps(torch.tensor([[3, 1], [4, 1]])).shape, mps.params, mps.ratio  # 20 numbers a row
        (torch.Size([2, 2, 768]), 2000, 38.4)
        >>> MPSEmbedding.from_embedding(table, rank=1, shape=(2,) * 8 + (3,)).params // 100
        19
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int | Sequence[int],
        *,
        shape: Sequence[int] | None = None,
        padding_idx: int | None = None,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rows = whole("num_embeddings", num_embeddings, least=1)
        width = whole("embedding_dim", embedding_dim, least=1)
        dtype = dtype or torch.get_default_dtype()
        shape, store = row_modes(shape, width), RowStore(width, 32, sparse=sparse)
        padding_idx = padding_of(padding_idx, rows)
        table = gaussian(torch.empty(rows, width, device=device, dtype=dtype), padding_idx)
        group = RowLayout(shape, rank, width), torch.arange(rows, device=device), None
        self._start(shape, full_precision(store.grown)(table, [group]), dtype, padding_idx)

    @full_precision
    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new rows in place; every row keeps its ranks, a mean becomes zeros, a rotation the identity."""
        self.store.draw(self.padding_idx, self.dtype)

    @classmethod
    @full_precision
    @torch.no_grad()
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        *,
        rank: int | Sequence[int] | None = None,
        eps: float | None = None,
        row_ranks: Sequence[int] | Tensor | None = None,
        shape: Sequence[int] | None = None,
        center: bool = False,
        rotate: bool = False,
        core_bits: int = 32,
    ) -> MPSEmbedding:
        """Compress a trained table, each row by TT-SVD. The table stays as it is and shares no memory with the result.

        Args:
            embedding: ``nn.Embedding``. ``padding_idx`` and ``sparse`` are kept; ``max_norm`` and
                ``scale_grad_by_freq`` are refused.
            rank: Cap on the TT-ranks of all rows, one int or d+1 of them. From some rank on a train holds as many
                numbers as the row (12 for a width of 768); ``ratio`` tells.
            eps: Error allowed for **each** row, relative to its norm, in [0, 1).
            row_ranks: A cap for each row. Give exactly one of rank, eps and row_ranks. A row whose cap truncates
                nothing is stored densely, without padding.
            shape: Modes of a row. Left out, modes of 2, the row padded with zeros to the next power of two. Modes
                that multiply to the width, such as ``factorize(width)``, need no padding.
            center: Subtract the mean row first; it is stored once.
            rotate: Rotate the rows to their principal axes first; the matrix is stored once.
            core_bits: 8 rounds the cores to int8. Orthogonal cores need no scale; the core that carries the norm has
                one for each row, a bfloat16. Such cores are not trainable.

        Returns:
            The compressed table, in the dtype, on the device and in the training mode of the old one.

        Raises:
            TypeError: No ``nn.Embedding``, one that computes more than a look-up (an overridden forward, hooks), or
                an argument of wrong type. Masks and parametrizations are applied.
            ValueError: Not exactly one of rank, eps, row_ranks; eps with int8 cores, whose rounding it does not
                bound; modes that multiply to less than the width; max_norm or scale_grad_by_freq; NaN or Inf; a weight
                on the meta device.

        Guarantee:
            With eps, ``||row - stored|| <= (eps + 10 d u) ||row||`` for each row, d modes, u the machine epsilon of
            the dtype (float32's for halves); also with centering and rotation, where it is the norm of the original
            row. Each row takes the smallest cap that keeps the bound, or is stored densely where no train is smaller.

        Cost:
            One TT-SVD for each row: a second or two for 50,000 rows of 768 at rank 4. With eps, one for each cap
            tried, and one more. Beside the result, working memory for 16,384 rows.

        Example:
            >>> table = nn.Embedding(100, 48)
            >>> mps = MPSEmbedding.from_embedding(table, eps=0.3, center=True)
            >>> error = torch.linalg.vector_norm(mps.to_embedding().weight - table.weight, dim=1)
            >>> bool((error <= 0.3001 * torch.linalg.vector_norm(table.weight, dim=1)).all())
            True
        """
        table = table_of(embedding, sparse=True)
        width = table.shape[1]
        how = RowSettings.of(width, rank=rank, eps=eps, row_ranks=row_ranks, shape=shape, core_bits=core_bits)
        caps = None if row_ranks is None else check_caps(row_ranks, len(table))
        frame = Frame.of(table, center=center, rotate=rotate)
        store = how.store(frame, sparse=embedding.sparse)
        store = store.grown(table, how.groups(table, frame, caps), trainable=table.requires_grad)
        made = cls._holding(how.shape, store, table.dtype, padding_of(embedding.padding_idx, len(table)))
        return made.train(embedding.training)

    @full_precision
    @torch.no_grad()
    def append(self, rows: Tensor, *, row_ranks: Sequence[int] | Tensor | None = None) -> Tensor:
        """Append rows, compressed as the table was. The stored numbers of the old rows stay bit for bit.

        After any exception the table is as before or has all new rows. Concurrent appends are serialized, and a
        concurrent look-up sees the old rows or all. ``state_dict`` keeps the pieces of each append apart; :meth:`save`
        does not.

        Mean and rotation stay those of the first rows, so that no old row changes.

        Args:
            rows: ``(count, embedding_dim)`` in the dtype of the table.
            row_ranks: A cap for each new row, exactly if the table was made with ``row_ranks``.

        Returns:
            The ids of the new rows, int64 ``(count,)``.

        Raises:
            TypeError: Another dtype, or no tensor.
            ValueError: Rows of another width, NaN or Inf, row_ranks missing or not wanted. The table is unchanged.

        Cost:
            One TT-SVD for each new row. Earlier appends are merged into larger pieces, so each row is copied at most
            log2(rows) times; the first rows only after as many have been appended. An index, if there is one, is
            copied. Parameters are replaced when pieces merge: give an optimizer the new ones. Pieces under a pruning
            mask, a parametrization or an offloading hook are never merged.

        Example:
            >>> mps = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=2)
            >>> mps.append(torch.randn(2, 48)), mps.num_embeddings
            (tensor([100, 101]), 102)
        """
        if isinstance(rows, Tensor) and rows.shape == (0, self.embedding_dim):
            return torch.arange(0, device=self.device)
        check_input("rows", rows)
        if rows.dtype != self.dtype:
            raise TypeError(f"rows are {rows.dtype}, but the table is {self.dtype}; convert them first")
        if rows.ndim != 2 or rows.shape[1] != self.embedding_dim:
            raise ValueError(f"rows have shape {tuple(rows.shape)}; the table takes rows (count, {self.embedding_dim})")
        if (by_row := self.store.by_row) != (row_ranks is not None):
            how = "row_ranks: give one for each new row" if by_row else "rank or eps, which new rows follow too"
            raise ValueError(f"this table was made with {how}")
        caps = None if row_ranks is None else check_caps(row_ranks, len(rows))
        rows = rows.detach()
        with TURN:
            before = self.store
            rows = rows.to(self.device)
            layout = None if by_row or before.eps is not None else before.buckets[0].layout
            longer = before.grown(rows, sorted_rows(rows, self.shape, before.frame, layout, before.eps, caps))
            ids = torch.arange(before.count, longer.count, device=rows.device)
            self.store = longer  # in one step: a look-up in another thread finds the old one or the new one, complete
        return ids

    def extra_repr(self) -> str:
        """Sizes, modes, ranks with the number of rows that have them, and the ratio."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"shape={self.shape}"]
        buckets = self.store.buckets
        if len(buckets) == 1:
            parts += [f"ranks={buckets[0].layout.ranks}"]
        else:
            counts = [f"{len(b)} {'whole' if b.layout.dense else max(b.layout.ranks)}" for b in buckets]
            parts += [f"rows by rank=({', '.join(counts)})"]
        parts += [f"{name}=True" for name in ("mean", "rotation") if getattr(self.store.frame, name) is not None]
        parts += [f"core_bits={self.core_bits}"] * (self.core_bits == 8)
        parts += [f"padding_idx={self.padding_idx}"] * (self.padding_idx is not None)
        return ", ".join([*parts, f"ratio={self.ratio:.3g}"])

    def _look_up(self, ids: Tensor) -> Callable[[slice, Tensor | None], Tensor]:
        return functools.partial(self.store.rows, ids, padding=self.padding_idx, dtype=self.dtype)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.store.scores(computable(hidden)).to(self.dtype)
