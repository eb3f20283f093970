"""What a sensitivity sweep found: rows, ranks, and the agreement of its measures; as a table and as a file."""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ..atomic import replace
from ..printed import html_table, text_table

__all__ = ["Sensitivity"]

WIDTH = 88
LONGEST = 36  # characters of a layer's name in the printed table
COLUMNS = {"exact": "drop", "gradient": "gradient", "output": "output"}
SAYS = {
    "drop": "Drop of the metric ({metric:.4g} with every layer as it is) when this layer alone is replaced.",
    "gradient": "Size of the first-order change of the loss when this layer alone is replaced.",
    "output": "Relative error of this layer's outputs when it is replaced.",
}


class Sensitivity:
    """What :func:`sensitivity` found. Printing it shows layers by candidates; in a notebook it is a real table.

    Attributes:
        metric: The metric of the model as it is; None if nothing was evaluated.
        methods: The methods that were asked for.
        rows: One dictionary for each layer and candidate: ``layer``, ``kind``, ``candidate``; ``params``, ``nbytes``
            and ``macs`` of the replacement and, with ``dense_`` before them, of the layer (see :func:`find_layers`);
            ``metric`` and ``drop``, ``gradient`` and ``output``, each None where it was not asked for or not known;
            ``seconds`` that the replacement took to make. A higher ``drop``, ``gradient`` or ``output`` is worse.
        skipped: One dictionary for each ``layer`` and ``candidate`` that was left out, with the ``reason``; the
            candidate is None where the whole layer was.
        evaluations: Evaluations of the metric or the loss by method; the one of the model as it is is counted.
        seconds: By what they went into: ``decomposition``, ``evaluation``, and ``prediction``, the cheap measures.

    Example:
        >>> from ttref.surgery import candidates, sensitivity
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)).eval(), torch.randn(5, 16)
        >>> y = model(x)
        >>> fit = lambda model: -(model(x) - y).square().mean().item()
        >>> table = sensitivity(model, fit, candidates=[candidates.integer(8), candidates.svd(rank=1)])
        >>> [row["drop"] < 1e-3 for row in table.rows], table.evaluations
        ([True, False, True, False], {'exact': 5})
    """

    def __init__(
        self,
        metric: float | None,
        methods: Sequence[str],
        rows: list[dict[str, Any]],
        skipped: list[dict[str, Any]],
        evaluations: dict[str, int],
        seconds: dict[str, float],
    ) -> None:
        self.metric, self.methods, self.rows, self.skipped = metric, tuple(methods), rows, skipped
        self.evaluations, self.seconds = evaluations, seconds

    @property
    def candidates(self) -> list[str]:
        """Names of the candidates, in order."""
        return list(dict.fromkeys(row["candidate"] for row in self.rows))

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in order."""
        return list(dict.fromkeys(row["layer"] for row in self.rows))

    def ranked(self, candidate: str, by: str | None = None) -> list[str]:
        """Layers from the safest to the most sensitive with this candidate, by a method (the first one asked for)."""
        column = self._column(by)
        found = [row for row in self.rows if row["candidate"] == candidate and row[column] is not None]
        if not found:
            known = ", ".join(self.candidates)
            raise ValueError(f"no layer has {column} of the candidate {candidate!r}; the table has {known}")
        return [row["layer"] for row in sorted(found, key=lambda row: row[column])]

    def kendall(self, one: str = "exact", other: str = "output", candidate: str | None = None) -> float:
        """Kendall's tau between two methods: 1 for the same order, 0 for none in common, -1 for the reverse.

        Args:
            one: A method: "exact", "gradient" or "output".
            other: Another one.
            candidate: Over the layers with this candidate only; left out, over all rows.

        Returns:
            Tau-b, which counts ties; NaN where a method gives all rows the same value, or for fewer than two rows.

        Raises:
            ValueError: A method that was not asked for, a candidate that is not there.

        Cost:
            O(rows^2).

        Source:
            Kendall (1945), The treatment of ties in ranking problems.
        """
        columns = self._column(one), self._column(other)
        if candidate is not None and candidate not in self.candidates:
            raise ValueError(f"no candidate {candidate!r}; the table has {', '.join(self.candidates)}")
        rows = [row for row in self.rows if candidate in (None, row["candidate"])]
        pairs = [(row[columns[0]], row[columns[1]]) for row in rows if None not in (row[columns[0]], row[columns[1]])]
        return kendall(*zip(*pairs, strict=True)) if len(pairs) > 1 else math.nan

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, whole or not at all; errors as :meth:`TTLinear.save`."""
        replace(path, [(json.dumps(self.as_dict(), indent=1) + "\n").encode()])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A file of something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            made = cls(**{name: content[name] for name in cls._CONTENT})
            repr(made)  # which reads all that a table needs
            return made
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file of a Sensitivity: {error}") from error

    _CONTENT = ("metric", "methods", "rows", "skipped", "evaluations", "seconds")

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings, as :meth:`save` writes it."""
        return {name: getattr(self, name) for name in self._CONTENT} | {"methods": list(self.methods)}

    def __repr__(self) -> str:
        """Layers by candidates, and what it took."""
        lines = [*textwrap.wrap(self._says(), WIDTH), "", *text_table(*self._table())]
        return "\n".join([*lines, "", *textwrap.wrap(self.summary, WIDTH)])

    def _repr_html_(self) -> str:
        heads, rows = self._table()
        table = html_table(heads, rows, label="Table: sensitivity of each layer", caption=self._says())
        return f"{table}\n<p>{html.escape(self.summary)}</p>"

    @property
    def summary(self) -> str:
        """What it took, and how far the methods agree, in a few sentences."""
        counts = ", ".join(f"{count} {COLUMNS[method]}" for method, count in self.evaluations.items())
        taken = ", ".join(f"{seconds:.1f} s of {what}" for what, seconds in self.seconds.items())
        text = [f"{len(self.layers)} layers, {len(self.candidates)} candidates; evaluations: {counts}; {taken}."]
        for k, one in enumerate(self.methods):
            for other in self.methods[k + 1 :]:
                text.append(f"Kendall's tau of {COLUMNS[one]} and {COLUMNS[other]}: {self.kendall(one, other):.2f}.")
        if self.skipped:
            text.append(f"{len(self.skipped)} left out: see .skipped.")
        return " ".join(text)

    def _column(self, method: str | None) -> str:
        if method is None:
            return COLUMNS[self.methods[0]]
        if method not in self.methods:
            raise ValueError(f"the table has {', '.join(self.methods)}, not {method!r}: ask sensitivity for it")
        return COLUMNS[method]

    def _says(self) -> str:
        return SAYS[self._column(None)].format(metric=math.nan if self.metric is None else self.metric)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        column, names = self._column(None), self.candidates
        found = {(row["layer"], row["candidate"]): row[column] for row in self.rows}
        rows = [[_short(layer), *(_number(found.get((layer, name))) for name in names)] for layer in self.layers]
        return ["layer", *names], rows


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Tau-b: pairs in the same order minus those in the reverse one, over the pairs that are tied in neither.

    Example:
        >>> kendall([1, 2, 3, 4], [1, 2, 4, 3]), kendall([1, 1], [1, 2])
        (0.6666666666666666, nan)
    """
    a, b = (
        (side := torch.tensor(one, dtype=torch.float64)).unsqueeze(0).sub(side.unsqueeze(1)).sign() for one in (x, y)
    )
    untied = math.sqrt(a.square().sum().item() * b.square().sum().item())
    return (a * b).sum().item() / untied if untied else math.nan


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.1e}"
