"""Checkpoints on disk, one tensor at a time: safetensors, sharded or not, folders of them, GGUF; a state dict if asked.

What a file claims is checked before memory is taken for it. Nothing that can run code is ever opened: a state dict of
torch goes through ``weights_only=True``, and only where that is asked for.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..advice.kinds import kind_of
from ..shards import LISTS, listed, one_line, open_safetensors
from . import gguf

__all__ = ["Checkpoint", "Entry", "open_checkpoint"]

FLOATS = ("F64", "F32", "F16", "BF16")  # names of safetensors for what can be compared
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Entry(NamedTuple):
    """One tensor of a checkpoint, not read yet.

    Attributes:
        name: As in the file.
        shape: Its sizes.
        dtype: As the file calls it: ``"F32"``, ``"BF16"``, ``"Q4_1"``.
        nbytes: Bytes in the file.
        floats: True if it holds floating-point numbers, or integers that stand for them.
        read: Reads it, and nothing else.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    floats: bool
    read: Callable[[], Tensor]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def axes(self) -> int:
        """How many axes are longer than one."""
        return sum(size > 1 for size in self.shape)

    @property
    def known(self) -> str:
        """The name as kinds of weights are known by: GGUF calls an output projection what is a head elsewhere."""
        return self.name.replace("attn_output", "attn_o")

    @property
    def kind(self) -> str:
        """What it is for, by its name."""
        return kind_of(self.known, self.axes, None)


class Checkpoint(NamedTuple):
    """A checkpoint: the path that was given, what kind of file it is, and its tensors in the order of the file."""

    path: Path
    format: str
    entries: list[Entry]


def open_checkpoint(path: str | Path, *, state_dict: bool = False) -> Checkpoint:
    """List the tensors of a checkpoint without reading them.

    Args:
        path: A safetensors or GGUF file; a list of shards (``model.safetensors.index.json``); a folder with one of
            these, as Hugging Face has them. What a file holds decides, not how it is called.
        state_dict: Read a file of ``torch.save`` too, with ``weights_only=True``.

    Raises:
        FileNotFoundError: No such file or folder, or a shard is missing.
        ModuleNotFoundError: safetensors or gguf is not installed; the message holds the install line.
        ValueError: A truncated, damaged or foreign file; a pickle that was not asked for; a folder without a
            checkpoint; a list of shards that leads out of its folder. The message names the file.

    Cost:
        The headers are read; a state dict is mapped into memory.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.ones(2, 3)}, f"{folder}/model.safetensors")
        ...     found = open_checkpoint(folder)
        >>> found.format, found.entries[0].name, tuple(found.entries[0].shape)
        ('safetensors', 'w', (2, 3))
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _folder(path, state_dict)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.name.endswith(LISTS[1:]):
        return Checkpoint(path, "sharded safetensors", _sharded(path))
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == gguf.MAGIC:
        found = [Entry(*about, True, read) for *about, read in gguf.tensors(path)]
        return Checkpoint(path, "GGUF", found)
    # A header of 128 bytes, or 384, begins as a pickle does; but after its length comes a brace.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        if not state_dict:
            raise ValueError(
                f"{path} is a pickle, which can run code when it is opened; ask for a state dict (--state-dict, "
                "state_dict=True) to read it with torch's weights_only=True, or convert it to safetensors"
            )
        return Checkpoint(path, "state dict", _state_dict(path))
    return Checkpoint(path, "safetensors", _safetensors(path))


def _folder(folder: Path, state_dict: bool) -> Checkpoint:
    """The checkpoint in a folder: a list of shards, else the one safetensors file, else the one GGUF file."""
    lists, files, others = (sorted(folder.glob(which)) for which in (LISTS, "*.safetensors", "*.gguf"))
    for found in (lists, files, others):
        if len(found) > 1:
            names = ", ".join(one.name for one in found[:4]) + (", ..." if len(found) > 4 else "")
            raise ValueError(f"{folder} holds {len(found)} checkpoints ({names}); name one of them")
        if found:
            return open_checkpoint(found[0])._replace(path=folder)
    pickles = sorted(one for which in PICKLES for one in folder.glob(which))
    if len(pickles) == 1 and state_dict:
        return open_checkpoint(pickles[0], state_dict=True)._replace(path=folder)
    also = f", only {pickles[0].name}, a pickle: name it and ask for a state dict" if pickles else ""
    raise ValueError(f"{folder} holds no safetensors and no GGUF file{also}")


def _sharded(path: Path) -> list[Entry]:
    """The tensors of all shards of a list, in the order of the list."""
    where = listed(path)
    held = {shard: {entry.name: entry for entry in _safetensors(shard)} for shard in dict.fromkeys(where.values())}
    missing = [name for name, shard in where.items() if name not in held[shard]]
    if missing:
        raise ValueError(f"{path} says that {missing[0]} is in {where[missing[0]].name}, where it is not")
    return [held[shard][name] for name, shard in where.items()]


def _safetensors(path: Path) -> list[Entry]:
    """The tensors of one safetensors file."""
    with _opened(path) as file:
        entries = []
        for name in file.keys():  # noqa: SIM118 (the library's own object)
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            bits = int(found[0]) if (found := re.search(r"\d+", dtype)) else 8
            read = partial(_read, path, name)
            entries.append(Entry(name, shape, dtype, math.prod(shape) * bits // 8, dtype in FLOATS, read))
    return entries


def _opened(path: Path) -> Any:
    return open_safetensors(path, "safetensors or GGUF")


def _read(path: Path, name: str) -> Tensor:
    """One tensor. The file is opened for it alone, so that what was mapped of it leaves the memory."""
    with _opened(path) as file:
        return file.get_tensor(name).clone()


def _state_dict(path: Path) -> list[Entry]:
    """The tensors of a file of ``torch.save``, or of its entry ``state_dict`` or ``model``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that may fail, which is told below
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as a state dict with weights_only=True: it is damaged, or holds more than tensors "
            f"({one_line(error)})"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not held:
        raise ValueError(f"{path} holds a {type(held).__name__}, no state dict: names with tensors")
    tensors = {
        str(name): one
        for name, one in held.items()
        if isinstance(one, Tensor) and one.layout == torch.strided and not one.is_quantized
    }
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return [
        Entry(
            name,
            tuple(one.shape),
            str(one.dtype)[6:],
            one.numel() * one.element_size(),
            one.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16),
            partial(torch.clone, one.detach()),
        )
        for name, one in tensors.items()
    ]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
