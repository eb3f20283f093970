"""An embedding table with one tensor train (matrix product state) for every row: TensorGPT's format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..shapes import check_modes, whole
from ..truncation import check_input, check_rank_or_eps, computable
from .files import read, write
from .frame import Frame
from .rows import RowLayout, RowTrains, by_owner
from .sorting import check_caps, sort_by_cap, sort_by_error
from .tables import CompressedTable, table_of

__all__ = ["MPSEmbedding"]

BLOCK = 2048  # rows rebuilt at once to score vectors with them
_SETTINGS = "shape", "embedding_dim", "core_bits", "eps", "by_row", "padding_idx", "sparse", "trainable"
_INDEX = ("bucket", torch.uint8), ("place", torch.int32)


class MPSEmbedding(CompressedTable):
    """A look-up table like ``nn.Embedding`` whose rows are tensor trains of their own.

    Made by :meth:`from_embedding` or :meth:`load`. Rows whose trains have the same ranks lie together in one bucket.
    With more than one bucket, an index of 5 bytes a row says where each row lies.

    Attributes:
        num_embeddings, embedding_dim, padding_idx: As in ``nn.Embedding``: looking up row ``padding_idx`` gives it no
            gradient.
        shape: Modes of a row; what they multiply to beyond the width is zeros.
        core_bits: 8 for int8 cores, 32 for cores in the dtype of the table.
        buckets: ``ModuleList`` of the stored cores, trainable unless they are int8.
        frame: Holds ``mean`` and ``rotation``, or None for either: a row is ``train @ rotation + mean``, unless it is
            kept as it is.
        params, nbytes, ratio: Numbers and bytes stored, everything included (cores, scales, mean, rotation, index),
            and numbers of the dense table for each number stored.

    Source:
        Xu, Xu and Mandic (2023), TensorGPT, arXiv:2307.00526v1. Buckets, the bound on the error, centring, rotation
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
        shape: Sequence[int],
        embedding_dim: int,
        dtype: torch.dtype = torch.float32,
        *,
        core_bits: int = 32,
        eps: float | None = None,
        by_row: bool = False,
        padding_idx: int | None = None,
        sparse: bool = False,
        trainable: bool = True,
    ) -> None:
        """A table without rows, as :meth:`from_embedding` and :meth:`load` start."""
        super().__init__(0, embedding_dim, padding_idx)
        self.shape, self.core_bits, self.eps, self.by_row = tuple(shape), core_bits, eps, by_row
        self.sparse, self.trainable = sparse, trainable
        self.buckets, self.frame = nn.ModuleList(), Frame()
        self.register_buffer("bucket", None)  # which bucket a row lies in, uint8, and where in it, int32
        self.register_buffer("place", None)
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)  # follows .to() and .half()

    @classmethod
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
            rank: Cap on the TT-ranks of all rows, one int or d+1 of them.
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
            TypeError: No ``nn.Embedding``, one with a ``forward`` of its own, or an argument of wrong type.
            ValueError: Not exactly one of rank, eps, row_ranks; eps with int8 cores, whose rounding it does not
                bound; modes that multiply to less than the width; max_norm or scale_grad_by_freq; NaN or Inf.

        Guarantee:
            With eps, ``||row - stored|| <= (eps + 10 d u) ||row||`` for each row, d modes, u the machine epsilon of
            the dtype (float32's for halves); also with centring and rotation, where it is the norm of the original
            row. Each row takes the smallest cap that keeps the bound, or stays as it is where no train is smaller.

        Cost:
            One TT-SVD for each row: a second or two for 50,000 rows of 768 at rank 4. With eps, one for each cap
            tried. Beside the result, working memory for 16,384 rows.

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
        shape = (2,) * max((width - 1).bit_length(), 1) if shape is None else check_modes("shape", shape)
        if math.prod(shape) < width:
            raise ValueError(
                f"shape {shape} multiplies to {math.prod(shape)}, but a row has {width} entries; "
                "give modes that multiply to at least that (what exceeds it is filled with zeros)"
            )
        caps = None if row_ranks is None else check_caps(row_ranks, len(table))
        made = cls(
            shape,
            width,
            table.dtype,
            core_bits=core_bits,
            eps=eps,
            by_row=caps is not None,
            padding_idx=embedding.padding_idx,
            sparse=embedding.sparse,
            trainable=embedding.weight.requires_grad,
        ).to(table.device)
        made.frame = Frame.of(table, center=center, rotate=rotate)
        if rank is not None:
            made.buckets.append(made._bucket(RowLayout(shape, rank, width)))
        made._extend(table, caps)
        return made.train(embedding.training)

    @torch.no_grad()
    def append(self, rows: Tensor, *, row_ranks: Sequence[int] | Tensor | None = None) -> Tensor:
        """Add rows at the end, compressed as the table was. What is stored of the old rows stays bit for bit.

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
            Parameters are replaced when pieces merge: give an optimizer the new ones.

        Example:
            >>> mps = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=2)
            >>> mps.append(torch.randn(2, 48)), mps.num_embeddings
            (tensor([100, 101]), 102)
        """
        check_input("rows", rows)
        if rows.dtype != self.dtype:
            raise TypeError(f"rows are {rows.dtype}, but the table is {self.dtype}; convert them first")
        if rows.ndim != 2 or rows.shape[1] != self.embedding_dim:
            raise ValueError(f"rows have shape {tuple(rows.shape)}; the table takes rows (count, {self.embedding_dim})")
        if self.by_row != (row_ranks is not None):
            how = "row_ranks: give one for each new row" if self.by_row else "rank or eps, which new rows follow too"
            raise ValueError(f"this table was made with {how}")
        before = self.num_embeddings
        caps = None if row_ranks is None else check_caps(row_ranks, len(rows))
        self._extend(rows.detach().to(self.device), caps)
        return torch.arange(before, self.num_embeddings, device=self.device)

    def extra_repr(self) -> str:
        """Sizes, modes, ranks with the number of rows that have them, and the ratio."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"shape={self.shape}"]
        if len(self.buckets) == 1:
            parts += [f"ranks={self.buckets[0].layout.ranks}"]
        else:
            counts = [f"{len(b)} {'whole' if b.layout.whole else max(b.layout.ranks)}" for b in self.buckets]
            parts += [f"rows by rank=({', '.join(counts)})"]
        parts += [f"{name}=True" for name in ("mean", "rotation") if getattr(self.frame, name) is not None]
        parts += [f"core_bits={self.core_bits}"] * (self.core_bits == 8)
        parts += [f"padding_idx={self.padding_idx}"] * (self.padding_idx is not None)
        return ", ".join([*parts, f"ratio={self.ratio:.3g}"])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        """
        tensors = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("buckets.")}
        for k, trains in enumerate(self.buckets):
            names = ("cores",) if self.core_bits == 32 else ("codes", "scales")
            for name, tensor in zip(names, trains.stored(), strict=True):
                tensors[f"{name}.{k}"] = tensor.detach()
        header = {name: getattr(self, name) for name in _SETTINGS}
        header |= {
            "num_embeddings": self.num_embeddings,
            "ranks": [trains.layout.ranks for trains in self.buckets],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        write(path, type(self).__name__, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> MPSEmbedding:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
            ValueError: A truncated file, or one that holds something else; the message names it.

        Example:
            >>> import tempfile
            >>> mps = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     mps.save(f"{folder}/table.safetensors")
            ...     again = MPSEmbedding.load(f"{folder}/table.safetensors")
            >>> torch.equal(again(torch.arange(100)), mps(torch.arange(100)))
            True
        """
        return read(path, cls.__name__, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict) -> MPSEmbedding:
        dtype = getattr(torch, header["dtype"])
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"rows of {dtype}")
        made = cls(dtype=dtype, **{name: header[name] for name in _SETTINGS})
        made.num_embeddings = rows = whole("num_embeddings", header["num_embeddings"], least=1)
        width = whole("embedding_dim", made.embedding_dim, least=1)

        def take(name: str, shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
            tensor = tensors.pop(name)
            if tensor.shape != shape or tensor.dtype != kind:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {kind} {shape}")
            return tensor

        for ranks in header["ranks"]:
            trains, k = made._bucket(RowLayout(made.shape, ranks, width)), len(made.buckets)
            name = "cores" if made.core_bits == 32 else "codes"
            count = len(tensors[f"{name}.{k}"])
            stored = [take(f"{name}.{k}", (count, trains.layout.numbers), dtype if name == "cores" else torch.int8)]
            trains.adopt(stored if name == "cores" else [*stored, take(f"scales.{k}", (count,), torch.bfloat16)])
            made.buckets.append(trains)
        sizes = [len(trains) for trains in made.buckets]
        if len(sizes) > 1:
            made.bucket, made.place = (take(*of, (rows,), kind) for *of, kind in _INDEX)
            slots = made.place + (torch.tensor([0, *sizes]).cumsum(0))[made.bucket.long()]
            if (made.place < 0).any() or not torch.equal(slots.sort().values, torch.arange(rows)):
                raise ValueError("the index does not name every row once")
        if sum(sizes) != rows or math.prod(made.shape) < width:
            raise ValueError(f"{sum(sizes)} rows of {width} numbers with modes {made.shape}, {rows} announced")
        if made.padding_idx is not None and not 0 <= made.padding_idx < rows:
            raise ValueError(f"padding_idx is {made.padding_idx}, but there are {rows} rows")
        made.frame = Frame(
            take("frame.mean", (width,), dtype) if "frame.mean" in tensors else None,
            take("frame.rotation", (width, width), dtype) if "frame.rotation" in tensors else None,
        )
        if tensors:
            raise ValueError(f"it holds {sorted(tensors)} too")
        return made

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self._first().dtype if self.core_bits == 32 and self.buckets else self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self._first().device if self.buckets else self._like.device

    def _first(self) -> Tensor:
        return self.buckets[0].piece(0)[0]

    def _look_up(self, ids: Tensor) -> Callable[[slice, Tensor | None], Tensor]:
        unframed = self.frame.mean is None and self.frame.rotation is None
        plain = self.place is None and unframed and self.dtype in (torch.float32, torch.float64)
        plain = plain and (self.core_bits == 32 or self.dtype == torch.float32)

        def outer(rows: Tensor, framed: bool) -> Tensor:
            return self.frame.outer(rows) if framed else rows

        def rows(part: slice, out: Tensor | None) -> Tensor:
            if plain:
                return self.buckets[0](ids[part], self.padding_idx, out)
            found = self._by_bucket(ids[part], outer, padding=self.padding_idx)
            return found.to(self.dtype) if out is None else out.copy_(found)

        return rows

    def _by_bucket(
        self, ids: Tensor, finish: Callable[[Tensor, bool], Tensor], *, dim: int = 0, padding: int | None = None
    ) -> Tensor:
        """``finish(rows, framed)`` of the contracted rows of each bucket, in the order of ids along ``dim``."""
        if self.place is None:
            return finish(self.buckets[0](ids, padding), not self.buckets[0].layout.whole)
        owner, place = self.bucket[ids], self.place[ids].long()

        def part(k: int, mine: Tensor) -> Tensor:
            here = padding is not None and int(self.bucket[padding]) == k
            rows = self.buckets[k](place[mine], int(self.place[padding]) if here else None)
            return finish(rows, not self.buckets[k].layout.whole)

        return by_owner(owner, len(self.buckets), part, dim)

    def _logits(self, hidden: Tensor) -> Tensor:
        """A rotation turns the vectors once instead of every row, and the mean adds one number to each vector."""
        hidden = computable(hidden)
        turned, shift = hidden, 0.0
        if self.frame.rotation is not None:
            turned = hidden @ self.frame.rotation.to(hidden.dtype).mT
        if self.frame.mean is not None:
            shift = (hidden @ self.frame.mean.to(hidden.dtype)).unsqueeze(1)

        def finish(rows: Tensor, framed: bool) -> Tensor:
            rows = rows.to(hidden.dtype).mT
            return turned @ rows + shift if framed else hidden @ rows

        def scores(ids: Tensor) -> Tensor:
            return self._by_bucket(ids, finish, dim=1)

        blocks = torch.arange(self.num_embeddings, device=self.device).split(BLOCK)
        if torch.is_grad_enabled():  # a block's rows are forgotten and rebuilt in the backward pass
            return torch.cat([checkpoint(scores, ids, use_reentrant=False) for ids in blocks], dim=1).to(self.dtype)
        out = torch.empty(len(hidden), self.num_embeddings, dtype=self.dtype, device=hidden.device)
        for ids, part in zip(blocks, out.split(BLOCK, dim=1), strict=True):
            part.copy_(scores(ids))
        return out

    def _bucket(self, layout: RowLayout) -> RowTrains:
        return RowTrains(layout, self.core_bits, sparse=self.sparse, trainable=self.trainable)

    def _extend(self, table: Tensor, caps: list[int] | None) -> None:
        """Compress rows into the buckets they belong to. The table changes only after all of them are compressed."""
        if caps is not None:
            groups = sort_by_cap(caps, self.shape, table)
        elif self.eps is not None:
            groups = sort_by_error(self.eps, self.shape, table, self.frame)
        else:
            groups = [(self.buckets[0].layout, torch.arange(len(table), device=table.device))]
        grown, found = list(self.buckets), []
        for layout, mine in groups:
            k = next((k for k, trains in enumerate(grown) if trains.layout.ranks == layout.ranks), len(grown))
            if k == len(grown):
                grown.append(self._bucket(layout))
            found.append((k, mine, grown[k].compress(table, mine, self.frame)))
        if len(grown) > 255:
            raise ValueError(f"the rows have {len(grown)} different ranks; at most 255 can be kept apart")
        old, count = self.num_embeddings, len(table)
        bucket = torch.zeros(old + count, dtype=torch.uint8, device=table.device)
        place = torch.arange(old + count, dtype=torch.int32, device=table.device)
        if self.place is not None:
            bucket[:old], place[:old] = self.bucket, self.place
        for k, mine, stored in found:
            bucket[old + mine] = k
            place[old + mine] = torch.arange(len(grown[k]), len(grown[k]) + len(mine), dtype=torch.int32)
            grown[k].adopt(stored)
        self.buckets = nn.ModuleList(grown)
        self.bucket, self.place = (bucket, place) if len(grown) > 1 else (None, None)
        self.num_embeddings += count
