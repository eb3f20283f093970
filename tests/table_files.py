"""What the tests of table files share: small tables of every kind, and what a file holds."""

import pytest
import torch
from compressed import embedding, smooth
from safetensors import safe_open

from ttref import MPSEmbedding, TTMEmbedding


def mps(dtype=torch.float32, options=None, **kind):
    return MPSEmbedding.from_embedding(embedding(smooth(12, 48, 0, dtype), **(options or {})), **kind)


def ttm(dtype=torch.float32, options=None):
    table = embedding(smooth(12, 48, 0, dtype), **(options or {}))
    return TTMEmbedding.from_embedding(table, row_shape=(3, 5), col_shape=(5, 10), rank=4)


KINDS = {
    "one bucket": lambda **more: mps(rank=2, **more),
    "unpadded": lambda **more: mps(rank=2, shape=(2, 2, 2, 2, 3), **more),
    "frame": lambda **more: mps(rank=2, center=True, rotate=True, **more),
    "buckets": lambda **more: mps(row_ranks=[1, 2, 3, 99] * 3, center=True, rotate=True, **more),
    "eps": lambda **more: mps(eps=0.2, **more),
    "int8": lambda **more: mps(rank=2, core_bits=8, **more),
    "int8 buckets": lambda **more: mps(row_ranks=[1, 2, 3, 99] * 3, core_bits=8, center=True, **more),
    "ttm": ttm,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def opened(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
