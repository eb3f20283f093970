"""Slices of the advice for four models, made again, and what the pages say of them."""

import json
import os
from pathlib import Path

import pytest

from book.tools.results import RESULTS
from studies.advise import study
from ttref.advice.kinds import POSITIONS

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "advise.json").read_text(encoding="utf-8"))


@needs_data
@pytest.mark.parametrize("name", ["GPT-2, 7 matrices", "ViT, CIFAR-10"])
def test_a_model_gets_the_recorded_advice(name, recorded):
    found, expected = study.advice(study.models(Path(DATA))[name]()), recorded["models_advised"][name]
    for row, kept in zip(found["rows"], expected["rows"], strict=True):
        for key in ("train", "svd", "noise", "integers"):
            assert row[key] == pytest.approx(kept[key], rel=0.02)
        assert {key: row[key] for key in study.PARTS[:6]} == {key: kept[key] for key in study.PARTS[:6]}


@needs_data
def test_an_estimate_is_as_recorded(recorded):
    name = "GPT-2, attention out"
    found = study.compared(study.whole_matrices(Path(DATA))[name], 0.2)
    for key in ("train", "svd", "integers"):
        assert found[key] == pytest.approx(recorded["estimates"][name][0][key], rel=0.02)


def test_integers_win_everywhere_but_on_positions(recorded):
    for model in recorded["models_advised"].values():
        for row in model["rows"]:
            if row["part"] != POSITIONS:
                assert set(row["verdict"]) <= {"integers"} and set(row["agreed"]) <= {row["matrices"]}


def test_estimates_from_some_rows_agree_with_the_whole_in_the_verdict(recorded):
    assert len(recorded["estimates"]) == 4
    for rows in recorded["estimates"].values():
        assert all(len(set(row["verdicts"])) == 1 for row in rows)
