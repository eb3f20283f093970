"""GGUF files, one tensor at a time. The header is walked with every length held against the size of the file.

The package gguf knows how numbers are packed and unpacks them. Its own reader maps the whole file, builds lists of all
tokens, and never comes to an end on a length that is a lie, so the header is read here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of a value
STRING, ARRAY = 8, 9
MOST_AXES = 8
ALIGNMENT = 32

About = tuple[str, tuple[int, ...], str, int, Callable[[], Tensor]]


def tensors(path: Path) -> list[About]:
    """Name, shape, type, bytes and a reader of each tensor.

    Raises:
        ModuleNotFoundError: gguf is not installed.
        ValueError: A truncated or damaged file; a version or a type that is not known.

    Source:
        ggml-org, "GGUF", the specification beside ggml.
    """
    packing = _gguf()
    try:
        with path.open("rb") as file:
            header = _Header(file, path.stat().st_size)
            found = list(_listed(header, packing))
            start = -(-file.tell() // header.alignment) * header.alignment
        ends = [start + offset + nbytes for _, _, _, offset, nbytes in found]
        if found and max(ends) > header.size:
            raise ValueError(f"its tensors reach to byte {max(ends)}, and it has {header.size}")
        if len({name for name, *_ in found}) < len(found):
            raise ValueError("it names a tensor twice")
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is a truncated or damaged GGUF file ({error})") from None
    return [
        (name, shape, kind.name, nbytes, partial(_read, path, shape, kind, start + offset, nbytes))
        for name, shape, kind, offset, nbytes in found
    ]


class _Header:
    """The values at the beginning of a file, read in order; a length beyond the end of the file is refused."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.alignment = file, size, ALIGNMENT
        magic, version = self.taken(4), self.number("I")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"it has version {version}, and {VERSIONS[0]} and {VERSIONS[1]} can be read")
        self.tensors, values = self.number("Q"), self.number("Q")
        for _ in range(values):
            name, kind = self.text(), self.number("I")
            if name == "general.alignment" and kind == 4:
                self.alignment = self.number("I")
                if not 0 < self.alignment <= 1 << 20:
                    raise ValueError(f"its alignment is {self.alignment}")
            else:
                self.skip(kind)

    def taken(self, count: int) -> bytes:
        self._check(count)
        return self.file.read(count)

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.taken(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.taken(self.number("Q")).decode("utf-8")

    def skip(self, kind: int, count: int = 1, deep: int = 0) -> None:
        """Pass over values of a type."""
        if kind in SIZES:
            self._check(SIZES[kind] * count)
            self.file.seek(SIZES[kind] * count, 1)
        elif kind == STRING:
            for _ in range(count):
                length = self.number("Q")
                self._check(length)
                self.file.seek(length, 1)
        elif kind == ARRAY and deep < 4:
            for _ in range(count):
                inner, length = self.number("I"), self.number("Q")
                self.skip(inner, length, deep + 1)
        else:
            raise ValueError(f"it has a value of type {kind}")

    def _check(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise ValueError(f"it ends before {count} bytes that it announces")


def _listed(header: _Header, packing: Any) -> Iterator[tuple]:
    """Name, shape, type, offset and bytes of each tensor, as the header has them."""
    for _ in range(header.tensors):
        name, axes = header.text(), header.number("I")
        if axes > MOST_AXES:
            raise ValueError(f"{name!r:.80} has {axes} axes")
        shape = tuple(header.number("Q") for _ in range(axes))[::-1]  # the fastest axis comes first in the file
        kind = packing.GGMLQuantizationType(header.number("I"))
        offset = header.number("Q")
        block, size = packing.GGML_QUANT_SIZES[kind]
        if (shape[-1] if shape else 1) % block:
            raise ValueError(f"the rows of {name!r:.80} are no whole blocks of {block}")
        yield name, shape, kind, offset, math.prod(shape) // block * size


def _read(path: Path, shape: tuple[int, ...], kind: Any, offset: int, nbytes: int) -> Tensor:
    """One tensor, unpacked to floating point."""
    import numpy as np

    packing = _gguf()
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(nbytes)
    if len(content) < nbytes:
        raise ValueError(f"{path} has become shorter while it was read")
    try:
        # Lines of bytes as the package wants them: one for each row.
        rows = np.frombuffer(content, np.uint8).reshape(*shape[:-1], -1)
        values = packing.quants.dequantize(rows if kind.name not in ("F32", "F16") else _plain(rows, kind), kind)
    except NotImplementedError:
        raise ValueError(f"{path}: numbers of type {kind.name} are not unpacked by the package gguf") from None
    # Numbers that were unpacked are in new memory already, which a copy would take again.
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"]).reshape(shape))


def _plain(rows: Any, kind: Any) -> Any:
    import numpy as np

    return rows.view(np.float32 if kind.name == "F32" else np.float16)


def _gguf() -> Any:
    try:
        import gguf
        import gguf.quants
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading GGUF needs gguf; install it with: python -m pip install gguf") from error
    return gguf
