"""What MPSEmbedding refuses: settings, tables and ids, by name."""

import math

import pytest
import torch
from compressed import embedding, noise
from mps_tables import (
    KINDS,
    made,
)
from torch import nn

from ttref import MPSEmbedding


class Scaled(nn.Embedding):
    """As in transformers, where some models multiply what they look up."""

    def forward(self, ids):
        return super().forward(ids) * 3


class Named(nn.Embedding):
    """A subclass that only adds a method is a plain table."""

    def sizes(self):
        return self.num_embeddings, self.embedding_dim


def with_nan(position):
    w = noise(5, 48)
    w[position] = math.nan
    return embedding(w)


# What is refused


@pytest.mark.parametrize(
    "table, arguments, error, message",
    [
        (nn.Linear(4, 4), {"rank": 1}, TypeError, "only an nn.Embedding can be compressed, got Linear"),
        (torch.zeros(3, 4), {"rank": 1}, TypeError, "only an nn.Embedding can be compressed, got Tensor"),
        (nn.EmbeddingBag(4, 4), {"rank": 1}, TypeError, "got EmbeddingBag"),
        (Scaled(5, 48), {"rank": 1}, TypeError, "Scaled has a forward of its own, which would be lost; compress a"),
        (nn.Embedding(5, 48, max_norm=1.0), {"rank": 1}, ValueError, r"max_norm .* set embedding.max_norm = None"),
        (nn.Embedding(5, 48, scale_grad_by_freq=True), {"rank": 1}, ValueError, "set embedding.scale_grad_by_freq = F"),
        (with_nan((1, 2)), {"rank": 1}, ValueError, r"embedding.weight has 1 entries that are NaN.*index \(1, 2\)"),
        (nn.Embedding(0, 48), {"rank": 1}, ValueError, r"embedding.weight has no entries: its shape is \(0, 48\)"),
        (nn.Embedding(5, 0), {"rank": 1}, ValueError, r"embedding.weight has no entries"),
        (nn.Embedding(5, 48), {}, ValueError, "exactly one of rank, eps and row_ranks, got none"),
        (nn.Embedding(5, 48), {"rank": 1, "eps": 0.1}, ValueError, "got rank and eps"),
        (nn.Embedding(5, 48), {"rank": 1, "row_ranks": [1] * 5}, ValueError, "got rank and row_ranks"),
        (nn.Embedding(5, 48), {"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        (nn.Embedding(5, 48), {"rank": 1.5}, TypeError, "rank must be"),
        (nn.Embedding(5, 48), {"rank": [1, 2, 1]}, ValueError, "rank has 3 entries, but 6 modes have 7 ranks"),
        (nn.Embedding(5, 48), {"eps": 1}, ValueError, r"must lie in \[0, 1\), got 1"),
        (nn.Embedding(5, 48), {"eps": -0.1}, ValueError, r"must lie in \[0, 1\), got -0.1"),
        (nn.Embedding(5, 48), {"eps": math.nan}, ValueError, r"must lie in \[0, 1\), got nan"),
        (nn.Embedding(5, 48), {"eps": "0.1"}, TypeError, "eps must be a number"),
        (nn.Embedding(5, 48), {"eps": 0.1, "core_bits": 8}, ValueError, "eps does not bound the rounding of int8"),
        (nn.Embedding(5, 48), {"rank": 1, "core_bits": 4}, ValueError, r"core_bits must be 32 .* or 8 .*, got 4"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2]}, ValueError, "row_ranks has 2 caps, but there are 5 rows"),
        (nn.Embedding(5, 48), {"row_ranks": [1] * 6}, ValueError, "row_ranks has 6 caps, but there are 5 rows"),
        (nn.Embedding(5, 48), {"row_ranks": 3}, TypeError, "row_ranks must be 5 caps, .* got 3; rank takes one for"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2, 0, 1, 1]}, ValueError, r"row_ranks\[2\] must be at least 1, got 0"),
        (nn.Embedding(5, 48), {"row_ranks": [1, 2.5, 1, 1, 1]}, TypeError, r"row_ranks\[1\] must be an integer"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": (2, 3)}, ValueError, r"\(2, 3\) multiplies to 6, .* has 48 entries"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": ()}, ValueError, "shape is empty"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": 48}, TypeError, "shape must be a sequence of modes"),
        (nn.Embedding(5, 48), {"rank": 1, "shape": (48, 0)}, ValueError, r"shape\[1\] must be at least 1, got 0"),
    ],
)
def test_bad_arguments(table, arguments, error, message):
    with pytest.raises(error, match=message):
        MPSEmbedding.from_embedding(table, **arguments)


def test_a_subclass_with_the_plain_look_up_is_taken():
    assert MPSEmbedding.from_embedding(Named(5, 48), rank=1).num_embeddings == 5


def test_ranks_may_be_given_bond_by_bond():
    table = MPSEmbedding.from_embedding(embedding(noise(4, 24)), rank=(1, 2, 3, 1), shape=(2, 4, 3))
    assert table.store.buckets[0].layout.ranks == (1, 2, 3, 1)


def test_halves_whose_norm_leaves_their_range_are_refused():
    w = torch.full((2, 768), 6e4, dtype=torch.float16)
    with pytest.raises(ValueError, match="beyond the range of torch.float16"):
        MPSEmbedding.from_embedding(embedding(w), rank=1)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        (torch.tensor([0, 12]), IndexError, "id 12 is out of range: the table has 12 rows, 0 to 11"),
        (torch.tensor([[0], [-1]]), IndexError, "id -1 is out of range.*negative ids do not count from the end"),
        (torch.tensor(99, dtype=torch.int32), IndexError, "id 99 is out of range"),
        (torch.tensor([1.0]), TypeError, "ids must be a tensor of int32 or int64, got torch.float32"),
        (torch.tensor([True]), TypeError, "got torch.bool"),
        (torch.tensor([1], dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.tensor([1], dtype=torch.int16), TypeError, "got torch.int16"),
        ([1, 2], TypeError, "got list"),
        (3, TypeError, "got int"),
    ],
)
@pytest.mark.parametrize("kind", [KINDS["one bucket"], KINDS["buckets in a frame"], KINDS["int8"]], ids=str)
def test_bad_ids(kind, ids, error, message):
    table = made(kind)
    for call in (table, table.rows):
        with pytest.raises(error, match=message):
            call(ids)


def test_rows_takes_one_axis():
    for ids in (torch.tensor(3), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="rows takes one axis, forward takes any shape"):
            made(KINDS["one bucket"]).rows(ids)
