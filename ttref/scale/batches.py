"""Batches for many processes: a sequence of them, or files of text or of tokens; planned in parts and read in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .fingerprints import fingerprint
from .jobs import Task
from .row_files import RawRows, integers_of_npy
from .stamps import Stamp, check_stamp

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
        tasks = []
        for a, b in zip(cuts, cuts[1:], strict=False):
            mark = f" {fingerprint(list(batches[a:b]))}" if listed else ""
            tasks.append({"id": f"batches {a} to {b - 1}{mark}", "start": a, "stop": b})
        return tasks
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
        path, stamp, found = Path(path), Stamp(*stamp), False
        check_stamp(path, stamp)
        if _holds_tokens(path):
            made = _tokens(path, start, stop, batch_size)
        else:
            made = _texts(path, start, stop, tokenizer, batch_size, max_tokens)
        for placed in made:
            yield placed
            found = True
        check_stamp(path, stamp)
        if not found and (start, stop) == (0, stamp.size):
            raise ValueError(f"{path} holds no text: one a line is expected")


def _pieces(path: Path, parts: int) -> list[list[Any]]:
    """Parts of one file: path, beginning, end (bytes of text or rows of tokens), size and time of the whole."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} of texts or tokens")
    stamp = Stamp.of(path)
    if not stamp.size:
        raise ValueError(f"{path} is empty; leave it out")
    count = _rows(path).rows if _holds_tokens(path) else stamp.size
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


def _rows(path: Path) -> RawRows:
    """The rows of tokens in a file, not read yet."""
    found = integers_of_npy(path)
    if not found.rows * found.width:
        raise ValueError(f"{path} has shape ({found.rows}, {found.width}): it holds no tokens; leave it out")
    return found


def _tokens(path: Path, start: int, stop: int, batch_size: int) -> Iterator[Placed]:
    """Batches of the rows of a part of a file."""
    with _rows(path) as rows:
        for a in range(start, stop, batch_size):
            b = min(a + batch_size, stop)
            ids = torch.empty(b - a, rows.width, dtype=rows.dtype)
            rows.fill(ids, a)
            yield f"{path}, rows {a} to {b - 1}", {"input_ids": ids.to(torch.int64)}


def _cuts(count: int, parts: int) -> list[int]:
    """Where to cut so many into parts that differ by one at most, none empty."""
    parts = min(count, parts)
    return [k * count // parts for k in range(parts + 1)]


def _named(k: int, group: list[list[Any]]) -> str:
    """An id that says which files, and changes with them."""
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{k:05d} {Path(group[0][0]).name}{more} {fingerprint(group)}"
