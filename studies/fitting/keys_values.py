"""The key-value cache of a language model, factored after the prefix is known: across its layers, or by integers.

Keys (after the rotary embedding) and values are tensors layers x tokens x width. The first four tokens stay exact.
Judged by the loss of the tokens that follow, with the whole prefix replaced at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from book.workbook import sources
from ttref import truncated_svd, tt_svd, tt_to_tensor

from ..embeddings import data as texts

PREFIX, SCORED, EXACT = 1024, 256, 4
BLOCK = 10  # layers
Made = tuple[Tensor, int]  # approximation, bytes


class Reader:
    """A language model that has read two prefixes, and what it should say next."""

    def __init__(self, folder: Path) -> None:
        self.loaded = sources.load_language_model()
        ids = texts.token_ids(self.loaded.tokenizer, texts.wikitext(folder)[1])
        prose = texts.token_ids(self.loaded.tokenizer, sources.load_prose())
        self.texts = [part[: PREFIX + SCORED].unsqueeze(0) for part in (ids, prose)]
        with torch.no_grad():
            self.caches = [self.loaded.model(part[:, :PREFIX], use_cache=True).past_key_values for part in self.texts]
        self.dense = self.loss(lambda x, side: (x, 2 * x.numel()))[0]

    @torch.no_grad()
    def loss(self, method: Callable[[Tensor, str], Made]) -> tuple[list[float], float, list[float]]:
        """Loss after each prefix, its half-precision bytes for each byte stored, relative errors of keys and values."""
        found, held, taken, errors = [], 0, 0, []
        for part, before in zip(self.texts, self.caches, strict=True):
            cache = copy.deepcopy(before)
            for side in ("keys", "values"):
                stack = torch.stack([getattr(layer, side)[0] for layer in cache.layers])  # layers, heads, tokens, 64
                flat = stack.transpose(1, 2).flatten(2)[:, EXACT:]  # layers, tokens, width
                made, size = method(flat, side)
                errors.append(((made - flat).norm() / flat.norm()).item())
                held, taken = held + 2 * flat.numel(), taken + size
                heads = made.unflatten(2, stack.shape[1::2]).transpose(1, 2)
                for layer, new in zip(cache.layers, heads, strict=True):
                    getattr(layer, side)[0, :, EXACT:] = new
            logits = self.loaded.model(part[:, PREFIX:-1], past_key_values=cache).logits[0]
            found.append(cross_entropy(logits.float(), part[0, PREFIX + 1 :]).item())
        return found, held / taken, errors


def coded(x: Tensor, bits: int, group: int, axis: int) -> Made:
    """Integers with a scale and a zero point, 16 bits each, for each group along an axis; the last may be short."""
    moved = x.movedim(axis, -1)
    pieces, size = [], 0
    for piece in moved.split(group, -1):
        low, high = piece.amin(-1, keepdim=True), piece.amax(-1, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        pieces.append(((piece - low) / scale).round() * scale + low)
        size += piece.numel() * bits // 8 + 4 * low.numel()
    return torch.cat(pieces, -1).movedim(-1, axis), size


def int8(x: Tensor) -> Tensor:
    """A factor rounded to eight bits, a scale for each row."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round() * scale


def over_layers(x: Tensor, ratio: float, block: int) -> Made:
    """SVD of the layers of each block side by side, ``(tokens, layers x width)``, factors in eight bits."""
    made, size = [], 0
    for part in x.split(block):
        flat = part.transpose(0, 1).flatten(1)
        rank = max(1, int(2 * flat.numel() / ratio / (sum(flat.shape) + 4)))
        stored = truncated_svd(flat, rank=rank).stored
        left, right = int8(stored["left"].mT.contiguous()).mT, int8(stored["right"])
        size += rank * (sum(flat.shape) + 4)
        made.append((left @ right).unflatten(1, (len(part), -1)).transpose(0, 1))
    return torch.cat(made), size


def one_train(x: Tensor, ratio: float) -> Made:
    """One train (tokens, layers, width) over all layers, cores in eight bits; eps by bisection to the budget."""
    tensor, budget = x.transpose(0, 1).contiguous(), 2 * x.numel() / ratio
    low, high, best = 0.01, 0.95, None
    for _ in range(7):
        middle = (low + high) / 2
        cores = tt_svd(tensor, eps=middle)
        size = sum(core.numel() + 2 * core.shape[0] * core.shape[1] for core in cores)
        if size <= budget:
            high, best = middle, (cores, size)
        else:
            low = middle
    cores, size = best
    return tt_to_tensor([int8(core) for core in cores]).transpose(0, 1), size


def integers(x: Tensor, side: str, bits: int, group: int) -> Made:
    """As KIVI: keys for each channel in groups of tokens, values for each token in groups of channels."""
    return coded(x, bits, group, 1 if side == "keys" else 2)


def methods() -> dict[tuple[str, float], Callable[[Tensor, str], Made]]:
    """Every method by its name and its bits or its ratio to half precision."""
    found: dict = {("integers in groups of 64", bits): partial(integers, bits=bits, group=64) for bits in (4, 3, 2)}
    found["integers in groups of 32", 2] = partial(integers, bits=2, group=32)
    found["SVD for each layer", 8] = lambda x, side: over_layers(x, 8, 1)
    for ratio in (4, 8, 16):
        found["SVD over ten layers", ratio] = lambda x, side, ratio=ratio: over_layers(x, ratio, BLOCK)
        found["one train", ratio] = lambda x, side, ratio=ratio: one_train(x, ratio)
    return found


def row(key: tuple[str, float], reader: Reader) -> dict:
    """Rise of the loss over the exact cache, and the ratio of bytes to half precision."""
    losses, ratio, errors = reader.loss(methods()[key])
    rise = [after - before for after, before in zip(losses, reader.dense, strict=True)]
    return {
        "method": key[0],
        "size": key[1],
        "ratio": ratio,
        "rise": rise,
        "mean_rise": sum(rise) / len(rise),
        "keys_error": sum(errors[::2]) / len(errors[::2]),
        "values_error": sum(errors[1::2]) / len(errors[1::2]),
    }
