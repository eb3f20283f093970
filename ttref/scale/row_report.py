"""What :func:`compress_rows` did, shard by shard."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..printed import printable
from .jobs import Record, Task
from .table import Table

MOST_SHOWN = 10


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`compress_rows` did. Printing it shows the sizes and the errors.

    Attributes:
        folder: The destination.
        shards: A dict for each, in order: its ``name``, ``rows``, ``error`` (None, or what went wrong), and where there
            is none its ``ranks``, ``params`` and ``nbytes``, the ``file_nbytes``, ``sha256`` (the file's own, over all
            that it holds), ``source_sha256`` (of the rows that were read, row after row) and ``seconds`` (in its
            worker, when it was made).
        seconds: Of this call.
    """

    folder: Path
    shards: list[dict[str, Any]]
    seconds: float

    @classmethod
    def of(cls, folder: Path, tasks: list[Task], records: list[Record], started: float) -> Report:
        """The report of tasks and their records."""
        shards = []
        for task, record in zip(tasks, records, strict=True):
            rows = sum(piece["stop"] - piece["start"] for piece in task["pieces"])
            found = {name: value for name, value in record.items() if name not in ("id", "name")}
            shards.append({"name": task["name"], "rows": rows, **found})
        return cls(folder, shards, time.perf_counter() - started)

    @property
    def rows(self) -> int:
        """Rows of the whole source."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes stored in the shards that are done."""
        return sum(shard.get("nbytes", 0) for shard in self.shards)

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by the names of the shards."""
        return {shard["name"]: shard["error"] for shard in self.shards if shard["error"]}

    @property
    def table(self) -> Table:
        """The table; a ValueError while shards are missing."""
        if self.errors:
            raise ValueError(str(self))
        return Table(self.folder)

    def __str__(self) -> str:
        done = len(self.shards) - len(self.errors)
        lines = [f"{done} of {len(self.shards)} shards of {self.rows} rows, {self.nbytes} bytes, in {self.folder}"]
        lines += [f"{name}: {error}" for name, error in list(self.errors.items())[:MOST_SHOWN]]
        if len(self.errors) > MOST_SHOWN:
            lines.append(f"and {len(self.errors) - MOST_SHOWN} more errors")
        return "\n".join(map(printable, lines))

    __repr__ = __str__
