"""The model of a job: a folder, or a function that makes it; loaded once in each process that works on the job."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..audit.reading import open_checkpoint
from ..audit.seen import model_of
from .fingerprints import fingerprint
from .jobs import told
from .stamps import Stamps, check_stamps, stamps

_HELD: dict[tuple[str, bool], Any] = {}  # the one model that this process holds, or why it cannot be loaded


class Source(NamedTuple):
    """Where a model comes from.

    Attributes:
        folder: As transformers reads it; None for a function.
        make: The function, without arguments.
        files: Sizes and times of the folder's files.
        key: Of one job, the same in all its processes.
    """

    folder: str | None
    make: Callable[[], nn.Module] | None
    files: Stamps
    key: str

    def settings(self) -> dict[str, Any]:
        """What tells this source from another one, for a job's settings."""
        return {"source": self.folder or identity_of(self.make), "files": self.files}


def source_of(source: Any) -> Source:
    """A folder or a function as a source.

    Raises:
        FileNotFoundError: No such folder.
        TypeError: Neither: a model, which each process would have to be sent.
    """
    key = uuid.uuid4().hex
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser().absolute()
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; a model is read from one that transformers wrote")
        return Source(str(folder), None, stamps(folder), key)
    if isinstance(source, nn.Module) or not callable(source):
        raise TypeError(
            f"source is the folder of a model, or a function that makes it, not a {type(source).__name__}: every "
            "process loads its own"
        )
    return Source(None, source, {}, key)


def loaded(source: Source, *, tokenizer: bool = False) -> tuple[nn.Module, Any]:
    """The model, in evaluation mode, and its tokenizer if that is asked for; ValueError if it cannot be loaded."""
    key = source.key, tokenizer
    if key not in _HELD:
        forget()
        try:
            _HELD[key] = _load(source, tokenizer)
        except Exception as error:  # once: the next task would wait for the same error again
            what = f"{name_of(source.make)} made no model" if source.make else f"no model is read from {source.folder}"
            _HELD[key] = ValueError(f"{what}: {told(error)}")
    if isinstance(_HELD[key], ValueError):
        raise ValueError(*_HELD[key].args)
    return _HELD[key]


def forget() -> None:
    """Let go of the model that this process holds."""
    _HELD.clear()


def name_of(function: Any) -> str:
    """A function by module and name, for messages."""
    if isinstance(function, partial):
        return f"partial {name_of(function.func)}"
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def identity_of(function: Callable | None) -> str | None:
    """A function for settings: its name, and digits of what it holds, as :func:`fingerprint` sees it."""
    if function is None:
        return None
    try:
        return f"{name_of(function)} {fingerprint(function)}"
    except TypeError as error:
        raise TypeError(f"{error}; use functions of a module, or a functools.partial of one") from error


def _load(source: Source, tokenizer: bool) -> tuple[nn.Module, Any]:
    if source.folder is not None:
        check_stamps(source.folder, source.files)
        found = model_of(open_checkpoint(source.folder), tokenizer=tokenizer)
        check_stamps(source.folder, source.files)
        return found
    model = source.make()
    if not isinstance(model, nn.Module):
        raise TypeError(f"it returned a {type(model).__name__}")
    return model.eval(), None
