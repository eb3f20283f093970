"""A compressed model as a folder: its tensors, where they came from, what it was accepted by, and the way back."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole
from ..files import digest, sealed
from ..surgery.wrappers import bare
from .accepting.hashing import state_hash
from .card import card
from .configs import CONFIG, of_transformers, quantization
from .contents import Contents, contents, own
from .folders import replacing
from .manifest import ACCEPTANCE, FORMAT, MANIFEST, MODEL, ROLLBACK, SIGNATURE, VERSION, encoded, plain_name
from .origins import apart, changes, left_out, origins
from .sources import Source, about

__all__ = ["save_release"]

README = "README.md"


@torch.no_grad()
def save_release(
    model: nn.Module,
    folder: str | Path,
    *,
    source: Any,
    report: Any = None,
    override: str | None = None,
    recipe: Any = None,
    base_model: str | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    keep_dense: bool = True,
) -> str:
    """Write a compressed model to a folder from which it can be loaded, checked against its source, and undone.

    Every train is derived again from its dense weight while the release is written, and the manifest says whether that
    gave the same bits. So what :func:`verify` will find elsewhere is known before anything is shipped.

    Args:
        model: The model, with layers of :func:`partial_tensorize`, :func:`swap_layer` or :func:`replace_embedding`; it
            is only read. Of a transformers model, the folder is one that ``from_pretrained`` loads after
            ``import ttref``.
        folder: A new folder, or an older release, which is replaced as a whole; so is its signature.
        source: The dense model that it was made of: the model itself, its state dict, the modules that ``edit.put``
            gave back by their names, or the path of its safetensors (a file, a folder, one with an index).
        report: What :class:`AcceptanceSuite` found.
        override: Why the model is saved though the suite did not accept it, or though none was run; it is recorded.
        recipe: How the layers were chosen: the report of :func:`partial_tensorize`, or a dict; it is recorded.
        base_model: Name of the source on the Hub, for the model card.
        tokenizer: Or a processor: anything with ``save_pretrained``; its files come along.
        seed: The seed of the run, recorded.
        keep_dense: Store the dense tensors that were replaced, for :func:`rollback`. False records their hashes only:
            the way back then needs the source.

    Returns:
        sha256 of the manifest, which names this release: noted elsewhere, it can be asked for when it is loaded.

    Raises:
        TypeError: A model, a source or a report that is none.
        ValueError: A suite that did not accept, or none, without override; an override where none is needed; a report
            of another model; no compressed layer; a source that lacks a dense weight, or has it in another
            shape; numbers that are on the meta device; a state that holds more than tensors.
        FileExistsError: A folder with other files in it than those of a release; also a release within ``git``.
        FileNotFoundError, OSError: No such place, a full disk, missing permissions. An older release stays as it was.

    Cost:
        Every layer is decomposed again: the time of compressing. A copy of the compressed model in memory, and its
        file.

    Example:
        >>> import tempfile, ttref
        >>> dense = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = copy.deepcopy(dense)
        >>> _ = ttref.swap_layer(small, "0", ttref.TTLinear.from_linear(small[0], rank=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_release(small, f"{folder}/release", source=dense, override="an example, nothing was measured")
        ...     sorted(path.name for path in Path(f"{folder}/release").iterdir())
        ['README.md', 'manifest.json', 'model.safetensors', 'rollback.safetensors']
    """
    _check_accepted(report, override)
    _check_name(base_model)
    _check_free(Path(folder))
    found = contents(model)
    dense = Source.of(source).fitted([f"{name}.weight" for name in found.layers], found.tensors)
    _check_scored(report, model)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "made_with": _versions(),
        "model": {"class": type(bare(model)).__name__, "base_model": base_model},
        "seed": None if seed is None else whole("seed", seed),
        "recipe": _as_dict(recipe),
        "users": found.users,
        "ties": found.ties,
        "acceptance": None if report is None else _without_scores(report.as_dict()),
        "override": override,
        "rollback": ROLLBACK if keep_dense else "source",
    }
    manifest["tensors"] = {name: digest(tensor) for name, tensor in found.tensors.items()}
    manifest["layers"], replaced = origins(found, dense)
    manifest["changed"], changed = changes(manifest["tensors"], found, dense)
    manifest["absent"], gone = left_out(manifest, dense)
    manifest["changed"] |= {name: about(dense.find(name), tensor) for name, tensor in gone.items()}
    with replacing(folder) as fresh:
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        _write_config(fresh, model, found)
        if report is not None:
            _write(fresh / ACCEPTANCE, _json(report.as_dict()))
        _write(fresh / MODEL, *sealed({**found.ties, "format": "pt"}, found.tensors))
        if keep_dense:
            _write(fresh / ROLLBACK, *sealed({"format": "pt"}, apart(replaced | changed | gone)))
        manifest["bytes"] = _sizes(found, dense, replaced, fresh)
        names = _named(fresh)
        manifest["files"] = {name: _file(fresh / name) for name in names}
        _write(fresh / README, card(manifest, report).encode())
        manifest["files"][README] = _file(fresh / README)
        content = encoded(manifest)
        _write(fresh / MANIFEST, content)
    return hashlib.sha256(content).hexdigest()


def _check_name(base_model: str | None) -> None:
    if base_model is not None and not isinstance(base_model, str):
        raise TypeError(f"base_model must be the name of a model on the Hub, got {type(base_model).__name__}")


def _check_accepted(report: Any, override: str | None) -> None:
    """A release is accepted, or somebody says why it is one all the same."""
    if override is not None and (not isinstance(override, str) or not override.strip()):
        raise ValueError("override must say in words why the model is released all the same")
    if report is None and override is None:
        raise ValueError(
            "nothing says that the model is good enough: give report=AcceptanceSuite(...).run(dense, model), or "
            "override='why it is released without one', which is recorded"
        )
    if report is not None and not all(hasattr(report, name) for name in ("accepted", "as_dict", "card", "data_hash")):
        raise TypeError(
            f"report must be what AcceptanceSuite(...).run returned, got {type(report).__name__}; the report of "
            "partial_tensorize says how layers were chosen: recipe=report"
        )
    if report is not None and not report.accepted and override is None:
        raise ValueError(
            "the acceptance suite did not accept the model, so it is not saved: see report, or give "
            "override='why it is released all the same', which is recorded"
        )
    if report is not None and report.accepted and override is not None:
        raise ValueError("the acceptance suite accepted the model, so there is nothing to override; leave override out")


def _check_scored(report: Any, model: nn.Module) -> None:
    """Refuse a report of another model: it was not this one that was accepted."""
    measured = None if report is None else report.as_dict().get("models")
    if measured is not None and measured["compressed"] != state_hash(model):
        raise ValueError("the report is of another model than this one; run the suite on the model that is saved")


def _check_free(folder: Path) -> None:
    """Refuse to replace anything but an empty folder, or a release without files that it does not name."""
    if not folder.exists():
        return
    there = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if folder.is_dir() and there >= {path.name for path in folder.iterdir()}:
        besides = there - _named_in(folder / MANIFEST) if MANIFEST in there else there
        if not besides:
            return
    raise FileExistsError(f"{folder} holds other things than a release, which would be lost; name a new folder")


def _named_in(path: Path) -> set[str]:
    """The names of files that are an older release's own: itself, what it names, and a signature; none of another's."""
    try:
        found = json.loads(path.read_bytes())
        return {MANIFEST, SIGNATURE, *found["files"]} if found["format"] == FORMAT else set()
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _versions() -> dict[str, str]:
    """What computed the trains: bits are the same where all of this is."""
    ttref = sys.modules[__name__.rpartition(".release")[0]].__version__
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"ttref": ttref, "torch": torch.__version__, "python": platform.python_version(), "processor": processor}


def _as_dict(recipe: Any) -> dict[str, Any] | None:
    """A recipe as plain JSON."""
    if recipe is None:
        return None
    found = recipe.as_dict() if hasattr(recipe, "as_dict") else recipe
    if not isinstance(found, dict):
        raise TypeError(f"recipe must be a dict, or the report of partial_tensorize, got {type(recipe).__name__}")
    return json.loads(_json(found))


def _without_scores(found: dict[str, Any]) -> dict[str, Any]:
    """A report without the scores of every example, which stand in a file of their own."""
    return json.loads(_json({name: value for name, value in found.items() if name != "scores"}))


def _write_config(fresh: Path, model: nn.Module, found: Contents) -> None:
    """The configuration of a transformers model, with what its loader needs to know of the compressed layers."""
    inner = bare(model)
    if not of_transformers(inner):
        return
    config = copy.deepcopy(inner.config)
    config.architectures, config.dtype = [type(inner).__name__], inner.dtype
    content = {name: value for name, value in config.to_diff_dict().items() if not name.startswith("_")}
    _write(fresh / CONFIG, _json(content | {"quantization_config": quantization(found.layers | found.users)}))
    if getattr(inner, "generation_config", None) is not None:
        inner.generation_config.save_pretrained(fresh)


def _sizes(found: Contents, dense: Source, replaced: dict[str, Tensor], fresh: Path) -> dict[str, Any]:
    """Bytes of the dense model and of the file that takes its place."""
    kept = [tensor for name, tensor in found.tensors.items() if not own(name, found.layers)]
    tensors = sum(tensor.numel() * tensor.element_size() for tensor in (*kept, *replaced.values()))
    before = dense.nbytes if dense.kind == "files" else tensors
    return {"before": before, "after": (fresh / MODEL).stat().st_size, "before_is": dense.kind}


def _named(fresh: Path) -> list[str]:
    names = sorted(path.name for path in fresh.iterdir())
    for name in names:
        if not plain_name(name) or not (fresh / name).is_file():
            raise ValueError(f"the tokenizer wrote {name}, and a release holds plain files only; save it apart")
    return names


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _write(path: Path, *parts: bytes | memoryview) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
