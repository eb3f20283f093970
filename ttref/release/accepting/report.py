"""What an acceptance suite found: a verdict with its reasons, a table, a Markdown card, plain numbers, and a file."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...atomic import replace
from ...printed import html_table, text_table
from .judging import NO_WORSE, PASSED, TOO_FEW, WORSE
from .slicing import WHOLE

__all__ = ["AcceptanceReport"]

WIDTH = 88
_LEFT_OUT = (), ("McNemar",), ("McNemar", "KL"), ("McNemar", "KL", "dense")
FORMAT, VERSION = "ttref.acceptance", 1
UNITS = {"latency": "s", "memory": "bytes", "peak": "bytes", "file": "bytes"}
SAYS = {
    "latency": "latency (ms)",
    "memory": "memory (bytes)",
    "peak": "peak beside it (bytes)",
    "file": "file (bytes)",
}


class AcceptanceReport:
    """What :meth:`AcceptanceSuite.run` found. Printing it shows tables; in a notebook they are real ones.

    Attributes:
        accepted: True if the compressed model may take the dense one's place.
        reasons: Why not: a sentence for each metric, slice and cost that failed; empty if accepted.
        undecided: Names of the slices, with their metrics, that have too few examples; they decided nothing.
        rows: One dictionary for each metric and each of its slices, that of all examples first, called ``"all"``:
            ``metric``, ``slice``, ``examples``; the means ``dense`` and ``compressed`` and their ``change``; the change
            for the worse that is ``allowed``, in units of the score; ``p``, the chance of as little harm as was found
            where the true harm is the margin, and ``p_gain``, the same of the better direction; of scores 0 and 1
            ``harmful`` and ``beneficial`` flips and the p of ``mcnemar``'s test, None of others; ``worst_example``, the
            place in the data of what lost most, and its ``worst_change``; ``status``: "equivalent" (both p below
            alpha), "no worse" (the first), "worse" (shown to be beyond the margin), "not shown", "too few". Where the
            metric gives logits: ``kl``, the mean KL(dense || compressed) in nats, and the ``kl_largest`` of an example;
            the share of ``answers_changed``; ``max_kl``, ``kl_p`` and ``kl_status``, where a limit was declared.
        costs: ``latency`` (median seconds of the work), ``memory`` (bytes of parameters and buffers), ``peak`` (most
            bytes of all other tensors at once during the work) and ``file`` (bytes): each with ``dense``,
            ``compressed``, ``ratio``, ``limit``, and ``passed``, None without a limit. The ratio of the latency is the
            median over turns, between ``low`` and ``high``.
        scores: For each metric the scores of each example, ``dense`` and ``compressed``.
        declared: All that was declared, as :meth:`AcceptanceSuite.declared`.
        data_hash, suite_hash: Those of the suite.
        models: sha256 of the states of the two models, ``dense`` and ``compressed``: of these it speaks.

    Example:
        >>> import torch
        >>> from ttref.release.accepting import AcceptanceSuite, Metric
        >>> right = Metric("accuracy", lambda model, data: model(data).argmax(-1) == 0, margin=0.1)
        >>> suite = AcceptanceSuite(right, data=torch.eye(40), turns=0)
        >>> dense, worse = torch.nn.Linear(40, 2), torch.nn.Linear(40, 2)
        >>> with torch.no_grad():
        ...     _ = dense.weight.copy_(torch.stack([torch.ones(40), torch.zeros(40)])), dense.bias.zero_()
        ...     _ = worse.weight.copy_(dense.weight), worse.bias.zero_()
        ...     _ = worse.weight[0, :2].zero_(), worse.weight[1, :2].fill_(1)    # two examples lost
        >>> report = suite.run(dense, worse)
        >>> report.accepted, [row["status"] for row in report.rows]
        (False, ['not shown'])
    """

    def __init__(
        self,
        declared: dict[str, Any],
        suite_hash: str,
        rows: list[dict[str, Any]],
        costs: dict[str, dict[str, Any]],
        scores: dict[str, dict[str, list[float]]],
        models: dict[str, str],
    ) -> None:
        self.declared, self.suite_hash, self.rows, self.costs, self.scores = declared, suite_hash, rows, costs, scores
        self.models = models
        self.data_hash: str = declared["data_hash"]
        failed = [_why(row) for row in rows if _fails(row)]
        failed += [_why_kl(row) for row in rows if row["kl_status"] not in (None, NO_WORSE)]
        failed += [_why_cost(name, row) for name, row in costs.items() if row["passed"] is False]
        self.reasons: list[str] = failed
        self.undecided = [
            f"{row['metric']} on {row['slice']}" for row in rows if row["status"] == TOO_FEW and row["slice"] != WHOLE
        ]

    @property
    def accepted(self) -> bool:
        """True if nothing failed."""
        return not self.reasons

    @property
    def summary(self) -> str:
        """The verdict in a few sentences."""
        return " ".join(self._sentences())

    def _sentences(self) -> list[str]:
        """The verdict, each reason why not, and what was too small to decide."""
        count = len(self.declared["metrics"])
        text = [f"{'Accepted' if self.accepted else 'Not accepted'}: {self.declared['examples']:,} examples, "]
        text[0] += f"{count} metric{'s' * (count > 1)}, each tested at alpha = {self.declared['alpha']:g}."
        text += self.reasons
        if self.undecided:
            text.append(f"Too few examples to decide anything: {', '.join(self.undecided)}.")
        return text

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, finite numbers and texts, as :meth:`save` writes it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "accepted": self.accepted,
            "reasons": list(self.reasons),
            "undecided": list(self.undecided),
            "data_hash": self.data_hash,
            "suite_hash": self.suite_hash,
            "models": self.models,
            "declared": self.declared,
            "rows": self.rows,
            "costs": self.costs,
            "scores": self.scores,
        }

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, whole or not at all; errors as :meth:`TTLinear.save`."""
        replace(path, [(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode()])

    def table(self) -> str:
        """The tables as text of at most 88 columns where names allow it; what does not fit is in the rows."""
        found = next(
            (lines for left_out in _LEFT_OUT if max(map(len, lines := self._rows_text(left_out))) <= WIDTH), None
        )
        lines = [*textwrap.wrap(self.summary, WIDTH), "", *(found or self._rows_text(_LEFT_OUT[-1]))]
        return "\n".join([*lines, "", *text_table(*self._costs_table()), "", *textwrap.wrap(self._hashes(), WIDTH)])

    def _rows_text(self, left_out: tuple[str, ...]) -> list[str]:
        return text_table(*self._rows_table(left_out), left=2)

    __repr__ = __str__ = table

    def card(self) -> str:
        """The same as a section of a model card, in Markdown."""
        parts = [
            f"## Acceptance\n\n{_escaped(self.summary)}",
            _markdown(*self._rows_table(), left=2),
            _escaped(_LEGEND),
            _markdown(*self._costs_table()),
            f"- Data (sha256): `{self.data_hash}`\n- Suite (sha256): `{self.suite_hash}`",
        ]
        return "\n\n".join(parts) + "\n"

    def _repr_html_(self) -> str:
        scores = html_table(*self._rows_table(), label="Table: metrics and their verdicts", caption=_LEGEND, left=2)
        spent = html_table(
            *self._costs_table(), label="Table: costs of both models", caption="Ratios below 1 are gains."
        )
        verdict, *why = map(html.escape, self._sentences())
        listed = "".join(f"<li>{sentence}</li>" for sentence in why)
        said = f"<p><strong>{verdict}</strong></p>" + (f"<ul>{listed}</ul>" if listed else "")
        return f"{said}\n{scores}\n{spent}\n<p>{html.escape(self._hashes())}</p>"

    def _hashes(self) -> str:
        return f"Data {self.data_hash[:12]}, suite {self.suite_hash[:12]}."

    def _rows_table(self, left_out: tuple[str, ...] = ()) -> tuple[list[str], list[list[str]]]:
        """Heads and rows, without some columns and those that no row has."""
        columns = {
            "metric": [row["metric"] for row in self.rows],
            "slice": [row["slice"] for row in self.rows],
            "n": [f"{row['examples']}" for row in self.rows],
            "dense": [_number(row["dense"]) for row in self.rows],
            "change": [f"{row['change']:+.4f}" for row in self.rows],
            "allowed": [_number(row["allowed"]) for row in self.rows],
            "p": [_p(row["p"]) for row in self.rows],
            "flips": [
                f"{row['harmful']}/{row['beneficial']}" if row["harmful"] is not None else "" for row in self.rows
            ],
            "McNemar": [_p(row["mcnemar"]) for row in self.rows],
            "KL": [_number(row["kl"]) for row in self.rows],
            "verdict": [row["status"] for row in self.rows],
        }
        kept = {head: cells for head, cells in columns.items() if any(cells) and head not in left_out}
        return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]

    def _costs_table(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for name, row in self.costs.items():
            exact = UNITS[name] == "bytes"
            sides = (f"{row[side]:,}" if exact else f"{1e3 * row[side]:.4g}" for side in ("dense", "compressed"))
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            if row.get("high") is not None:
                ratio += f" ({row['low']:.3f} to {row['high']:.3f})"
            limit = "" if row["limit"] is None else f"{row['limit']:g}"
            rows.append([SAYS[name], *sides, ratio, limit, {True: "kept", False: "exceeded", None: ""}[row["passed"]]])
        return ["cost", "dense", "compressed", "ratio", "limit", "verdict"], rows


_LEGEND = (
    "n: examples. Change: of the mean score, compressed minus dense. Allowed: for the worse. p: chance of so little "
    "harm where the true harm is what is allowed. Flips: examples lost / won. McNemar: exact p, that both are equally "
    "likely. KL: mean divergence of the answers, in nats."
)


def _fails(row: dict[str, Any]) -> bool:
    """True if a row is against acceptance: all examples must pass, a slice must not fail."""
    passed = PASSED[row["status"]]
    return not passed if row["slice"] == WHOLE else passed is False


def _why(row: dict[str, Any]) -> str:
    """A row that failed, in a sentence."""
    where = row["metric"] + ("" if row["slice"] == WHOLE else f" on {row['slice']}")
    change = f"change {row['change']:+.4g}, allowed {row['allowed']:.4g}"
    if row["status"] == TOO_FEW:
        return f"{where}: {row['examples']} examples are too few to accept any model."
    if row["status"] == WORSE:
        return f"{where}: shown to have changed by more than its margin ({change})."
    return f"{where}: not shown to have changed by less than its margin ({change}, p = {row['p']:.2g})."


def _why_kl(row: dict[str, Any]) -> str:
    if row["kl_status"] == TOO_FEW:
        return f"{row['metric']}: {row['examples']} examples are too few to test the divergence."
    return f"{row['metric']}: divergence {row['kl']:.3g} nats not shown to be below {row['max_kl']:g}."


def _why_cost(name: str, row: dict[str, Any]) -> str:
    reached = row.get("high", row["ratio"])
    return f"{name}: {'no ratio' if reached is None else f'{reached:.3f} times the dense one'}, limit {row['limit']:g}."


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def _p(value: float | None) -> str:
    return "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown, the first columns aligned on the left."""
    rules = [":---" if k < left else "---:" for k in range(len(heads))]
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in ([*heads], rules, *rows))


def _escaped(text: str) -> str:
    """Text as Markdown shows it in a cell: no name can end it, open a tag or set letters in another way."""
    text = " ".join(text.split())
    for mark in "\\`*_[]|<>":
        text = text.replace(mark, f"\\{mark}")
    return text
