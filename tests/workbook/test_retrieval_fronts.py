"""Fronts of document indexes: the recorded points are drawn, and the band below says who is ahead."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from book.workbook import figures, retrieval_fronts

ROWS = [
    {"family": family, "document": size, "everything": size + 100, "recall_10_of_dense": recall}
    for family, points in {
        "codes": [(24, 0.7), (48, 0.8), (40, 0.6), (200, 0.9)],
        "trains": [(12, 0.3), (100, 0.85), (400, 0.9)],
    }.items()
    for size, recall in points
]
RECALL = {"measure": "recall_10_of_dense"}


@pytest.fixture
def ax():
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    yield axes
    plt.close(figure)


def test_a_family_keeps_what_none_of_its_own_beats():
    found = retrieval_fronts.family_fronts(ROWS, ["trains", "codes"], **RECALL)
    assert list(found) == ["trains", "codes"]
    assert found["codes"] == [(24, 0.7), (48, 0.8), (200, 0.9)]
    shared = retrieval_fronts.family_fronts(ROWS, ["codes"], **RECALL, account="everything")
    assert [size for size, _ in shared["codes"]] == [124, 148, 300]


def test_winners_are_those_of_every_size():
    found = retrieval_fronts.family_fronts(ROWS, ["trains", "codes"], **RECALL)
    won = retrieval_fronts.winners(found)
    assert won == [(12, "trains"), (24, "codes"), (100, "trains"), (200, "codes"), (400, "trains")]
    for size in (12, 24, 30, 48, 99, 100, 150, 200, 399, 1000):
        best = max((row["recall_10_of_dense"], row["family"]) for row in ROWS if row["document"] <= size)
        name = [name for start, name in won if start <= size][-1]
        assert max(recall for at, recall in found[name] if at <= size) == best[0]


def test_the_band_has_the_colors_of_the_winners(ax):
    found = retrieval_fronts.family_fronts(ROWS, ["trains", "codes"], **RECALL)
    retrieval_fronts.bytes_front(ax, found, **RECALL)
    assert [list(zip(*line.get_data(), strict=True)) for line in ax.lines[1:]] == list(found.values())
    trains, codes = figures.OKABE_ITO[:2]
    drawn = [to_hex(patch.get_facecolor()).upper() for patch in ax.patches]
    assert drawn == [color.upper() for color in (trains, codes, trains, codes, trains)]
    assert [patch.get_extents().transformed(ax.transData.inverted()).x0 for patch in ax.patches] == pytest.approx(
        [12, 24, 100, 200, 400]
    )
    assert "bytes" in ax.get_xlabel() and "log" in ax.get_xlabel() and "dense" in ax.get_ylabel()
    assert ax.get_xlim()[0] < 12 and ax.get_xlim()[1] > 400


def test_what_cannot_be_drawn_is_named(ax):
    with pytest.raises(ValueError, match="no rows of 'floats'; there are \\['codes', 'trains'\\]"):
        retrieval_fronts.family_fronts(ROWS, ["floats"], **RECALL)
    with pytest.raises(ValueError, match="measure must be one of .*, got 'speed'"):
        retrieval_fronts.family_fronts(ROWS, ["codes"], measure="speed")
    with pytest.raises(ValueError, match="account must be one of .*, got 'bits'"):
        retrieval_fronts.bytes_front(ax, {"codes": [(1, 1)]}, **RECALL, account="bits")
    with pytest.raises(ValueError, match="at least one point"):
        retrieval_fronts.bytes_front(ax, {}, **RECALL)
