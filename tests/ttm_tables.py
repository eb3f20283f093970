"""What the tests of TTMEmbedding share: tables that differ in all that matters, and their dense twin."""

import pytest
import torch
from compressed import unit
from strategies import dense_matrix

from ttref import TTMEmbedding

# Padding on either side or none, one core to four, a mode of one, ranks that differ.
ARGUMENTS = [
    {"row_shape": (3, 4), "col_shape": (4, 5), "rank": 3},
    {"row_shape": (3, 2, 4), "col_shape": (2, 3, 4), "rank": (1, 2, 5, 1), "num_embeddings": 19},
    {"row_shape": (2, 3, 2, 2), "col_shape": (2, 2, 3, 2), "rank": 4, "embedding_dim": 17},
    {"row_shape": (5, 1, 3), "col_shape": (1, 4, 2), "rank": 2, "num_embeddings": 13, "embedding_dim": 7},
    {"row_shape": (11,), "col_shape": (6,), "rank": 1, "num_embeddings": 10, "embedding_dim": 5},
    {"row_shape": (2, 40), "col_shape": (6, 8), "rank": 6},
]
alike = pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)


def made(arguments, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return TTMEmbedding(**arguments, dtype=dtype, **options)


def matrix_of(table):
    """The dense table, contracted independently of ttref and without its padding."""
    cores = [core.detach().double() for core in table.cores]
    return dense_matrix(cores)[: table.num_embeddings, : table.embedding_dim]


def assert_near(actual, expected, dtype, factor=100):
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=factor * unit(dtype) * max(scale, 1e-30)
    )
