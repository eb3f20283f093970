"""The map of gains: what trains do to each object of the book, beside the best rival of its size and beside noise.

The rows are in ``pays.toml``. Each value there is an expression over the recorded results by the names of their files,
in Python's own words and with the functions of ``KNOWN``; nothing is typed. Which rival counts is decided here, by one
rule: the one that errs least among those of at most a tenth more bytes; if all are larger, the smallest.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from ..tools import numbers

__all__ = [
    "LOOKS",
    "Null",
    "Row",
    "Side",
    "draw_map",
    "evaluate",
    "level",
    "level_band",
    "load",
    "rank_correlation",
    "rival_of",
]

FILE = Path(__file__).with_name("pays.toml")
SLACK = 1.1  # a rival may have so many times the train's bytes
BAND = 1.05  # gains between 1 / BAND and BAND are level
LOOKS = {  # verdict: color, marker, what it means
    "wins": ("#0072B2", "^", "the train errs less"),
    "level": ("#707070", "o", "level"),
    "loses": ("#D55E00", "v", "the train errs more"),
}
NULL = "#111111"


class Side(NamedTuple):
    """One way to store an object: its name, its error, its bytes, and the standard error of its error (0: unknown).

    Example:
        >>> Side("train", 0.25186, 6144, 0.0076).said, Side("SVD", 0.4621, 8100).said
        ('0.252 ± 0.008', '0.462')
    """

    name: str
    error: float
    bytes: float
    se: float = 0.0

    @property
    def said(self) -> str:
        """The error as a reader sees it, with its standard error if that is known."""
        return f"{self.error:.3g}" + (f" ± {self.se:.1g}" if self.se else "")


class Null(NamedTuple):
    """What a train does to noise in place of an object.

    Attributes:
        name: What the noise is.
        error: Of the train on it.
        train: Of that train on the object, measured in the same way.
        measure: How both are measured, where it is not as in the row.
    """

    name: str
    error: float
    train: float
    measure: str = ""


class Row(NamedTuple):
    """An object of the map: what it is, how its error is measured and where, the train, all its rivals, the null."""

    object: str
    group: str
    measure: str
    where: str
    train: Side
    rivals: tuple[Side, ...]
    null: Null | None

    @property
    def rival(self) -> Side:
        """The rival that counts, by :func:`rival_of`."""
        return rival_of(self.train, self.rivals)

    @property
    def gain(self) -> float:
        """How many times the best rival errs more than the train; below 1 it errs less."""
        return self.rival.error / self.train.error

    @property
    def over_null(self) -> float | None:
        """How many times the train errs more on the null than on the object; None without a null."""
        return self.null.error / self.null.train if self.null else None

    @property
    def verdict(self) -> str:
        """``"wins"``, ``"level"`` or ``"loses"``, by :func:`level`."""
        if level(self.train, self.rival):
            return "level"
        return "wins" if self.gain > 1 else "loses"


def one(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> Any:
    """The only row with these values.

    Raises:
        KeyError: there is none, or more than one.
    """
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows with {wanted}, there must be one")
    return found[0]


def name(point: Mapping[str, Any]) -> str:
    """What a point of the frontier is, in few words."""
    family = point["family"].replace(", rows in codes", "").replace(", best scale", "")
    return point["setting"] if family.startswith("integers") else f"{family}: {point['setting']}"


def share_se(share: float, total: int) -> float:
    """Standard error of a share of so many examples."""
    return math.sqrt(share * (1 - share) / total)


def mean_se(values: Sequence[float]) -> float:
    """Standard error of a mean."""
    return stdev(values) / math.sqrt(len(values))


KNOWN = {f.__name__: f for f in (one, name, share_se, mean_se)} | {"mean": lambda values: fmean(values)}
BUILTINS = {f.__name__: f for f in (str, repr)}


def evaluate(expression: str) -> Any:
    """Compute an expression over the recorded results.

    Raises:
        KeyError: it names a row or a key that no record has.
        NameError: it names a file that there is not, or a function that is not known.

    Example:
        >>> evaluate("one(convolutions.networks, network='plain').kernels")
        6
    """
    found = numbers.known()
    builtins = found["__builtins__"] | BUILTINS
    return eval(expression, {**found, **KNOWN, "__builtins__": builtins})


def rival_of(train: Side, rivals: Sequence[Side]) -> Side:
    """The rival that counts: of at most a tenth more bytes the one that errs least, else the smallest.

    Example:
        >>> train = Side("train", 0.2, 100)
        >>> rival_of(train, [Side("a", 0.3, 90), Side("b", 0.25, 105), Side("c", 0.1, 120)]).name
        'b'
        >>> rival_of(train, [Side("c", 0.1, 120), Side("d", 0.05, 150)]).name
        'c'
    """
    fair = [rival for rival in rivals if rival.bytes <= SLACK * train.bytes]
    return min(fair, key=lambda rival: rival.error) if fair else min(rivals, key=lambda rival: rival.bytes)


def level(train: Side, rival: Side) -> bool:
    """Whether two errors are within a twentieth, or less than two standard errors apart, where these are on record.

    Example:
        >>> [level(Side("train", 0.2, 100), Side("a", error, 100)) for error in (0.209, 0.23)]
        [True, False]
        >>> level(Side("train", 0.2, 100, se=0.02), Side("a", 0.23, 100))
        True
    """
    known = math.hypot(train.se, rival.se)
    apart = abs(rival.error - train.error)
    return 1 / BAND <= rival.error / train.error <= BAND or bool(train.se and apart < 2 * known)


def _side(given: Mapping[str, str]) -> Side:
    return Side(given["name"], *(float(evaluate(given.get(key, "0"))) for key in ("error", "bytes", "se")))


def _sides(given: Mapping[str, str]) -> list[Side]:
    return [Side(*found) for found in evaluate(given["many"])] if "many" in given else [_side(given)]


@cache
def load(path: Path = FILE) -> tuple[Row, ...]:
    """The rows of the map, computed from the records.

    Raises:
        KeyError: a row lacks a field, or names what no record has.

    Example:
        >>> rows = load()
        >>> len(rows) > 20, {row.verdict for row in rows} == set(LOOKS)
        (True, True)
    """
    rows = []
    for given in tomllib.loads(path.read_text(encoding="utf-8"))["row"]:
        train, null = _side(given["train"]), given.get("null")
        if null:
            same = float(evaluate(null["train"])) if "train" in null else train.error
            null = Null(null["name"], float(evaluate(null["error"])), same, null.get("measure", ""))
        rivals = tuple(side for each in given["rivals"] for side in _sides(each))
        words = (given[key] for key in ("object", "group", "measure", "where"))
        rows.append(Row(*words, train, rivals, null))
    return tuple(rows)


def level_band() -> tuple[float, float]:
    """Between which gains a row is level in any case.

    Example:
        >>> [round(end, 2) for end in level_band()]
        [0.95, 1.05]
    """
    return 1 / BAND, BAND


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau (b) of two lists, and what chance gives: two standard deviations of tau without any relation.

    Raises:
        ValueError: the lists differ in length, or have fewer than three entries.

    Example:
        >>> [round(number, 2) for number in rank_correlation([1, 2, 3, 4], [1, 3, 2, 4])]
        [0.67, 0.98]
    """
    n = len(x)
    if n != len(y) or n < 3:
        raise ValueError(
            f"rank_correlation needs two lists of equal length, three entries or more, got {n} and {len(y)}"
        )
    signs = [np.sign(np.subtract.outer(values, values)) for values in (np.asarray(x, float), np.asarray(y, float))]
    kept = math.prod(float((sign != 0).sum()) for sign in signs)
    tau = float((signs[0] * signs[1]).sum()) / math.sqrt(kept) if kept else 0.0
    return tau, 2 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def draw_map(ax: Axes, rows: Sequence[Row]) -> None:
    """One line for each object: a mark at its gain over the best rival, a cross at its gain over the null.

    The axis is logarithmic; a gray band marks what is level. Groups stand apart, in the order of the rows.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> draw_map(ax, load()[:2])
        >>> [label.get_text() for label in ax.get_yticklabels()] == [row.object for row in load()[:2]]
        True
    """
    places, labels, height, group = [], [], 0.0, None
    for row in rows:
        if row.group != group:
            height, group = height + 1.25, row.group
            at = {"xycoords": ax.get_yaxis_transform(), "annotation_clip": False, "fontweight": "bold"}
            ax.annotate(row.group, (-0.02, height), ha="right", va="center", color="0.25", **at)
        height += 0.95
        color, marker, _ = LOOKS[row.verdict]
        ax.plot([1, row.gain], [height, height], color=color, linewidth=1.6, marker="", zorder=2)
        ax.plot(row.gain, height, color=color, marker=marker, markersize=9, linestyle="", zorder=4)
        if row.over_null:
            outlined = [withStroke(linewidth=4, foreground="white")]
            look = {"marker": "x", "markersize": 6, "markeredgewidth": 1.8, "linestyle": "", "zorder": 5}
            ax.plot(row.over_null, height, color=NULL, path_effects=outlined, **look)
        places.append(height)
        labels.append(row.object)
    ax.axvspan(*level_band(), color="0.8", zorder=0, linewidth=0)
    ax.axvline(1, color="0.4", linewidth=1, marker="", zorder=1)
    ax.set(xscale="log", ylim=(height + 0.8, 0.2), xlabel="gain: times as much error as the train (log)")
    ax.set_yticks(places, labels)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    low, high = ax.get_xlim()
    ax.set_xticks([tick for tick in ticks if low <= tick <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    ax.xaxis.set_minor_formatter(NullFormatter())
    keys = [Line2D([], [], color=c, marker=m, linestyle="", markersize=9, label=said) for c, m, said in LOOKS.values()]
    keys.append(Line2D([], [], color=NULL, marker="x", linestyle="", markeredgewidth=1.8, label="gain over the null"))
    ax.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(-0.55, 1.0), ncols=2, borderaxespad=0.2, handletextpad=0.3
    )
