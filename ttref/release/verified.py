"""What a check of a release found: for each layer and tensor how it was checked, and what is wrong."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass, field
from typing import Any

from ..printed import html_table, printable, text_table
from .deriving import BITS, DIFFERS, TOLERANCE

__all__ = ["VerifyReport"]

EQUAL, BY_HASH, NEW, CHANGED, ABSENT = "equal", "by hash", "not in the source", "changed", "left out"
SIGNED = "signed"
SAYS = {
    SIGNED: "signature over all files, by the holder of the key",
    BITS: "derived again, bit for bit",
    TOLERANCE: "derived again, to rounding",
    EQUAL: "as in the source, bit for bit",
    BY_HASH: "by its hash alone: no method gives it from the source (fitted, trained, or integers rounded elsewhere)",
    CHANGED: "by its hash alone: another than in the source",
    ABSENT: "left out, as the manifest says: the source has it",
    NEW: "by its hash alone: the source has none",
    DIFFERS: "differs",
}
PROVED = SIGNED, BITS, TOLERANCE, EQUAL
WIDTH = 88
HEADS = ["name", "how it was checked", "error", "of the weight"]
CAPTION = (
    "Error: the largest of a row, against the layer that was derived again. Of the weight: that of the layer against "
    "the dense weight. Tensors that are as in the source are counted above."
)


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """What :func:`verify` found. Printing it shows a table; in a notebook it is a real one.

    Attributes:
        sha256: Of the manifest's file: it names the release.
        problems: A sentence for each thing that is wrong; empty if nothing is.
        rows: One dictionary for each compressed layer, each other tensor, the configuration, and the signature where a
            key was given: its ``name``; ``status``: "bits" or "tolerance" (derived again from the source), "equal" (as
            in the source), "signed", "by hash", "changed", "not in the source" or "left out" (nothing but the manifest
            vouches for it), or "differs"; of layers the largest ``error`` of a row against the layer derived again, the
            error ``allowed``, and ``relative_error``, that of the weight against the source. What does not apply is
            None.

    Example:
        >>> report = VerifyReport("ab" * 32, [], [{"name": "0", "status": "bits", "error": 0.0}])
        >>> report.ok, report.proved
        (True, True)
    """

    sha256: str
    problems: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    @property
    def proved(self) -> bool:
        """True if nothing is wrong, and everything was derived again or is equal: no number is trusted by its hash."""
        return self.ok and all(row["status"] in PROVED for row in self.rows)

    def names(self, status: str) -> list[str]:
        """Names of the layers and tensors with this status."""
        return [row["name"] for row in self.rows if row["status"] == status]

    @property
    def summary(self) -> str:
        """The result in a few sentences."""
        if not self.ok:
            return " ".join([f"Not what it says it is: {len(self.problems)} problems.", *self.problems])
        counts = [f"{len(found)} {SAYS[status]}" for status in SAYS if (found := self.names(status))]
        whole = "Verified" if self.proved else "Nothing is wrong, but not everything can be derived"
        return f"{whole}: {'; '.join(counts)}."

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings."""
        return {"ok": self.ok, "proved": self.proved, "sha256": self.sha256} | {
            "problems": self.problems,
            "rows": self.rows,
        }

    def __repr__(self) -> str:
        """The table as text."""
        table = text_table(HEADS, self._cells(), left=2) if self._cells() else []
        return "\n".join(map(printable, [*textwrap.wrap(self.summary, WIDTH), "", *table])).rstrip()

    def _repr_html_(self) -> str:
        table = html_table(HEADS, self._cells(), label="Table: how each layer was checked", caption=CAPTION, left=2)
        return f"<p><strong>{html.escape(self.summary)}</strong></p>\n{table}"

    def _cells(self) -> list[list[str]]:
        """A row for everything that is not simply the source's."""
        return [
            [row["name"], SAYS[row["status"]].partition(":")[0], _number(row["error"]), _number(row["relative_error"])]
            for row in self.rows
            if row["status"] != EQUAL
        ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
