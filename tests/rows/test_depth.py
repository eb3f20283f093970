"""A look-up is short: its calls inside of the package are counted, and none is deep."""

import sys
from pathlib import Path

import pytest
import torch
from compressed import embedding, noise

import ttref
from ttref import MPSEmbedding

FOLDER = str(Path(ttref.__file__).parent)


def depth_of(call):
    """The most frames of the package that are open at once."""
    depth, deepest = 0, 0

    def profile(frame, event, _):
        nonlocal depth, deepest
        if event in ("call", "return") and frame.f_code.co_filename.startswith(FOLDER):
            depth += 1 if event == "call" else -1
            deepest = max(deepest, depth)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return deepest


def grown():
    table = MPSEmbedding.from_embedding(embedding(noise(24, 32)), row_ranks=[1, 2, 99] * 8, center=True, rotate=True)
    table.append(noise(3, 32, 1), row_ranks=[1, 2, 4])
    return table


TABLES = {
    "one bucket": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32)), rank=2),
    "frame": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32)), rank=2, center=True, rotate=True),
    "int8": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32)), rank=2, core_bits=8),
    "eps": lambda: MPSEmbedding.from_embedding(embedding(noise(24, 32)), eps=0.5),
    "buckets and pieces": grown,
}


@pytest.mark.parametrize("ids", [torch.tensor([3]), torch.tensor([[0, 1, 2], [7, 23, 7]])], ids=["one", "many"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_a_look_up_is_at_most_seven_calls_deep(table, recorded, ids):
    made = TABLES[table]()
    with torch.set_grad_enabled(recorded):
        assert depth_of(lambda: made(ids)) <= 7
