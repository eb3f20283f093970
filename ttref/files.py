"""Safetensors files: written whole or not at all, read only if they are what they should be."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

VERSION = "1"
Table = TypeVar("Table")


def write(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to ``path``; a run that dies leaves the old file, or none."""
    safetensors = _safetensors()
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    about = {"format": f"ttref.{kind}", "version": VERSION, "header": json.dumps(header)}
    try:
        # Not save_file, whose files nobody but their owner may read.
        fresh.write_bytes(
            safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
        )
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def read(path: str | Path, kind: str, restore: Callable[[dict[str, Tensor], dict[str, Any]], Table]) -> Table:
    """What ``restore`` makes of the tensors and the header, or a ValueError that names the file."""
    safetensors = _safetensors()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != f"ttref.{kind}":
                raise ValueError(f"it holds {about.get('format', 'nothing of ttref')}")
            if about.get("version") != VERSION:
                raise ValueError(f"it has version {about.get('version')} of the format, and this ttref reads {VERSION}")
            return restore({name: file.get_tensor(name) for name in file.keys()}, json.loads(about["header"]))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} is no {kind} saved by ttref, or is damaged ({type(error).__name__}: {error}); save it again"
        ) from error


def serialize(tensor: Tensor) -> bytes:
    """Dtype, shape and entries of one tensor as bytes, equal for equal tensors on any device."""
    return _safetensors().torch.save({"": tensor.contiguous()})


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saving and loading need safetensors; install it with: python -m pip install safetensors"
        ) from error
    return safetensors
