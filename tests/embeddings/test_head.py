"""The head that shares a compressed table: its scores are those of the dense head."""

import pytest
import torch
from compressed import embedding, noise
from language_models import (
    KINDS,
    WIDTH,
    WORDS,
)
from torch import nn

from ttref import MPSEmbedding, TiedHead

# The head alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_scores_as_the_dense_one_does(kind, bias):
    table = KINDS[kind](embedding(noise(WORDS, WIDTH)))
    shift = nn.Parameter(noise(1, WORDS, 1).squeeze(0)) if bias else None
    head = TiedHead(table, shift)
    assert (head.in_features, head.out_features) == (WIDTH, WORDS) and head.table is table
    hidden = noise(6, WIDTH, 2).view(2, 3, WIDTH)
    expected = nn.functional.linear(hidden, table.to_embedding().weight, shift)
    torch.testing.assert_close(head(hidden), expected, rtol=1e-4, atol=1e-4)
    if bias:
        head(hidden).sum().backward()
        torch.testing.assert_close(shift.grad, torch.full((WORDS,), 6.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden).dtype == torch.bfloat16


def test_a_head_follows_its_table():
    table = MPSEmbedding.from_embedding(embedding(noise(WORDS, WIDTH)), rank=2)
    head = TiedHead(table)
    table.append(noise(3, WIDTH, 1))
    assert head.out_features == WORDS + 3 and head(noise(2, WIDTH)).shape == (2, WORDS + 3)


def test_a_head_needs_a_compressed_table():
    with pytest.raises(TypeError, match="a TiedHead needs an MPSEmbedding or a TTMEmbedding, got Embedding"):
        TiedHead(nn.Embedding(3, 4))
