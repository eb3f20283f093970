"""Tables of results: real ones on the page, aligned text in a terminal and for nbval, which compares both."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from IPython.display import display

__all__ = ["WIDTH", "Table", "show"]

WIDTH = 88  # characters of a line, as for code in notebooks
MISSING = "–"
_NUMBER = re.compile(r"[-+−~<>≤≥±]?\s?\d|[–—-]?$")


class Table:
    """Rows and columns that know how to show themselves.

    Args:
        rows: each a mapping from column to value, or a sequence of values in the order of the columns. None is shown
            as a dash. Text between backticks is set as code.
        columns: the columns from left to right: what the row is about, **the result**, and then what it was measured
            under. A mapping gives each column a format such as `".2f"` or `",d"` for values that are not text.
        caption: one line above the table; say the units that the columns do not.
        shown: rows that are visible before the reader unfolds the rest. Put the rows that matter first.

    Raises:
        ValueError: no row or column, a row of another length, or a key that is no column.

    Example:
        >>> table = Table([("TT, rank 4", 0.98765, 6144), ("LoRA", None, 73728)],
        ...               {"adapter": "", "accuracy": ".1%", "numbers": ",d"})
        >>> print(table)
        adapter     accuracy  numbers
        TT, rank 4     98.8%    6,144
        LoRA               –   73,728
        >>> '<th scope="col"' in table._repr_html_()
        True
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any] | Sequence[Any]],
        columns: Mapping[str, str] | Sequence[str],
        *,
        caption: str = "",
        shown: int = 10,
    ) -> None:
        self.columns = list(columns)
        self.caption = caption
        self.shown = shown
        specs = list(columns.values()) if isinstance(columns, Mapping) else [""] * len(self.columns)
        self.rows = [[_text(value, spec) for value, spec in zip(self._values(row), specs, strict=True)] for row in rows]
        if not self.rows or not self.columns:
            raise ValueError(f"a table needs rows and columns, got {len(self.rows)} and {len(self.columns)}")
        # Numbers stand at the right of their column, so that digits of one place stand below each other.
        self._numeric = [all(map(_is_number, cells)) for cells in zip(*self.rows, strict=True)]

    def _values(self, row: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        if isinstance(row, Mapping):
            if odd := row.keys() - set(self.columns):
                raise ValueError(f"{', '.join(sorted(map(str, odd)))} is no column; they are {', '.join(self.columns)}")
            return [row.get(column) for column in self.columns]
        if isinstance(row, str) or len(row) != len(self.columns):
            raise ValueError(f"the row {row!r} does not have one value for each of {len(self.columns)} columns")
        return list(row)

    def __repr__(self) -> str:
        """Text of at most `WIDTH` characters a line, if the columns can be wrapped so far (not its caption)."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        while (excess := sum(widths) + 2 * (len(widths) - 1) - WIDTH) > 0:
            widest = max(range(len(widths)), key=widths.__getitem__)
            longest_word = max(len(word) for row in rows for word in row[widest].split() or [""])
            runner_up = max([width for k, width in enumerate(widths) if k != widest], default=0)
            narrower = max(widths[widest] - excess, longest_word, min(runner_up, widths[widest] - 1))
            if narrower == widths[widest]:
                break
            widths[widest] = narrower
        lines = [self.caption] * bool(self.caption)
        for row in rows:
            wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
            for k in range(max(map(len, wrapped))):
                parts = [cell[k] if k < len(cell) else "" for cell in wrapped]
                line = (
                    part.rjust(width) if numeric else part.ljust(width)
                    for part, width, numeric in zip(parts, widths, self._numeric, strict=True)
                )
                lines.append("  ".join(line).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The first rows in a box that scrolls by itself, and all of them folded if there are more."""
        if len(self.rows) <= self.shown:
            return self._box(self.rows)
        return (
            self._box(self.rows[: self.shown])
            + f'\n<details class="tt-all"><summary>Show all {len(self.rows)} rows</summary>\n'
            + self._box(self.rows)
            + "\n</details>"
        )

    def _box(self, rows: list[list[str]]) -> str:
        # The style of a cell is written out: Lab and Colab know nothing of the book's style sheet.
        sides = ["" if numeric else ' style="text-align:left"' for numeric in self._numeric]
        head = "".join(
            f'<th scope="col"{side}>{_markup(name)}</th>' for name, side in zip(self.columns, sides, strict=True)
        )
        body = "\n".join(
            "<tr>"
            + f'<th scope="row"{sides[0]}>{_markup(row[0])}</th>'
            + "".join(f"<td{side}>{_markup(cell)}</td>" for cell, side in zip(row[1:], sides[1:], strict=True))
            + "</tr>"
            for row in rows
        )
        caption = f"<caption>{_markup(self.caption)}</caption>\n" if self.caption else ""
        name = html.escape(self.caption or f"{self.columns[0]} and {', '.join(self.columns[1:])}", quote=True)
        return (
            f'<div class="tt-table" role="region" tabindex="0" aria-label="Table: {name}" style="overflow-x:auto">\n'
            f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )


def _text(value: Any, spec: str) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else format(value, spec)


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.match(cell)) and len(cell.split()) <= 3  # "0.12 ± 0.03" is one, a list of ranks is not


def _markup(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def show(
    rows: Iterable[Mapping[str, Any] | Sequence[Any]],
    columns: Mapping[str, str] | Sequence[str],
    *,
    caption: str = "",
    shown: int = 10,
) -> None:
    """Show a table below the cell: see `Table` for the arguments.

    Example:
        >>> show([("dense", 97.1, "float32"), ("TT, rank 4", 96.8, "float32")],
        ...      {"layer": "", "accuracy, %": ".1f", "numbers in": ""})
        layer       accuracy, %  numbers in
        dense              97.1  float32
        TT, rank 4         96.8  float32
    """
    display(Table(rows, columns, caption=caption, shown=shown))
