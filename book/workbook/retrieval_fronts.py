"""The front of document indexes: what is still found at each size, and which family finds most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes

from .figures import OKABE_ITO, pareto_frontier
from .fronts import draw_fronts

__all__ = ["bytes_front", "family_fronts", "winners"]

BYTES = tuple(2**k for k in range(3, 13))  # where the axis has its numbers
STRIP = 0.025  # of the height: the band of winners
ACCOUNTS = {
    "document": "bytes a document: codes and scales (log scale)",
    "everything": "bytes a document, everything counted (log scale)",
    "everything_of_many": "bytes a document, everything counted among 100,000 (log scale)",
}
MEASURES = {
    "recall_10_of_dense": "share of the dense first ten that is found",
    "ndcg_10_of_dense": "nDCG@10, dense = 1",
    "map_of_dense": "mean average precision, dense = 1",
}


def family_fronts(
    rows: Sequence[Mapping], families: Sequence[str], *, measure: str, account: str = "document"
) -> dict[str, list[tuple[float, float]]]:
    """The best of each family: (bytes, quality) of the rows that no smaller one of it beats, by rising bytes.

    Args:
        rows: the section ``means`` of the study of retrieval: rows with ``family``, bytes and measures.
        families: the families to draw, in this order.
        measure: one of ``recall_10_of_dense``, ``ndcg_10_of_dense`` and ``map_of_dense``.
        account: ``document`` counts codes and scales, ``everything`` ids and shared tables too,
            ``everything_of_many`` the same among 100,000 documents.

    Raises:
        ValueError: a family without rows, a measure or an account that is not there.

    Example:
        >>> rows = [{"family": "a", "document": b, "map_of_dense": y} for b, y in ((8, 0.5), (9, 0.4), (16, 0.9))]
        >>> family_fronts(rows, ["a"], measure="map_of_dense")
        {'a': [(8, 0.5), (16, 0.9)]}
    """
    _check(measure, account)
    found = {}
    for family in families:
        mine = [(row[account], -row[measure]) for row in rows if row["family"] == family]
        if not mine:
            raise ValueError(f"no rows of {family!r}; there are {sorted({row['family'] for row in rows})}")
        found[family] = [(size, -lost) for size, lost in pareto_frontier(mine)]
    return found


def winners(fronts: Mapping[str, Sequence[tuple[float, float]]]) -> list[tuple[float, str]]:
    """Who wins from which size on: (bytes, family), by rising bytes; of equal ones the family that comes first.

    Args:
        fronts: as :func:`family_fronts` gives them.

    Example:
        >>> winners({"a": [(8, 0.5), (64, 0.9)], "b": [(16, 0.8), (32, 0.95)]})
        [(8, 'a'), (16, 'b')]
    """
    found: list[tuple[float, str]] = []
    for size in sorted({size for points in fronts.values() for size, _ in points}):
        # The fronts rise, so the last point that fits is the best one.
        at = {name: [y for x, y in points if x <= size] for name, points in fronts.items()}
        best = max((name for name in fronts if at[name]), key=lambda name: at[name][-1])
        if not found or found[-1][1] != best:
            found.append((size, best))
    return found


def bytes_front(
    ax: Axes, fronts: Mapping[str, Sequence[tuple[float, float]]], *, measure: str, account: str = "document"
) -> Axes:
    """Draw fronts over bytes a document, with a band along the bottom in the color of the family that wins there.

    Args:
        ax: Axes to draw in.
        fronts: as :func:`family_fronts` gives them.
        measure: that of the fronts; it names the axis.
        account: likewise.

    Returns:
        The Axes.

    Raises:
        ValueError: no family, more than colors, a measure or an account that is not there.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = bytes_front(Figure().subplots(), {"codes": [(16, 0.7), (64, 0.9)]}, measure="map_of_dense")
        >>> [text.get_text() for text in ax.texts], len(ax.patches)
        (['dense, 1,536 bytes', 'codes'], 1)
    """
    _check(measure, account)
    labels = ACCOUNTS[account], MEASURES[measure]
    draw_fronts(ax, fronts, level=1.0, said="dense, 1,536 bytes", ticks=BYTES, labels=labels)
    end = ax.get_xlim()
    won = [*winners(fronts), (end[1], "")]
    colors = dict(zip(fronts, OKABE_ITO, strict=False))
    for (start, name), (stop, _) in pairwise(won):
        ax.axvspan(start, stop, ymax=STRIP, color=colors[name], linewidth=0, zorder=1)
    ax.set_xlim(end)
    return ax


def _check(measure: str, account: str) -> None:
    for name, given, known in (("measure", measure, MEASURES), ("account", account, ACCOUNTS)):
        if given not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {given!r}")
