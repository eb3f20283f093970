"""Loss rise of a language model with a compressed token table, in the look-up alone and in the tied head too.

The hidden states are computed once for each table; the dense head and the compressed one score the same states.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ttref import replace_embedding

from .methods import Method

AT_ONCE = 512  # tokens in one pass


class Texts:
    """Token sequences, scored one by one, each with its first token as context only."""

    def __init__(self, sequences: dict[str, list[Tensor]]) -> None:
        self.batches = {name: list(_batches(found)) for name, found in sequences.items()}

    def counts(self) -> dict[str, int]:
        """Scored tokens of each text."""
        return {name: sum(int(mask.sum()) for _, mask in batches) for name, batches in self.batches.items()}

    @torch.no_grad()
    def losses(self, model: nn.Module, heads: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """Loss of every scored token in nats, for each text and each matrix of the head."""
        bias = getattr(model.get_output_embeddings(), "bias", None)
        found: dict[tuple[str, str], list[Tensor]] = {}
        for name, batches in self.batches.items():
            for ids, mask in batches:
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask]
                for head, weight in heads.items():
                    nats = cross_entropy(linear(hidden, weight, bias), ids[:, 1:][mask], reduction="none")
                    found.setdefault((name, head), []).append(nats.double())
        return {key: torch.cat(parts) for key, parts in found.items()}


def _batches(sequences: list[Tensor]):
    """Batches of sequences of similar length, padded on the right, which does not affect a causal model."""
    batch: list[Tensor] = []
    for ids in sorted(sequences, key=len):
        if batch and len(ids) * (len(batch) + 1) > AT_ONCE:
            yield _padded(batch)
            batch = []
        batch.append(ids)
    yield _padded(batch)


def _padded(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
    lengths = torch.tensor([len(one) for one in batch])
    return ids, torch.arange(1, ids.shape[1]) < lengths.unsqueeze(1)


class Scorer:
    """Loss rises of one language model on fixed texts."""

    def __init__(self, model: nn.Module, texts: Texts) -> None:
        self.model, self.texts = model, texts
        self.dense = model.get_input_embeddings()
        self.table = self.dense.weight.detach()
        self.before = texts.losses(model, {"dense": self.table})

    def dense_losses(self) -> dict[str, float]:
        """Loss of the dense model on each text, in nats a token."""
        return {name: self.before[name, "dense"].mean().item() for name in self.texts.batches}

    def rises(self, table: Tensor) -> dict[str, float]:
        """Mean rise in nats a token, with the standard error of the paired differences."""
        replace_embedding(self.model, nn.Embedding.from_pretrained(table), head="dense")
        try:
            after = self.texts.losses(self.model, {"input": self.table, "tied": table})
        finally:
            replace_embedding(self.model, self.dense, head="tied")
        values = {}
        for (name, head), nats in after.items():
            rise = nats - self.before[name, "dense"]
            values[f"{name}_{head}"] = rise.mean().item()
            values[f"{name}_{head}_se"] = rise.std().item() / len(rise) ** 0.5
        return values

    def measure(self, method: Method) -> dict:
        """A method's bytes, errors and loss rises."""
        start = time.perf_counter()
        made = method.compress(self.table)
        point = method.describe(self.table, made) | self.rises(made[0].contiguous())
        print(
            f"{method.key:36} {point['ratio']:8.2f}x error {point['error']:.4f}  WikiText-2 "
            f"{point['wikitext2_input']:+.4f} {point['wikitext2_tied']:+.4f}  MRPC {point['mrpc_input']:+.4f} "
            f"{point['mrpc_tied']:+.4f}  {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        return point


def front(points: list[dict], measure: str) -> dict:
    """Undominated methods by bytes and a measure of loss; for each train, the nearest classical methods.

    A point is dominated by one that takes no more bytes and loses no more, and is better in one of the two.
    """
    ordered = sorted(points, key=lambda point: (point["nbytes"], point[measure]))
    best, names = float("inf"), []
    for point in ordered:
        if point[measure] < best:
            best = point[measure]
            names.append(point["key"])
    trains, classical = ([point for point in ordered if point["tt"] is tt] for tt in (True, False))
    reports = []
    for point in trains:
        smaller = [other for other in classical if other["nbytes"] <= point["nbytes"]]
        as_good = [other for other in classical if other[measure] <= point[measure]]
        rival = min(smaller, key=lambda other: other[measure], default=None)
        cheaper = min(as_good, key=lambda other: other["nbytes"], default=None)
        reports.append(
            {
                "key": point["key"],
                "on_front": point["key"] in names,
                "ratio": point["ratio"],
                "rise": point[measure],
                # Positive: the train loses less than the best classical method of at most its bytes.
                "best_classical_within_bytes": rival and rival["key"],
                "margin_nats": rival and rival[measure] - point[measure],
                # The bytes of the smallest classical method that loses no more, as a multiple of the train's.
                "smallest_classical_as_good": cheaper and cheaper["key"],
                "bytes_of_it": cheaper and cheaper["nbytes"] / point["nbytes"],
            }
        )
    return {"measure": measure, "front": names, "trains": reports}
