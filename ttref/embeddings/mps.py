"""An embedding table with one tensor train (matrix product state) for every row: TensorGPT's format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checks import check_caps, check_input, check_rank_or_eps, whole
from ..files import read, write
from ..precision import computable, full_precision
from ..rows.frame import Frame
from ..rows.packed import RowLayout, traced
from ..rows.sorting import sorted_rows
from ..rows.store import RowStore, gaussian
from .settings import checked, row_modes
from .tables import CompressedTable, table_of

__all__ = ["MPSEmbedding"]

KIND = "MPSEmbedding"  # in files, whatever a subclass is called


class MPSEmbedding(CompressedTable):
    """A look-up table like ``nn.Embedding`` whose rows are tensor trains of their own.

    Made from a trained table by :meth:`from_embedding`, or with random rows to be trained. Rows whose trains have the
    same ranks lie together in one bucket. With more than one bucket, an index of 5 bytes a row says where each lies.

    Args:
        num_embeddings, embedding_dim, padding_idx, sparse, device, dtype: As in ``nn.Embedding``.
        rank: Cap on the TT-ranks of all rows, one int or d+1 of them.
        shape: Modes of a row, as in :meth:`from_embedding`.

    Attributes:
        num_embeddings, embedding_dim, padding_idx, sparse: As in ``nn.Embedding``. Looking up row ``padding_idx``
            gives it no gradient; it is approximated like any other row.
        shape: Modes of a row; what they multiply to beyond the width is zeros.
        core_bits: 8 for int8 cores, 32 for cores in the dtype of the table.
        store: What is stored: ``store.buckets`` with the cores, ``store.frame`` with ``mean`` and ``rotation`` or None
            for either (a row is ``train @ rotation + mean``, unless it is kept as it is), and the index.
        params, nbytes, ratio: Numbers and bytes stored, everything included (cores, scales, mean, rotation, index),
            and numbers of the dense table for each number stored.

    Initialization:
        Gaussian rows as those of ``nn.Embedding`` (zeros at ``padding_idx``), and of each what TT-SVD finds at these
        ranks.

    Source:
        Xu, Xu and Mandic (2023), TensorGPT, arXiv:2307.00526v1. Buckets, the bound on the error, centering, rotation
        and int8 cores are ours.

    Example:
        >>> table = nn.Embedding(100, 768)
        >>> mps = MPSEmbedding.from_embedding(table, rank=1)
        >>> mps(torch.tensor([[3, 1], [4, 1]])).shape, mps.params, mps.ratio        # 20 numbers a row
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
        padding_idx = _padding(padding_idx, rows)
        table = gaussian(torch.empty(rows, width, device=device, dtype=dtype), padding_idx)
        group = RowLayout(shape, rank, width), torch.arange(rows, device=device), None
        self._start(shape, full_precision(store.grown)(table, [group]), dtype, None, False, padding_idx)

    def _start(
        self,
        shape: Sequence[int],
        store: RowStore,
        dtype: torch.dtype,
        eps: float | None,
        by_row: bool,
        padding_idx: int | None,
    ) -> None:
        """What every way to make a table ends with."""
        super().__init__(store.width, padding_idx)
        self.shape, self.eps, self.by_row, self.store = tuple(shape), eps, by_row, store
        self.core_bits, self._turn = store.bits, _Turn()
        # The dtype of the rows of int8 cores.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=self.device), persistent=False)

    def _grow(self, store: RowStore) -> None:
        """The one step in which a table changes: whoever looks rows up meets the old store or the new one, whole."""
        self.store = store

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.store.count

    @full_precision
    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new rows in place, each in the ranks it has; a mean becomes zeros, a rotation the identity."""
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
        """Compress a trained table, each row by TT-SVD. The table stays as it is and shares nothing with the result.

        Args:
            embedding: ``nn.Embedding``. ``padding_idx`` and ``sparse`` are kept; ``max_norm`` and
                ``scale_grad_by_freq`` are refused.
            rank: Cap on the TT-ranks of all rows, one int or d+1 of them. From some rank on a train holds as many
                numbers as the row (12 for a width of 768); ``ratio`` tells.
            eps: Error allowed for **each** row, relative to its norm, in [0, 1).
            row_ranks: A cap for each row. Give exactly one of rank, eps and row_ranks. A cap at which nothing is cut
                keeps a row as it is, without the padding.
            shape: Modes of a row. Left out, modes of 2, the row padded with zeros to the next power of two. Modes
                that multiply to the width, such as ``factorize(width)``, need no padding.
            center: Subtract the mean row first; it is stored once.
            rotate: Turn the rows to their principal axes first; the matrix is stored once.
            core_bits: 8 rounds the cores to int8. Orthogonal cores need no scale; the core that carries the norm has
                one for each row, a bfloat16. Such cores are not trainable.

        Returns:
            The compressed table, in the dtype, on the device and in the training mode of the old one.

        Raises:
            TypeError: No ``nn.Embedding``, one computing more than a look-up (a forward of its own, hooks), or an
                argument of wrong type. Masks and parametrizations are applied.
            ValueError: Not exactly one of rank, eps, row_ranks; eps with int8 cores, whose rounding it does not
                bound; modes that multiply to less than the width; max_norm or scale_grad_by_freq; NaN or Inf; a weight
                on the meta device.

        Guarantee:
            With eps, ``||row - stored|| <= (eps + 10 d u) ||row||`` for each row, d modes, u the machine epsilon of
            the dtype (float32's for halves); also with centering and rotation, where it is the norm of the original
            row. Each row takes the smallest cap that keeps the bound, or stays as it is where no train is smaller.

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
        given = [name for name, value in (("rank", rank), ("eps", eps), ("row_ranks", row_ranks)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of rank, eps and row_ranks, got {' and '.join(given) or 'none'}")
        if eps is not None:
            check_rank_or_eps(None, eps)
        if core_bits not in (8, 32):
            raise ValueError(f"core_bits must be 32 (cores in the dtype of the table) or 8 (int8), got {core_bits!r}")
        if eps is not None and core_bits == 8:
            raise ValueError(
                "eps does not bound the rounding of int8 cores: give rank or row_ranks, or leave core_bits at 32"
            )
        width = table.shape[1]
        shape = row_modes(shape, width)
        caps = None if row_ranks is None else check_caps(row_ranks, len(table))
        frame = Frame.of(table, center=center, rotate=rotate)
        made = cls.__new__(cls)
        store = RowStore(width, core_bits, sparse=embedding.sparse, frame=frame)
        layout = None if rank is None else RowLayout(shape, rank, width)
        groups = sorted_rows(table, shape, frame, layout, eps, caps)
        store = store.grown(table, groups, trainable=table.requires_grad)
        made._start(shape, store, table.dtype, eps, caps is not None, _padding(embedding.padding_idx, len(table)))
        return made.train(embedding.training)

    @full_precision
    @torch.no_grad()
    def append(self, rows: Tensor, *, row_ranks: Sequence[int] | Tensor | None = None) -> Tensor:
        """Add rows at the end, compressed as the table was. What is stored of the old rows stays bit for bit.

        The table is as before or has all new rows, whatever interrupts: threads that append take turns, and a look-up
        meanwhile sees the old rows or all. ``state_dict`` names the pieces that rows came in; :meth:`save` does not.

        Mean and rotation stay those of the first rows, so that nothing old changes.

        Args:
            rows: ``(count, embedding_dim)`` in the dtype of the table.
            row_ranks: A cap for each new row, exactly if the table was made with ``row_ranks``.

        Returns:
            The ids of the new rows, int64 ``(count,)``.

        Raises:
            TypeError: Another dtype, or no tensor.
            ValueError: Rows of another width, NaN or Inf, row_ranks missing or not wanted. The table is unchanged.

        Cost:
            One TT-SVD for each new row. Later, earlier additions are copied now and then, each at most log2(rows)
            times; the first rows only when as many have been added. An index, where there is one, is copied.
            Parameters are replaced when pieces merge: give an optimizer the new ones. Pieces under a pruning mask, a
            parametrization or an offloading hook are never merged.

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
        if self.by_row != (row_ranks is not None):
            how = "row_ranks: give one for each new row" if self.by_row else "rank or eps, which new rows follow too"
            raise ValueError(f"this table was made with {how}")
        caps = None if row_ranks is None else check_caps(row_ranks, len(rows))
        rows = rows.detach()
        with self._turn.lock:
            before = self.store
            rows = rows.to(self.device)
            layout = None if self.by_row or self.eps is not None else before.buckets[0].layout
            longer = before.grown(rows, sorted_rows(rows, self.shape, before.frame, layout, self.eps, caps))
            ids = torch.arange(before.count, longer.count, device=rows.device)
            self._grow(longer)
        return ids

    def extra_repr(self) -> str:
        """Sizes, modes, ranks with the number of rows that have them, and the ratio."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"shape={self.shape}"]
        buckets = self.store.buckets
        if len(buckets) == 1:
            parts += [f"ranks={buckets[0].layout.ranks}"]
        else:
            counts = [f"{len(b)} {'whole' if b.layout.whole else max(b.layout.ranks)}" for b in buckets]
            parts += [f"rows by rank=({', '.join(counts)})"]
        parts += [f"{name}=True" for name in ("mean", "rotation") if getattr(self.store.frame, name) is not None]
        parts += [f"core_bits={self.core_bits}"] * (self.core_bits == 8)
        parts += [f"padding_idx={self.padding_idx}"] * (self.padding_idx is not None)
        return ", ".join([*parts, f"ratio={self.ratio:.3g}"])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: the same bytes for the same table.

        The rights of an existing file stay, and of a link what it leads to is replaced.

        Raises:
            ValueError: Numbers that are NaN or infinite.
            FileNotFoundError, OSError: No such folder; a folder, a full disk, missing rights. The old file stays.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        """
        header = {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "shape": self.shape,
            "ranks": [trains.layout.ranks for trains in self.store.buckets],
            "dtype": str(self.dtype).removeprefix("torch."),
            "core_bits": self.core_bits,
            "eps": self.eps,
            "by_row": self.by_row,
            "padding_idx": self.padding_idx,
            "sparse": self.store.sparse,
            "trainable": any(parameter.requires_grad for parameter in self.parameters()),
        }
        write(path, KIND, self.store.tensors(), header, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> MPSEmbedding:
        """Read what :meth:`save` wrote; from then on the table and its file are independent of each other.

        Raises:
            FileNotFoundError, OSError: No such file; a folder, missing rights.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
            ValueError: A file that is not what was written, or holds something else; the message names it.

        Example:
            >>> import tempfile
            >>> mps = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     mps.save(f"{folder}/table.safetensors")
            ...     again = MPSEmbedding.load(f"{folder}/table.safetensors")
            >>> torch.equal(again(torch.arange(100)), mps(torch.arange(100)))
            True
        """
        return read(path, KIND, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict) -> MPSEmbedding:
        dtype, layouts = checked(header, tensors)
        made, rows, shape = cls.__new__(cls), header["num_embeddings"], layouts[0].shape
        store = RowStore(header["embedding_dim"], header["core_bits"], sparse=header["sparse"])
        store.restore(tensors, layouts, rows, dtype)
        made._start(shape, store, dtype, header["eps"], header["by_row"], _padding(header["padding_idx"], rows))
        return made.requires_grad_(header["trainable"])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.store.first().dtype if self.core_bits == 32 else self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self.store.first().device

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT-ranks: the largest of any row, bond by bond; a row that is kept as it is counts with full ranks."""
        return tuple(map(max, zip(*(trains.layout.ranks for trains in self.store.buckets), strict=True)))

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """A pair ``(n_k, 1)`` for each core of a row."""
        return tuple((n, 1) for n in self.shape)

    @property
    def sparse(self) -> bool:
        """Whether a look-up gives sparse gradients."""
        return self.store.sparse

    def _look_up(self, ids: Tensor) -> Callable[[slice, Tensor | None], Tensor]:
        computed = self.dtype if self.core_bits == 32 else torch.float32  # what rows of such cores come out in
        store, padding = self.store, self.padding_idx
        stopped = traced() and padding is not None  # where the padding row lies is a number, which no branch may ask
        direct = self.dtype == computed and computed in (torch.float32, torch.float64)

        def fetch(part: slice, out: Tensor | None) -> Tensor:
            found = store.rows(ids[part], padding=None if stopped else padding, out=out if direct else None)
            if stopped:
                found = torch.where((ids[part] == padding).unsqueeze(1), found.detach(), found)
            return found.to(self.dtype) if out is None else found if found is out else out.copy_(found)

        return fetch

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.store.scores(computable(hidden)).to(self.dtype)


class _Turn:
    """A lock that copies and pickles as a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[_Turn], tuple[()]]:
        return _Turn, ()


def _padding(padding_idx: int | None, rows: int) -> int | None:
    """The index counted from the start, or a ValueError."""
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx is {padding_idx}, but the table has {rows} rows")
    return None if padding_idx is None else padding_idx % rows
