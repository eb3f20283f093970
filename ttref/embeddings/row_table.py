"""The stored part of a table with one train for each row: counts, files and states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..checks import check_rank_or_eps
from ..files import read, write
from ..rows.packed import RowLayout
from ..rows.sorting import layouts_by_size
from ..rows.store import RowStore
from .settings import checked
from .tables import CompressedTable

KIND = "MPSEmbedding"  # the kind in files, also for subclasses


class RowTable(CompressedTable):
    """Base class of :class:`MPSEmbedding`: the store of its rows, its counts, files and states."""

    store: RowStore

    def _start(self, shape: Sequence[int], store: RowStore, dtype: torch.dtype, padding_idx: int | None) -> None:
        """The last step of every constructor."""
        super().__init__(store.width, padding_idx)
        self.shape, self.store = tuple(shape), store
        # The dtype of the rows of int8 cores.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=self.device), persistent=False)

    @classmethod
    def _holding(
        cls, shape: Sequence[int], store: RowStore, dtype: torch.dtype, padding_idx: int | None = None
    ) -> Self:
        """A table of rows that are compressed already."""
        made = cls.__new__(cls)
        made._start(shape, store, dtype, padding_idx)
        return made

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.store.count

    @property
    def core_bits(self) -> int:
        """8 for int8 cores, else 32."""
        return self.store.bits

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: the same bytes for the same table.

        The permissions of an existing file stay; of a link, the target is replaced.

        Raises:
            ValueError: Numbers that are NaN or infinite.
            FileNotFoundError, OSError: No such folder; a folder, a full disk, missing permissions. The old file stays.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
        """
        write(path, KIND, *self._content(), self._restore)

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and header of a file."""
        return self.store.named(), {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "shape": self.shape,
            "ranks": [bucket.layout.ranks for bucket in self.store.buckets],
            "dtype": str(self.dtype).removeprefix("torch."),
            "core_bits": self.core_bits,
            "eps": self.store.eps,
            "by_row": self.store.by_row,
            "padding_idx": self.padding_idx,
            "sparse": self.store.sparse,
            "trainable": any(parameter.requires_grad for parameter in self.parameters()),
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of :meth:`save`; the table does not depend on the file afterwards.

        It is in training mode; all cores are trainable, unless every core was frozen.

        Raises:
            FileNotFoundError, OSError: No such file; a folder, missing permissions.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
            ValueError: A damaged file, or one of something else; the message names it.

        Example:
            >>> import tempfile
            >>> from torch import nn
            >>> from ttref import MPSEmbedding
            >>> mps = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     mps.save(f"{folder}/table.safetensors")
            ...     again = MPSEmbedding.load(f"{folder}/table.safetensors")
            >>> torch.equal(again(torch.arange(100)), mps(torch.arange(100)))
            True
        """
        return read(path, KIND, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict) -> Self:
        dtype, layouts = checked(header, tensors)
        rows = header["num_embeddings"]
        how = {name: header[name] for name in ("sparse", "eps", "by_row")}
        store = RowStore(header["embedding_dim"], header["core_bits"], **how)
        held = {re.sub(r"(\w+)\.(\d+)", r"buckets.\2.pieces.0.\1", name): tensor for name, tensor in tensors.items()}
        store.filled(held, layouts, rows, dtype, header["trainable"])
        return cls._holding(layouts[0].shape, store, dtype, padding_of(header["padding_idx"], rows))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Put the ranks into the state's metadata, where they are no key and not counted in ``params``."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (metadata := getattr(destination, "_metadata", None)) is not None:
            ranks = [list(bucket.layout.ranks) for bucket in self.store.buckets]
            frame = [name for name, tensor in self.store.frame.named_buffers() if tensor is not None]
            about = {"ranks": ranks, "eps": self.store.eps, "by_row": self.store.by_row, "frame": frame}
            metadata[prefix[:-1]]["rows"] = about

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        """If ranks or pieces differ, replace the store by one made of the state, so that names and sizes agree."""
        inside, changed = f"{prefix}store.", True
        held = {key.removeprefix(inside): value for key, value in state_dict.items() if key.startswith(inside)}
        about = local_metadata.get("rows", {})
        try:
            store = self._store_for(held, about, local_metadata.get("assign_to_params_buffers", False))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            why = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else error
            rest[-1].append(
                f"{prefix[:-1] or 'this'} is a table of {self.num_embeddings} rows of {self.embedding_dim} with modes "
                f"{self.shape}, and the state is of another, or damaged ({why}); nothing was loaded into it"
            )
            store = self.store
        else:
            changed = store is not self.store
            store.eps, store.by_row = about.get("eps", self.store.eps), about.get("by_row", self.store.by_row)
        if changed:
            self.store = store  # in one step, with its settings: whatever interrupts
            for key in held:
                del state_dict[inside + key]
            state_dict |= {inside + key: value for key, value in store.state_dict(keep_vars=True).items()}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _store_for(self, held: dict[str, Tensor], about: Mapping[str, Any], assign: bool) -> RowStore:
        """The table's store if torch can load these tensors into it, else a new one made of them."""
        own, buckets = self.store.state_dict(), self.store.buckets
        ranks = about.get("ranks") or [bucket.layout.ranks for bucket in buckets]
        if about.get("eps") is not None:
            check_rank_or_eps(None, about["eps"])
        if held and (lost := [name for name in about.get("frame", []) if f"frame.{name}" not in held]):
            raise ValueError(f"it lacks its {' and '.join(lost)}")
        sizes = {name: tensor.shape for name, tensor in held.items()}
        plain = all(piece.plain() for bucket in buckets for piece in bucket.pieces)
        alike = sizes == {name: tensor.shape for name, tensor in own.items()}
        alike = alike and [tuple(one) for one in ranks] == [bucket.layout.ranks for bucket in buckets]
        if not held or not plain or alike:  # torch says what a pruned or parametrized table lacks
            if "place" in held and not self.store.names_every_row_once(held["bucket"], held["place"]):
                raise ValueError("the index does not name every row once")
            return self.store
        bits = 8 if "buckets.0.pieces.0.codes" in held else 32
        first = [f"buckets.{k}.pieces.0.{'codes' if bits == 8 else 'cores'}" for k in range(len(held))]
        packed = [held[name] for name in first if name in held]
        if "ranks" in about:
            layouts = [RowLayout(self.shape, one, self.embedding_dim) for one in about["ranks"]]
        else:
            known = [bucket.layout for bucket in buckets]
            layouts = layouts_by_size([tensor.shape[1] for tensor in packed], self.shape, self.embedding_dim, known)
        dtype, device = (packed[0].dtype, packed[0].device) if assign and bits == 32 else (self.dtype, self.device)
        taken = {}
        for name, value in held.items():
            kind = dtype if value.is_floating_point() and not name.endswith("scales") else value.dtype
            taken[name] = value.detach() if assign else value.detach().to(device, kind, copy=True)
        trainable = any(parameter.requires_grad for parameter in self.parameters()) or self.core_bits == 8
        store = RowStore(self.embedding_dim, bits, sparse=self.sparse).train(self.training)
        return store.filled(taken, layouts, self.num_embeddings, dtype, trainable)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.store.buckets[0].pieces[0].tensors()[0].dtype if self.store.bits == 32 else self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device of the table."""
        return self.store.first().device

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT-ranks: the largest of any row, bond by bond; a row that is stored densely counts with full ranks."""
        return tuple(map(max, zip(*(bucket.layout.ranks for bucket in self.store.buckets), strict=True)))

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """A pair ``(n_k, 1)`` for each core of a row."""
        return tuple((n, 1) for n in self.shape)

    @property
    def sparse(self) -> bool:
        """True if look-ups give sparse gradients."""
        return self.store.sparse


def padding_of(padding_idx: int | None, rows: int) -> int | None:
    """The index counted from the start, or a ValueError."""
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx is {padding_idx}, but the table has {rows} rows")
    return None if padding_idx is None else padding_idx % rows
