"""Tables of results: as text for a terminal, and as HTML for a notebook, in a box that scrolls by itself."""

from __future__ import annotations

import html
from collections.abc import Sequence

_LEFT = ' style="text-align:left"'


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    r"""The lines of a table; the first ``left`` columns are aligned on the left, the others on the right.

    Example:
        >>> print("\n".join(text_table(["layer", "drop"], [["q", "0.5"], ["dense", "12"]])))
        layer drop
        q      0.5
        dense   12
    """
    cells = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = (*[str.ljust] * left, *[str.rjust] * (len(heads) - left))
    return [
        " ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in cells
    ]


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, caption: str, left: int = 1) -> str:
    """The same in HTML: the first column heads its row, ``label`` is what a screen reader says of the box.

    Example:
        >>> html_table(["layer", "drop"], [["a<b", "0.5"]], label="Table: drops", caption="Drops.").count("a&lt;b")
        1
    """
    side = [_LEFT if k < left else "" for k in range(len(heads))]
    head = "".join(f'<th scope="col"{where}>{html.escape(cell)}</th>' for where, cell in zip(side, heads, strict=True))
    body = "\n".join(
        f'<tr><th scope="row"{side[0]}>{html.escape(row[0])}</th>'
        + "".join(f"<td{where}>{html.escape(cell)}</td>" for where, cell in zip(side[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="tt-table" role="region" tabindex="0" aria-label="{html.escape(label)}" '
        'style="overflow-x:auto">\n'
        f"<table>\n<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def printable(line: str) -> str:
    """A line without characters that a terminal would obey: a name in a file may hold any."""
    return "".join(one if one.isprintable() else "?" for one in line)
