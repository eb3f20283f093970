"""A compressed table in a folder, opened a shard at a time."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import whole
from ..embeddings import MPSEmbedding
from ..embeddings.tables import CompressedTable
from ..files import TABLE, check_header
from ..retrieval import TTIndex
from ..retrieval.stored import Stored
from ..rows.joining import joined
from ..shards import open_safetensors

__all__ = ["Table"]

FORMAT, VERSION = "ttref.table", 1
SHARD = re.compile(r"rows-\d{5,}-of-\d{5,}\.safetensors")  # what shard_name gives
MOST_INDEX = 1 << 30  # bytes of a list of shards; a billion rows take some megabytes
WANTED = {
    "format": (str,),
    "version": (int,),
    "rows": (int,),
    "width": (int,),
    "dtype": (str,),
    "shape": (list,),
    "ranks": (list,),
    "eps": (float, int, type(None)),
    "center": (bool,),
    "core_bits": (int,),
    "source": (list,),
    "shards": (list,),
}
EACH = {"name": (str,), "rows": (int,), "params": (int,), "nbytes": (int,), "sha256": (str,), "source_sha256": (str,)}
SAMPLE = 65_536  # rows that an index is fitted to
AGAIN = "call compress_rows as before, which makes lost and damaged shards again"


class Shard(NamedTuple):
    """A file of a table.

    Attributes:
        name: Of the file.
        start: The first of its rows.
        rows, params, nbytes: How many rows, numbers and bytes of numbers it holds.
        sha256: What it says of itself in its metadata, over all that it holds.
    """

    name: str
    start: int
    rows: int
    params: int
    nbytes: int
    sha256: str


class Table:
    """A table that :func:`compress_rows` wrote. Iterating gives its shards as :class:`MPSEmbedding`, one at a time.

    A file is checked against the table when it is opened, all of it against its hash. The last one stays in memory.

    Args:
        folder: The destination of :func:`compress_rows`.

    Attributes:
        folder: Its path.
        num_embeddings, embedding_dim, dtype, shape, core_bits: As in :class:`MPSEmbedding`, of the whole table.
        params, nbytes, dense_nbytes, ratio, ranks, modes: As in ``ttref.Compressed``. A mean is counted in each
            shard, where it is stored.
        shards: A :class:`Shard` for each file.
        about: ``table.json``: also how the rows were compressed and the files that they come from.

    Raises:
        FileNotFoundError: No such folder, or the table is not complete.
        ValueError: A damaged ``table.json``; it is named.

    Example:
        >>> import tempfile, numpy
        >>> from ttref.scale import compress_rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numpy.save(f"{folder}/rows.npy", torch.randn(1000, 48).numpy())
        ...     how = dict(rank=2, rows_per_shard=400, engine="pool", workers=1)
        ...     table = compress_rows(f"{folder}/rows.npy", f"{folder}/small", **how).table
        ...     len(table), [len(shard.store) for shard in table], table.embedding().num_embeddings
        (1000, [400, 400, 200], 1000)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.about = _about(self.folder)
        self.num_embeddings, self.embedding_dim = self.about["rows"], self.about["width"]
        self.dtype, self.shape = getattr(torch, self.about["dtype"]), tuple(self.about["shape"])
        self.core_bits, self.ranks = self.about["core_bits"], tuple(self.about["ranks"])
        self.modes = tuple((n, 1) for n in self.shape)
        self.shards: list[Shard] = []
        for held in self.about["shards"]:
            start = sum(self.shards[-1][1:3]) if self.shards else 0
            self.shards.append(Shard(start=start, **{name: held[name] for name in Shard._fields if name != "start"}))
        self._last: tuple[int, MPSEmbedding] | None = None

    def __len__(self) -> int:
        return self.num_embeddings

    def __repr__(self) -> str:
        how = f"{len(self.shards)} shards, shape={self.shape}, ratio={self.ratio:.3g}"
        return f"Table({self.num_embeddings}, {self.embedding_dim}, {how})"

    def __iter__(self) -> Iterator[MPSEmbedding]:
        for k in range(len(self.shards)):
            yield self.shard(k)

    def shard(self, k: int) -> MPSEmbedding:
        """Shard k, 0 to ``len(shards) - 1``.

        Raises:
            FileNotFoundError: The file is gone.
            ValueError: The file is damaged, or is not the one that the table was made of.
        """
        if self._last is None or self._last[0] != k:
            about, path = self.shards[k], self.folder / self.shards[k].name
            try:
                made = MPSEmbedding.load(path)
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"{error}: {AGAIN}") from None
            found = seal_of(path), made.num_embeddings, made.embedding_dim, made.dtype
            if found != (about.sha256, about.rows, self.embedding_dim, self.dtype):
                raise ValueError(f"{path} is not the file that {TABLE} lists, another run has written one: {AGAIN}")
            self._last = k, made
        return self._last[1]

    @torch.no_grad()
    def rows(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Rows ``(count, width)`` for one axis of ids. Only the shards that hold them are read, each once.

        Raises:
            TypeError: ids that are no integers.
            IndexError: A negative id, or one beyond the table.
            ValueError: ids with another number of axes than one.
        """
        ids = torch.as_tensor(ids)
        if ids.shape == (0,):  # an empty list says of no dtype
            ids = ids.long()
        if ids.ndim != 1:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; rows takes one axis")
        ids = CompressedTable._check_ids(self, ids)
        found = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype)
        owner = torch.bucketize(ids, torch.tensor([shard.start for shard in self.shards]), right=True) - 1
        for k in owner.unique().tolist():
            mine = owner == k
            found[mine] = self.shard(k).rows(ids[mine] - self.shards[k].start)
        return found

    def embedding(self) -> MPSEmbedding:
        """The whole table in one :class:`MPSEmbedding`, as :meth:`MPSEmbedding.from_embedding` makes it of all rows.

        Cost:
            All shards in memory, twice meanwhile.
        """
        return MPSEmbedding._holding(self.shape, joined([made.store for made in self]), self.dtype)

    def dense(self) -> Tensor:
        """The dense table ``(num_embeddings, embedding_dim)``, where memory allows."""
        found = torch.empty(len(self), self.embedding_dim, dtype=self.dtype)
        for about, made in zip(self.shards, self, strict=True):
            with torch.no_grad():
                found[about.start : about.start + about.rows] = made.dense()
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole table as one file, that of :meth:`embedding`."""
        self.embedding().save(path)

    def index(self, index: TTIndex, *, sample: int = SAMPLE) -> TTIndex:
        """Make every row a document of an index: fitted to a sample, then filled shard by shard. Ids are row numbers.

        Args:
            index: One that is not fitted, with the settings that are wanted.
            sample: How many rows the fit takes, evenly spread over the table. If that is all of them, the result is
                that of one ``fit``.

        Returns:
            The same index.

        Raises:
            ValueError: An index that is fitted; rows that it refuses, as a zero row under cosine.

        Cost:
            Reads every shard twice, and codes each row once. Memory: the dense sample, one dense shard, and all codes.

        Example:
            >>> import tempfile, numpy
            >>> from ttref.retrieval import TTIndex
            >>> from ttref.scale import compress_rows
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     numpy.save(f"{folder}/rows.npy", torch.randn(500, 32).numpy())
            ...     how = dict(rank=4, rows_per_shard=200, engine="pool", workers=1)
            ...     table = compress_rows(f"{folder}/rows.npy", f"{folder}/small", **how).table
            ...     index = table.index(TTIndex(n_components=32, bits=8))
            ...     index.n_samples_fit_, index.kneighbors(table.rows([7, 499]), 1)[1].flatten().tolist()
            (500, [7, 499])
        """
        if index._stored is not None:
            raise ValueError("this index holds documents already; give one that is not fitted")
        count = min(whole("sample", sample, least=1), len(self))
        chosen = torch.arange(count) * len(self) // count
        fitted = copy.copy(index).fit(self.rows(chosen).float(), ids=chosen)
        index._hold(fitted._stored if count == len(self) else self._coded(fitted.remove(chosen)))
        return index

    @torch.no_grad()
    def _coded(self, index: TTIndex) -> Stored:
        """What an index without documents holds once it has all rows."""
        empty, scales = index._stored, []
        codes = empty.codes.new_empty(len(self), *empty.codes.shape[1:])
        for about, made in zip(self.shards, self, strict=True):
            index._hold(empty)  # added behind the others, each shard would copy the codes of all before it
            index.add(made.dense().float())
            codes[about.start : about.start + about.rows] = index._stored.codes
            scales.append(index._stored.scales)
        return replace(empty, codes=codes, scales=torch.cat(scales), ids=None, next_id=len(self))

    @property
    def params(self) -> int:
        """Numbers stored."""
        return sum(shard.params for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense table."""
        return len(self) * self.embedding_dim * self.dtype.itemsize

    @property
    def ratio(self) -> float:
        """Numbers of the dense table for each number stored."""
        return len(self) * self.embedding_dim / self.params


def shard_name(k: int, total: int) -> str:
    """The file of shard k, counted from 0, of so many."""
    return f"rows-{k + 1:05d}-of-{total:05d}.safetensors"


def seal_of(path: Path) -> str:
    """The hash that a file of ttref says of itself, over all that it holds; loading it compares."""
    with open_safetensors(path) as file:
        return (file.metadata() or {}).get("sha256", "")


def _about(folder: Path) -> dict[str, Any]:
    """``table.json``, checked."""
    path = folder / TABLE
    if not path.is_file():
        how = "there is no such folder"
        if folder.is_dir():
            how = "compress_rows writes it when all shards are done; call it again to go on, and look at its errors"
        raise FileNotFoundError(f"there is no {path}: {how}")
    try:
        if path.stat().st_size > MOST_INDEX:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        about = json.loads(path.read_bytes())
        check_header(about, WANTED)
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is {about['format']} of version {about['version']}")
        for k, shard in enumerate(about["shards"]):
            check_header(shard, EACH)
            numbers = [shard[name] for name in ("rows", "params", "nbytes")]
            if shard["name"] != shard_name(k, len(about["shards"])) or min(numbers) < 1:
                raise ValueError(f"its shard {k} is {shard}")
        sizes = [about["width"], *about["shape"], *about["ranks"]]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(f"its width, modes and ranks are {sizes}")
        if sum(shard["rows"] for shard in about["shards"]) != about["rows"] or not about["rows"]:
            raise ValueError(f"its shards do not hold the {about['rows']} rows that it announces")
        if about["dtype"] not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"its dtype is {about['dtype']}")
        return about
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no table of ttref, or is damaged ({type(error).__name__}: {error}); run compress_rows again"
        ) from None
