"""Cases: compressed token tables, 50,257 x 768 as GPT-2's. Looking rows up, building, growing, scoring, training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import matplotlib.pyplot as plt
import tensorly
import tltorch
import torch
from matplotlib.figure import Figure
from tensorly.decomposition import tensor_train
from torch import nn
from tqdm import tqdm

from book.workbook import figures
from ttref import MPSEmbedding, TTMEmbedding, ttm_svd

from . import page
from .measure import Case, Contender, repeated, run
from .page import markdown

RESULT, MODELS = "tables", ["Gaussian rows"]
PACKAGES = ("torch", "tensorly", "tensorly-torch")
ROWS, WIDTH = 50_257, 768
LOOK_UPS = (1, 512, 8192)
APPENDED = (1, 10, 100, 500)
ROUNDS = 5
ROW_SHAPE, COL_SHAPE, RANK = (16, 24, 131), (4, 12, 16), 8  # tltorch's own choice for 50,304 x 768
KINDS = {"one train a row": "one train for each row", "one TT-matrix": "one TT-matrix for the table"}
STYLES = {
    "MPSEmbedding": 0,
    "TTMEmbedding": 0,
    "tltorch FactorizedEmbedding": 1,
    "rebuild, then index": 2,
    "MPSEmbedding, int8 cores": 3,
    "MPSEmbedding, centered and rotated": 4,
}


def measure(limits: dict) -> dict:
    """All contenders of a case in one run."""
    return {"cases": [run(case, limits, ROUNDS) | extra for case, extra in tqdm(cases(), desc="tables", disable=None)]}


def cases() -> list[tuple[Case, dict]]:
    """All cases, each with more values to record, on one table of Gaussian rows: no time depends on the values."""
    torch.manual_seed(0)
    dense = nn.Embedding(ROWS, WIDTH)
    kinds = {
        "MPSEmbedding": MPSEmbedding.from_embedding(dense, rank=4),
        "MPSEmbedding, int8 cores": MPSEmbedding.from_embedding(dense, rank=4, core_bits=8),
        "MPSEmbedding, centered and rotated": MPSEmbedding.from_embedding(dense, rank=4, center=True, rotate=True),
    }
    ttm = TTMEmbedding(ROW_SHAPE, COL_SHAPE, RANK, ROWS, WIDTH)
    found = [(build(dense), {})]
    for count in LOOK_UPS:
        ids = torch.randint(0, ROWS, (count,), generator=torch.Generator().manual_seed(count))
        found.append((alone(kinds, dense, ids), {"kind": "one train a row", "ids": count}))
        found.append((shared(ttm, dense, ids), {"kind": "one TT-matrix", "ids": count}))
        if count > 1:
            found.append((train(ttm, dense, ids), {"trained": count}))
    found += [(grow(kinds["MPSEmbedding"], dense, count), {"appended": count}) for count in APPENDED]
    return [*found, (scores(dense, kinds["MPSEmbedding"], ttm), {})]


def build(dense: nn.Embedding) -> Case:
    """The whole table as one train a row; TensorLy loops over a few rows, with either of two backends."""
    few = nn.functional.pad(dense.weight.detach()[:200], (0, 1024 - WIDTH)).reshape(-1, *(2,) * 10)

    def loop(backend: str) -> Callable[[], object]:
        rows = few.numpy() if backend == "numpy" else few

        def call() -> None:
            with tensorly.backend_context(backend, local_threadsafe=True):
                for row in rows:
                    tensor_train(row, rank=4)

        return call

    return Case(
        "build, one train a row, rank 4",
        "row",
        [
            Contender("MPSEmbedding", lambda: MPSEmbedding.from_embedding(dense, rank=4), ROWS),
            Contender("TensorLy on PyTorch, loop", loop("pytorch"), len(few)),
            Contender("TensorLy on NumPy, loop", loop("numpy"), len(few)),
        ],
        0,
        4 * (WIDTH + 192),
    )


def alone(kinds: dict[str, MPSEmbedding], dense: nn.Embedding, ids: torch.Tensor) -> Case:
    """Looking up random ids in a table with one train for each row."""
    mps = kinds["MPSEmbedding"]
    calls = {name: lambda table=table: table(ids) for name, table in kinds.items()}
    calls["nn.Embedding"] = lambda: dense(ids)
    calls["rebuild, then index"] = lambda: nn.functional.embedding(ids, mps.to_embedding().weight)
    agree(calls["MPSEmbedding"](), calls["rebuild, then index"]())
    return _look_up(f"look-up, one train a row, rank 4, {len(ids):,} ids", calls, len(ids), 192)


def shared(ttm: TTMEmbedding, dense: nn.Embedding, ids: torch.Tensor) -> Case:
    """Looking up random ids in a table that is one TT-matrix."""
    peer = factorized(ttm)
    calls = {
        "TTMEmbedding": lambda: ttm(ids),
        "tltorch FactorizedEmbedding": lambda: peer(ids),
        "nn.Embedding": lambda: dense(ids),
        "rebuild, then index": lambda: nn.functional.embedding(ids, ttm.to_embedding().weight),
    }
    agree(calls["TTMEmbedding"](), calls["tltorch FactorizedEmbedding"]())
    return _look_up(f"look-up, one TT-matrix, rank 8, {len(ids):,} ids", calls, len(ids), 0)


def train(ttm: TTMEmbedding, dense: nn.Embedding, ids: torch.Tensor) -> Case:
    """The work of a table in a training step: a look-up, and backward to the stored numbers."""
    target = torch.randn(len(ids), WIDTH)
    tables = {"TTMEmbedding": ttm, "tltorch FactorizedEmbedding": factorized(ttm), "nn.Embedding": dense}

    def step(table: nn.Module) -> None:
        table.zero_grad(set_to_none=True)
        table(ids).backward(target)

    contenders = [repeated(name, lambda table=table: step(table)) for name, table in tables.items()]
    name = f"forward and backward, one TT-matrix, rank 8, {len(ids):,} ids"
    return Case(name, "call", contenders, 0, 4 * 2 * len(ids) * WIDTH)


def factorized(ttm: TTMEmbedding) -> nn.Module:
    """The same table, with the same numbers in it, in tltorch."""
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
    return peer


def grow(mps: MPSEmbedding, dense: nn.Embedding, count: int) -> Case:
    """Appending rows: only the new ones are decomposed, or the whole TT-matrix is decomposed again.

    Each round appends to the table of the earlier rounds, as in use.
    """
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))
    shape = (*ROW_SHAPE[:2], ROW_SHAPE[2] + 2)  # room for 768 rows more
    missing = shape[0] * shape[1] * shape[2] - ROWS - count
    table = nn.functional.pad(torch.cat((dense.weight.detach(), rows)), (0, 0, 0, missing))
    grown = copy.deepcopy(mps)
    return Case(
        f"adding {count:,} rows",
        "call",
        [
            Contender("MPSEmbedding.append", lambda: grown.append(rows), 1),
            Contender("TT-matrix made again", lambda: ttm_svd(table, shape, COL_SHAPE, rank=RANK), 1),
        ],
        0,
        4 * count * (WIDTH + 192),
    )


def scores(dense: nn.Embedding, mps: MPSEmbedding, ttm: TTMEmbedding) -> Case:
    """The work of a head: 512 vectors scored against every row. The lower bound is writing the scores once."""
    hidden = torch.randn(512, WIDTH)
    calls = {
        "MPSEmbedding.logits": lambda: mps.logits(hidden),
        "TTMEmbedding.logits": lambda: ttm.logits(hidden),
        "dense matrix": lambda: hidden @ dense.weight.T,
    }
    contenders = [Contender(name, torch.no_grad()(call), 1) for name, call in calls.items()]
    return Case("scores of 512 vectors for all rows", "call", contenders, 0, 4 * 512 * ROWS)


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Check that all contenders look up the same rows."""
    gap = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
    if gap > 1e-4:
        raise AssertionError(f"the rows differ by {gap:.1e}")


def _look_up(name: str, calls: dict[str, Callable], count: int, stored: int) -> Case:
    """A case whose lower bound is moving the stored numbers of each row, and the row itself, once."""
    contenders = [repeated(label, torch.no_grad()(call)) for label, call in calls.items()]
    return Case(name, "call", contenders, 0, 4 * count * (stored + WIDTH))


def look_ups(results: dict, kind: str) -> dict[str, list[tuple[int, float]]]:
    """For each contender of one kind of table, the number of ids and the microseconds of a look-up."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for case in results["cases"]:
        for row in case["rows"] if case.get("kind") == kind else []:
            lines.setdefault(row["name"], []).append((case["ids"], row["median_us"]))
    return lines


def draw(results: dict) -> Figure:
    """Time of a look-up against the number of ids, one panel below the other for the two kinds of table."""
    figures.use_house_style()
    figure, axes = plt.subplots(2, 1, figsize=(6.2, 8.4), layout="constrained", sharex=True, sharey=True)
    for ax, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for name, points in look_ups(results, kind).items():
            color, marker = "0.45", "x"
            if name in STYLES:
                color, marker = figures.OKABE_ITO[STYLES[name]], figures.MARKERS[STYLES[name]]
            counts, times = zip(*points, strict=True)
            ax.plot(counts, [time / 1e3 for time in times], color=color, marker=marker, label=name)
        ax.set(xscale="log", yscale="log", ylabel="milliseconds", title=title)
        ax.legend(loc="upper left")
        ax.yaxis.set_major_formatter("{x:,g}")
    axes[1].set_xlabel("ids looked up at once")
    axes[1].xaxis.set_major_formatter("{x:,g}")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high * 300)  # room for the legends
    return figure


def write(record: dict) -> None:
    """Redraw the figure and the tables of the performance page."""
    page.write(RESULT, markdown(record), draw(record))
