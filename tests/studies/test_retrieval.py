"""The study of document indexes: measures by hand and by scikit-learn, ways of storing recomputed, a slice again."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, ndcg_score
from strategies import gaussian

from book.tools.results import RESULTS
from studies.retrieval import data, harness, methods, metrics, peers, speed, stacks, study, summary

pytest.importorskip("faiss")
DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


def unit(shape, seed=0):
    return torch.nn.functional.normalize(gaussian(shape, seed, torch.float32), dim=-1)


def documents(count=200, width=24):
    """Vectors whose variances fall, so that directions differ."""
    return torch.nn.functional.normalize(unit((count, width)) * 0.9 ** torch.arange(width), dim=1)


# --- measures --------------------------------------------------------------------------------------------------------


def test_measures_by_hand():
    ranking = torch.tensor([[2, 0, 1, 3], [0, 1, 2, 3]])
    gains = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 3]])
    assert metrics.average_precision(ranking, gains).tolist() == [1, 0.25]
    assert metrics.recall(ranking, gains, 1).tolist() == [0.5, 0]
    assert metrics.ndcg(ranking, gains, 2).tolist() == [1, 0]
    swapped = metrics.ndcg(torch.tensor([[0, 2, 1, 3]]), gains[:1], 10).item()
    assert swapped == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)))
    assert metrics.overlap(ranking, torch.tensor([[2, 3, 1, 0], [0, 1, 3, 2]]), 2).tolist() == [0.5, 1]


@pytest.mark.parametrize("k", [3, 10, 40])
def test_measures_are_those_of_scikit_learn(k):
    draw = torch.Generator().manual_seed(k)
    scores = torch.rand(12, 40, generator=draw)
    gains = torch.randint(0, 5, (12, 40), generator=draw).float()
    ranking = methods.ordered(scores)
    ours, theirs = metrics.ndcg(ranking, gains, k), [ndcg_score(gains[[i]], scores[[i]], k=k) for i in range(12)]
    assert ours.tolist() == pytest.approx(theirs)
    theirs = [average_precision_score(gains[i] > 0, scores[i]) for i in range(12)]
    assert metrics.average_precision(ranking, gains).tolist() == pytest.approx(theirs)


def test_errors_are_paired_over_queries():
    gains = torch.eye(4)[[0, 1, 1]]
    dense = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3]])
    ranking = torch.tensor([[1, 0, 2, 3], [1, 0, 2, 3], [1, 0, 2, 3]])
    row = metrics.judged(ranking, dense, gains)
    assert row["map_minus_dense"] == pytest.approx(0) and row["map"] == pytest.approx(2.5 / 3)
    assert row["map_se"] == pytest.approx(np.std([-0.5, 0, 0.5], ddof=1) / 3**0.5)
    assert row["recall_100_se"] == 0


# --- data ------------------------------------------------------------------------------------------------------------


def test_cranfield_counts_queries_by_their_order(tmp_path):
    folder = tmp_path / "cranfield"
    folder.mkdir()
    folder.joinpath("cran.all.1400").write_text(".I 1\n.T\nfirst\n.A\n.B\n.W\na wing\nin air .\n.I 2\n.T\nnone\n.W\n")
    folder.joinpath("cran.qry").write_text(".I 001\n.W\nwhich wing\n.I 004\n.W\nwhat\n air\n")
    folder.joinpath("cranqrel").write_text("1 1 1 \n1 2 -1\n2 2 4\n\n")
    texts, queries, gains = data.cranfield(tmp_path)
    assert (texts, queries) == (["a wing in air .", ""], ["which wing", "what air"])
    assert gains.tolist() == [[4, 0], [0, 1]]


def test_mixtures_have_the_spread_of_real_vectors():
    real = documents(500)
    made = data.mixtures(real, 2000)
    assert torch.equal(made, data.mixtures(real, 2000)) and len(made.unique(dim=0)) == 2000
    assert torch.allclose(made.norm(dim=1), torch.ones(2000), atol=1e-5)
    for part in (made, torch.nn.functional.normalize(unit((2000, 24), 3), dim=1)):
        near = (part @ real.mT).amax(1).mean()
        assert (near > 0.9) == (part is made)
    ours, theirs = (np.linalg.eigvalsh(np.cov(x.mT.numpy()))[::-1] for x in (made, real))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


@needs_data
def test_texts_are_encoded_as_in_the_other_studies():
    from studies.embeddings.encoder import Encoder

    texts = data.medlars(Path(DATA))[1][:6]
    judge = object.__new__(Encoder)
    judge.model, judge.tokenizer = data.minilm().model, data.minilm().tokenizer
    views = data.encoded(texts)
    assert views.shape == (6, len(data.LAYERS), 384)
    assert torch.allclose(views[:, -1], judge.vectors(texts), atol=1e-5)


# --- ways of storing -------------------------------------------------------------------------------------------------


def ranked(found, scores, within=1e-6):
    """Whether a ranking orders documents by these scores."""
    kept = scores.gather(1, found)
    return bool((kept[:, :-1] >= kept[:, 1:] - within).all()) and torch.equal(
        found.sort(1).values, torch.arange(scores.shape[1]).expand(scores.shape)
    )


def test_principal_components_are_those_of_scikit_learn():
    x, q = documents(), documents(7)
    built = methods.pca(x, 6, torch.float32)
    fitted = PCA(6, svd_solver="full").fit(x.numpy())
    again = torch.from_numpy(fitted.inverse_transform(fitted.transform(x.numpy())))
    assert ranked(built.rank(q), q @ again.mT, within=2e-3)  # axes are rounded to float16
    assert not ranked(methods.floats(x).rank(q), q @ again.mT, within=2e-3)
    assert built.document == 24 and built.shared == 2 * 24 * 6 + 4 * 24


def test_signs_and_rescoring_one_document_at_a_time():
    x, q = documents(60), documents(5)
    centered = x.numpy() - x.numpy().mean(0)
    scores = torch.from_numpy(np.where(centered >= 0, 1.0, -1.0).astype(np.float32))
    assert ranked(methods.one_bit(x).rank(q), q @ scores.mT)
    built = methods.one_bit_rescored(x, methods.floats, candidates=10)
    assert built.document == 24 / 8 + 4 * 24
    for query, found in zip(q, built.rank(q).tolist(), strict=True):
        rough = sorted(range(60), key=lambda k: -float(query @ scores[k]))
        best = sorted(rough[:10], key=lambda k: -float(query @ x[k]))
        assert found == best + rough[10:]


@pytest.mark.parametrize("rotate", [True, False])
def test_the_index_ranks_by_what_it_stores(rotate):
    from ttref.retrieval import TTIndex

    x, q = documents(), documents(9)
    built = methods.tt_index(x, 16, bits=4, rotate=rotate)
    index = TTIndex(16, bits=4, rotate=rotate).fit(x)
    assert ranked(built.rank(q), q @ index.dense().mT)
    assert built.document == 16 / 2 + 2 and built.shared + built.document * len(x) == index.nbytes


def test_faiss_decodes_what_it_ranks_by():
    x, q = documents(), documents(4)
    built = methods.by_faiss(x, "SQ8")
    low, span = x.amin(0), x.amax(0) - x.amin(0)
    again = low + ((x - low) / span * 255).floor() / 255 * span + span / 510
    scores = q @ again.mT
    assert (scores.gather(1, built.rank(q)[:, :1]) >= scores.amax(1, keepdim=True) - 1e-3).all()
    assert built.document == 24 and 8 * 24 <= built.shared <= 8 * 24 + 200


@pytest.mark.parametrize("factory", ["OPQ6,PQ6x4", "PQ6x4fs"])
def test_product_quantizers_find_all_documents(factory):
    index, shared, document = peers.faiss_index(documents(), factory)
    found = index.search(documents(3).numpy(), 200)[1]
    assert (np.sort(found, 1) == np.arange(200)).all()
    assert document == 3 and shared >= 4 * 16 * 24 + (4 * 24 * 24 if "OPQ" in factory else 0)


def test_trains_of_rows_are_billed_whole():
    x = documents(50, 32)
    exact = methods.row_trains(x, eps=1e-6, turned=False)
    assert exact.document == 4 * 32 and exact.shared == 0
    turned = methods.row_trains(x, rank=2, turned=True)
    assert turned.shared == 4 * 32 * 33 and turned.document == int(turned.document) < 40


def test_stacks_are_ranked_by_the_sum_of_their_views():
    x, q = unit((80, 3, 16)), unit((5, 3, 16), 1)
    sums = (q[:, None] * x).sum(3)
    assert torch.allclose(stacks.flat(q) @ stacks.flat(x).mT, sums.mean(2), atol=1e-6)
    third = partial(stacks.joint, shape=(3, 16), rank=8)
    for way in (stacks.each, stacks.joint, third, stacks.dimensions_first, stacks.last, stacks.product):
        exact = methods.ordered(sums[..., -1] if way is stacks.last else sums.sum(2))
        built = way(x, 24)
        found = built.rank(stacks.flat(q))
        assert torch.equal(found.sort(1).values, torch.arange(80).expand(5, 80)), way
        assert metrics.overlap(found, exact).mean() > 0.4 and 10 <= built.document <= 18, way


def test_the_plug_in_speaks_the_grammar_of_the_harness(monkeypatch):
    monkeypatch.setattr(harness, "SIZES", ((16, 8),))
    known = {}
    harness.plug_in(lambda name, bits: lambda function: known.setdefault(name, function))
    x, q = documents().numpy(), documents(6).numpy()
    scores, size = known["tt-16x8"](x, q)
    assert scores.shape == (6, 200) and size == 18
    assert np.abs(scores - q @ methods.TTIndex(16, bits=8).fit(x).dense().numpy().T).max() < 0.01


# --- times and summary -----------------------------------------------------------------------------------------------


def test_ratios_are_to_the_fastest_dense_search_of_the_same_round():
    times = {speed.DENSE[0]: [4, 8, 4], speed.DENSE[1]: [5, 9, 6], speed.DENSE[2]: [8, 16, 9], "ours": [2, 2, 1]}
    found = speed.compared(times)
    assert found["ours"] == {"ms": 2, "ratio": 4}  # of 2, 4, 4
    assert found[speed.DENSE[0]]["ratio"] == 1 and found[speed.DENSE[2]]["ratio"] == 0.5


def test_every_contender_finds_the_nearest(monkeypatch):
    monkeypatch.setattr(speed, "FACTORIES", ("SQ8", "PQ192x4fs", "RaBitQfs4"))
    monkeypatch.setattr(speed, "BLOCK", 64)
    monkeypatch.setattr(speed, "BATCHES", (1, 8))
    x = unit((300, 384))
    rows = speed.measured(x, x[:8] + 0.02 * unit((8, 384), 1), torch.get_num_threads(), rounds=1)
    assert {row["name"] for row in rows} >= {
        *speed.DENSE,
        *summary.FASTER["int8"][0],
        *summary.FASTER["4 bit through FAISS"][0],
    }
    for row in rows:
        assert row["recall_10_of_dense"] >= (0.99 if row["name"] in speed.DENSE else 0.4), row
        assert row["ms_8"] > 0 and row["ratio_1"] > 0


def test_bytes_in_three_accounts():
    found = summary.billed(98, 50_000, 1000)
    assert found["everything"] == 98 + 4 + 50 and found["everything_of_many"] == 98 + 4 + 0.5


def made_rows(*values):
    names = "collection", "method", "family", "document", "recall_10_of_dense", "map", "ndcg_10", "recall_100"
    return [dict(zip(names, row, strict=True)) | summary.billed(row[3], 0, 10) for row in values]


def test_means_fronts_and_bars():
    rows = made_rows(
        ("A", "float32", "floats", 1536, 1, 0.5, 0.8, 1),
        ("A", summary.NINETY_SIX, "ours", 98, 0.9, 0.5, 0.76, 1),
        ("A", "worse", "ours", 200, 0.8, 0.4, 0.7, 1),
        ("B", "float32", "floats", 1536, 1, 0.2, 0.4, 1),
        ("B", summary.NINETY_SIX, "ours", 98, 0.84, 0.1, 0.4, 1),
        ("B", "worse", "ours", 200, 0.8, 0.1, 0.3, 1),
        ("B", "once", "ours", 1, 0.8, 0.1, 0.3, 1),
    )
    found = summary.summed_up({"quality": rows})
    assert [row["method"] for row in found["means"]] == ["float32", summary.NINETY_SIX, "worse"]
    ours = found["means"][1]
    assert ours["recall_10_of_dense"] == pytest.approx(0.87) and ours["map_of_dense"] == pytest.approx(0.75)
    assert all(each["front"] == [summary.NINETY_SIX, "float32"] for each in found["fronts"])
    assert [row["met"] for row in found["bars"]] == [True, True, False]
    fast = {"ratio_1": 4.0, "ratio_32": 4.0, "ratio_256": 6.0, "recall_10_of_dense": 0.8}
    names = (*summary.FASTER["int8"][0], summary.NINETY_SIX, *summary.FASTER["4 bit through FAISS"][0])
    case = {"documents": summary.MANY, "threads": 1}
    case["contenders"] = [fast | {"name": name} for name in names]
    case["contenders"].append(fast | {"name": summary.PLAIN, "recall_10_of_dense": 0.7})
    bars = summary.bars(found["means"], [case, case | {"documents": 1000}])[3:]
    assert [row["met"] for row in bars] == [True, True, False, True, False, False, True]


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))


def test_the_summary_follows_from_the_rows(recorded):
    again = study.brief(summary.summed_up(recorded))
    for name in ("fronts", "bars"):
        assert [each.keys() for each in again[name]] == [each.keys() for each in recorded[name]]
    assert [each["front"] for each in again["fronts"]] == [each["front"] for each in recorded["fronts"]]
    for ours, theirs in zip(again["means"], recorded["means"], strict=True):
        assert ours.keys() == theirs.keys() and ours["method"] == theirs["method"]
        for name in ours.keys() - {"method", "family"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (ours["method"], name)
    for section in ("quality", "stacks"):
        keys = [row["key"] for row in recorded[section]]
        assert len(set(keys)) == len(keys)


def test_no_train_is_on_the_front(recorded):
    """Neither one for each document nor shared cores that are a train, at any size, in any account."""
    families = {row["method"]: row["family"] for row in recorded["means"]}
    for front in recorded["fronts"]:
        if front["measure"] == "recall_10_of_dense":
            assert not {"train per row", "TTIndex, shared train"} & {families[name] for name in front["front"]}


def test_a_third_core_for_views_never_leads(recorded):
    """By what is found of the dense ranking: one code for all views finds as much, to a standard error."""
    for name in data.READERS:
        rows = [row for row in recorded["stacks"] if row["collection"] == name]
        for third in (row for row in rows if row["family"] == "third core"):
            (flat,) = (row for row in rows if row["method"] == f"all views in one code, {third['method'][-3:].strip()}")
            assert third["recall_10_of_dense"] <= flat["recall_10_of_dense"] + third["recall_10_of_dense_se"], third
            assert third["document"] <= flat["document"]


@needs_data
def test_a_slice_is_measured_again(recorded):
    expected = {row["key"]: row for row in recorded["slice"]}
    rows = list(study.few("MEDLARS", Path(DATA), {}))
    assert {row["key"] for row in rows} == set(expected)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(expected[row["key"]][name], abs=0.02), (row["key"], name)
