"""Counts that printed claims are held to: sizes of models from their public configurations, and bounds."""

from __future__ import annotations

import math
from typing import NamedTuple

from ttref import factorize, tt_params

__all__ = ["aligned", "closest", "gpt2", "mlp_matrices", "numbers_of", "row_train", "smallest_set", "traffic_bound"]

GPT2_ROWS, GPT2_PLACES = 50_257, 1_024
BERT_ROWS = 30_522

# Shapes that TT-LoRA's published code tries, by the size of the matrix, and the ranks.
SHAPES: dict[tuple[int, int], list[tuple[int, ...]]] = {
    (768, 768): [
        (64, 16, 9, 64),
        (12, 8, 8, 8, 8, 12),
        (12, 8, 8, 2, 4, 8, 12),
        (12, 8, 8, 2, 2, 2, 8, 12),
        (8, 6, 2, 2, 4, 4, 2, 2, 6, 8),
        (8, 6, 2, 2, 2, 2, 2, 2, 2, 2, 6, 8),
    ],
    (2304, 768): [
        (12, 8, 8, 3, 8, 8, 12),
        (12, 8, 8, 24, 8, 12),
        (6, 12, 16, 16, 96),
        (4, 6, 6, 8, 8, 8, 24),
        (4, 4, 9, 12, 32, 32),
        (3, 4, 4, 4, 6, 32, 48),
        (64, 36, 12, 64),
        (32, 12, 3, 4, 12, 32),
        (32, 16, 2, 3, 3, 3, 2, 32),
        (32, 4, 2, 2, 2, 3, 3, 3, 2, 32),
        (16, 2, 4, 2, 2, 2, 3, 3, 3, 2, 2, 16),
    ],
}
RANKS = 1, 2, 4, 8, 10, 12, 16


class Decoder(NamedTuple):
    """A language model with its published ratios: of the whole network (`whole`) and of the first token's delay."""

    blocks: int
    attention: int  # numbers of a block's attention matrices
    mlp: int  # numbers of one of the three matrices of a block's MLP
    vocabulary: int
    small: int  # norms and biases of a block
    whole: float
    token: float

    @property
    def table(self) -> int:
        """Numbers of the input table; the output has one more."""
        return self.vocabulary * 4096

    @property
    def linear(self) -> int:
        """Numbers of all linear layers in blocks."""
        return self.blocks * (self.attention + 3 * self.mlp)

    @property
    def numbers(self) -> int:
        """Numbers of the whole model."""
        return self.linear + 2 * self.table + self.blocks * self.small + 4096


DECODERS = {
    "ChatGLM3-6B": Decoder(28, 4096 * (4608 + 4096), 4096 * 13696, 65024, 4608 + 2 * 4096, 1.94, 1.45),
    "LLaMA-2-7B": Decoder(32, 4 * 4096 * 4096, 4096 * 11008, 32000, 2 * 4096, 1.60, 1.57),
}


def gpt2(layers: int, width: int) -> int:
    """Numbers of a GPT-2: two tables, blocks, last norm; its head is the table.

    Example:
        >>> gpt2(12, 768)
        124439808
    """
    return (GPT2_ROWS + GPT2_PLACES) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def numbers_of(name: str) -> int:
    """Numbers of a model, or of a part of one.

    Example:
        >>> numbers_of("BERT-base"), numbers_of("ViT-B/16")
        (109482240, 86567656)
    """
    square, norm = 768 * 768 + 768, 2 * 768  # a matrix with its bias; a norm
    feed_forward = 2 * 768 * 3072 + 3072 + 768
    blocks = 12 * (4 * square + feed_forward + 2 * norm)
    tables = (BERT_ROWS + 512 + 2) * 768 + norm
    patches = 768 * 16 * 16 * 3 + 768 + 197 * 768 + 768
    disentangled = 2304 * 768 + 2 * 768 + 768 * 768 + 2 * square + feed_forward + 2 * norm
    sizes = {name: model.numbers for name, model in DECODERS.items()} | {
        "BERT-base": tables + blocks + square,
        "BERT-base, token table": BERT_ROWS * 768,
        "BERT-base, embeddings": tables,
        "BERT-base, blocks": blocks,
        "ViT-B/16": patches + blocks + norm + 768 * 1000 + 1000,
        "ViT-B/16, embeddings": patches,
        "DeBERTa-base": 50_265 * 768 + norm + 12 * disentangled + 1024 * 768 + square + 768 * 2 + 2,
    }
    return sizes[name]


def row_train(width: int, rank: int) -> int:
    """Numbers of the train of one row of this width that is not padded."""
    return tt_params(factorize(width), rank)


def aligned(modes: tuple[int, ...], rows: int) -> bool:
    """Whether a bond of the train lies exactly between the rows and the columns of the matrix."""
    return rows in {math.prod(modes[:k]) for k in range(1, len(modes))}


def closest(ratio: float, numbers: int, adapters: int, rows: int) -> float:
    """The ratio next to the one asked for that a published shape at a published rank gives.

    Example:
        >>> round(closest(1560, 768 * 768, 1, 768), 1)
        1656.8
    """
    counts = {tt_params(shape, rank) for shape in SHAPES[rows, 768] for rank in RANKS}
    return min((numbers / (adapters * count) for count in counts), key=lambda found: abs(math.log(found / ratio)))


def smallest_set(*accuracies: str) -> int:
    """The smallest test set on which all these accuracies can be printed, to the digits that they have.

    Example:
        >>> smallest_set("0.9796", "0.9278")
        540
    """

    def exists(accuracy: str, count: int) -> bool:
        digits = len(accuracy.partition(".")[2])
        return f"{round(float(accuracy) * count) / count:.{digits}f}" == accuracy

    return next(count for count in range(1, 10**6) if all(exists(accuracy, count) for accuracy in accuracies))


def mlp_matrices(name: str) -> int:
    """How many MLP matrices, cut to nothing, give the published ratio of the whole network when it is rounded."""
    model = DECODERS[name]
    return next(
        count
        for count in range(1, 3 * model.blocks)
        if round(model.numbers / (model.numbers - count * model.mlp), 2) == model.whole
    )


def traffic_bound(name: str) -> float:
    """The largest gain of one token if reading weights takes all the time; it reads all but the input table."""
    model = DECODERS[name]
    read = model.numbers - model.table
    return read / (read - model.numbers * (1 - 1 / model.whole))
