"""The advice for a model: a table in a terminal and in a notebook, rows as data, and a file."""

from __future__ import annotations

import html
import json
import textwrap
from pathlib import Path
from typing import Any

from ..atomic import replace
from ..printed import html_table, text_table
from .kinds import INTEGERS

__all__ = ["Advice"]

WIDTH = 88


class Advice:
    """What :func:`advise` found. Printing it shows a table; in a notebook it is a real one.

    Attributes:
        eps: The relative errors that were asked about.
        numbers: Numbers in the model, tied weights counted once.
        rows: One dictionary for each kind of weight that the model has, in a fixed order: ``part``; the most frequent
            ``verdict`` at each error, and how many ``matrices`` ``agreed``; the ``share`` of the numbers; the medians
            ``train``, ``svd``, ``noise`` and ``integers`` at each error; the ``names`` of the weights; the ``code`` to
            type at each error. Lists are empty where nothing was compared.
        checks: One dictionary for each matrix and error: its ``name``, ``part``, ``shape`` and the fields of
            :class:`Check`.
        ratio: At each error, how many times smaller the model would be in bytes than in float32, with the verdicts
            followed and all else kept in float32. A model kept in bfloat16 has half of that to gain. An estimate from
            the rows that were looked at.

    Example:
        >>> import torch
        >>> from ttref import advise
        >>> advice = advise(torch.nn.ModuleDict({"fc1": torch.nn.Linear(32, 128)}))
        >>> advice.names("feed-forward"), advice.numbers
        (['fc1.weight'], 4224)
    """

    def __init__(
        self, eps: tuple[float, ...], rows: list[dict[str, Any]], checks: list[dict[str, Any]], ratio: tuple[float, ...]
    ) -> None:
        self.eps, self.rows, self.checks, self.ratio = eps, rows, checks, ratio
        self.numbers = sum(row["numbers"] for row in rows)

    def row(self, part: str) -> dict[str, Any]:
        """The row of a part; ValueError for a part that the model does not have."""
        for row in self.rows:
            if row["part"] == part:
                return row
        raise ValueError(f"no part {part!r}; the model has {', '.join(row['part'] for row in self.rows)}")

    def names(self, part: str, verdict: str | None = None, eps: float | None = None) -> list[str]:
        """Names of the weights of a part, or of those with this verdict at this error (by default the first one)."""
        if verdict is None:
            return list(self.row(part)["names"])
        self.row(part)
        eps = self.eps[self._asked(eps)]
        found = (check for check in self.checks if check["part"] == part and check["eps"] == eps)
        return [check["name"] for check in found if check["verdict"] == verdict]

    def code(self, part: str, eps: float | None = None) -> str:
        """The lines to type for a part at an error, the first one by default; they change the model, to be measured."""
        code = self.row(part)["code"]
        return code[self._asked(eps)] if code else ""

    def _asked(self, eps: float | None) -> int:
        """Which of the errors that were asked about this is; the first one by default."""
        if eps is not None and eps not in self.eps:
            asked = ", ".join(f"{one:g}" for one in self.eps)
            raise ValueError(f"eps={eps:g} was not asked about, only {asked}: advise(model, eps=({eps:g},))")
        return 0 if eps is None else self.eps.index(eps)

    def _typed(self) -> list[str]:
        """The lines to type under headings: for all parts, and for the stricter errors where their verdict differs."""
        typed = []
        for row in self.rows:
            differ = len(set(row["verdict"])) > 1
            for eps, verdict, code in zip(self.eps, row["verdict"], row["code"], strict=False):
                if code and (differ or eps == self.eps[0]):
                    typed.append(f"# {row['part']}" + (f" at {eps:.0%}: {verdict}" if differ else "") + f"\n{code}")
        return typed

    @property
    def summary(self) -> str:
        """The verdict in a sentence or two."""
        compared = [row for row in self.rows if row["verdict"]]
        same = [row for row in compared if set(row["verdict"]) == {"integers"}]
        others = [row for row in compared if row not in same]
        text = []
        if same:
            text += [f"Round to integers: they win on {sum(row['share'] for row in same):.1%} of the model."]
        for row in others:
            each = [f"{verdict} at {eps:.0%}" for verdict, eps in zip(row["verdict"], self.eps, strict=True)]
            said = row["verdict"][0] if len(set(row["verdict"])) == 1 else ", ".join(each)
            text += [f"{row['part'].capitalize()} ({row['share']:.1%}): {said}."]
        if any(row["part"] == INTEGERS for row in self.rows):
            text += [f"{self.row(INTEGERS)['share']:.1%} are integers already: they were not compared."]
        if not compared:
            text += ["Nothing to compare: no weight is a matrix of floating-point numbers, 8 x 8 or larger."]
        return " ".join(text)

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, whole or not at all; errors as :meth:`TTLinear.save`."""
        replace(path, [(json.dumps(self.as_dict(), indent=1) + "\n").encode()])

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings, as :meth:`save` writes it."""
        return {
            "eps": list(self.eps),
            "numbers": self.numbers,
            "ratio": list(self.ratio),
            "summary": self.summary,
            "rows": self.rows,
            "checks": self.checks,
        }

    def __repr__(self) -> str:
        """The table as text of at most 88 columns, and the lines to type."""
        lines = textwrap.wrap(self.summary, WIDTH) + [""]
        lines += text_table(self._heads(), self._cells("/"), left=2)
        lines += ["", *textwrap.wrap(self._legend(), WIDTH)]
        typed = "\n\n".join(self._typed())
        return "\n".join([*lines, *(["", "What to type, and then measure the model:", "", typed] if typed else [])])

    def _repr_html_(self) -> str:
        """The table in a box that scrolls by itself; the lines to type are folded."""
        label = "Table: advice for each part of the model"
        table = html_table(self._heads(), self._cells(" / "), label=label, caption=self._legend(), left=2)
        typed = "\n\n".join(self._typed())
        return (
            f"<p><strong>{html.escape(self.summary)}</strong></p>\n"
            f"{table}\n"
            f"<details><summary>What to type</summary>\n<pre>{html.escape(typed)}</pre>\n</details>"
        )

    def _heads(self) -> list[str]:
        return ["part", "verdict", "share", "matrices", "train", "SVD", "noise", "integers"]

    def _cells(self, between: str) -> list[list[str]]:
        cells = []
        for row in self.rows:
            verdict = between.join(row["verdict"]) if len(set(row["verdict"])) > 1 else "".join(row["verdict"][:1])
            ratios = [between.join(map(_short, row[key])) for key in ("train", "svd", "noise", "integers")]
            count = f"{row['matrices']}" if row["matrices"] else ""
            if row["matrices"] > min(row["agreed"], default=0):
                verdict += f" {min(row['agreed'])} of {row['matrices']}"
            cells.append([row["part"], verdict, f"{row['share']:.1%}", count, *ratios])
        return cells

    def _legend(self) -> str:
        errors = " / ".join(f"{eps:.0%}" for eps in self.eps)
        ratios = " and ".join(f"{ratio:.1f}" for ratio in self.ratio)
        return (
            f"Times smaller at a relative error of {errors}, median of the matrices: train, SVD and noise in numbers, "
            "integers in bytes. A verdict counts trains and SVD with int8 numbers, a quarter of the bytes. "
            f"All verdicts followed, the model is about {ratios} times smaller than in float32."
        )


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.1f}"
