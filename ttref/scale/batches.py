"""Batches for many processes: a sequence of them, or files of text or of tokens; planned in parts and read in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import digest
from .jobs import Task

LEAST = 16 << 10  # bytes of text in a part of a file; less is not worth a task
Placed = tuple[str, Any]  # where a batch comes from, for messages, and the batch


def files_of(batches: Any) -> list[Path] | None:
    """Paths, where files are given; None for a sequence of batches.

    Raises:
        TypeError: One batch, or an iterator, which only one process could read.
    """
    if isinstance(batches, (str, Path)):
        batches = [batches]
    if isinstance(batches, (Tensor, Mapping)):
        raise TypeError(f"batches must be a list of batches or of files, got one {type(batches).__name__}")
    if not hasattr(batches, "__len__") or not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches must have a length and be indexed, so that processes share them; a {type(batches).__name__} can "
            "be neither: make a list of it, or name files"
        )
    if not len(batches):
        raise ValueError("there are no batches")
    if isinstance(batches, Sequence) and all(isinstance(one, (str, Path)) for one in batches):
        return [Path(one).expanduser().absolute() for one in batches]
    return None


def planned(batches: Any, parts: int) -> list[Task]:
    """About as many tasks as asked for, whatever the number of workers; never a file that changed in an old one."""
    files = files_of(batches)
    if files is None:
        cuts = _cuts(len(batches), parts)
        listed = isinstance(batches, (list, tuple))  # others may be read from a disk: their length has to do
        return [
            {"id": f"batches {a} to {b - 1}" + (f" {_mark(batches[a:b])}" if listed else ""), "start": a, "stop": b}
            for a, b in zip(cuts, cuts[1:], strict=False)
        ]
    pieces = [_pieces(path, max(1, parts // len(files))) for path in files]
    cuts = _cuts(len(files), parts)
    grouped = [sum(pieces[a:b], []) for a, b in zip(cuts, cuts[1:], strict=False)]
    if len(files) < parts:  # each piece by itself
        grouped = [[piece] for file in pieces for piece in file]
    return [{"id": _named(k, group), "pieces": group} for k, group in enumerate(grouped)]


def read(task: Task, batches: Any, tokenizer: Any, batch_size: int, max_tokens: int) -> Iterator[Placed]:
    """The batches of a task, each with its place.

    Raises:
        ValueError: A file that was written since the plan, that holds no text, or text that is no UTF-8.
    """
    if "pieces" not in task:
        for k in range(task["start"], task["stop"]):
            yield f"batch {k}", batches[k]
        return
    for path, start, stop, *stamp in task["pieces"]:
        path, found = Path(path), False
        _check(path, stamp)
        if _holds_tokens(path):
            made = _tokens(path, start, stop, batch_size)
        else:
            made = _texts(path, start, stop, tokenizer, batch_size, max_tokens)
        for placed in made:
            yield placed
            found = True
        _check(path, stamp)
        if not found and (start, stop) == (0, stamp[0]):
            raise ValueError(f"{path} holds no text: one a line is expected")


def _pieces(path: Path, parts: int) -> list[list[Any]]:
    """Parts of one file: path, beginning, end (bytes of text or rows of tokens), size and time of the whole."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of texts or tokens")
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    if not stamp[0]:
        raise ValueError(f"{path} is empty; leave it out")
    count = len(_rows(path)) if _holds_tokens(path) else stamp[0]
    cuts = _cuts(count, parts if _holds_tokens(path) else min(parts, -(-count // LEAST)))
    return [[str(path), a, b, *stamp] for a, b in zip(cuts, cuts[1:], strict=False)]


def _texts(path: Path, start: int, stop: int, tokenizer: Any, batch_size: int, max_tokens: int) -> Iterator[Placed]:
    """Batches of the lines that begin within a part of a file, blank ones left out."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    how = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
    for at, texts in _grouped(_lines(path, start, stop), batch_size):
        yield f"{path}, {len(texts)} lines from byte {at} on", dict(tokenizer(texts, **how))


def _lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Lines with the byte where they begin."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the end of a line that another part has
        while (at := file.tell()) < stop:
            try:
                line = file.readline().decode().strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is no text in UTF-8, in the line from byte {at} on ({error})") from None
            if line:
                yield at, line


def _grouped(lines: Iterable[tuple[int, str]], size: int) -> Iterator[tuple[int, list[str]]]:
    at, held = 0, []
    for where, line in lines:
        at = at if held else where
        held.append(line)
        if len(held) == size:
            yield at, held
            held = []
    if held:
        yield at, held


def _holds_tokens(path: Path) -> bool:
    return path.suffix == ".npy"


def _rows(path: Path) -> Any:
    """The rows of tokens in a file, mapped."""
    import numpy

    try:
        rows = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no file of numpy.save, or is truncated ({error})") from None
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or not len(rows):
        raise ValueError(
            f"{path} holds {rows.dtype} {rows.shape}; tokens are integers (rows, tokens), one row at least"
        )
    return rows


def _tokens(path: Path, start: int, stop: int, batch_size: int) -> Iterator[Placed]:
    """Batches of the rows of a part of a file."""
    rows = _rows(path)
    for a in range(start, stop, batch_size):
        b = min(a + batch_size, stop)
        yield f"{path}, rows {a} to {b - 1}", {"input_ids": torch.from_numpy(rows[a:b].astype("int64"))}


def _check(path: Path, stamp: list[int]) -> None:
    if not path.is_file() or [path.stat().st_size, path.stat().st_mtime_ns] != stamp:
        raise ValueError(f"{path} was written or removed while the job ran; call again")


def _cuts(count: int, parts: int) -> list[int]:
    """Where to cut so many into parts that differ by one at most, none empty."""
    parts = min(count, parts)
    return [k * count // parts for k in range(parts + 1)]


def _named(k: int, group: list[list[Any]]) -> str:
    """An id that says which files, and changes with them."""
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{k:05d} {Path(group[0][0]).name}{more} {short(repr(group))}"


def short(text: str) -> str:
    """Digits that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _mark(value: Any) -> str:
    """Digits that tell batches from others, by their numbers."""
    return short(repr(_told(value)))


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return [(key, _told(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    return value if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
