"""Gram matrices over texts and batches that many processes share: partial sums, added in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..atomic import replace
from ..audit.seen import BATCH, TOKENS
from ..checks import whole
from ..files import read as read_file
from ..files import write
from ..fitting.collecting import gram_of, seen_by
from ..fitting.gram import Grams
from . import batches as reading
from .completeness import complete, done, intact, written
from .engine import placed
from .fingerprints import fingerprint
from .jobs import Job, Record, Task, opened, told
from .models import Source, forget, identity_of, loaded, source_of

__all__ = ["collect_gram"]

GRAMS, INDEX, PARTS = "grams.safetensors", "grams.json", "parts"
KIND = "PartialGrams"
VERSION = 1  # of records, parts and index: a folder with another one, from an earlier ttref, is refused


def collect_gram(
    source: str | Path | Callable[[], nn.Module],
    layers: str | Iterable[str],
    batches: str | Path | Sequence[Any],
    destination: str | Path,
    *,
    mask: Callable[[Any], Tensor | None] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    batch_size: int = BATCH,
    max_tokens: int = TOKENS,
    parts: int = 16,
    engine: str | None = None,
    workers: int | None = None,
) -> Grams:
    """Sum the Gram matrices of layers' inputs over texts or batches, in parts that many processes share.

    The sums are those of ``ttref.fitting.collect_gram``. Each part is summed by itself, and the parts are added in
    their order, in float64: the result does not depend on how many worked, nor on who ended first.

    Args:
        source: The folder of a model that transformers reads, or a function of a module, without arguments, that makes
            one, the same each time. Every process loads it once, in float32 from a folder. A job knows the files of a
            folder by size and time, a function of a module, and a class, by its name, and a ``functools.partial`` by
            its arguments too, tensors and modules by their numbers. A function of the script or notebook, or a lambda,
            it knows by its code and by the values of the variables around it and of the global ones that it reads. Not
            seen are the code of a module or a class, what is read through a module, and files that a function reads.
        layers: Names of layers, or ends of names, as for ``ttref.fitting.collect_gram``.
        batches: Files, or a sequence of batches. A file is a text in UTF-8, one a line, read with the tokenizer of the
            folder; or ``.npy``, integers ``(rows, tokens)``, passed as ``input_ids``. A sequence has a length and is
            indexed; it is sent to each process, so one that reads from a disk should hold no more than paths. The
            items of a list are compared with those of an interrupted job by what they hold. Of another sequence only
            its length is seen: where its items change, give another destination.
        destination: A folder for the result, ``grams.safetensors``, which ``ttref.load`` reads, and for what is known
            until then. Where an interrupted job lies, it goes on; a result that is lost or damaged is made again.
        mask: As for ``ttref.fitting.collect_gram``; a function of a module, which other processes can be sent.
        forward: Likewise.
        batch_size: Texts, or rows of tokens, that run together.
        max_tokens: Tokens of a text; what is longer is cut.
        parts: The batches are divided into so many at most. Each takes as much room in the destination as the result,
            until that is written; more than this many workers would have nothing to do.
        engine: As for ``ttref.scale.run``.
        workers: Likewise.

    Returns:
        :class:`~ttref.fitting.gram.Grams` by full names.

    Raises:
        FileNotFoundError: No such folder or file.
        RuntimeError: Parts failed; the message names them: a layer that is not there, a model that cannot be loaded,
            NaN among a layer's inputs, texts that were written meanwhile. What ended is kept, and files that were
            mended are read again by the next call.
        TypeError: A model in the place of a source; one batch, or an iterator; tokens that are no integers; functions,
            or items of a list, that cannot be sent.
        ValueError: No layers, no batches, an empty file; a layer that no batch reaches; a destination that holds
            another job, or is the source's own folder.
        BlockingIOError, ConnectionError, OSError: As ``ttref.scale.run``.

    Cost:
        That of ``ttref.fitting.collect_gram`` divided by the workers, and their starts. Memory: a model and its
        Gram matrices for each worker; at the end the sums, and one part.

    Example:
        >>> import tempfile, torch
        >>> from functools import partial
        >>> source = partial(nn.Sequential, nn.Linear(4, 3))          # a function that makes the model
        >>> batches = [torch.ones(2, 4), torch.ones(3, 4), 2 * torch.ones(1, 4)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     collect_gram(source, "0", batches, folder, workers=1)["0"].matrix[0]
        tensor([9., 9., 9., 9.], dtype=torch.float64)
    """
    made, names = source_of(source), [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("layers is empty; name at least one layer")
    batch_size, max_tokens = whole("batch_size", batch_size, least=1), whole("max_tokens", max_tokens, least=1)
    tasks = reading.planned(batches, whole("parts", parts, least=1))
    files = reading.files_of(batches)
    texts = files is not None and not all(path.suffix == ".npy" for path in files)
    if texts and made.folder is None:
        raise ValueError("texts need the tokenizer of a folder; give a folder as source, or files of tokens")
    job = {"job": "collect_gram", "version": VERSION, **made.settings(), "layers": names, "parts": parts}
    job |= {"batch_size": batch_size, "max_tokens": max_tokens}
    job |= {"mask": identity_of(mask), "forward": identity_of(forward)}
    how = {"batch_size": batch_size, "max_tokens": max_tokens, "tokenizer": texts, "mask": mask, "forward": forward}
    engine, workers = placed(engine, workers)
    with opened(destination, job, made.folder) as state:
        if (ended := _ended(state, tasks)) is not None:
            return ended
        held = state.space(PARTS)
        work = partial(_summed, made, names, batches if files is None else None, how, held)
        where = {"engine": engine, "workers": workers, "description": "Gram matrices"}
        try:
            records = done(work, tasks, state, partial(_whole, held), state.folder / INDEX, **where)
        finally:
            forget()
        grams = _added(complete(records, state.folder, "parts"), held)
        grams.save(state.folder / GRAMS)
        index = {"version": VERSION, "job": job, "parts": [task["id"] for task in tasks]}
        index |= written(state.folder / GRAMS)
        replace(state.folder / INDEX, [json.dumps(index, indent=1).encode()])
        state.clear(PARTS)
    return grams


def _summed(
    source: Source, layers: Sequence[str], sequence: Any, how: dict[str, Any], folder: Path, task: Task
) -> dict[str, Any]:
    """Sum the Gram matrices of one part and write them: for each layer its place among them, and if it was called."""
    model, tokenizer = loaded(source, tokenizer=how["tokenizer"])
    place = "its beginning"

    def placed() -> Iterator[Any]:
        nonlocal place
        for place, batch in reading.read(task, sequence, tokenizer, how["batch_size"], how["max_tokens"]):  # noqa: B007
            yield batch

    given = placed()
    try:
        first = next(given, None)
        if first is None:  # a part of a file in which no line begins
            return {"file": None}
        seen = seen_by(model, layers, chain([first], given), how["mask"], how["forward"], False)
    except Exception as error:
        raise RuntimeError(f"{place}: {told(error)}") from error
    places = {key: k for k, key in enumerate(dict.fromkeys(tuple(one.inputs) for one in seen.values() if one.inputs))}
    sums = {str(places[tuple(one.inputs)]): one.total.cpu() for one in seen.values() if one.inputs}
    tokens = {str(places[tuple(one.inputs)]): one.tokens for one in seen.values() if one.inputs}
    file = f"{fingerprint(task['id'])}.safetensors"
    write(folder / file, KIND, sums, {"id": task["id"]}, _restored)
    about = {name: [places.get(tuple(one.inputs)), one.called] for name, one in seen.items()}
    return {"file": file, "layers": about, "tokens": tokens, **written(folder / file)}


def _whole(folder: Path, record: Record) -> bool:
    """True if the sums of a part are what was written."""
    return record["file"] is None or intact(folder / record["file"], record)


def _added(records: Sequence[Record], folder: Path) -> Grams:
    """The sums of all parts, in their order; layers that shared an input in each of them share their sum."""
    records = [record for record in records if record["file"] is not None]
    if not records:
        raise ValueError("no line begins in any of the files: there is no text")
    names = list(records[0]["layers"])
    keys = {name: tuple(record["layers"][name][0] for record in records) for name in names}
    totals: dict[tuple, Tensor] = {}
    for k, record in enumerate(records):
        held = read_file(folder / record["file"], KIND, _restored)
        for key in dict.fromkeys(keys.values()):
            if key[k] is not None:
                part = held[str(key[k])]
                totals[key] = part.clone() if key not in totals else totals[key].add_(part)
    made = {}
    for name, key in keys.items():
        if key not in made:
            tokens = sum(record["tokens"][str(at)] for at, record in zip(key, records, strict=True) if at is not None)
            made[key] = gram_of(name, totals.get(key), tokens, any(record["layers"][name][1] for record in records))
    return Grams({name: made[key] for name, key in keys.items()})


def _ended(job: Job, tasks: Sequence[Task]) -> Grams | None:
    """The result, if the job has ended and it is whole; ValueError if that was over other batches."""
    try:
        index = json.loads((job.folder / INDEX).read_bytes())
        before = index["parts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged index is written again
        return None
    if before != [task["id"] for task in tasks]:
        raise ValueError(f"{job.folder} holds the result for other batches, or for files as they were; give another")
    if not intact(job.folder / GRAMS, index):
        return None
    grams = Grams.load(job.folder / GRAMS)
    job.clear(PARTS)
    return grams


def _restored(tensors: dict[str, Tensor], header: dict[str, Any]) -> dict[str, Tensor]:
    return tensors
