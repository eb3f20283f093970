"""The hundred questions as a study: hits by hand, bytes that are billed, answers kept one by one, and the record."""

import json
import platform

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from strategies import gaussian

from book.tools.results import RESULTS
from book.workbook.passages import Passage
from book.workbook.questions import Question, is_right, load_questions
from studies.retrieval import rag, study
from ttref.surgery.paired import mcnemar

WIDTH = 384
PASSAGES = [
    Passage("a", "The first", "apples and pears"),
    Passage("a", "The second", "apples grow on trees"),
    Passage("b", "The third", "boats float"),
    *(Passage("c", f"No {k}", f"nothing of interest {k}") for k in range(60)),
]
QUESTIONS = [
    Question("What grows on trees?", ("a",), (("apples",), ("trees",))),
    Question("What floats?", ("b",), (("boats", "ships"),)),
    Question("What else?", ("b", "c"), ()),
]


@pytest.fixture
def shelf(monkeypatch):
    """Vectors by hand: the first question is nearest to the first two passages, the others to one of "c"."""
    x = torch.nn.functional.normalize(gaussian((len(PASSAGES), WIDTH), 0, torch.float32), dim=1)
    q = torch.stack((2 * x[0] + x[1], 3 * x[5] + 2 * x[2] + 1.5 * x[6], x[5]))
    made = rag.Shelf(PASSAGES, QUESTIONS, x, torch.nn.functional.normalize(q, dim=1))
    monkeypatch.setattr(rag, "filled", lambda: made)
    monkeypatch.setattr(rag, "load_questions", lambda: QUESTIONS)
    rag.first_found.cache_clear()
    yield made
    rag.first_found.cache_clear()


def test_hits_by_hand(shelf):
    dense = (shelf.q @ shelf.x.mT).argsort(1, descending=True)
    row = rag.scored(shelf, dense)
    assert (row["hit_1"], row["hit_3"], row["hit_5"]) == pytest.approx((2 / 3, 1, 1))
    assert (row["lost"], row["won"], row["p"], row["recall_10_of_dense"]) == (0, 0, 1, 1)
    backwards = rag.scored(shelf, dense.flip(1))  # only "c" is found, of which the third question asks
    assert backwards["hit_3"] == pytest.approx(1 / 3) and backwards["recall_10_of_dense"] == 0
    assert (backwards["lost"], backwards["won"], backwards["p"]) == (2, 0, 0.5)
    assert backwards["hit_3_se"] == pytest.approx(np.std([0, 0, 1], ddof=1) / 3**0.5)


def test_every_way_is_measured_once(shelf):
    rows = {row["key"]: row for row in rag.questions({})}
    assert list(rows) == [way.key for way in rag.ways()] and not list(rag.questions(rows))
    assert [row["key"] for row in rag.questions({key: rows[key] for key in list(rows)[1:]})] == ["float32"]
    assert {row["passages"] for row in rows.values()} == {len(PASSAGES)}
    assert {row["python"] for row in rows.values()} == {platform.python_version()}
    assert rows["float32"]["recall_10_of_dense"] == 1 and rows["int8 rows"]["recall_10_of_dense"] > 0.9
    assert all(rows[key]["hit_3"] == 1 for key in rows if key.startswith(("int", "TTIndex 384 x 8")))
    assert rows["any passages"]["recall_10_of_dense"] < 0.5


def test_bytes_that_are_billed(shelf):
    document = {row["key"]: row["document"] for row in rag.questions({})}
    assert document["float32"] == 4 * WIDTH and document["int8 rows"] == WIDTH + 2
    assert document["one bit"] == WIDTH / 8
    assert document[f"one bit, {rag.FEW} rescored with float32"] == WIDTH / 8 + 4 * WIDTH
    assert document["TTIndex 192 x 4 bit"] == 96 + 2 and document["any passages"] == 0


def test_words_alone_are_scikit_learns_cosines(shelf):
    made = rag.by_words(shelf)
    counts = TfidfVectorizer(sublinear_tf=True)
    table = counts.fit_transform([str(passage) for passage in PASSAGES]).toarray()
    scores = counts.transform([question.ask for question in QUESTIONS]).toarray() @ table.T
    for row, ours in zip(scores, made.rank(shelf.q).tolist(), strict=True):
        assert sorted(ours) == list(range(len(PASSAGES)))
        assert (np.diff(row[ours]) <= 1e-6).all()
    assert made.rank(shelf.q)[0, 0] == 1 and made.document == 8 * (table > 0).sum() / len(PASSAGES)
    assert made.shared == sum(len(word) + 4 for word in counts.vocabulary_)


def test_passages_that_are_read(shelf):
    first = rag.first_found("float32")
    assert [len(each) for each in first] == [rag.READ] * 3
    assert first[0][:2] == PASSAGES[:2] and PASSAGES[2] in first[1]
    # The nearest one to the first question is of a source that answers it, but says no word of the answer.
    assert rag.first_found(rag.RIGHT) == [[PASSAGES[1]], [PASSAGES[2]], []]


def test_answers_are_kept_one_by_one(shelf, monkeypatch):
    asked = []

    def answer(lm, ask, read, *, tokens):
        assert tokens == rag.TOKENS
        asked.append((lm, ask, list(read)))
        return "Apples, on trees." if read else "No idea."

    monkeypatch.setattr(rag, "answer", answer)
    monkeypatch.setattr(rag, "reader", lambda: "a model")
    rows = {row["key"]: row for row in rag.answers({})}
    assert len(rows) == len(asked) == 2 * len(rag.CONDITIONS) and {lm for lm, _, _ in asked} == {"a model"}
    assert asked[:2] == [("a model", question.ask, []) for question in QUESTIONS[:2]]
    assert asked[-1] == ("a model", "What floats?", [PASSAGES[2]])
    dense, blind = rows["float32: What grows on trees?"], rows[f"{rag.MEMORY}: What grows on trees?"]
    assert dense["right"] and dense["there"] and dense["read"][:2] == ["a", "a"] and len(dense["read"]) == 3
    assert not blind["right"] and not blind["there"] and blind["read"] == [] and blind["text"] == "No idea."
    assert not rows[f"{rag.RIGHT}: What floats?"]["right"] and rows[f"{rag.RIGHT}: What floats?"]["there"]
    assert not list(rag.answers(rows)) and len(asked) == len(rows)
    del rows["float32: What grows on trees?"]
    assert [row["key"] for row in rag.answers(rows)] == ["float32: What grows on trees?"]


def test_the_study_has_both_parts(shelf, monkeypatch, tmp_path):
    monkeypatch.setattr(study.results, "RESULTS", tmp_path)
    study.run("questions", tmp_path)
    found = study.recorded()
    assert [row["key"] for row in found["questions"]] == [way.key for way in rag.ways()]
    assert "questions" in found["seconds"] and study.MEASURES["answers"] is study.answered
    assert {"questions", "answers"} <= set(study.PARTS)


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))


def test_the_recorded_hits_are_consistent(recorded):
    rows = {row["key"]: row for row in recorded["questions"]}
    assert list(rows) == [way.key for way in rag.ways()]
    dense = rows["float32"]
    assert len({(row["python"], row["passages"]) for row in rows.values()}) == 1
    for row in rows.values():
        assert row["hit_1"] <= row["hit_3"] <= row["hit_5"]
        assert 100 * row["hit_3"] == pytest.approx(100 * dense["hit_3"] - row["lost"] + row["won"])
        assert row["p"] == pytest.approx(mcnemar(row["lost"], row["won"]), rel=1e-5)
        assert row["hit_3_se"] == pytest.approx((row["hit_3"] * (1 - row["hit_3"]) / 99) ** 0.5, rel=1e-4)
    assert rows["any passages"]["hit_3"] < 0.15 < dense["hit_3"]


def test_the_recorded_answers_are_judged_by_their_words(recorded):
    checked = {question.ask: question for question in load_questions() if question.answer}
    assert [row["key"] for row in recorded["answers"]] == [f"{how}: {ask}" for how in rag.CONDITIONS for ask in checked]
    for row in recorded["answers"]:
        assert row["right"] == is_right(checked[row["ask"]], row["text"]), row
        assert len(row["read"]) == {rag.MEMORY: 0, rag.RIGHT: 1}.get(row["condition"], rag.READ)
        assert not row["there"] or set(row["read"]) & set(checked[row["ask"]].sources)
        assert row["there"] or row["condition"] != rag.RIGHT


@pytest.mark.slow
def test_the_record_is_measured_again(recorded):
    """On the Python of the record, whose passages they are."""
    if recorded["questions"][0]["python"] != platform.python_version():
        pytest.skip("another Python has other passages")
    expected = {row["key"]: row for row in recorded["questions"]}
    for row in rag.questions({}):
        assert row["hit_3"] == pytest.approx(expected[row["key"]]["hit_3"], abs=0.021), row
        assert row["document"] == pytest.approx(expected[row["key"]]["document"], rel=1e-4)
