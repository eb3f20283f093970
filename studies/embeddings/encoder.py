"""Token tables of MiniLM, float32 as trained: similarity of the sentence vectors to the dense ones, and retrieval."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from book.workbook import sources

from . import data
from .methods import Method

SENTENCES = 200  # of each text
AT_ONCE = 2048  # tokens in one pass
LENGTH = 64  # tokens of a MEDLARS abstract that are read


class Encoder:
    """MiniLM with exchangeable token tables, and the texts of the measurements."""

    def __init__(self, folder: Path, sentences: int = SENTENCES) -> None:
        loaded = sources.load_encoder()
        self.model, self.tokenizer, self.name, self.note = loaded
        self.dense = self.model.get_input_embeddings()
        self.table = self.dense.weight.detach()
        self.texts = {
            "wikitext2": data.prose_sentences(data.wikitext(folder)[1], sentences),
            "mrpc": data.mrpc(folder, sentences // 2),
        }
        self.before = {name: self.vectors(texts) for name, texts in self.texts.items()}
        self.medlars = data.medlars(folder)

    @torch.no_grad()
    def vectors(self, texts: list[str], length: int = 128) -> Tensor:
        """Mean of the token states of each text, of norm 1."""
        ids = self.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        order, found = sorted(range(len(ids)), key=lambda k: len(ids[k])), {}
        while order:
            room = max(AT_ONCE // (len(ids[order[0]]) + 8), 1)
            batch = [k for k in order[:room] if len(ids[k]) <= len(ids[order[0]]) + 8]
            order = order[len(batch) :]
            mask = nn.utils.rnn.pad_sequence([torch.ones(len(ids[k]), dtype=torch.long) for k in batch], True)
            padded = nn.utils.rnn.pad_sequence([torch.tensor(ids[k]) for k in batch], True)
            found |= dict(zip(batch, pooled(self.model, padded, mask), strict=True))
        return torch.stack([found[k] for k in range(len(ids))])

    def similarity(self) -> dict[str, float]:
        """Mean cosine to the dense vectors, and the share of sentences whose nearest neighbor is still the same."""
        values = {}
        for name, texts in self.texts.items():
            after, before = self.vectors(texts), self.before[name]
            values[f"{name}_cosine"] = (after * before).sum(1).mean().item()
            values[f"{name}_same_neighbour"] = (nearest(after) == nearest(before)).double().mean().item()
        return values

    def retrieval(self) -> float:
        """Mean average precision on MEDLARS."""
        documents, queries, relevant = self.medlars
        scores = self.vectors(queries, LENGTH) @ self.vectors(documents, LENGTH).mT
        hits = relevant.gather(1, scores.argsort(1, descending=True)).double()
        precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
        return ((precision * hits).sum(1) / hits.sum(1)).mean().item()

    def with_table(self, look_up: nn.Module, *, retrieval: bool = False) -> dict:
        """Similarity, and retrieval if wanted, with another table, which is removed again."""
        self.model.set_input_embeddings(look_up)
        try:
            return self.similarity() | {"map": self.retrieval() if retrieval else None}
        finally:
            self.model.set_input_embeddings(self.dense)

    def measure(self, method: Method, *, retrieval: bool) -> dict:
        """A method's bytes and errors, similarity, and retrieval if wanted."""
        start = time.perf_counter()
        made = method.compress(self.table)
        look_up = nn.Embedding.from_pretrained(made[0].contiguous())
        point = method.describe(self.table, made) | self.with_table(look_up, retrieval=retrieval)
        moved, found = point["wikitext2_cosine"], point["map"]
        print(
            f"{method.key:36} {point['ratio']:8.2f}x error {point['error']:.4f}  cosine {moved:.4f}  "
            f"{f'MAP {found:.3f}  ' if found else ''}{time.perf_counter() - start:.1f} s",
            flush=True,
        )
        return point


def pooled(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors."""
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(2).to(states.dtype)
    return normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def nearest(vectors: Tensor) -> Tensor:
    """Index of the most similar other sentence."""
    return (vectors @ vectors.mT).fill_diagonal_(-1).argmax(1)
