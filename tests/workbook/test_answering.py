"""Answers of a language model: what it reads, how much of it, and where it stops."""

import pytest
import tiny_gpt2
import torch

from book.workbook import answering, sources
from book.workbook.answering import Answered, answer, answer_all
from book.workbook.passages import Passage
from book.workbook.questions import Question, load_questions

TEA = Passage("tea.md", "Tea", "Green tea is made with water of 80 degrees.")
CHECKED = Question("How hot?", (), (("80",),))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random weights, a short context, and no chat template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTREF_LM", str(tiny_gpt2.write(tmp_path_factory.mktemp("tiny-gpt2"))))
        return sources.load_language_model()


def read(lm, monkeypatch, *args, **kwargs):
    """The prompt that the model is given, as text, and how many tokens it may write."""
    given = {}

    def generate(ids, **how):
        given.update(how, ids=ids)
        return torch.cat([ids, ids[:, :1]], dim=1)

    monkeypatch.setattr(lm.model, "generate", generate)
    answer(lm, *args, **kwargs)
    return lm.tokenizer.decode(given["ids"][0]), given["ids"].shape[1], given


def test_the_model_reads_passages_in_order_and_then_the_question(smollm2, monkeypatch):
    other = Passage("milk.md", "Milk", "It is white.")
    prompt, _, given = read(smollm2, monkeypatch, "How hot?", [TEA, other])
    places = [prompt.index(part) for part in (answering.TASK, str(TEA), str(other), "How hot?", "assistant")]
    assert places == sorted(places) and prompt.count("How hot?") == 1
    assert given["do_sample"] is False and given["max_new_tokens"] == 30 and given["max_time"] == 300
    alone, _, _ = read(smollm2, monkeypatch, "How hot?")
    assert "text" not in alone and alone.index(answering.TASK) < alone.index("How hot?")


def test_long_passages_are_cut_and_the_question_is_not(smollm2, monkeypatch):
    long = Passage("a", "Long", "word " * 3000)
    prompt, size, _ = read(smollm2, monkeypatch, "How hot is it?", [TEA, long])
    _, bare, _ = read(smollm2, monkeypatch, "How hot is it?")
    assert bare + answering.READ - 16 <= size <= bare + answering.READ + 16
    assert "80 degrees" in prompt and "How hot is it?" in prompt
    monkeypatch.setattr(smollm2.model.config, "max_position_embeddings", bare + 140)
    prompt, size, _ = read(smollm2, monkeypatch, "How hot is it?", [TEA, long])
    assert size + 30 <= bare + 140 and "80 degrees" in prompt and "How hot is it?" in prompt


def test_a_context_that_is_too_short(tiny):
    with pytest.raises(ValueError, match="tokens more than the model's context; ask in fewer words, or for a shorter"):
        answer(tiny, "Hot?", tokens=tiny.model.config.max_position_embeddings)


def test_a_model_without_a_chat_template_reads_plain_text(smollm2, monkeypatch):
    monkeypatch.setattr(smollm2.tokenizer, "chat_template", None)
    prompt, _, _ = read(smollm2, monkeypatch, "How hot?", [TEA])
    assert prompt == f"{answering.TASK}\n\nRead this text:\n\n{TEA}\n\nAnswer from the text: How hot?\nAnswer:"


def test_the_answer_is_bounded_in_tokens_and_in_time(smollm2, monkeypatch):
    whole = answer(smollm2, "Tell me all about Python?", tokens=12)
    assert len(smollm2.tokenizer(whole)["input_ids"]) <= 12
    assert answer(smollm2, "Tell me all about Python?", tokens=12) == whole
    monkeypatch.setattr(answering, "SECONDS", 0.0)
    assert len(smollm2.tokenizer(answer(smollm2, "Tell me all about Python?"))["input_ids"]) <= 2


def test_passages_make_the_difference(smollm2):
    """A thing that no model knows."""
    secret = Passage("a", "The harbor", "The boat of the harbor master is called Kittiwake.")
    question = Question("What is the boat of the harbor master called?", (), (("Kittiwake",),))
    (without,) = answer_all(smollm2, [question])
    (told,) = answer_all(smollm2, [question], [[secret]])
    assert isinstance(told, Answered) and told.question is question
    assert told.right and not without.right and "Kittiwake" in told.text


def test_what_cannot_be_asked_is_refused(tiny):
    with pytest.raises(TypeError, match="ask must be a string and passages a list of passages, got int and tuple"):
        answer(tiny, 3)
    with pytest.raises(TypeError, match="got str and str"):
        answer(tiny, "Hot?", "a text")
    with pytest.raises(ValueError, match="the question is empty"):
        answer(tiny, " \n")
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        answer(tiny, "Hot?", tokens=0)
    with pytest.raises(ValueError, match="there are 1 questions, but passages for 2"):
        answer_all(tiny, [CHECKED], [[TEA], [TEA]])
    unchecked = next(question for question in load_questions() if not question.answer)
    with pytest.raises(ValueError, match="has no words to check an answer by"):
        answer_all(tiny, [CHECKED, unchecked])
