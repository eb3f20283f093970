"""Cases: compressed token tables, 50,257 x 768 as GPT-2's. Looking rows up, building, growing, scoring."""

from __future__ import annotations

from collections.abc import Callable

import tensorly
import tltorch
import torch
from tensorly.decomposition import tensor_train
from torch import nn

from ttref import MPSEmbedding, TTMEmbedding, ttm_svd

from .measure import Case, Contender, repeated

tensorly.set_backend("pytorch")

ROWS, WIDTH = 50_257, 768
LOOK_UPS = (1, 512, 8192)
APPENDED = (1, 10, 100, 500)
ROUNDS = 5
ROW_SHAPE, COL_SHAPE, RANK = (16, 24, 131), (4, 12, 16), 8  # tltorch's own choice for 50,304 x 768


def cases() -> list[tuple[Case, dict]]:
    """All cases, on one table of Gaussian rows: no time here depends on the values. With each, what to record of it."""
    torch.manual_seed(0)
    dense = nn.Embedding(ROWS, WIDTH)
    mps = MPSEmbedding.from_embedding(dense, rank=4)
    ttm = TTMEmbedding(ROW_SHAPE, COL_SHAPE, RANK, ROWS, WIDTH)
    found = [(build(dense), {})]
    found += [(look_up(dense, mps, ttm, count), {"ids": count}) for look_up in (alone, shared) for count in LOOK_UPS]
    found += [(grow(dense, count), {"appended": count}) for count in APPENDED]
    return [*found, (scores(dense, mps, ttm), {})]


def build(dense: nn.Embedding) -> Case:
    """The whole table as one train a row; TensorLy loops over a few rows."""
    few = nn.functional.pad(dense.weight.detach()[:200], (0, 1024 - WIDTH)).reshape(-1, *(2,) * 10)
    return Case(
        "build, one train a row, rank 4",
        "row",
        [
            Contender("MPSEmbedding", lambda: MPSEmbedding.from_embedding(dense, rank=4), ROWS),
            Contender("TensorLy, loop", lambda: [tensor_train(row, rank=4) for row in few], len(few)),
        ],
        0,
        4 * (WIDTH + 192),
    )


def alone(dense: nn.Embedding, mps: MPSEmbedding, _: TTMEmbedding, count: int) -> Case:
    """Looking up ``count`` random ids where each row is a train of its own."""
    ids = torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(count))
    small = MPSEmbedding.from_embedding(dense, rank=4, core_bits=8)
    turned = MPSEmbedding.from_embedding(dense, rank=4, center=True, rotate=True)
    calls = {
        "MPSEmbedding": lambda: mps(ids),
        "MPSEmbedding, int8 cores": lambda: small(ids),
        "MPSEmbedding, centered and rotated": lambda: turned(ids),
        "nn.Embedding": lambda: dense(ids),
        "rebuild, then index": lambda: nn.functional.embedding(ids, mps.to_embedding().weight),
    }
    agree(calls["MPSEmbedding"](), calls["rebuild, then index"]())
    return _look_up(f"look-up, one train a row, rank 4, {count:,} ids", calls, count, 192)


def shared(dense: nn.Embedding, _: MPSEmbedding, ttm: TTMEmbedding, count: int) -> Case:
    """Looking up ``count`` random ids where the table is one TT-matrix."""
    ids = torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(count))
    peer = tltorch.FactorizedEmbedding(
        ROW_SHAPE[0] * ROW_SHAPE[1] * ROW_SHAPE[2],
        WIDTH,
        auto_tensorize=False,
        tensorized_num_embeddings=ROW_SHAPE,
        tensorized_embedding_dim=COL_SHAPE,
        factorization="blocktt",
        rank=list(ttm.ranks),
    )
    with torch.no_grad():
        for theirs, core in zip(peer.weight.factors, ttm.cores, strict=True):
            theirs.copy_(core)
    calls = {
        "TTMEmbedding": lambda: ttm(ids),
        "tltorch FactorizedEmbedding": lambda: peer(ids),
        "nn.Embedding": lambda: dense(ids),
        "rebuild, then index": lambda: nn.functional.embedding(ids, ttm.to_embedding().weight),
    }
    agree(calls["TTMEmbedding"](), calls["tltorch FactorizedEmbedding"]())
    return _look_up(f"look-up, one TT-matrix, rank 8, {count:,} ids", calls, count, 0)


def grow(dense: nn.Embedding, count: int) -> Case:
    """Adding rows: only the new ones are decomposed, or the whole TT-matrix is made again."""
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))
    shape = (*ROW_SHAPE[:2], ROW_SHAPE[2] + 2)  # room for 768 rows more
    table = nn.functional.pad(dense.weight.detach(), (0, 0, 0, shape[0] * shape[1] * shape[2] - ROWS))
    fresh = MPSEmbedding.from_embedding(dense, rank=4)
    return Case(
        f"adding {count:,} rows",
        "call",
        [
            Contender("MPSEmbedding.append", lambda: fresh.append(rows), 1),
            Contender("TT-matrix made again", lambda: ttm_svd(table, shape, COL_SHAPE, rank=RANK), 1),
        ],
        0,
        4 * count * (WIDTH + 192),
    )


def scores(dense: nn.Embedding, mps: MPSEmbedding, ttm: TTMEmbedding) -> Case:
    """A head's work: 512 vectors scored against every row."""
    hidden = torch.randn(512, WIDTH)
    calls = {
        "MPSEmbedding.logits": lambda: mps.logits(hidden),
        "TTMEmbedding.logits": lambda: ttm.logits(hidden),
        "dense matrix": lambda: hidden @ dense.weight.T,
    }
    contenders = [Contender(name, torch.no_grad()(call), 1) for name, call in calls.items()]
    flops = 2 * 512 * ROWS * WIDTH
    return Case("scores of 512 vectors for all rows", "call", contenders, flops, 4 * 512 * ROWS, "flops32_per_s")


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """All contenders look the same rows up; a comparison of different things would be worth nothing."""
    gap = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
    if gap > 1e-4:
        raise AssertionError(f"the rows differ by {gap:.1e}")


def _look_up(name: str, calls: dict[str, Callable], count: int, stored: int) -> Case:
    """The floor: what is stored of each row, and the row itself, moved once."""
    contenders = [repeated(label, torch.no_grad()(call)) for label, call in calls.items()]
    return Case(name, "call", contenders, 0, 4 * count * (stored + WIDTH))
