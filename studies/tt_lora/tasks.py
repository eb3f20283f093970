"""The tasks of the TT-LoRA study: sentences of documentation (always there) and four tasks of GLUE (not shipped)."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from book.workbook import sources
from book.workbook.docstrings import load_docstring_task
from book.workbook.finetuning import encode

SPLITS = ("train", "validation", "test")
DOCSTRING_TOKENS = 24

Rows = list[tuple[str | tuple[str, str], int]]


class Subset(NamedTuple):
    """The part of a GLUE task that is used: tokens of a text or a pair, and examples of each split."""

    tokens: int
    train: int
    validation: int
    test: int


# Pairs cost two or three times as much as single sentences, so there are fewer of them.
GLUE = {
    "sst2": Subset(32, 960, 400, 800),
    "cola": Subset(24, 960, 400, 800),
    "mrpc": Subset(56, 640, 300, 600),
    "rte": Subset(64, 640, 300, 600),
}


class Task(NamedTuple):
    """Token ids and classes of each split."""

    name: str
    classes: tuple[str, ...]
    ids: dict[str, Tensor]
    labels: dict[str, Tensor]

    def majority(self, split: str = "test") -> float:
        """Accuracy of always predicting the class that is most frequent in training."""
        answer = self.labels["train"].bincount().argmax()
        return (self.labels[split] == answer).double().mean().item()


@functools.cache
def encoder() -> sources.LoadedModel:
    """MiniLM, read once; training uses a copy."""
    return sources.load_encoder()


@functools.cache
def docstrings() -> Task:
    """The task of :mod:`book.workbook.docstrings`: does a sentence describe a function, an argument or a result?"""
    found = load_docstring_task()
    parts = {split: getattr(found, split) for split in SPLITS}
    ids = {split: encode(encoder().tokenizer, part.texts, DOCSTRING_TOKENS) for split, part in parts.items()}
    return Task("docstrings", found.classes, ids, {split: part.labels for split, part in parts.items()})


def load_glue(name: str, folder: Path | None, draw: int = 0) -> Task:
    """A GLUE task in splits of our own, drawn from its training file; another ``draw`` shares no text with draw 0."""
    classes, rows = READERS[name](folder) if folder is not None else online(name)
    rows = list(dict.fromkeys(rows))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    ids, labels, start = {}, {}, draw * sum(GLUE[name][1:])
    for split in SPLITS:
        size = getattr(GLUE[name], split)
        part = [rows[k] for k in order[start : start + size]]
        ids[split] = encode(encoder().tokenizer, [text for text, _ in part], GLUE[name].tokens)
        labels[split] = torch.tensor([label for _, label in part])
        start += size
    return Task(name, classes, ids, labels)


def sst2(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """Phrases of film reviews; whole sentences and parts of them, so one film's words may stand in two splits."""
    lines = (folder / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.rsplit("\t", 1) for line in lines]
    return ("negative", "positive"), [(text.strip(), int(label)) for text, label in rows]


def mrpc(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """Pairs of sentences from the news."""
    lines = (folder / "mrpc" / "msr_paraphrase_train.txt").read_text(encoding="utf-8-sig").splitlines()
    rows = [line.split("\t") for line in lines]
    rows = [row for row in rows if row[0] in ("0", "1")]
    return ("different", "paraphrase"), [((row[3], row[4]), int(row[0])) for row in rows]


def cola(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """Sentences from linguistics, acceptable or not."""
    lines = (folder / "cola" / "in_domain_train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return ("unacceptable", "acceptable"), [(row[3], int(row[1])) for row in rows]


def rte(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """Pairs: does the first text entail the second?"""
    with (folder / "rte" / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    labels = {"not_entailment": 0, "entailment": 1}
    return tuple(labels), [((row[1], row[2]), labels[row[3]]) for row in rows]


READERS = {"sst2": sst2, "mrpc": mrpc, "rte": rte, "cola": cola}


def online(name: str) -> tuple[tuple[str, ...], Rows]:
    """The same from the hub, without the folder; the rows are in another order, so numbers differ a little.

    Raises:
        ModuleNotFoundError: the `datasets` library is not installed.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "GLUE is read from TTREF_DATA or from the hub; set TTREF_DATA, or: python -m pip install datasets"
        ) from error
    columns = {"sst2": ("sentence",), "cola": ("sentence",)}.get(name, ("sentence1", "sentence2"))
    data = load_dataset("nyu-mll/glue", name, split="train")
    rows = [
        (row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns), int(row["label"]))
        for row in data
    ]
    return tuple(data.features["label"].names), rows
