"""The docstring task, and the sentence classifier that is fine-tuned on it."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from strategies import agree
from transformers import BertConfig, BertModel

from book.workbook import docstrings
from book.workbook.docstrings import load_docstring_task
from book.workbook.finetuning import BATCH, SentenceClassifier, encode, trainable_parameters
from book.workbook.sources import load_encoder
from book.workbook.training import accuracy, fit
from ttref import add_tt_lora

START, END = 101, 102
TINY = BertConfig(vocab_size=120, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


def tiny(seed=0):
    torch.manual_seed(seed)
    return BertModel(TINY)


def batch(*texts, length=9):
    """Token ids of texts given as lists of ids, framed and padded."""
    rows = [[START, *text, END] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.fixture(scope="module")
def task():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the pinned versions are what the tests run on
        return load_docstring_task()


@pytest.fixture
def seen(monkeypatch):
    """What the encoder is given."""
    calls = []
    forward = BertModel.forward

    def record(self, **inputs):
        calls.append(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(BertModel, "forward", record)
    return calls


# --- the task --------------------------------------------------------------------------------------------------------


def test_the_splits_are_balanced_and_share_no_sentence(task):
    for split, size in docstrings.SIZES.items():
        part = getattr(task, split)
        assert part.labels.bincount().tolist() == [size] * 3 and len(part.texts) == 3 * size
        assert part.labels[:300].bincount().tolist() == [100] * 3  # a part from the front is balanced too
    sentences = Counter(text.lower() for part in task[:3] for text in part.texts)
    assert max(sentences.values()) == 1


def test_no_file_stands_in_two_splits(task):
    files = {(label, sentence): file for pool in docstrings._collect() for file, label, sentence in pool}
    homes = [
        {files[int(label), text] for text, label in zip(part.texts, part.labels, strict=True)} for part in task[:3]
    ]
    assert not homes[0] & homes[1] and not homes[0] & homes[2] and not homes[1] & homes[2]


def test_no_sentence_says_what_it_describes(task):
    words = {word.strip('.,;:()"').lower() for part in task[:3] for text in part.texts for word in text.split()}
    assert not words & {"function", "functions", "parameter", "argument", "return", "returns", "returned", "method"}


def test_it_is_the_same_every_time(task):
    again = load_docstring_task()
    assert [part.texts for part in again[:3]] == [part.texts for part in task[:3]]


def test_other_versions_are_said(monkeypatch):
    monkeypatch.setattr(docstrings, "TASK_SHA256", "0" * 64)
    with pytest.warns(UserWarning, match="accuracies will differ"):
        load_docstring_task()


def test_sources_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(docstrings.PINNED, "no-such-library", "1.0")
    with pytest.raises(ModuleNotFoundError, match="install no-such-library==1.0"):
        load_docstring_task()
    monkeypatch.setattr(docstrings, "PINNED", {"numpy": "2.4.6"})
    with pytest.raises(ValueError, match="sentences for"):
        load_docstring_task()


SOURCE = '''
"""A module says nothing here."""

class Thing:
    """A class says nothing either."""

    @property
    def size(self):
        """How large the thing is now."""

    def weigh(self, scale,
              unit="g"):
        """Put the thing on :ref:`the old scale <scale>` and read it.

        Parameters
        ----------
        scale : Scale
            Where the thing is put down.
            It may be dirty. It may be old.
        unit : str
            One of the units, np.nan among them.

        Returns
        -------
        weight : float
            Weight of the thing in ``unit`` given.
        """
        text = """Not a docstring but a string."""

def give():
    """Return the thing to its owner."""
'''


def test_what_is_read_from_a_file():
    assert list(docstrings._sentences(SOURCE)) == [
        (0, "Put the thing on the old scale and read it."),
        (1, "Where the thing is put down."),
        (2, "Weight of the thing in unit given."),
    ]


# --- the classifier --------------------------------------------------------------------------------------------------


def test_padding_does_not_change_a_logit():
    model = SentenceClassifier(tiny(), 3).eval()
    short, long = batch([5, 6], length=6), batch([5, 6], [7, 8, 9, 10, 11, 12], length=20)
    assert torch.allclose(model(short)[0], model(long)[0], atol=1e-5)


def test_padding_is_cut_off(seen):
    SentenceClassifier(tiny(), 3)(batch([5, 6], [7], length=30))
    (inputs,) = seen
    assert inputs["input_ids"].shape == (2, 4)
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_the_second_text_of_a_pair_has_the_second_type(seen):
    SentenceClassifier(tiny(), 3)(batch([5, 6], [5, END, 6, 7], length=9))
    assert seen[0]["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]


def test_types_are_those_of_the_tokenizer(seen):
    tokenizer = load_encoder().tokenizer
    pairs = [("a train of cores", "cars"), ("one", "two and three")]
    ids = encode(tokenizer, pairs, 10)
    theirs = tokenizer(pairs, padding="max_length", max_length=10, return_tensors="pt")
    assert torch.equal(ids, theirs["input_ids"])
    SentenceClassifier(load_encoder().model, 2)(ids)
    width = seen[0]["input_ids"].shape[1]
    assert torch.equal(seen[0]["token_type_ids"], theirs["token_type_ids"][:, :width])


def test_many_texts_are_worked_off_in_batches_and_come_back_in_order(seen):
    model = SentenceClassifier(tiny(), 3).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 99, (k % 7 + 1,), generator=generator).tolist() for k in range(2 * BATCH + 5)]
    ids = batch(*texts)
    together = model(ids)
    with torch.no_grad():
        assert torch.allclose(model(ids), together, atol=1e-5)
    assert [len(inputs["input_ids"]) for inputs in seen] == [len(ids), BATCH, BATCH, 5]


def test_equal_seeds_give_equal_heads_and_dropout_is_off():
    body = tiny()
    one, two, other = (SentenceClassifier(body, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, two.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    ids = batch([5, 6])
    assert agree(one.train()(ids), two.eval()(ids))


def test_what_is_trained_is_counted():
    model = SentenceClassifier(tiny(), 3)
    model.encoder.requires_grad_(False)
    assert trainable_parameters(model) == {"head": 51, "adapter": 0}
    config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["head"])
    lora = get_peft_model(SentenceClassifier(tiny(), 3), config)
    assert trainable_parameters(lora) == {"head": 51, "adapter": 4 * 2 * 32}
    frozen = add_tt_lora(SentenceClassifier(tiny(), 3), ["query", "value"], rank=2, alpha=1, shape=(4, 4, 4, 4))
    assert trainable_parameters(frozen) == {"head": 0, "adapter": 4 * (8 + 16 + 16 + 8)}


@pytest.mark.parametrize("method", ["lora", "ttlora"])
def test_an_adapter_learns_and_the_base_stays(method):
    """The class is which of two tokens the text holds."""
    base = tiny()
    before = copy.deepcopy(base.state_dict())
    model = SentenceClassifier(base, 2)
    targets = ["query", "value"]
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=targets, modules_to_save=["head"]))
    else:
        model = add_tt_lora(model, targets, rank=2, alpha=1, modules_to_save=["head"])
    labels = torch.arange(40) % 2
    ids = batch(*([7 + label, 20 + k, 30] for k, label in enumerate(labels.tolist())))
    losses = fit(model, ids, labels, epochs=30, lr=0.05, batch_size=8)
    assert losses[-1] < 0.3 * losses[0] and accuracy(model.eval(), ids, labels) == 1
    after = {name.replace(".base_layer", ""): value for name, value in base.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_texts_that_cannot_be_encoded():
    tokenizer = load_encoder().tokenizer
    with pytest.raises(ValueError, match="at least one text"):
        encode(tokenizer, [], 8)
    with pytest.raises(ValueError, match="at least 4"):
        encode(tokenizer, ["a train"], 3)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = "[SEP]"
    with pytest.raises(ValueError, match="PAD"):
        encode(tokenizer, ["a train"], 8)
