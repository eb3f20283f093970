"""Squared overlaps against cosines, and ranks by three rules: the proofs hold on made data, the record on real ones."""

import json
import os
from pathlib import Path

import pytest
import torch
from strategies import gaussian

from book.tools.results import RESULTS
from book.workbook.quantum import train_errors
from studies.retrieval import metrics, overlaps, ranks
from ttref import gaussian_null, tt_params, tt_svd, tt_to_tensor, ttm_svd, ttm_to_matrix
from ttref.shapes import balanced_modes

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))


def unit(shape, seed):
    return torch.nn.functional.normalize(gaussian(shape, seed, torch.float32), dim=1)


def some_gains(queries, documents):
    return (gaussian((queries, documents), 9) > 1.5).float() + torch.eye(queries, documents)


# --- overlaps --------------------------------------------------------------------------------------------------------


def test_without_a_negative_cosine_nothing_moves():
    x, q = unit((80, 12), 0).abs(), unit((7, 12), 1).abs()
    found = overlaps.compared(x, q, some_gains(7, 80))
    assert found["negative"] == found["entered"] == found["queries_changed"] == 0
    assert found["recall_10_of_dense"] == 1 and found["map_minus_dense"] == found["ndcg_10_minus_dense"] == 0


def test_only_negative_cosines_overtake_and_among_themselves_they_are_reversed():
    x, q = unit((80, 12), 0), unit((7, 12), 1)
    found = overlaps.compared(x, q, some_gains(7, 80))
    cosines = q @ x.mT
    assert found["negative"] == int((cosines < 0).sum()) and found["pairs"] == 560
    assert found["others_keep_their_order"]
    plain, squared = (scores.argsort(1, descending=True).argsort(1) for scores in (cosines, cosines.abs()))
    before, after = (places[:, :, None] < places[:, None, :] for places in (plain, squared))
    negative = cosines < 0
    both, mixed = (way(negative[:, :, None], negative[:, None, :]) for way in (torch.logical_and, torch.logical_xor))
    assert torch.equal(before[~both & ~mixed], after[~both & ~mixed])
    assert torch.equal(before[both], after.mT[both])
    overtaken = mixed & (before != after) & before
    assert overtaken.any() and not (overtaken & negative[:, :, None]).any()
    entered = (squared < 10) & (plain >= 10)
    assert negative[entered].all() and found["entered"] == int(entered.sum()) > 0
    assert found["queries_changed"] == int(entered.any(1).sum())
    assert found["least"] == pytest.approx(cosines.min().item())
    tenth = cosines.sort(1, descending=True).values[:, 9].mean().item()
    assert found["tenth"] == pytest.approx(tenth, abs=1e-6)
    moved = metrics.ndcg(cosines.abs().argsort(1, descending=True), some_gains(7, 80)).mean().item()
    assert found["ndcg_10"] == pytest.approx(moved)


def test_a_broken_order_would_be_seen(monkeypatch):
    """The record's sentence is no constant: with another order it says so."""
    real, calls = overlaps.ordered, []

    def turned(scores):
        calls.append(1)
        return real(scores).flip(1) if len(calls) == 2 else real(scores)

    monkeypatch.setattr(overlaps, "ordered", turned)
    assert not overlaps.compared(unit((30, 8), 0), unit((3, 8), 1), some_gains(3, 30))["others_keep_their_order"]


def test_nearly_equal_cosines_stay_apart_when_squared():
    """In float32 both squares would be one number, and the order would be that of the places."""
    low = torch.tensor(0.7)
    high = torch.nextafter(low, torch.tensor(1.0))
    x = torch.cat([torch.stack([low, high, -low]), torch.full((9,), 0.1)])[:, None]
    found = overlaps.compared(x, torch.ones(2, 1), torch.eye(12)[[1, 1]])
    assert found["map"] == 1 and found["others_keep_their_order"] and found["map_minus_dense"] == 0


def test_centered_vectors_have_no_mean_and_norm_one():
    x, q = unit((50, 8), 2) + 1, unit((5, 8), 3) + 1
    made = overlaps.views(x, q)
    assert torch.equal(made["as encoded"][0], x)
    for part, source in zip(made["centered"], (x, q), strict=True):
        assert torch.allclose(part.norm(dim=1), torch.ones(len(part)), atol=1e-6)
        turned = (source - x.mean(0)) / (source - x.mean(0)).norm(dim=1, keepdim=True)
        assert torch.allclose(part, turned, atol=1e-6)


def test_the_record_of_overlaps_says_what_was_proved(recorded):
    rows = recorded["overlaps"]
    assert {(row["collection"], row["vectors"]) for row in rows} == {
        (name, view) for name in ("MEDLARS", "Cranfield") for view in ("as encoded", "centered")
    }
    for row in rows:
        assert row["others_keep_their_order"] and row["entered"] <= row["negative"]
        assert row["recall_10_of_dense"] == pytest.approx(1 - row["entered"] / (10 * row["queries"]), rel=1e-5)
        if -row["least"] < row["tenth"] / 10:
            assert row["entered"] == 0


@needs_data
def test_overlaps_are_measured_again(recorded):
    expected = {row["key"]: row for row in recorded["overlaps"]}
    for row in overlaps.rows("", Path(DATA), {key: row for key, row in expected.items() if "MEDLARS" not in key}):
        before = expected[row["key"]]
        assert row["pairs"] == before["pairs"] and abs(row["negative"] - before["negative"]) <= 0.001 * row["pairs"]
        for name in ("map", "ndcg_10", "map_minus_dense", "ndcg_10_minus_dense", "least", "tenth"):
            assert row[name] == pytest.approx(before[name], abs=0.01), (row["key"], name)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_a_matrix_is_folded_as_a_matrix_train_folds_it():
    w = gaussian((2 * 3 * 4, 3 * 3 * 5), 0)
    rows, columns = (balanced_modes(side) for side in w.shape)
    x = ranks.folded(w)
    cores = ttm_svd(w, rows, columns, rank=4)
    gap = torch.linalg.vector_norm(ttm_to_matrix(cores) - w)
    again = torch.linalg.vector_norm(tt_to_tensor(tt_svd(x, rank=4)) - x)
    assert tuple(x.shape) == tuple(m * n for m, n in zip(rows, columns, strict=True))
    assert gap.item() == pytest.approx(again.item()) and again > 0.1


def test_a_width_that_does_not_split_is_padded():
    w = gaussian((151, 12), 0)
    x = ranks.folded(w)
    assert x.numel() > w.numel() and x.square().sum().item() == pytest.approx(w.square().sum().item())


def test_rules_share_one_budget():
    x = ranks.folded(gaussian((64, 64), 0))
    params = ranks.budget(x.shape, 1024)
    assert params <= 1024 < tt_params(x.shape, 1 + max(ranks.ranks_for(x, params=params, by="uniform")))
    found = ranks.shared_out(x, train_errors(x), params)
    assert set(found) == {*ranks.RULES, "best"} and found["uniform"]["params"] == params
    for row in found.values():
        assert row["params"] == tt_params(x.shape, (1, *row["ranks"], 1)) <= params
        assert row["error"] >= found["best"]["error"]
        gap = torch.linalg.vector_norm(tt_to_tensor(tt_svd(x, rank=(1, *row["ranks"], 1))) - x)
        assert row["error"] == pytest.approx((gap / torch.linalg.vector_norm(x)).item(), abs=1e-6)


def test_the_record_of_ranks_holds_together(recorded):
    rows = recorded["ranks"]
    assert len({row["key"] for row in rows}) == len(rows) == 2 * len(ranks.RATIOS) * 14
    for row in rows:
        for rule in (*ranks.RULES, "best"):
            mine = row[rule]
            assert mine["params"] == tt_params(row["modes"], (1, *mine["ranks"], 1)) <= row["params"]
            assert mine["error"] >= row["best"]["error"] > 0


def test_a_matrix_of_the_record_is_measured_again(recorded):
    """It needs no data: the model is installed."""
    (expected,) = (row for row in recorded["ranks"] if row["key"] == "query 2, 4 times fewer")
    _, weight = ranks.matrices()["query 2"]
    x = ranks.folded(weight)
    found = ranks.shared_out(x, train_errors(x), expected["params"])
    for rule in (*ranks.RULES, "best"):
        assert found[rule]["error"] == pytest.approx(expected[rule]["error"], abs=1e-4)
    null = ranks.folded(gaussian_null(weight))
    assert train_errors(null).shape == (x.shape[0], x.shape[2])
