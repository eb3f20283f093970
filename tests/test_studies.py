"""A small slice of each study, run again and compared with what is recorded. Needs the data that is not shipped."""

import json
import os
from pathlib import Path

import pytest

from studies import overview
from studies.record import RESULTS
from ttref.baselines import gaussian_null

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@needs_data
@pytest.mark.parametrize("eps", [0.3, 0.1])
def test_overview_position_table(eps):
    recorded = json.loads((RESULTS / "overview.json").read_text(encoding="utf-8"))
    table = overview.position_table(Path(DATA))
    for key, weights in (("position_table", table), ("position_null", gaussian_null(table))):
        (expected,) = (row for row in recorded[key] if row["eps"] == eps)
        found = overview.stored_at(weights, eps)
        assert found["tt_ratio"] == pytest.approx(expected["tt_ratio"], rel=0.02)
        assert found["svd_ratio"] == pytest.approx(expected["svd_ratio"], rel=0.02)
        assert found["tt_error"] <= eps


@needs_data
def test_overview_position_integers():
    recorded = json.loads((RESULTS / "overview.json").read_text(encoding="utf-8"))
    table = overview.position_table(Path(DATA))
    for expected in recorded["position_integers"]:
        assert overview.integers(table, expected["bits"]) == pytest.approx(expected, rel=1e-4)


def test_the_two_findings_of_the_introduction():
    recorded = json.loads((RESULTS / "overview.json").read_text(encoding="utf-8"))
    at = {row["eps"]: row for row in recorded["position_table"]}
    assert all(at[eps]["tt_ratio"] > at[eps]["svd_ratio"] for eps in (0.5, 0.3, 0.2, 0.1, 0.05))
    assert at[0.02]["tt_ratio"] < at[0.02]["svd_ratio"]
    smallest_train = min(row["loss_rise_nats"] for row in recorded["token_table"] if row["family"] == "train per token")
    assert all(row["loss_rise_nats"] < smallest_train for row in recorded["token_table"] if row["family"] == "integers")
