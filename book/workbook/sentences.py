"""What a changed table does to sentences: MiniLM's sentence vectors before and after, on prose that is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .models import LoadedModel
from .sources import load_prose

__all__ = ["Moved", "Sentences", "frequency_orders"]

COUNT, AT_ONCE = 95, 19  # all sentences of middle length, in five batches of about one length


class Moved(NamedTuple):
    """What a change did.

    Attributes:
        distance: Cosine distance to the vectors before, 1 − cos, averaged over the sentences.
        spread: Standard error of that mean.
        same: Share of sentences whose nearest other sentence is the same as before.
    """

    distance: float
    spread: float
    same: float


class Sentences:
    """Sentences of the installed prose, and their vectors with the model as it is now.

    Args:
        encoder: MiniLM, from :func:`~book.workbook.sources.load_encoder`.

    Attributes:
        tokens: All tokens of the sentences, in one row.
        longest: Tokens of the longest sentence.
        rest: The prose without the sentences.

    Example:
        >>> from book.workbook.sources import load_encoder
        >>> encoder = load_encoder()
        >>> sentences = Sentences(encoder)
        >>> len(sentences), sentences.longest
        (95, 63)
        >>> table = encoder.model.get_input_embeddings()
        >>> with sentences.replaced(table, torch.zeros_like(table.weight)):
        ...     sentences.moved().distance > 0.5
        True
        >>> abs(round(sentences.moved().distance, 3))
        0.0
    """

    def __init__(self, encoder: LoadedModel) -> None:
        self._encoder = encoder
        text = load_prose()
        found = [s.strip() for s in re.split(r"(?<=[.!?])\s+", text) if 60 < len(s) < 200 and s[0].isalpha()]
        self.rest = text
        for sentence in found:
            self.rest = self.rest.replace(sentence, " ")
        found = sorted((" ".join(s.split()) for s in found), key=len)[:COUNT]
        self._batches = [
            encoder.tokenizer(found[k : k + AT_ONCE], padding=True, return_tensors="pt")
            for k in range(0, len(found), AT_ONCE)
        ]
        self.tokens = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in self._batches])
        self.longest = max(batch["input_ids"].shape[1] for batch in self._batches)
        self.before = self.vectors()

    def __len__(self) -> int:
        return len(self.before)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Mean of the token states of each sentence, of norm 1: ``(sentences, width)``."""
        found = []
        for batch in self._batches:
            mask = batch["attention_mask"].unsqueeze(-1)
            found.append((self._encoder.model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return nn.functional.normalize(torch.cat(found), dim=1)

    def moved(self) -> Moved:
        """How far the sentence vectors of the model as it is now are from those at the beginning."""
        now = self.vectors()
        distances = 1 - (now * self.before).sum(1).double()
        same = (nearest(now) == nearest(self.before)).double().mean()
        return Moved(distances.mean().item(), (distances.std() / len(self) ** 0.5).item(), same.item())

    @contextmanager
    def replaced(self, table: nn.Embedding, weight: Tensor) -> Iterator[None]:
        """Put another weight into an embedding of the model for the time of a ``with`` block."""
        kept = table.weight
        table.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        try:
            yield
        finally:
            table.weight = kept


def nearest(vectors: Tensor) -> Tensor:
    """Index of the most similar other sentence."""
    return (vectors @ vectors.mT).fill_diagonal_(-1).argmax(1)


def frequency_orders(encoder: LoadedModel, text: str) -> tuple[Tensor, Tensor]:
    """The rows of the token table, frequent ones first: by id, and as counted in a text.

    WordPiece ids are sorted by frequency, after special and unused entries; unused ones go to the end.

    Args:
        encoder: MiniLM.
        text: What is counted; tokens that it lacks follow by id.

    Returns:
        Two orders of all rows.

    Example:
        >>> from book.workbook.sources import load_encoder
        >>> encoder = load_encoder()
        >>> by_id, by_count = frequency_orders(encoder, "the table and the train")
        >>> encoder.tokenizer.convert_ids_to_tokens(by_count[:2])
        ['the', 'and']
    """
    rows = len(encoder.tokenizer)
    counts = torch.zeros(rows, dtype=torch.double)
    words = text.split()
    for k in range(0, len(words), 60):
        ids = encoder.tokenizer(" ".join(words[k : k + 60]), add_special_tokens=False)["input_ids"]
        counts += torch.bincount(torch.tensor(ids), minlength=rows)
    names = encoder.tokenizer.convert_ids_to_tokens(range(rows))
    rank = torch.arange(rows) + rows * torch.tensor([name.startswith("[unused") for name in names])
    return rank.argsort(), (rank - 10.0 * rows * counts).argsort()
