"""What rows come from: one file, a folder of them, a list of shards, or files in the order given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..shards import LISTS, listed
from .parquet import ParquetRows
from .row_files import MOST_NAMED, RowFile, rows_of_npy, rows_of_safetensors
from .stamps import Stamp, check_stamp

SUFFIXES = (".safetensors", ".npy", ".parquet")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".npz")
Piece = dict[str, Any]  # rows of one file, as JSON holds them


class Source(NamedTuple):
    """A table of rows in files, one after the other; nothing of it is read yet.

    Attributes:
        files: Those that hold rows.
        rows, width, dtype: Of the whole table.
        folder: Where it lies, if a folder was given.
    """

    files: list[RowFile]
    rows: int
    width: int
    dtype: torch.dtype
    folder: Path | None

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """Where these rows are: a piece for each file that they are in."""
        found, first = [], 0
        for file in self.files:
            begin, end = max(start - first, 0), min(stop - first, file.rows)
            if begin < end:
                about = {"path": str(file.path), "tensor": file.tensor, **file.stamp._asdict()}
                found.append({**about, "start": begin, "stop": end})
            first += file.rows
        return found


def open_source(source: str | Path | Sequence[str | Path], tensor: str | None = None) -> Source:
    """List the files of a table of rows and look at what they say, without reading rows.

    Args:
        source: A file of safetensors, ``.npy`` or Parquet; a list of shards (``model.safetensors.index.json``), which
            stands for the one of them with the tensor; a folder with one of these, or with several files of one kind,
            taken in the order of their names; or a sequence of files.
        tensor: The name of the tensor or column.

    Raises:
        FileNotFoundError, ModuleNotFoundError, TypeError, ValueError: As :func:`open_rows`; a folder without such
            files, or with several kinds; files of another width or dtype, or with other columns, than the first; no
            rows. The message names the file.
    """
    folder, paths = _files(source, tensor)
    files = [open_rows(path, tensor) for path in paths]
    for file in files[1:]:
        first = files[0]
        if (file.width, file.dtype) != (first.width, first.dtype):
            raise ValueError(
                f"{file.path} has {file.dtype} rows of {file.width} and {first.path} has {first.dtype} rows of "
                f"{first.width}; all files of a table need one width and one dtype"
            )
    named = [file for file in files if file.columns]
    for file in named[1:]:
        if (wrong := file.columns) != (right := named[0].columns):
            one, other = next(pair for pair in zip_longest(wrong, right, fillvalue="nothing") if pair[0] != pair[1])
            raise ValueError(
                f"among the columns of its rows {file.path} has {one} where {named[0].path} has {other}; all files of "
                "a table need the same columns in the same order"
            )
    rows = sum(file.rows for file in files)
    if not rows:
        raise ValueError(f"{', '.join(map(str, paths[:MOST_NAMED]))}: there are no rows")
    return Source([file for file in files if file.rows], rows, files[0].width, files[0].dtype, folder)


def open_rows(path: Path, tensor: str | None = None) -> RowFile:
    """The rows in a file; what it holds decides, not how it is called.

    Raises:
        FileNotFoundError, OSError: No such file, or no rights.
        ModuleNotFoundError: pyarrow or safetensors is not installed.
        TypeError: Rows that are no floating-point numbers, or Python objects.
        ValueError: A truncated, damaged or foreign file; no such tensor, or several to choose from; no matrix.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    stamp = Stamp.of(path)
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        found: RowFile = rows_of_npy(path, tensor)
    elif start[:4] == b"PAR1":
        found = ParquetRows(path, tensor)
    elif start[:4] == b"PK\x03\x04" or path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle or an archive, which is not opened; write the matrix alone, "
            "with safetensors.torch.save_file or numpy.save"
        )
    else:
        found = rows_of_safetensors(path, tensor)
    if found.width < 1:
        raise ValueError(f"{path} has rows without entries: its shape is ({found.rows}, {found.width})")
    found.stamp = stamp
    return found


def read_pieces(
    pieces: Sequence[Piece], width: int, dtype: torch.dtype, most: int
) -> Iterator[tuple[int, Tensor, dict[int, str]]]:
    """The rows of all pieces in blocks of ``most``, whatever file they are in; the memory of a block is used again.

    Yields:
        How many rows came before, the rows ``(count, width)``, and for rows that are not there the reason.

    Raises:
        ValueError: A file is not the one that was planned with, before or after; one that ends early.
    """
    total = sum(piece["stop"] - piece["start"] for piece in pieces)
    room = torch.empty(min(most, total), width, dtype=dtype)
    filled = before = 0
    wrong: dict[int, str] = {}
    for piece in pieces:
        path, at = Path(piece["path"]), piece["start"]
        check_unchanged(piece)
        with ExitStack() as stack:
            file = stack.enter_context(open_rows(path, piece["tensor"]))
            while at < piece["stop"]:
                count = min(len(room) - filled, piece["stop"] - at)
                found = file.fill(room[filled : filled + count], at)
                wrong |= {filled + k: why for k, why in found.items()}
                filled, at = filled + count, at + count
                if filled == len(room) or before + filled == total:
                    check_unchanged(piece)
                    yield before, room[:filled], wrong
                    before, filled, wrong = before + filled, 0, {}
        check_unchanged(piece)


def check_unchanged(piece: Piece) -> None:
    """ValueError if the file is not as it was when the job was planned."""
    check_stamp(Path(piece["path"]), Stamp(piece["size"], piece["mtime_ns"]))


def where(pieces: Sequence[Piece], row: int) -> str:
    """Row and file of a row that is counted from the first of these pieces."""
    for piece in pieces:
        count = piece["stop"] - piece["start"]
        if row < count:
            return f"row {piece['start'] + row} of {Path(piece['path']).name}"
        row -= count
    raise IndexError(row)


def _files(source: str | Path | Sequence[str | Path], tensor: str | None) -> tuple[Path | None, list[Path]]:
    """The folder, if one was given, and the files in their order."""
    if not isinstance(source, (str, os.PathLike)):
        if not isinstance(source, Sequence) or not all(isinstance(one, (str, os.PathLike)) for one in source):
            raise TypeError(f"source is the path of a file or folder, or a list of files, not {type(source).__name__}")
        if not source:
            raise ValueError("source is an empty list; name at least one file")
        return None, [Path(one).expanduser().absolute() for one in source]
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return path, _in_folder(path, tensor)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    return None, _in_list(path, tensor) if path.name.endswith(LISTS[1:]) else [path]


def _in_folder(folder: Path, tensor: str | None) -> list[Path]:
    lists = sorted(folder.glob(LISTS))
    if len(lists) > 1:
        raise ValueError(f"{folder} holds {len(lists)} lists of shards; name one of them")
    if lists:
        return _in_list(lists[0], tensor)
    kinds = {kind: sorted(folder.glob(f"[!.]*{kind}")) for kind in SUFFIXES}
    kinds = {kind: paths for kind, paths in kinds.items() if paths}
    if len(kinds) != 1:
        found = " and ".join(f"{len(paths)} of {kind}" for kind, paths in kinds.items())
        what = f"files of several kinds ({found})" if found else f"no {', no '.join(SUFFIXES)} file"
        raise ValueError(f"{folder} holds {what}; give a list of the files that hold the rows, in order")
    [paths] = kinds.values()
    for one, other in zip(paths, paths[1:], strict=False):
        if _counted(one.name) > _counted(other.name):
            raise ValueError(
                f"in the order of names {one.name} comes before {other.name}, by their numbers after it; fill the "
                "numbers with zeros, or give a list of the files in their order"
            )
    return paths


def _in_list(path: Path, tensor: str | None) -> list[Path]:
    """The one file in which a list says that a tensor is; without a name, it must list no other."""
    where = listed(path)
    if tensor is None and len(where) > 1:
        named = ", ".join(list(where)[:MOST_NAMED]) + (", ..." if len(where) > MOST_NAMED else "")
        raise ValueError(f"{path} lists {len(where)} tensors ({named}); name the one with the rows with tensor=")
    if tensor is not None and tensor not in where:
        raise ValueError(f"{path} lists no tensor {tensor!r}")
    return [where[tensor or next(iter(where))]]


def _counted(name: str) -> list[tuple[int, str]]:
    """A name whose numbers are compared as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
