"""The tasks that drive a gate: sentences by MiniLM, MEDLARS by MiniLM, pictures by a vision transformer.

Calibration text or pictures, validation and test are disjoint: the first are looked at when layers are fitted, the
second drive the gate, and the third is reported once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from book.workbook import sources
from book.workbook.console import quiet
from book.workbook.docstrings import load_docstring_task

from ..cifar import VIT, vit_parts
from ..embeddings import data
from ..tt_lora import tasks as glue
from .networks import Staged, bert_parts

LINEARS = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
VIT_LINEARS = ("query", "key", "value", "out", "linear1", "linear2")
TEXTS, PHRASES, TOKENS = 192, 384, 32  # for calibration: WikiText-2 sentences, SST-2 phrases
SST2 = {"train": 1500, "validation": 400, "test": 800}
HEALING = 3000  # sentences of WikiText-2's first half, from which every tenth is for calibration
AT_ONCE = 2048  # tokens in one pass

Scores = Callable[[nn.Module], Tensor]


@dataclass
class Task:
    """A model, what it is measured by, and what its layers may look at.

    Attributes:
        name, model: The task and its model, in eval mode.
        tables: Names of its tables.
        linears: Names of its linear layers, first block first.
        calibration: Batches for the model's call.
        splits: From "validation" and "test" to a function of the model: one score for each example.
        outputs: What the model gives for the validation examples: sentence vectors or logits.
    """

    name: str
    model: nn.Module
    tables: tuple[str, ...]
    linears: tuple[str, ...]
    calibration: list[Tensor]
    splits: dict[str, Scores]
    outputs: Callable[[nn.Module], Tensor]

    def score(self, split: str) -> float:
        """Mean score of the model as it is now."""
        return self.splits[split](self.model).double().mean().item()


@functools.cache
def minilm() -> sources.LoadedModel:
    """MiniLM without its pooler, which sentence vectors do not use."""
    loaded = sources.load_encoder()
    loaded.model.pooler = None
    return loaded


MINILM_TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings")
MINILM_LINEARS = tuple(f"encoder.layer.{k}.{name}" for k in range(6) for name in LINEARS)


def batches_of(texts: list[str], length: int) -> tuple[list[Tensor], Tensor]:
    """Token ids in batches of one length each, so without padding; and the place of each text among their rows."""
    with quiet():
        ids = minilm().tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    order = sorted(range(len(ids)), key=lambda k: (len(ids[k]), k))
    batches: list[list[list[int]]] = []
    for k in order:
        last = batches[-1] if batches else []
        if not last or len(last[0]) != len(ids[k]) or (len(last) + 1) * len(ids[k]) > AT_ONCE:
            batches.append([])
        batches[-1].append(ids[k])
    return [torch.tensor(batch) for batch in batches], torch.tensor(order).argsort()


class Vectors:
    """Sentence vectors of fixed texts: mean of the last states, of norm 1."""

    def __init__(self, texts: list[str], length: int = TOKENS) -> None:
        batches, self._places = batches_of(texts, length)
        self.staged = Staged(bert_parts, batches)

    def __call__(self, model: nn.Module) -> Tensor:
        """``(texts, width)``."""
        return normalize(torch.cat([states.mean(1) for states in self.staged(model)]))[self._places]


@functools.cache
def calibration(folder: Path) -> list[Tensor]:
    """Unlabeled text for all tasks of MiniLM: sentences of WikiText-2's first half, phrases for training."""
    return batches_of(wikipedia(folder)[:: HEALING // TEXTS][:TEXTS] + phrases(folder)["calibration"], TOKENS)[0]


@functools.cache
def wikipedia(folder: Path) -> list[str]:
    """Sentences of WikiText-2's first half."""
    return data.prose_sentences(data.wikitext(folder)[0], HEALING)


@functools.cache
def phrases(folder: Path) -> dict[str, list]:
    """SST-2: phrases for calibration, and (phrases, labels) of three splits."""
    rows = list(dict.fromkeys(glue.sst2(folder)[1]))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(16)).tolist()
    found, start = {"calibration": [rows[k][0] for k in order[:PHRASES]]}, PHRASES
    for split, size in SST2.items():
        found[split] = [rows[k] for k in order[start : start + size]]
        start += size
    return found


def classified(name: str, folder: Path, rows: dict[str, list[tuple[str, int]]]) -> Task:
    """Sentences with a linear head on frozen sentence vectors; the head is fitted once, to the dense model."""
    from sklearn.linear_model import LogisticRegression

    model = minilm().model
    train = Vectors([text for text, _ in rows["train"]])(model)
    fitted = LogisticRegression(C=30.0, max_iter=500).fit(train.numpy(), [label for _, label in rows["train"]])

    def right(vectors: Vectors, labels: np.ndarray, model: nn.Module) -> Tensor:
        return torch.from_numpy(fitted.predict(vectors(model).numpy()) == labels).double()

    vectors = {split: Vectors([text for text, _ in part]) for split, part in rows.items() if split != "train"}
    splits = {
        split: functools.partial(right, each, np.array([label for _, label in rows[split]]))
        for split, each in vectors.items()
    }
    return Task(name, model, MINILM_TABLES, MINILM_LINEARS, calibration(folder), splits, vectors["validation"])


def sst2(folder: Path) -> Task:
    """Is a phrase of a film review positive?"""
    found = phrases(folder)
    return classified("sst2", folder, {split: found[split] for split in SST2})


def docstrings(folder: Path) -> Task:
    """Does a sentence describe a function, an argument or a result?"""
    found = load_docstring_task()
    parts = {split: getattr(found, split) for split in SST2}
    rows = {split: list(zip(part.texts, part.labels.tolist(), strict=True)) for split, part in parts.items()}
    return classified("docstrings", folder, rows)


MEDLARS_TOKENS, RELEVANT, OTHERS = 48, 8, 90  # of a document; documents of a split, of each query and beside them


def medlars(folder: Path) -> Task:
    """Medical abstracts for a query, nDCG of the first ten; every second query is for the test, with its documents.

    Both splits have as many documents to a query, so that one is not easier than the other.
    """
    documents, queries, relevant = data.medlars(folder)
    sides = [relevant[0::2].any(0), relevant[1::2].any(0)]
    free = (~(sides[0] | sides[1])).nonzero().flatten()
    splits = {}
    for k, split in enumerate(("validation", "test")):
        mine = relevant[k::2]
        few = (mine & (mine.cumsum(1) <= RELEVANT)).any(0)
        chosen = torch.cat(((few & ~sides[1 - k]).nonzero().flatten(), free[k::2][:OTHERS]))
        texts = [documents[row] for row in chosen.tolist()]
        vectors = Vectors(texts, MEDLARS_TOKENS), Vectors(queries[k::2], MEDLARS_TOKENS)
        splits[split] = functools.partial(ndcg, *vectors, mine[:, chosen])
    outputs = splits["validation"].args[0]
    return Task("medlars", minilm().model, MINILM_TABLES, MINILM_LINEARS, calibration(folder), splits, outputs)


def ndcg(documents: Vectors, queries: Vectors, relevant: Tensor, model: nn.Module) -> Tensor:
    """Normalized discounted gain of the first ten documents of each query."""
    scores = queries(model) @ documents(model).mT
    gains = relevant.gather(1, scores.argsort(1, descending=True))[:, :10].double()
    weights = 1 / torch.arange(2, 12, dtype=torch.float64).log2()
    best = torch.stack([weights[: min(int(count), 10)].sum() for count in relevant.sum(1)])
    return gains @ weights / best


def vit(folder: Path) -> Task:
    """CIFAR-10 pictures; the halves of the test pictures at hand are for validation and test, none was trained on."""

    def logits(staged: Staged, model: nn.Module) -> Tensor:
        return torch.cat(staged(model))

    def right(logits: Callable[[nn.Module], Tensor], labels: Tensor, model: nn.Module) -> Tensor:
        return (logits(model).argmax(1) == labels).double()

    x, y = VIT.pictures(folder, "test")
    halves = [functools.partial(logits, Staged(vit_parts, x[k::2].split(64))) for k in (0, 1)]
    splits = {split: functools.partial(right, halves[k], y[k::2]) for k, split in enumerate(("validation", "test"))}
    names = tuple(f"blocks.{k}.{name}" for k in range(6) for name in VIT_LINEARS)
    pixels = list(VIT.pictures(folder, "train")[0][::8].split(64))
    return Task("vit", VIT.read(folder), (), names, pixels, splits, halves[0])


TASKS = {"vit": vit, "sst2": sst2, "docstrings": docstrings, "medlars": medlars}


@functools.cache
def load(name: str, folder: Path) -> Task:
    """A task by name, made once."""
    return TASKS[name](folder)
