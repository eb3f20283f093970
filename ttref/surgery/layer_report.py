"""What a search over the layers of a model found: a table in a terminal and in a notebook, rows as data, and a file."""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import Any

from torch import nn

from ..printed import html_table, text_table
from .edit import edit
from .gates import Verdict
from .resuming import Record

__all__ = ["Report"]

WIDTH = 88


class Report:
    """What :func:`partial_tensorize` did. Printing it shows a table; in a notebook it is a real one.

    Attributes:
        model: The model, with the accepted layers replaced.
        layers: One dictionary for each layer, in the order in which they were tried: ``name``; ``kind``, as in
            :func:`advise`; ``shape`` (rows, columns); ``modes`` and ``ranks`` of the replacement, empty where it has no
            factors; ``params_before``, ``nbytes_before``, and ``params_after``, ``nbytes_after`` of the replacement,
            accepted or not; ``seconds`` of replacing and evaluating; of order "restore", ``alone``, the drop with this
            layer alone replaced, and ``put_back``, as which one it was put back; ``metric``, the mean score of the
            evaluation that decided, and its ``drop`` against the reference; ``harmful``, ``beneficial`` and ``p``, as
            of a :class:`Verdict`; ``decision``: "accepted", "rejected: why" or "skipped: why". What does not apply is
            None.
        verdict: The gate's :class:`Verdict` of the model as it is now, against the start.
        params_before, params_after, nbytes_before, nbytes_after: Numbers and bytes of all parameters of the model, tied
            ones counted once.
        evaluations: How often the metric was taken, before an interruption included.
        seconds: What replacing and evaluating took.

    Example:
        >>> import torch
        >>> from ttref.surgery import partial_tensorize
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.ones(64, 64) / 64)  # of rank 1
        >>> found = partial_tensorize(model, lambda model: 0.9, layers=["0", "2"], eps=0.1, progress=False)
        >>> found.names("accepted"), found.names("skipped"), found.params_after < found.params_before
        (['0'], ['2'], True)
        >>> found.undo()
        >>> type(model[0]).__name__
        'Linear'
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[dict[str, Any]],
        verdict: Verdict,
        before: tuple[int, int],
        record: Record,
        change: edit,
    ) -> None:
        self.model, self.layers, self.verdict = model, layers, verdict
        self.params_before, self.nbytes_before = before
        saved = [[row[f"{key}_before"] - row[f"{key}_after"] for row in self._all("accepted")] for key in _KEYS]
        self.params_after, self.nbytes_after = (total - sum(each) for total, each in zip(before, saved, strict=True))
        self._record, self._change = record, change

    @property
    def evaluations(self) -> int:
        """How often the metric was taken."""
        return len(self._record.metrics)

    @property
    def seconds(self) -> float:
        """What replacing and evaluating took."""
        made = sum(facts["seconds"] for facts in self._record.layers.values())
        return made + sum(entry["seconds"] for entry in self._record.metrics)

    def names(self, decision: str = "accepted") -> list[str]:
        """Names of the layers that were ``"accepted"``, ``"rejected"`` or ``"skipped"``."""
        if decision not in ("accepted", "rejected", "skipped"):
            raise ValueError(f'decision must be "accepted", "rejected" or "skipped", got {decision!r}')
        return [row["name"] for row in self._all(decision)]

    def undo(self) -> None:
        """Put the old layers back, once: they were kept, so until then the model takes its old memory, and the new.

        Raises:
            RuntimeError: Undone already, or the model was changed since where the search had changed it.
        """
        self._change.undo()

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, whole or not at all; ``partial_tensorize(..., resume=path)`` reads it."""
        self._record.write(path, rows=self.layers, totals=self._totals())

    def as_dict(self) -> dict[str, Any]:
        """Rows, totals and settings in plain lists, numbers and strings; the file has every single score besides."""
        return {"settings": self._record.settings, "totals": self._totals(), "rows": self.layers}

    @property
    def summary(self) -> str:
        """The result in a few sentences."""
        tried = [row for row in self.layers if not row["decision"].startswith("skipped")]
        flips = ""
        if self.verdict.harmful is not None:
            flips = f" {self.verdict.harmful} examples lost, {self.verdict.beneficial} won."
        p = "" if self.verdict.p is None else f", p = {self.verdict.p:.2g}"
        return (
            f"{len(self._all('accepted'))} of {len(tried)} layers tried were accepted. "
            f"Parameters: {self.params_before:,} before, {self.params_after:,} after, "
            f"{self.params_before / self.params_after:.2f} times fewer; in bytes "
            f"{self.nbytes_before / self.nbytes_after:.2f} times. "
            f"Metric: {self.verdict.before:.4g} before, {self.verdict.after:.4g} after, drop {self.verdict.drop:.3g} "
            f"of {self.verdict.allowed:.3g} allowed{p}.{flips} {self.evaluations} evaluations."
        )

    def __repr__(self) -> str:
        """The table as text of at most 88 columns; what does not fit is in the rows."""
        columns = self._table()
        for left_out in ("rank", "shape", "back", "alone"):
            if max(map(len, text_table(*_turned(columns)))) <= WIDTH:
                break
            columns.pop(left_out, None)
        others = max(map(len, text_table(*_turned(columns)))) - max(map(len, columns["layer"]), default=0)
        columns["layer"] = [_short(name, WIDTH - others) for name in columns["layer"]]
        lines = [*textwrap.wrap(self.summary, WIDTH), "", *text_table(*_turned(columns))]
        for reason, names in self._skipped().items():
            lines += ["", *textwrap.wrap(f"Skipped, {reason}: {', '.join(names)}", WIDTH)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The table in a box that scrolls by itself; the layers that were not tried below it."""
        skipped = "".join(
            f"<p>Skipped, {html.escape(reason)}: {html.escape(', '.join(names))}</p>\n"
            for reason, names in self._skipped().items()
        )
        label = "Table: each layer of the model and its decision"
        table = html_table(*_turned(self._table()), label=label, caption=_CAPTION)
        return f"<p><strong>{html.escape(self.summary)}</strong></p>\n{table}\n{skipped}"

    def _all(self, decision: str) -> list[dict[str, Any]]:
        return [row for row in self.layers if row["decision"].startswith(decision)]

    def _totals(self) -> dict[str, Any]:
        return {
            **{f"{key}_{when}": getattr(self, f"{key}_{when}") for key in _KEYS for when in ("before", "after")},
            "verdict": self.verdict._asdict(),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 3),
        }

    def _table(self) -> dict[str, list[str]]:
        """The columns of the layers that were tried, under their heads; those that no row has are left out."""
        rows = [row for row in self.layers if not row["decision"].startswith("skipped")]
        columns = {
            "layer": [row["name"] for row in rows],
            "shape": [" x ".join(map(str, row["shape"])) for row in rows],
            "rank": [str(max(row["ranks"])) if row["ranks"] else "" for row in rows],
            "smaller": [f"{row['nbytes_before'] / row['nbytes_after']:.2f}x" for row in rows],
            "alone": [_number(row["alone"]) for row in rows],
            "back": ["" if row["put_back"] is None else str(row["put_back"]) for row in rows],
            "metric": [_number(row["metric"]) for row in rows],
            "drop": [_number(row["drop"]) for row in rows],
            "flips": [f"{row['harmful']}/{row['beneficial']}" if row["harmful"] is not None else "" for row in rows],
            "p": ["" if row["p"] is None else "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}" for row in rows],
            "decision": [row["decision"].partition(":")[0] for row in rows],
        }
        return {head: cells for head, cells in columns.items() if any(cells) or head == "layer"}

    def _skipped(self) -> dict[str, list[str]]:
        """Names of the layers that were not tried, by the reason."""
        found: dict[str, list[str]] = {}
        for row in self._all("skipped"):
            found.setdefault(row["decision"].removeprefix("skipped: "), []).append(row["name"])
        return found


_KEYS = "params", "nbytes"
_CAPTION = (
    "Smaller is in bytes. Metric and drop are those of the evaluation that decided; alone is the drop with this layer "
    "alone replaced, back the order of putting back, flips are examples lost and won."
)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(name: str, width: int) -> str:
    """A name of at most so many characters; of longer ones the end, which tells more."""
    return name if len(name) <= width else f"…{name[len(name) + 1 - width :]}"


def _turned(columns: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows."""
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]
