"""Cores of many layers, each fitted to what it sees by one of many processes, and written to a file of its own."""

from __future__ import annotations

import hashlib
import json
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import nn

from ..atomic import replace
from ..checks import check_rank_or_eps
from ..files import DIGITS, digest
from ..fitting.errors import output_error
from ..fitting.gram import Gram, Grams
from ..layers import TTLinear
from ..linears import weight_and_bias
from ..shards import open_safetensors
from ..surgery.wrappers import Names, find, names_it
from .checkpoints import forget_entries, linear, weights_by_layer
from .completeness import complete, done, intact, written
from .engine import placed
from .grams import GRAMS
from .jobs import Task, opened
from .models import Source, forget, loaded, source_of
from .stamps import Stamps, stamps

__all__ = ["Fitted", "fit_cores"]

INDEX = "cores.json"
VERSION = 1  # of records, files and list: a folder with another one, from an earlier ttref, is refused
Modes = Mapping[str, tuple[Sequence[int], Sequence[int]]]


class Fitted(Mapping[str, TTLinear]):
    """Layers that :func:`fit_cores` wrote, by name; each is read when it is asked for.

    Args:
        folder: The destination of :func:`fit_cores`.

    Attributes:
        rows: One dictionary for each layer, in the order of the job: its ``name``, the ``shape`` of its weight,
            ``row_shape``, ``col_shape`` and ``ranks``, ``params``, its ``output_error`` on the Gram matrix, the
            ``file`` with its ``file_nbytes`` and ``sha256``, and ``warnings``.

    Raises:
        FileNotFoundError: No such folder, or a job that has not ended.
        ValueError: A damaged list; for a layer, a file that is not the one that was written.

    Example:
        Put into a model:

        >>> import tempfile, torch
        >>> from ttref import swap_layer
        >>> model, grams = nn.Sequential(nn.Linear(4, 4)), Grams({"0": Gram.from_inputs(torch.eye(4))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = fit_cores(partial(nn.Sequential, nn.Linear(4, 4)), grams, folder, rank=2, workers=1)
        ...     for name, layer in Fitted(folder).items():
        ...         _ = swap_layer(model, name, layer)
        >>> type(model[0]).__name__
        'TTLinear'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: fit_cores writes it at its end, when every layer is fitted")
        try:
            found = json.loads(path.read_bytes())
            self.rows: list[dict[str, Any]] = found["layers"]
            self._files = {row["name"]: (row["file"], row["sha256"]) for row in self.rows}
            if found["version"] != VERSION:
                raise ValueError(f"it has version {found['version']}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no list of fitted layers, or is damaged ({error}); fit them again") from None

    def __getitem__(self, name: str) -> TTLinear:
        file, sha256 = self._files[name]
        path = self.folder / file
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise ValueError(
                f"{path} is not what was written for {name}: its sha256 differs; call fit_cores as before, which makes "
                "lost and damaged files again"
            )
        return TTLinear.load(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def fit_cores(
    source: str | Path | Callable[[], nn.Module],
    grams: str | Path | Grams,
    destination: str | Path,
    *,
    layers: str | Iterable[str] | None = None,
    rank: int | None = None,
    eps: float | None = None,
    modes: Modes | None = None,
    engine: str | None = None,
    workers: int | None = None,
) -> Fitted:
    """Fit the cores of many layers to their Gram matrices, a layer a task, each in a file of its own.

    A layer is ``TTLinear.from_linear(layer, gram=...)``, with the same cores.

    Args:
        source: A checkpoint with the weights, as ``ttref.audit.audit`` reads them; its names may have a prefix more
            or less than those of the Gram matrices. Or a function of a module, without arguments, that makes the model;
            what a job sees of it says :func:`collect_gram`.
        grams: :class:`~ttref.fitting.gram.Grams`, a file of them, or the destination of :func:`collect_gram`.
        destination: A folder for the layers, and ``cores.json``, which is written at the end. Where an interrupted
            job lies, it goes on. What is complete is not fitted again, unless its file is lost or damaged.
        layers: Names of layers with a Gram matrix, or ends of names after a dot; left out, all.
        rank: Cap on the TT-ranks.
        eps: Relative error of a layer's outputs, in [0, 1). Give exactly one of rank and eps.
        modes: ``(row_shape, col_shape)`` by full names of layers; for others they are chosen, as by :class:`TTLinear`.
        engine: As for ``ttref.scale.run``.
        workers: Likewise.

    Returns:
        :class:`Fitted`: layers by name, read when they are asked for. ``ttref.load`` reads their files too.

    Raises:
        FileNotFoundError: No such file or folder.
        RuntimeError: Layers failed; the message names them: a Gram matrix of another width, NaN in a weight, modes that
            do not fit, a model that cannot be made, files that were written meanwhile. The others are kept.
        TypeError: A model in the place of a source; a function that cannot be sent to other processes.
        ValueError: Not exactly one of rank and eps; names without a Gram matrix, or without a weight in the checkpoint;
            damaged files; a destination that holds another job, or is the checkpoint's own folder.
        BlockingIOError, ConnectionError, OSError: As ``ttref.scale.run``.

    Warns:
        UserWarning: The inputs of a layer do not span, as ``ttref.fitting.fit_cores`` tells.

    Cost:
        That of ``ttref.fitting.fit_cores`` for each layer, divided by the workers. Memory: one weight, one Gram
        matrix and some copies of it for each worker; with a function a whole model.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> weight = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
        >>> seen = Gram.from_inputs(torch.randn(99, 12, generator=torch.Generator().manual_seed(1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"model.fc.weight": weight}, f"{folder}/m.safetensors")
        ...     fitted = fit_cores(f"{folder}/m.safetensors", Grams({"fc": seen}), f"{folder}/tt", rank=3, workers=1)
        ...     fitted["fc"].ranks, fitted.rows[0]["output_error"] < 1
        ((1, 3, 3, 1), True)
    """
    check_rank_or_eps(rank, eps)
    modes = {} if modes is None else dict(modes)
    file = None if isinstance(grams, Grams) else _file_of(grams)
    known, *_, seal = (grams, _mark(grams)) if file is None else _opened_grams(file)
    known = list(known)
    names = known if layers is None else _chosen([layers] if isinstance(layers, str) else list(layers), known)
    if unknown := [name for name in modes if name not in names]:
        raise ValueError(f"modes names {unknown[0]!r}, which is none of the {len(names)} layers; give full names")
    if callable(source) or isinstance(source, nn.Module):
        held, files, where = source_of(source), {}, dict.fromkeys(names)
        job = held.settings()
    else:
        held = Path(source).expanduser().absolute()
        files, where = stamps(held), weights_by_layer(held, known, names)
        job = {"source": str(held), "files": files}
    job = {"job": "fit_cores", "version": VERSION, **job}
    job |= {"grams": seal, "layers": names, "rank": rank, "eps": eps, "modes": modes}
    tasks = [{"id": name, "name": name, "weight": where[name], "modes": modes.get(name)} for name in names]
    engine, workers = placed(engine, workers)
    with opened(destination, job, None if isinstance(held, Source) else held) as state:
        folder = state.folder
        if file is None:
            file = state.state / GRAMS
            if not _holds(file, seal):
                grams.save(file)
            seal = _opened_grams(file)[3]
        work = partial(_fitted, held, files, (file, seal), {"rank": rank, "eps": eps}, folder)
        places = {"engine": engine, "workers": workers, "description": "layers"}
        try:
            records = done(work, tasks, state, lambda row: intact(folder / row["file"], row), folder / INDEX, **places)
        finally:
            forget()
            forget_entries()
        rows = [{"name": row["id"]} | row for row in complete(records, folder, "layers")]
        for row in rows:
            del row["id"], row["error"]
            for told in row["warnings"]:
                warnings.warn(f"{row['name']}: {told}", stacklevel=2)
        replace(folder / INDEX, [json.dumps({"version": VERSION, "job": job, "layers": rows}, indent=1).encode()])
    return Fitted(folder)


def _fitted(
    source: Source | Path, files: Stamps, grams: tuple[Path, str], how: dict[str, Any], folder: Path, task: Task
) -> dict[str, Any]:
    """Fit one layer and write it."""
    name, file = task["name"], f"{quote(task['name'], safe='')}.safetensors"
    if isinstance(source, Source):
        model = loaded(source)[0]
        layer = find(model, Names(model).match(name, one=True)[0])
    else:
        layer = linear(str(source), files, task["weight"])
    gram = _gram(*grams, name)
    rows, cols = task["modes"] or (None, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = TTLinear.from_linear(layer, **how, out_shape=rows, in_shape=cols, gram=gram)
    weight, _ = weight_and_bias(layer)
    made.save(folder / file)
    return {
        "file": file,
        **written(folder / file),
        "shape": list(weight.shape),
        "row_shape": list(made.row_shape),
        "col_shape": list(made.col_shape),
        "ranks": list(made.ranks),
        "params": made.params,
        "output_error": output_error(weight.detach(), made.dense().detach(), gram),
        "warnings": [str(one.message) for one in caught if issubclass(one.category, UserWarning)],
    }


def _file_of(grams: str | Path) -> Path:
    """The file of Gram matrices in a path."""
    path = Path(grams).expanduser().absolute()
    path = path / GRAMS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of Gram matrices {path}; collect_gram writes one at its end")
    return path


def _opened_grams(path: Path) -> tuple[dict[str, int], list[int], list[str], str]:
    """Of a file: the place of each layer's Gram matrix, tokens and digits of the hash of each place, and the seal."""
    with open_safetensors(path) as file:
        about = file.metadata() or {}
        names = sorted(file.keys())
    if about.get("format") != "ttref.Grams" or "each" not in about:
        raise ValueError(f"{path} holds no Gram matrices as collect_gram of this ttref writes them")
    header = json.loads(about["header"])
    digits = dict(zip(names, textwrap.wrap(about["each"], DIGITS), strict=True))
    return header["layers"], header["tokens"], [digits[str(k)] for k in range(len(names))], about["sha256"]


def _gram(path: Path, seal: str, name: str) -> Gram:
    """One Gram matrix of a file of many, checked against what was written; ValueError if it is another file by now."""

    def opened_as_before() -> tuple[dict[str, int], list[int], list[str]]:
        *about, now = _opened_grams(path)
        if now != seal:
            raise ValueError(f"{path} was written while the job ran; begin anew, in another folder")
        return about

    places, tokens, digits = opened_as_before()
    place = places[name]
    try:
        with open_safetensors(path) as file:
            matrix = file.get_tensor(str(place)).clone()
    finally:  # of a file that is written meanwhile any error may come
        opened_as_before()
    if not digest(matrix).startswith(digits[place]):
        raise ValueError(f"{path}: the Gram matrix of {name} is not what was written; collect it again")
    return Gram(matrix, tokens[place])


def _mark(grams: Grams) -> str:
    """What tells these Gram matrices from others."""
    each = {id(gram): digest(gram.matrix) for gram in grams.values()}
    told = [(name, each[id(gram)], gram.tokens) for name, gram in grams.items()]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _holds(path: Path, mark: str) -> bool:
    """True if a file that an interrupted job left holds these Gram matrices, all of them."""
    with suppress(FileNotFoundError, ValueError):
        return _mark(Grams.load(path)) == mark
    return False


def _chosen(targets: Sequence[str], known: Sequence[str]) -> list[str]:
    """Full names of the layers that are meant, in the order asked for."""
    found: dict[str, None] = {}
    for target in targets:
        hits = [name for name in known if names_it(target, name)]
        if not hits:
            told = ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
            raise ValueError(f"no Gram matrix is of a layer {target!r}, or of one that ends so; there are {told}")
        found |= dict.fromkeys(hits)
    if not found:
        raise ValueError("layers is empty; name at least one layer")
    return list(found)
