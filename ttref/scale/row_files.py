"""Files of rows, read a piece at a time: one tensor of a safetensors file, an ``.npy``, columns of Parquet.

A piece goes by plain reads into memory that is used again. Nothing is mapped: a mapped file that shrinks while it is
read kills the process, and what was read of it counts as this process's memory. Nothing that can run code is opened.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..shards import one_line, open_safetensors
from .stamps import Stamp

MOST_NAMED = 4
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = "float64, float32, float16 and bfloat16"
INTEGERS = [getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


class RowFile:
    """Rows in a file, not read yet: an object to be opened for reading, as a context.

    Attributes:
        path: The file.
        tensor: The name of the tensor or column, or None where there is nothing to choose.
        rows, width, dtype: What the file says.
        columns: Their names in a file that has columns, else nothing.
        stamp: Size and time of change when it was looked at.
    """

    path: Path
    tensor: str | None
    rows: int
    width: int
    dtype: torch.dtype
    columns: Sequence[str] = ()
    stamp: Stamp

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing stays open."""

    def fill(self, out: Tensor, start: int) -> dict[int, str]:
        """Rows from ``start`` on into ``out``; NaN for rows that are not there, with the reason for each."""
        raise NotImplementedError


class RawRows(RowFile):
    """Numbers in a row behind a header, row after row, or column after column."""

    def __init__(
        self, path: Path, tensor: str | None, offset: int, shape: tuple[int, int], dtype: torch.dtype, by_column: bool
    ) -> None:
        self.path, self.tensor, self.offset, self.dtype, self.by_column = path, tensor, offset, dtype, by_column
        self.rows, self.width = shape
        self.file: BinaryIO | None = None

    def __enter__(self) -> RawRows:
        self.file = self.path.open("rb", buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def fill(self, out: Tensor, start: int) -> dict[int, str]:
        """See :class:`RowFile`."""
        if not self.by_column:
            self._read(out, start * self.width)
            return {}
        columns = torch.empty(self.width, len(out), dtype=self.dtype)
        for k, column in enumerate(columns):
            self._read(column, k * self.rows + start)
        out.copy_(columns.mT)
        return {}

    def _read(self, out: Tensor, number: int) -> None:
        """Numbers from this one on."""
        room = memoryview(out.view(-1).view(torch.uint8).numpy())
        self.file.seek(self.offset + number * self.dtype.itemsize)
        while len(room):
            count = self.file.readinto(room)
            if not count:
                raise ValueError(f"{self.path} ended while it was read: it is truncated, or was cut short meanwhile")
            room = room[count:]


def rows_of_safetensors(path: Path, tensor: str | None) -> RawRows:
    """A matrix in a safetensors file."""
    with open_safetensors(path, "safetensors, .npy or Parquet") as file:
        about = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the library's own object)
        shapes = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in about.items()}
    name = _chosen(path, tensor, shapes)
    shape, kind = shapes[name]
    if kind not in DTYPES or len(shape) != 2:
        error = TypeError if kind not in DTYPES else ValueError
        raise error(f"{name} in {path} is {kind} {shape}; rows are a matrix of {FLOATS}")
    with path.open("rb") as file:  # the library has checked all this
        length = int.from_bytes(file.read(8), "little")
        begin, _ = json.loads(file.read(length))[name]["data_offsets"]
    return RawRows(path, name, 8 + length + begin, shape, DTYPES[kind], False)


def _chosen(path: Path, tensor: str | None, shapes: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """The name that was asked for, or that of the one matrix."""
    matrices = [name for name, (shape, kind) in shapes.items() if len(shape) == 2 and kind in DTYPES]
    named = ", ".join(matrices[:MOST_NAMED]) + (", ..." if len(matrices) > MOST_NAMED else "")
    if tensor is not None:
        if tensor not in shapes:
            raise ValueError(f"{path} has no tensor {tensor!r}; its matrices are {named or 'none'}")
        return tensor
    if len(matrices) != 1:
        which = f"{len(matrices)} matrices ({named}); name one of them with tensor=" if matrices else "no matrix"
        raise ValueError(f"{path} holds {which}{'' if matrices else f' of {FLOATS}'}")
    return matrices[0]


def rows_of_npy(path: Path, tensor: str | None) -> RawRows:
    """The array in an ``.npy`` file."""
    if tensor is not None:
        raise ValueError(f"{path} holds one array without a name; leave tensor={tensor!r} out")
    how = f"rows are {FLOATS}: save it with .astype('float32') (bfloat16 goes into safetensors)"
    return _array(path, DTYPES.values(), how)


def integers_of_npy(path: Path) -> RawRows:
    """The array of integers, of any width, in an ``.npy`` file."""
    return _array(path, INTEGERS, "tokens are integers: save it with .astype('int32')")


def _array(path: Path, dtypes: Collection[torch.dtype], how: str) -> RawRows:
    import numpy as np

    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, by_column, kind = read[version](file)
        except (ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"{path} is no .npy file, or is truncated or damaged ({one_line(error)})") from None
        offset = file.tell()
    if kind.hasobject:
        raise TypeError(f"{path} holds Python objects, a pickle, which is not opened; {how}")
    dtype = None
    if kind.isnative:
        with suppress(TypeError):
            dtype = torch.from_numpy(np.empty(0, kind)).dtype
    if dtype not in dtypes:
        what = kind.newbyteorder("=") if kind.isnative else f"{kind}, of the other byte order"
        raise TypeError(f"{path} is {what}; {how}")
    if len(shape) != 2:
        raise ValueError(f"{path} has shape {shape}; rows are a matrix (rows, width)")
    needed = offset + shape[0] * shape[1] * dtype.itemsize
    if (size := path.stat().st_size) < needed:
        raise ValueError(f"{path} is truncated: it has {size} bytes, and shape {shape} needs {needed}")
    return RawRows(path, None, offset, shape, dtype, by_column)
