"""The hundred questions: well formed, with sources that exist, and a score that can be wrong."""

import re

import pytest
import torch

from book.workbook.passages import Passage, python_passages
from book.workbook.questions import Question, is_right, load_questions, passages_for, questions_answered
from book.workbook.sources import load_encoder
from book.workbook.vectors import vectors_of

QUESTIONS = load_questions()
CHECKED = [question for question in QUESTIONS if question.answer]


@pytest.fixture(scope="module")
def found():
    return python_passages()


def words(text):
    return re.findall(r"\w+", text.lower())


def test_there_are_a_hundred_different_questions():
    assert len(QUESTIONS) == len({" ".join(words(question.ask)) for question in QUESTIONS}) == 100
    for question in QUESTIONS:
        assert question.ask.endswith("?") and question.ask[0].isupper() and question.ask.count("?") == 1
        assert 4 <= len(words(question.ask)) <= 20, question.ask


def test_every_source_is_among_the_passages_once(found):
    there = {passage.source for passage in found}
    for question in QUESTIONS:
        assert question.sources and len(set(question.sources)) == len(question.sources)
        assert set(question.sources) <= there, question.ask
    used = {source for question in QUESTIONS for source in question.sources}
    assert len(used) > 80 and sum(source.startswith("module:") for source in used) > 30


def test_most_questions_do_not_name_their_source():
    telling = [q.ask for q in QUESTIONS if {source.partition(":")[2] for source in q.sources} & set(words(q.ask))]
    assert len(telling) < 25, telling


def test_no_question_is_a_sentence_of_the_passages(found):
    texts = " ".join(" ".join(words(passage.text)) for passage in found)
    for question in QUESTIONS:
        said = words(question.ask)
        assert not any(" ".join(said[k : k + 7]) in texts for k in range(max(len(said) - 6, 1))), question.ask


def test_twenty_can_be_checked_and_their_passages_say_the_answer(found):
    assert len(CHECKED) == 20
    for question in CHECKED:
        assert not is_right(question, question.ask), "the question must not hold its answer"
        assert not is_right(question, "")
        assert any(is_right(question, passage.text) for passage in found if passage.source in question.sources), (
            question.ask
        )


def test_answers_are_checked_by_whole_words_of_each_group():
    question = Question("?", (), (("list", "lists"), ("@",)))
    assert is_right(question, "A LIST and a@b") and is_right(question, "(lists) @")
    assert not is_right(question, "enlist @") and not is_right(question, "list")
    assert is_right(Question("?", (), (("__str__",),)), "call obj.__str__()")
    with pytest.raises(ValueError, match="'Why\\?' has no words to check an answer by"):
        is_right(Question("Why?", (), ()), "so")


def test_a_question_is_answered_by_what_comes_first():
    passages = [Passage(source, "", "") for source in ("a", "b", "c", "d")]
    questions = [Question("?", ("b", "d"), ()), Question("?", ("a",), ())]
    nearest = torch.tensor([[0, 2, 1, 3], [0, 1, 2, 3]])
    for k, expected in ((1, [False, True]), (2, [False, True]), (3, [True, True])):
        assert questions_answered(nearest, passages, questions, k).tolist() == expected
    for wrong, k in ((nearest[:1], 3), (nearest, 5), (nearest, 0), (nearest[0], 1)):
        with pytest.raises(ValueError, match="nearest must have 2 rows, one for each question, and . columns or more"):
            questions_answered(wrong, passages, questions, k)
    for wrong in (nearest + 1, nearest - 1):
        with pytest.raises(ValueError, match="must hold indices of 4 passages, got"):
            questions_answered(wrong, passages, questions)


def test_a_part_of_the_passages_still_answers_every_question(found):
    few = passages_for(QUESTIONS, found)
    assert 250 < len(few) < 400
    places = [found.index(passage) for passage in few]
    assert places == sorted(set(places)), "in their order, each once"
    there = {passage.source for passage in few}
    assert all(there.issuperset(question.sources) for question in QUESTIONS)
    answering = {source for question in QUESTIONS for source in question.sources}
    assert len(there - answering) > 5, "something to mistake them for"


def test_which_passages_are_kept():
    names = "abaacbdbadcddddd"
    passages = [Passage(name, "", str(k)) for k, name in enumerate(names)]
    questions = [Question("?", ("a", "c"), ()), Question("?", ("c", "x"), ())]
    kept = passages_for(questions, passages, most=2, step=3)
    assert [int(passage.text) for passage in kept] == [0, 1, 2, 4, 6, 9, 10, 13]
    assert passages_for(questions, passages, most=9, step=1) == passages
    for most, step in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"most and step must be at least 1, got {most} and {step}"):
            passages_for(questions, passages, most=most, step=step)
    with pytest.raises(ValueError, match="none of 16 passages is of a source that answers one of 1 questions"):
        passages_for([Question("?", ("x",), ())], passages)


def test_the_encoder_finds_more_than_chance_and_vectors_are_those_of_single_texts(found):
    """Twelve passages only: all of them take minutes."""
    encoder = load_encoder()
    some = [q for q in QUESTIONS if len(q.sources) == 1 and q.sources[0].startswith("module:")][:12]
    few = [next(p for p in found if p.source == q.sources[0]) for q in some]
    texts = [str(passage) for passage in few]
    vectors = vectors_of(encoder, texts, batch=5)
    assert vectors.shape == (12, 384) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(vectors[3:4], vectors_of(encoder, texts[3:4]), rtol=0, atol=1e-5)
    nearest = (vectors_of(encoder, [q.ask for q in some]) @ vectors.mT).topk(3).indices
    assert questions_answered(nearest, few, some).sum() >= 10  # by chance three


def test_what_cannot_be_encoded_is_refused():
    encoder = load_encoder()
    with pytest.raises(TypeError, match="texts must be several strings, got one; write"):
        vectors_of(encoder, "tea")
    with pytest.raises(TypeError, match="texts must be strings, but 1 of 2 are not, the first a NoneType"):
        vectors_of(encoder, ["tea", None])
    with pytest.raises(ValueError, match="no texts to encode"):
        vectors_of(encoder, [])
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        vectors_of(encoder, ["tea"], batch=0)
    assert torch.equal(vectors_of(encoder, ["tea " * 400]), vectors_of(encoder, ["tea " * 300]))
