"""Rows in a Parquet file: a column of lists, or columns of numbers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..shards import one_line
from .row_files import FLOATS, MOST_NAMED, RowFile

BATCH = 4 << 20  # bytes decoded at once
LOOK = 1000  # rows among which one must tell the width of a column of lists
KINDS = {"double": torch.float64, "float": torch.float32, "halffloat": torch.float16}


class ParquetRows(RowFile):
    """The rows of a Parquet file; a row is reached from the beginning of its row group, which is decoded up to it."""

    def __init__(self, path: Path, tensor: str | None) -> None:
        file = _opened(path)
        self.path, self.rows = path, file.metadata.num_rows
        self.groups = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
        fields = {field.name: field.type for field in file.schema_arrow}
        if len(fields) < len(file.schema_arrow):
            raise ValueError(f"{path} has two columns of one name")
        lists = {name: kind.value_type for name, kind in fields.items() if _is_list(kind)}
        if tensor is None:
            floats = [name for name, kind in lists.items() if str(kind) in KINDS]
            if len(floats) > 1:
                named = ", ".join(floats[:MOST_NAMED])
                raise ValueError(f"{path} has {len(floats)} columns of lists ({named}); name one with tensor=")
            tensor = floats[0] if floats else None
        elif tensor not in fields:
            named = ", ".join(list(fields)[:MOST_NAMED]) + (", ..." if len(fields) > MOST_NAMED else "")
            raise ValueError(f"{path} has no column {tensor!r}; its columns are {named}")
        elif tensor not in lists:
            raise ValueError(f"column {tensor} of {path} is {fields[tensor]}; rows are in a column of lists of numbers")
        self.tensor = tensor
        self.columns = list(fields) if tensor is None else [tensor]
        kinds = {str(fields[name] if tensor is None else lists[name]): name for name in reversed(self.columns)}
        if wrong := [name for kind, name in kinds.items() if kind not in KINDS]:
            raise TypeError(
                f"column {wrong[-1]} of {path} is {fields[wrong[-1]]}; rows are {FLOATS}, in a column of lists, or in "
                "columns side by side with no other column beside them"
            )
        if len(kinds) > 1:
            one, other = sorted(kinds.values(), key=self.columns.index)[:2]
            raise TypeError(f"columns {one} and {other} of {path} are {fields[one]} and {fields[other]}; make them one")
        if not kinds:
            raise ValueError(f"{path} has no columns")
        self.dtype = KINDS[next(iter(kinds))]
        self.width = len(self.columns) if tensor is None else self._list_width(file, fields[tensor])
        self._at, self._batches, self._rest = -1, iter(()), None

    def __enter__(self) -> ParquetRows:
        self._file = _opened(self.path)
        return self

    def __exit__(self, *error: object) -> None:
        self._at, self._batches, self._rest = -1, iter(()), None
        self._file.close()

    def fill(self, out: Tensor, start: int) -> dict[int, str]:
        """See :class:`RowFile`."""
        if start != self._at:
            self._seek(start)
        done, wrong = 0, {}
        while done < len(out):
            if self._rest is None or not len(self._rest):
                self._rest = self._next()
            part, self._rest = self._rest.slice(0, len(out) - done), self._rest.slice(len(out) - done)
            wrong |= {done + k: why for k, why in self._put(part, out[done : done + len(part)]).items()}
            done += len(part)
        self._at = start + len(out)
        return wrong

    def _seek(self, start: int) -> None:
        """Decode from the beginning of the row group up to a row."""
        group = 0
        while start >= self.groups[group]:
            start, group = start - self.groups[group], group + 1
        count = max(1, BATCH // (self.width * self.dtype.itemsize))
        which = range(group, len(self.groups))
        self._batches = self._file.iter_batches(count, row_groups=which, columns=self.columns, use_threads=False)
        self._rest = None
        while start:
            batch = self._next()
            self._rest = batch.slice(start)
            start -= min(start, len(batch))

    def _next(self) -> Any:
        import pyarrow

        try:
            return next(self._batches)
        except StopIteration:
            raise ValueError(f"{self.path} ended while it was read: it has fewer rows than it says") from None
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} cannot be decoded, it is damaged ({one_line(error)})") from None

    def _put(self, batch: Any, out: Tensor) -> dict[int, str]:
        """A batch into rows; the rows that are no vectors of this width become NaN."""
        import pyarrow.compute as pc

        if self.tensor is None:
            for k, column in enumerate(batch.columns):
                out[:, k] = _numbers(column)
            return {}
        column = batch.column(0)
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        if (lengths == self.width).all() and not column.null_count:
            out.copy_(_numbers(column.flatten()).view(out.shape))
            return {}
        good = torch.from_numpy((lengths == self.width) & ~column.is_null().to_numpy(zero_copy_only=False))
        out[~good] = torch.nan
        if good.any():
            out[good] = _numbers(column.filter(_arrow(good)).flatten()).view(-1, self.width)
        reasons = {}
        for k in (~good).nonzero().flatten().tolist():
            reasons[k] = "null" if not column[k].is_valid else f"{lengths[k]} entries, and others have {self.width}"
        return reasons

    def _list_width(self, file: Any, kind: Any) -> int:
        """How wide a fixed-size list is, or the first list that there is."""
        if hasattr(kind, "list_size"):
            return kind.list_size
        first = next(file.iter_batches(LOOK, columns=self.columns, use_threads=False), None)
        lengths = [] if first is None else [len(row) for row in first.column(0) if row.is_valid]
        if not lengths and self.rows:
            raise ValueError(f"column {self.tensor} of {self.path} is null in its first {len(first)} rows")
        return lengths[0] if lengths else 1


def _opened(path: Path) -> Any:
    """The reader of pyarrow: a page after the other, on this thread."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading Parquet needs pyarrow; install it with: python -m pip install pyarrow"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file, or is truncated or damaged ({one_line(error)})") from None


def _is_list(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)


def _numbers(values: Any) -> Tensor:
    """A tensor of floating-point numbers; null becomes NaN."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only; it is copied from
        return torch.from_numpy(values.to_numpy(zero_copy_only=False))


def _arrow(mask: Tensor) -> Any:
    import pyarrow

    return pyarrow.array(mask.numpy())
