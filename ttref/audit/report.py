"""What an audit found: as text, as a table in a notebook, as data, as a page."""

from __future__ import annotations

import html
import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from ..advice.kinds import KINDS
from ..atomic import replace
from ..printed import html_table, printable, text_table
from .page import page
from .sampling import PART, total
from .words import number

__all__ = ["Audit"]

WIDTH = 88
HEADS = ("part", "verdict", "share", "matrices", "train", "SVD", "noise", "int8 error")
WORDS = ("tt", "svd", "quantize", "leave")
WINNERS = WORDS[:2]
MOST_NAMED = 10


class Audit:
    """What :func:`audit` found. Printing it shows a table; in a notebook it is a real one.

    Attributes:
        checkpoint: The path that was given.
        format: What it is: ``"safetensors"``, ``"sharded safetensors"``, ``"GGUF"``, ``"state dict"``.
        eps: The relative errors, ascending. The middle one gives the ``verdict`` of a row.
        rows: One dictionary for each tensor of two axes or more, in the order of the file: its ``name``, ``part`` (what
            it is for), ``shape``, ``dtype``, ``numbers``, ``nbytes`` in the file, ``verdict`` and ``reason``, for how
            many it ``stands_for``, and at each error its ``verdicts``, ``reasons`` and the bytes ``after`` following
            them. If it was ``looked`` at, also at each error the gains (numbers for each number stored) of the best
            ``train``, of ``svd`` and of ``noise`` (the mean of ``draws``, and ``noise_most``), ``integers`` (bytes in
            float32 for each byte) and their ``bits``, ``p`` and ``p_svd`` (how often noise does as well), the ``form``
            of the train with its ``row_shape``, ``col_shape`` and ``ranks``; the errors of ``int8`` and ``int4``; the
            ``rows`` looked at; and for the form at the middle error the ``entropy`` at each bond in bits, that of
            noise, and the most there can be. With texts, ``seen`` holds the same by the error of the outputs.
        numbers, nbytes: Of all tensors that were asked for, those without a row included.
        sampled: True if rows stand for others.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> from ttref.audit import audit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"fc.weight": torch.eye(64)}, f"{folder}/model.safetensors")
        ...     found = audit(folder, eps=0.1)
        >>> found.rows[0]["form"], found.numbers, found.totals()["int8"]
        (['TT-matrix, 3 modes'], 4096, 3.88)
    """

    def __init__(
        self,
        checkpoint: str,
        kind: str,
        eps: tuple[float, ...],
        rows: list[dict[str, Any]],
        numbers: int,
        nbytes: int,
        sampled: bool,
        with_data: bool,
    ) -> None:
        self.checkpoint, self.format, self.eps, self.rows = checkpoint, kind, eps, rows
        self.numbers, self.nbytes, self.sampled, self.with_data = numbers, nbytes, sampled, with_data

    def row(self, name: str) -> dict[str, Any]:
        """The row of a tensor; ValueError for a name that has none."""
        for row in self.rows:
            if row["name"] == name:
                return row
        raise ValueError(f"no row {name!r}; the audit has {len(self.rows)}, the first is {self.rows[0]['name']!r}")

    def totals(self) -> dict[str, Any]:
        """How many times smaller the whole checkpoint could be.

        ``trains`` and ``svd`` at each error: every matrix that becomes smaller takes its best train, or its SVD, with
        numbers as wide as those in the file; that is the most there is to gain, not an advice. ``int8``: every matrix
        in eight bits with a scale a row, and ``int8_error``, the largest error that this makes. ``followed`` at each
        error: all verdicts. Each of sampled rows has an ``_error``: two standard errors.
        """
        at = range(len(self.eps))
        trains, trains_error = zip(*(self._ratio(lambda row, k=k: _by(row, "train", k)) for k in at), strict=True)
        svd, svd_error = zip(*(self._ratio(lambda row, k=k: _by(row, "svd", k)) for k in at), strict=True)
        followed, followed_error = zip(*(self._ratio(lambda row, k=k: row["after"][k]) for k in at), strict=True)
        int8, _ = self._ratio(_in_int8)
        found = {"trains": trains, "svd": svd, "int8": int8, "followed": followed}
        found["int8_error"] = max((row["int8"] for row in self.rows if row["looked"]), default=0.0)
        if self.sampled:
            found |= {"trains_error": trains_error, "svd_error": svd_error, "followed_error": followed_error}
        return {
            key: [round(x, 2) for x in value] if isinstance(value, tuple) else round(value, 2 if key == "int8" else 4)
            for key, value in found.items()
        }

    def _ratio(self, after: Any) -> tuple[float, float]:
        """How many times smaller the checkpoint is if each row takes so many bytes; two standard errors of that."""
        saved, error = total(self.rows, lambda row: row["nbytes"] - after(row))
        ratio = self.nbytes / (self.nbytes - saved) if self.nbytes > saved else 1.0  # of nothing at all
        return ratio, 2 * error * ratio**2 / max(self.nbytes, 1)

    @property
    def summary(self) -> str:
        """The answer in a few sentences."""
        if not any(row["looked"] for row in self.rows):
            return "Nothing to compare: no tensor is a matrix of floating-point numbers, 8 x 8 or larger."
        sums, middle = self.totals(), len(self.eps) // 2
        eps = f"{self.eps[middle]:.0%}"
        won = {word: [row for row in self.rows if row["verdict"] == word] for word in WORDS}
        text = []
        for word, verb in (("tt", "A tensor train pays for"), ("svd", "Two factors (SVD) pay for")):
            if names := [row["name"] for row in won[word]]:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                text.append(f"{verb} {', '.join(names[:3])}{more} at an error of {eps}.")
        if not won["tt"]:
            text.append(f"No tensor train pays at an error of {eps}.")
        text.append(
            f"Trains for everything that they make smaller would make the whole {_times(sums['trains'][middle])} "
            f"smaller, SVD {_times(sums['svd'][middle])}; int8 makes it {_times(sums['int8'])} smaller at an error of "
            f"{sums['int8_error']:.1%} at most. All verdicts followed: {_times(sums['followed'][middle])}."
        )
        if self.sampled:
            off = [max(sums[f"{key}_error"][middle], 0.01) for key in ("trains", "svd", "followed")]
            text.append(
                f"Counted from {len(self.rows)} of {self._count()} tensors: trains are off by {off[0]:.2f}, SVD by "
                f"{off[1]:.2f}, all verdicts by {off[2]:.2f} either way (two standard errors over layers). Of tables "
                f"the middle {PART:,} rows were looked at, which is not in that."
            )
        if seen := self._seen():
            counts = Counter(row["verdict"] for row in seen)
            each = ", ".join(f"{word} {counts[word]}" for word in WORDS if counts[word])
            text.append(f"By the error of the outputs on the texts, of {len(seen)} layers: {each}.")
        stored = 8 * self.nbytes / max(self.numbers, 1)
        if stored < 12:
            text.append(
                f"These weights take {number(stored)} bits a number already: they were rounded before, and integers "
                "are compared with what rounding left."
            )
        return " ".join(text)

    def _seen(self) -> list[dict[str, Any]]:
        """The rows that were compared by the error of the outputs, as that has them."""
        return [{**row, **row["seen"]} for row in self.rows if "seen" in row]

    def _count(self) -> int:
        return round(sum(row["stands_for"] for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain lists, numbers and strings, as :meth:`save` writes it."""
        keys = ("checkpoint", "format", "numbers", "nbytes", "sampled", "summary", "rows")
        return {"eps": list(self.eps), **{key: getattr(self, key) for key in keys}, "totals": self.totals()}

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file, whole or not at all; errors as :meth:`TTLinear.save`."""
        replace(path, [(json.dumps(self.as_dict(), indent=1) + "\n").encode()])

    def page(self, path: str | Path) -> None:
        """Write one HTML page that needs nothing else: plots, a table that can be sorted; errors as :meth:`save`."""
        replace(path, [page(self.as_dict()).encode()])

    def __repr__(self) -> str:
        """The table by parts as text of at most 88 columns, and the matrices that pay."""
        lines = [*textwrap.wrap(self.summary, WIDTH), "", *text_table(HEADS, self._cells(self.rows), left=2)]
        if seen := self._seen():
            lines += ["", "By the error of the outputs on the texts:", *text_table(HEADS, self._cells(seen), left=2)]
        lines += ["", *textwrap.wrap(self._legend(), WIDTH)]
        winners = [row for row in self.rows if row["verdict"] in WINNERS]
        for row in winners[:MOST_NAMED]:
            lines += ["", *textwrap.wrap(f"{row['name']} ({row['verdict']}): {row['reason']}.", WIDTH)]
        if len(winners) > MOST_NAMED:
            lines += ["", f"And {len(winners) - MOST_NAMED} more; the rows have them all."]
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        label = "Table: audit of each part of the checkpoint"
        table = html_table(HEADS, self._cells(self.rows), label=label, caption=self._legend(), left=2)
        return f"<p><strong>{html.escape(self.summary)}</strong></p>\n{table}"

    def _cells(self, rows: list[dict[str, Any]]) -> list[list[str]]:
        """A line for each part: the most frequent verdict, and medians at the middle error."""
        middle, cells = len(self.eps) // 2, []
        for part in [part for part in KINDS if any(row["part"] == part for row in rows)]:
            group = [row for row in rows if row["part"] == part]
            counts = Counter()
            for row in group:
                counts[row["verdict"]] += row["stands_for"]
            word, most = counts.most_common(1)[0]
            whole = round(sum(counts.values()))
            looked = [row for row in group if row["looked"]]
            gains = [
                number(median(row[key][middle] for row in looked)) if looked else ""
                for key in ("train", "svd", "noise")
            ]
            share = sum(row["stands_for"] * row["numbers"] for row in group) / max(self.numbers, 1)
            said = word if round(most) == whole else f"{word} {round(most)} of {whole}"
            error = f"{median(row['int8'] for row in looked):.2%}" if looked else ""
            cells.append([part, said, f"{share:.1%}", f"{whole}", *gains, error])
        return cells

    def _legend(self) -> str:
        sums = self.totals()
        errors = " / ".join(f"{eps:.0%}" for eps in self.eps)
        each = ["/".join(map(number, sums[key])) for key in ("trains", "svd", "followed")]
        return (
            f"Medians at an error of {self.eps[len(self.eps) // 2]:.0%}: train, SVD and noise in numbers of the "
            f"matrix for each number stored. The whole at {errors}: trains at most {each[0]} times smaller, SVD "
            f"{each[1]}, all verdicts {each[2]}, with trains and factors in int8. A train can be SVD in disguise, and "
            "is then as small. Tensors without a row: biases, norms."
        )


def _by(row: Mapping[str, Any], key: str, k: int) -> float:
    """Bytes of a matrix as a train or as factors, in the width of the file, where that is smaller."""
    return row["nbytes"] / max(row[key][k], 1) if row["looked"] else row["nbytes"]


def _in_int8(row: Mapping[str, Any]) -> float:
    return min(row["nbytes"], row["numbers"] + 2 * row["shape"][0]) if row["looked"] else row["nbytes"]


def _times(ratio: float) -> str:
    return f"{number(ratio)} times"
