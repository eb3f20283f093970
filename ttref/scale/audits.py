"""The audit of a checkpoint whose tensors many processes share: the rows of one process, in its order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audit.auditing import EPS, TIED, asked_for, errors_of, mark_of, row_of
from ..audit.reading import Entry, open_checkpoint
from ..audit.report import Audit
from ..audit.seen import roots_of
from ..audit.words import left
from ..files import read, write
from ..precision import full_precision
from .checkpoints import entries_of, forget_entries
from .completeness import complete, done, intact, written
from .engine import placed, run
from .jobs import Record, Task, opened
from .stamps import Stamp, check_stamp, check_stamps, stamps

__all__ = ["audit"]

REPORT, SEEN = "audit.json", "seen"
VERSION = 1  # of what tasks return and write: a folder with another one, from an earlier ttref, is refused
LARGE = 1 << 20  # numbers of a task: a larger tensor is one by itself, smaller ones share one
ABOUT = ("name", "part", "shape", "dtype", "numbers", "nbytes")  # of a row before anything is looked at


def audit(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    eps: Sequence[float] = EPS,
    only: str | None = None,
    sample: bool = False,
    data: str | Path | None = None,
    state_dict: bool = False,
    engine: str | None = None,
    workers: int | None = None,
) -> Audit:
    """Say for each matrix of a checkpoint whether a train pays, with as many processes as there are.

    The rows are those of ``ttref.audit.audit``, in the same order: the noise that a matrix is compared with depends
    on its name alone. A large tensor is a task, and small ones share one.

    Args:
        checkpoint: As for ``ttref.audit.audit``, where all processes can read it.
        destination: A folder for the result, ``audit.json``, and for what is known until then. Where an interrupted
            job lies, it goes on.
        eps: Relative errors to compare at, in (0, 1).
        only: A pattern of names, as a shell has them. Other tensors are not read.
        sample: Read a part, as ``ttref.audit.audit`` does.
        data: A file of texts, one a line. One process runs the model on them before the others begin.
        state_dict: Read a file of ``torch.save``, with ``weights_only=True``.
        engine: As for ``ttref.scale.run``.
        workers: Likewise.

    Returns:
        An :class:`~ttref.audit.report.Audit`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, TypeError, ValueError: As ``ttref.audit.audit``; also a destination
            that holds another job, or one on a checkpoint that was other files, or is the checkpoint's own folder.
        RuntimeError: Tasks failed; the message names them: a checkpoint that was written meanwhile, memory. What ended
            is kept.
        BlockingIOError, ConnectionError, OSError: As ``ttref.scale.run``.

    Cost:
        That of ``ttref.audit.audit`` divided by the workers, one tensor at least, and their starts. Each needs the
        memory of one process. A tensor that is stored twice is looked at twice, and told once.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> noise = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"fc1.weight": noise, "fc2.weight": noise.clone()}, f"{folder}/model.safetensors")
        ...     found = audit(f"{folder}/model.safetensors", f"{folder}/audit", workers=1)
        >>> [(row["name"], row["verdict"], row["looked"]) for row in found.rows]
        [('fc1.weight', 'quantize', True), ('fc2.weight', 'leave', False)]
    """
    errors = errors_of(eps)
    held = open_checkpoint(checkpoint, state_dict=state_dict)
    entries, stands_for = asked_for(held, only, sample)
    path = Path(checkpoint).expanduser().absolute()
    how = {"path": str(path), "files": stamps(path), "state_dict": state_dict}
    job = {"job": "audit", "version": VERSION, **how, "eps": list(errors), "only": only, "sample": sample}
    texts = None if data is None else Path(data).expanduser().absolute()
    if texts is not None and not texts.is_file():
        raise FileNotFoundError(f"there is no file of texts {texts}")
    stamp = None if texts is None else Stamp.of(texts)
    job["data"] = None if texts is None else hashlib.sha256(texts.read_bytes()).hexdigest()
    engine, workers = placed(engine, workers)
    where = {"engine": engine, "workers": workers}
    wanted = [entry for entry in entries if entry.name in stands_for]
    with opened(destination, job, path) as state:
        folder, seen = state.folder, state.space(SEEN)
        try:
            roots = {}
            if texts is not None:
                work = partial(_roots, how, texts, stamp, [entry.name for entry in wanted], seen)
                whole = partial(_whole, seen)
                records = done(work, [{"id": "roots"}], state, whole, folder / REPORT, **where, description="texts")
                roots = complete(records, folder, "runs of the model")[0]["roots"]
            work, tasks = partial(_rows, how, errors, sample, seen), list(_tasks(wanted, roots))
            records = run(work, tasks, state, **where, description="audit")
        finally:
            forget_entries()
        told = _told(complete(records, folder, "tasks"), errors)
        rows = [row | {"stands_for": stands_for[row["name"]]} for row in told]
        numbers, nbytes = (sum(getattr(entry, key) for entry in entries) for key in ("numbers", "nbytes"))
        found = Audit(str(checkpoint), held.format, errors, rows, numbers, nbytes, sample, data is not None)
        found.save(folder / REPORT)
    return found


def _tasks(entries: Sequence[Entry], roots: dict[str, str]) -> Iterator[Task]:
    """Tensors in their order: one a task, or small ones until they are as much as a large one."""
    groups: list[list[Entry]] = []
    held = LARGE
    for entry in entries:
        if held + entry.numbers > LARGE:
            groups.append([])
            held = 0
        groups[-1].append(entry)
        held += entry.numbers
    for k, group in enumerate(groups):
        names = [entry.name for entry in group]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield {
            "id": f"{k:05d} {names[0]}{more}",
            "names": names,
            "roots": {name: roots[name] for name in names if name in roots},
        }


@full_precision
@torch.no_grad()
def _rows(how: dict[str, Any], errors: tuple[float, ...], sample: bool, folder: Path, task: Task) -> dict[str, Any]:
    """The rows of some tensors, and what tells their numbers from others."""
    entries, in_by_out = entries_of(how["path"], how["files"], state_dict=how["state_dict"])
    roots = {name: read(folder / file, "Root", _restored) for name, file in task["roots"].items()}
    marks = _Marks()
    try:
        rows = [row_of(entries[name], errors, sample, roots, in_by_out, marks) for name in task["names"]]
    finally:  # of a file that is written meanwhile any error may come
        check_stamps(how["path"], how["files"])
    return {"rows": rows, "marks": [marks.found.get(name) for name in task["names"]]}


class _Marks:
    """Hashes of the numbers of tensors, in place of the comparison with all tensors before."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def same(self, entry: Entry, tensor: Tensor) -> None:
        """Note the hash of a tensor; which others have it is seen at the end."""
        self.found[entry.name] = mark_of(tensor)


def _told(records: Sequence[Record], errors: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """All rows in their order; of tensors with the same numbers the first keeps its row."""
    before: dict[tuple, str] = {}
    for record in records:
        for row, mark in zip(record["rows"], record["marks"], strict=True):
            earlier = before.setdefault((*row["shape"], row["dtype"], mark), row["name"])
            if mark is not None and earlier != row["name"]:
                row = left({key: row[key] for key in ABOUT}, errors, TIED.format(earlier))
            yield row


@full_precision
@torch.no_grad()
def _roots(
    how: dict[str, Any], texts: Path, stamp: Stamp, names: Sequence[str], folder: Path, task: Task
) -> dict[str, Any]:
    """Run the model on the texts, and write the root of each Gram matrix: files by the names of weights."""

    def unchanged() -> None:
        check_stamp(texts, stamp)
        check_stamps(how["path"], how["files"])

    unchanged()
    held = open_checkpoint(how["path"], state_dict=how["state_dict"])
    wanted = set(names)
    try:
        roots = roots_of(held, texts, [entry for entry in held.entries if entry.name in wanted], False)
    finally:  # of a file that is written meanwhile any error may come
        unchanged()
    each = {id(root): root for root in roots.values()}
    files = {key: f"root-{k:05d}.safetensors" for k, key in enumerate(each)}
    for key, root in each.items():
        write(folder / files[key], "Root", {"root": root}, {}, _restored)
    about = {file: written(folder / file) for file in files.values()}
    return {"roots": {name: files[id(root)] for name, root in roots.items()}, "files": about}


def _whole(folder: Path, record: Record) -> bool:
    """True if the roots are what was written."""
    return all(intact(folder / file, about) for file, about in record["files"].items())


def _restored(tensors: dict[str, Tensor], header: dict[str, Any]) -> Tensor:
    return tensors["root"]
