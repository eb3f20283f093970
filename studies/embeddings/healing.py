"""Healing: cores and factors trained for some minutes against the dense model, trains and SVD in the same way.

MiniLM: the token states of the dense model are the target. Language model: the hidden states after its first blocks.
Training texts and test texts share no line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, mse_loss

from ttref import (
    MPSEmbedding,
    TTMEmbedding,
    balanced_modes,
    quantize_integer,
    truncated_svd,
    ttm_params,
    ttm_to_matrix,
)

from . import data
from .encoder import Encoder
from .loss import Scorer

STEPS, SENTENCES, RATE = 120, 16, 3e-3
LM_STEPS, LM_TOKENS, LM_BLOCKS = 400, 384, 4


class Factors(nn.Module):
    """A table as two factors, the control of the trains here."""

    def __init__(self, table: Tensor, budget: int) -> None:
        super().__init__()
        rank = budget // (4 * sum(table.shape))
        left, values, right = torch.linalg.svd(truncated_svd(table, rank=rank).approximation, full_matrices=False)
        root = values[:rank].sqrt()
        self.left, self.right = nn.Parameter(left[:, :rank] * root), nn.Parameter(root.unsqueeze(1) * right[:rank])
        self.nbytes = 4 * (self.left.numel() + self.right.numel())

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of ids of any shape."""
        return embedding(ids, self.left) @ self.right

    def dense(self) -> Tensor:
        """The whole table."""
        return (self.left @ self.right).detach()


def families(table: Tensor, budget: int, rank: int) -> dict[str, nn.Module]:
    """Three tables of about ``budget`` bytes: a train for each row at ``rank``, one TT-matrix, SVD."""
    plain = nn.Embedding.from_pretrained(table, freeze=False)
    rows, columns = balanced_modes(len(table))[::-1], balanced_modes(table.shape[1])
    bond = 1
    while 4 * ttm_params(rows, columns, bond + 1) <= budget:
        bond += 1
    return {
        "MPS": MPSEmbedding.from_embedding(plain, rank=rank),
        "TT-matrix": TTMEmbedding.from_embedding(plain, row_shape=rows, col_shape=columns, rank=bond),
        "SVD": Factors(table, budget),
    }


def dense(look_up: nn.Module) -> Tensor:
    return look_up.dense() if isinstance(look_up, Factors) else look_up.to_embedding().weight.detach()


def in_int8(look_up: nn.Module) -> tuple[Tensor, int]:
    """The table after rounding cores or factors to int8 with a scale for each of their rows, and its bytes."""
    if isinstance(look_up, Factors):
        left, right = quantize_integer(look_up.left.detach(), 8), quantize_integer(look_up.right.detach(), 8)
        return left.approximation @ right.approximation, left.nbytes + right.nbytes
    cores = [core.detach() for core in look_up.cores]
    made = [quantize_integer(core.flatten(0, 1).flatten(1), 8) for core in cores]
    matrix = ttm_to_matrix([one.approximation.view(core.shape) for one, core in zip(made, cores, strict=True)])
    return matrix[: look_up.num_embeddings, : look_up.embedding_dim], sum(one.nbytes for one in made)


def heal(look_up: nn.Module, steps: int, loss_of: Callable[[int], Tensor]) -> Iterator[float]:
    """Adam on the parameters of one table; the step size falls to zero along a cosine."""
    # Cores differ in scale, so the step is measured by the root mean square of each.
    groups = [
        {"params": [weights], "lr": RATE * weights.detach().square().mean().sqrt().item() * 3}
        for weights in look_up.parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def course(look_up: nn.Module, steps: int, loss_of: Callable[[int], Tensor]) -> dict:
    """Heal a table; the course of the training loss."""
    start = time.perf_counter()
    losses = list(heal(look_up, steps, loss_of))
    tenth = max(steps // 10, 1)
    return {
        "steps": steps,
        "first_loss": sum(losses[:tenth]) / tenth,
        "last_loss": sum(losses[-tenth:]) / tenth,
        "seconds": time.perf_counter() - start,
    }


def encoder(folder: Path, ranks: tuple[int, ...] = (2, 1), steps: int = STEPS) -> list[dict]:
    """MiniLM: each family before and after, at the bytes of an MPS of some ranks."""
    judge, found = Encoder(folder), []
    model, tokenizer, table = judge.model, judge.tokenizer, judge.table
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    texts = data.prose_sentences(data.wikitext(folder)[0], steps * SENTENCES)
    batches = []
    for k in range(steps):
        made = tokenizer(texts[k::steps], truncation=True, max_length=64, padding=True, return_tensors="pt")
        ids, mask = made["input_ids"], made["attention_mask"]
        with torch.no_grad():
            target = model(input_ids=ids, attention_mask=mask).last_hidden_state
        batches.append((ids, mask, target))
    for rank in ranks:
        budget = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(table), rank=rank).nbytes
        for family, look_up in families(table, budget, rank).items():
            point = described(family, rank, table, look_up) | {"before": judge.with_table(look_up)}

            def loss_of(step: int, look_up: nn.Module = look_up) -> Tensor:
                ids, mask, target = batches[step]
                states = model(inputs_embeds=look_up(ids), attention_mask=mask).last_hidden_state
                return mse_loss(states[mask.bool()], target[mask.bool()])

            point |= course(look_up, steps, loss_of) | {"after": judge.with_table(look_up)}
            found.append(point)
            print(
                f"heal MiniLM {family} {point['ratio']:.1f}x: cosine {point['before']['wikitext2_cosine']:.4f} -> "
                f"{point['after']['wikitext2_cosine']:.4f}, training loss {point['first_loss']:.4f} -> "
                f"{point['last_loss']:.4f}, {point['seconds']:.0f} s",
                flush=True,
            )
    return found


def language_model(folder: Path, scored: Scorer, tokenizer, rank: int = 2, steps: int = LM_STEPS) -> list[dict]:
    """The language model: hidden states after the first blocks as target; measured by the loss on other text."""
    model, table, found = scored.model, scored.table, []
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    length = LM_TOKENS // 3
    batches = data.windows(tokenizer, data.wikitext(folder)[0], count=steps * 3 + 6, length=length)[: steps * 3]
    budget = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(table), rank=rank).nbytes
    if any(len(ids) < length for ids in batches):
        raise ValueError(f"the text is too short for {steps} steps")
    name = "layers" if hasattr(model.base_model, "layers") else "h"  # GPT-2 calls its blocks so
    blocks = getattr(model.base_model, name)
    setattr(model.base_model, name, blocks[:LM_BLOCKS])

    def states(embedded: Tensor) -> Tensor:
        return model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    try:
        for family, look_up in families(table, budget, rank).items():
            if family == "MPS":  # its rows share nothing: a row that is not trained on stays as bad as it was
                continue
            before = dense(look_up)

            def loss_of(step: int, look_up: nn.Module = look_up) -> Tensor:
                ids = torch.stack(batches[step::steps])
                with torch.no_grad():
                    target = states(embedding(ids, table))
                # The first position of a window holds states a hundred times as large as any other.
                return mse_loss(states(look_up(ids))[:, 1:], target[:, 1:])

            point = described(family, rank, table, look_up) | course(look_up, steps, loss_of)
            small, nbytes = in_int8(look_up)
            point["ratio_int8"] = 4 * table.numel() / nbytes
            found.append(point | {"tables": {"before": before, "after": dense(look_up), "after_int8": small}})
    finally:
        setattr(model.base_model, name, blocks)
    for point in found:
        point |= {name: scored.rises(made.contiguous()) for name, made in point.pop("tables").items()}
        course_of = " -> ".join(f"{point[name]['wikitext2_input']:+.4f}" for name in ("before", "after", "after_int8"))
        print(
            f"heal language model {point['family']} {point['ratio']:.1f}x, in int8 {point['ratio_int8']:.1f}x: "
            f"WikiText-2 {course_of}, {point['seconds']:.0f} s",
            flush=True,
        )
    return found


def described(family: str, rank: int, table: Tensor, look_up: nn.Module) -> dict:
    gap = dense(look_up) - table
    return {
        "family": family,
        "size_of_mps_rank": rank,
        "nbytes": look_up.nbytes,
        "bits_per_weight": 8 * look_up.nbytes / table.numel(),
        "ratio": 4 * table.numel() / look_up.nbytes,
        "error_before": (gap.norm() / table.norm()).item(),
    }
