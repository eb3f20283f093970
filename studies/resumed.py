"""Rows of a record that are measured one by one and kept at once, so that a study that was stopped goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

Rows = Callable[[dict[str, dict]], Iterable[dict]]


def add_rows(values: dict[str, Any], section: str, part: str, measure: Rows, keep: Callable[[dict], Any]) -> None:
    """Add to a section the rows that it lacks; after each the record is kept, with the seconds spent on the part.

    Args:
        values: The record by sections, ``"seconds"`` among them; it is changed.
        section: Where the rows go; each has a ``"key"``.
        part: What the seconds are booked on.
        measure: From the rows that are there, by key, to those that are missing.
        keep: Writes the record.
    """
    start = time.process_time()
    rows = values.setdefault(section, [])
    for row in measure({row["key"]: row for row in rows}):
        rows.append(row)
        spent = values.get("seconds", {})
        values["seconds"] = spent | {part: round(spent.get(part, 0) + time.process_time() - start)}
        start = time.process_time()
        keep(values)
