"""Token tables in fewer bytes: sizes by hand, fits in their own norms, the encoder put back, the record and a slice."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from strategies import gaussian
from torch import nn
from transformers import BertConfig, BertModel

from book.tools.results import RESULTS
from studies.retrieval import data, tables
from ttref import TTMEmbedding, replace_embedding

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")
ROWS, WIDTH = 600, 48
WAYS = {way.key: way for way in tables.ways()}
TEXTS = ["a wing in a slipstream", "the liver of a rat", "heat is carried away by the air"]


def dense():
    return data.minilm().model.get_input_embeddings()


@pytest.fixture
def table():
    """Frequent rows with large first coordinates, rare ones with large last ones; weights over three orders."""
    rows = gaussian((ROWS, WIDTH), 0, torch.float32) * 0.9 ** torch.arange(WIDTH) + 0.1
    rows[ROWS // 2 :] = rows[ROWS // 2 :].flip(1)
    return rows, torch.logspace(3, 0, ROWS, dtype=torch.float64)


# --- ways of storing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", WAYS)
def test_a_way_keeps_a_table_in_the_bytes_it_says(key, table, tmp_path, monkeypatch):
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path))
    rows, weight = table
    found = WAYS[key].keep(rows, weight)
    assert found.rows.shape == rows.shape and found.rows.isfinite().all()
    whole, family = 4 * ROWS * WIDTH, WAYS[key].family
    if family == "integers":
        bits = int(key[3])
        assert (found.nbytes, found.numbers) == (ROWS * WIDTH * bits // 8 + 2 * ROWS, ROWS * (WIDTH + 1))
    elif family == "product quantization":
        pieces = int(key.split()[0])
        assert found.nbytes == ROWS * pieces + 4 * 256 * WIDTH and found.numbers == ROWS * pieces + 256 * WIDTH
        assert all(len(part.unique(dim=0)) <= 256 for part in found.rows.chunk(pieces, dim=1))
    elif "turned" in family:
        frame = 4 * WIDTH * (WIDTH + 1)
        codes, scales = found.numbers - frame // 4 - ROWS, 2 * ROWS
        assert found.nbytes == frame + codes + scales and 4 * found.numbers > found.nbytes
    else:
        assert found.nbytes == 4 * found.numbers
    if key.endswith("x"):
        ratio = int(key.split()[-1][:-1])
        assert 0.4 * whole / ratio < found.nbytes <= whole / ratio
        smallest = min(WIDTH, int(key.startswith("SVD")) * found.numbers // (ROWS + WIDTH) or WIDTH)
        assert torch.linalg.matrix_rank(found.rows.double(), rtol=1e-4) <= smallest


@pytest.mark.parametrize("kind", ["SVD", "TT-matrix"])
def test_each_fit_is_the_better_one_in_its_own_norm(kind, table):
    rows, weight = table
    plain, counted = (WAYS[key].keep(rows, weight) for key in (f"{kind}, 9x", f"{kind}, fitted by counts, 9x"))
    assert plain.nbytes == counted.nbytes

    def error(found, of_rows):
        return float((of_rows[:, None] * (found.rows - rows).double() ** 2).sum())

    flat = torch.ones(ROWS, dtype=torch.float64)
    assert error(counted, weight) < 0.9 * error(plain, weight)
    assert error(plain, flat) < 0.98 * error(counted, flat)


def test_weighted_factors_are_the_best_of_their_rank(table):
    """Against the SVD of the weighted rows by NumPy's own routine."""
    rows, weight = table
    found = WAYS["SVD, fitted by counts, 9x"].keep(rows, weight)
    rank = found.numbers // (ROWS + WIDTH)
    values = torch.linalg.svdvals(weight.sqrt()[:, None] * rows.double())
    error = (weight[:, None] * (found.rows - rows).double() ** 2).sum()
    assert error == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-3)


def test_sizes_count_the_model_without_its_table(monkeypatch):
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config, add_pooling_layer=False)
    monkeypatch.setattr(tables, "minilm", lambda: SimpleNamespace(model=model))
    rest = sum(each.numel() for each in model.parameters()) - 50 * 16
    found = tables.sizes(tables.Kept(torch.zeros(50, 16), 400, 150))
    assert found["table_ratio"] == 8 and found["model_numbers"] == rest + 150
    assert found["model_bytes"] == 4 * rest + 400
    assert found["model_ratio"] == pytest.approx(4 * (rest + 800) / (4 * rest + 400))


# --- the encoder -----------------------------------------------------------------------------------------------------


def test_the_dense_table_gives_the_dense_vectors_and_comes_back():
    before, rows, texts = dense(), dense().weight.detach(), tables.Texts(TEXTS)
    same, first = tables.encoded(rows, texts, tables.Texts(TEXTS[:1]))
    torch.testing.assert_close(same, data.encoded(TEXTS)[:, -1], atol=1e-5, rtol=0)
    torch.testing.assert_close(first, same[:1], atol=1e-5, rtol=0)
    (other,) = tables.encoded(torch.zeros_like(rows), texts)
    assert ((other * same).sum(1) < 0.9).all()
    assert dense() is before and torch.equal(dense().weight, rows)


def test_a_long_text_is_read_to_its_limit():
    long = " ".join(["wing"] * 300)
    one, other = tables.Texts([long]).batches, tables.Texts([long + " heat"]).batches
    assert one[0].shape == (1, tables.LENGTH) and torch.equal(one[0], other[0])


def test_the_table_comes_back_after_an_error():
    def fail():
        assert dense() is not before
        raise KeyboardInterrupt

    before = dense()
    with pytest.raises(KeyboardInterrupt):
        tables.encoded(torch.zeros_like(before.weight), fail)
    assert dense() is before


def test_rows_stand_for_the_compressed_table_itself():
    """The study looks rows up in what a TT-matrix stands for; a model that holds the cores gives the same vectors."""
    model, texts = data.minilm().model, tables.Texts(TEXTS)
    small = TTMEmbedding.from_embedding(dense(), row_shape=(32, 31, 31), col_shape=(6, 8, 8), rank=4)
    (expected,) = tables.encoded(small.to_embedding().weight.detach(), texts)
    before, _ = replace_embedding(model, small)
    try:
        found = texts()
    finally:
        replace_embedding(model, before)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert isinstance(dense(), nn.Embedding)


def test_a_search_with_tiny_texts_is_judged_row_by_row(tmp_path, monkeypatch):
    """What goes through: sizes, the ranking of the dense table against itself, and no way that is in the record."""
    ways = [WAYS["float32"], WAYS["int8 rows"]]
    monkeypatch.setattr(tables, "ways", lambda: iter(ways))
    monkeypatch.setattr(tables, "weights", lambda folder: None)
    monkeypatch.setitem(data.READERS, "tiny", lambda folder: (TEXTS, TEXTS[1:], torch.eye(3)[1:]))
    first, second = tables.rows("tiny", tmp_path, {})
    assert first["ndcg_10"] == second["ndcg_10"] == 1 and second["ndcg_10_se"] == 0
    assert first["cosine"] == pytest.approx(1) and 0.999 < second["cosine"]
    assert first["error"] == 0 < second["error"] < 0.01
    assert second["key"] == "tiny: int8 rows" and list(tables.rows("tiny", tmp_path, {"tiny: float32": first}))
    assert not list(tables.rows("tiny", tmp_path, {row["key"]: row for row in (first, second)}))


# --- counts and the record -------------------------------------------------------------------------------------------


@needs_data
def test_every_token_counts_and_frequent_ones_more():
    weight = tables.weights(Path(DATA))
    assert weight.shape == (30_522,) and weight.min() == 1
    ids = data.minilm().tokenizer.convert_tokens_to_ids(["the", "film", "aortic"])
    the, film, aortic = weight[ids].tolist()
    assert the > 10_000 and the > 5 * film > 50 * aortic


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))


def test_every_way_is_recorded_on_both_collections(recorded):
    keys = [row["key"] for row in recorded["tables"]]
    assert sorted(keys) == sorted(f"{name}: {key}" for name in data.READERS for key in WAYS)
    floats = {row["key"]: row for row in recorded["quality"] if row["method"] == "float32"}
    for row in recorded["tables"]:
        assert row["table_bytes"] + 4 * (row["model_numbers"] - row["table_numbers"]) == row["model_bytes"]
        assert row["table_ratio"] == pytest.approx(4 * 30_522 * 384 / row["table_bytes"], rel=1e-5)
        if row["method"] == "float32":
            assert row["table_ratio"] == row["model_ratio"] == 1 and row["error"] == 0
            for name in ("ndcg_10", "map", "recall_100"):
                # Half the text is read, so that it finds somewhat less or more.
                assert row[name] == pytest.approx(floats[row["key"]][name], abs=0.05)


def test_trains_are_behind_a_smaller_rival(recorded):
    """In nDCG@10, on both collections: behind product quantization of 1.9 MB; at 44x next to nothing."""
    at = {(row["collection"], row["method"]): row for row in recorded["tables"]}
    for name in data.READERS:
        rival, dense_row = at[name, "48 pieces of 8 bits"], at[name, "float32"]
        trains = [at[name, key] for key in WAYS if "train" in key or "TT" in key]
        assert all(row["ndcg_10"] < rival["ndcg_10"] for row in trains if row["table_bytes"] > rival["table_bytes"]), (
            name
        )
        assert at[name, "TT-matrix, 44x"]["ndcg_10"] < 0.1 * dense_row["ndcg_10"]
        for ratio in (tables.SMALLER, tables.SOURCES_RATIO):
            plain, fitted = (at[name, f"{kind}, {ratio}x"] for kind in ("TT-matrix", "TT-matrix, fitted by counts"))
            assert fitted["ndcg_10"] > 2 * plain["ndcg_10"] and plain["error"] < fitted["error"]
        assert abs(at[name, "int4 rows"]["ndcg_10_minus_dense"]) < 0.01


@needs_data
@pytest.mark.parametrize("key", ["int4 rows", "SVD, 44x", "train per row, centered, turned, int8, rank 2"])
def test_queries_are_encoded_again(recorded, key):
    """A slice: the short texts, whose vectors take a second."""
    (row,) = (row for row in recorded["tables"] if row["key"] == f"MEDLARS: {key}")
    queries, found = tables.Texts(data.medlars(Path(DATA))[1]), tables.kept(key, Path(DATA))
    (after,) = tables.encoded(found.rows, queries)
    assert (after * queries()).sum(1).mean() == pytest.approx(row["query_cosine"], abs=0.02)
    expected = tables.sizes(found)
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
