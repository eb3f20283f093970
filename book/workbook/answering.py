"""A small language model answers questions, with passages in front of it or from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .console import progress, quiet
from .models import LoadedModel
from .passages import Passage
from .questions import Question, is_right

__all__ = ["Answered", "answer", "answer_all"]

READ = 600  # tokens of passages that are read, which bounds the time
SECONDS = 300.0  # for one answer; only a machine that is far too slow gets there, and its answers end too early
TASK = "You answer questions about Python. Answer in one short sentence."


class Answered(NamedTuple):
    """A question, the model's answer `text`, and whether it has the words of a right answer."""

    question: Question
    text: str
    right: bool


@torch.inference_mode()
def answer(lm: LoadedModel, ask: str, passages: Sequence[Passage] = (), *, tokens: int = 30) -> str:
    """Let the model answer a question, greedily, so that the answer is the same in every run on a machine.

    The passages stand in front of the question in their order. What does not fit is cut off at the end: they get 600
    tokens, or less if the model's context is short. Models without a chat template get plain text.

    Args:
        lm: A causal language model, from :func:`~book.workbook.sources.load_language_model`.
        ask: The question.
        passages: What the model is to answer from; none to let it answer from memory.
        tokens: Length of the answer, at most.

    Returns:
        The answer; it may stop within a sentence.

    Raises:
        TypeError: ``ask`` is no string, or ``passages`` is one.
        ValueError: The question is empty or does not fit into the model's context, or ``tokens`` is below 1.

    Cost:
        Some seconds for SmolLM2 on a free core, half a minute on a busy one. After five minutes an answer is cut off.

    Example:
        >>> from book.workbook.sources import load_language_model
        >>> lm = load_language_model()
        >>> tea = Passage("tea.md", "Tea", "Green tea is made with water of 80 degrees.")
        >>> "80" in answer(lm, "How hot is the water for green tea?", [tea])
        True
    """
    if not isinstance(ask, str) or isinstance(passages, str):
        kinds = f"{type(ask).__name__} and {type(passages).__name__}"
        raise TypeError(f"ask must be a string and passages a list of passages, got {kinds}")
    if not ask.strip():
        raise ValueError("the question is empty")
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    text = "\n\n".join(map(str, passages))
    with quiet():
        bare = len(_prompt(lm, ask, ""))
        room = (getattr(lm.model.config, "max_position_embeddings", None) or bare + READ + tokens) - bare - tokens
        if room < 0:
            raise ValueError(
                f"the question and {tokens} tokens of an answer are {-room} tokens more than the model's context; "
                "ask in fewer words, or for a shorter answer"
            )
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        # Tokens may join at the seam, so what was cut is counted again.
        size = min(READ, room)
        while len(prompt := _prompt(lm, ask, lm.tokenizer.decode(ids[:size]) if size else "")) > bare + room:
            size = max(0, size - 8)
        prompt = torch.tensor([prompt], device=next(lm.model.parameters()).device)
        made = lm.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=tokens,
            max_time=SECONDS,
            pad_token_id=lm.tokenizer.pad_token_id or lm.tokenizer.eos_token_id or 0,
        )
    return lm.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def answer_all(
    lm: LoadedModel, questions: Sequence[Question], passages: Sequence[Sequence[Passage]] | None = None
) -> list[Answered]:
    """Let the model answer questions that can be checked, each from its own passages or all from memory.

    Args:
        lm: A causal language model.
        questions: Questions with an `answer`, as twenty of :func:`~book.workbook.questions.load_questions` have.
        passages: For each question what its answer is to be taken from; without, the model has its memory.

    Returns:
        The answers in the order of the questions.

    Raises:
        ValueError: A question cannot be checked, or there are not as many lists of passages as questions.

    Cost:
        As :func:`answer` for each question: minutes for twenty.

    Example:
        >>> from book.workbook.questions import load_questions
        >>> from book.workbook.sources import load_language_model
        >>> said = Passage("topic:assert", "The assert statement", "A claim that does not hold raises AssertionError.")
        >>> [found] = answer_all(load_language_model(), load_questions()[1:2], [[said]])
        >>> found.right
        True
    """
    if passages is not None and len(passages) != len(questions):
        raise ValueError(f"there are {len(questions)} questions, but passages for {len(passages)}")
    for question in questions:
        is_right(question, "")  # refused before a minute has passed
    answers = []
    for k, question in enumerate(progress(questions, description="answering")):
        text = answer(lm, question.ask, () if passages is None else passages[k])
        answers.append(Answered(question, text, is_right(question, text)))
    return answers


def _prompt(lm: LoadedModel, ask: str, text: str) -> list[int]:
    """The tokens of a question with the text that it is to be answered from."""
    asked = f"Read this text:\n\n{text}\n\nAnswer from the text: {ask}" if text else ask
    if getattr(lm.tokenizer, "chat_template", None):
        turns = [{"role": "system", "content": TASK}, {"role": "user", "content": asked}]
        ids = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = lm.tokenizer(f"{TASK}\n\n{asked}\nAnswer:")["input_ids"]
    return list(ids)
