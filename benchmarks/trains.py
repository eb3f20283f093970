"""Cases: decomposing, rebuilding and multiplying many small trains, and one TT-matrix."""

from __future__ import annotations

import contextlib
import io
import math
import warnings

import matplotlib.pyplot as plt
import tensorly
import tntorch
import torch
from matplotlib.figure import Figure
from tensorly.decomposition import tensor_train, tensor_train_matrix
from tqdm import tqdm

from book.workbook import figures
from book.workbook.sources import load_language_model
from ttref import tt_dot, tt_ranks, tt_svd, tt_to_tensor, ttm_svd
from ttref.threads import map_chunks

from . import page
from .measure import Case, Contender, run
from .page import markdown

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")  # torchTT says on import that it runs without its C++ extension
    import torchtt

tensorly.set_backend("pytorch")

RESULT, MODELS = "speed", ["SmolLM2-135M-Instruct (token table)"]
TASKS = {  # in the figure
    "TT-SVD": "decompose rows",
    "tt_to_tensor": "rebuild rows",
    "tt_dot": "inner products",
    "ttm_svd": "one matrix",
}
PACKAGES = ("torch", "tensorly", "torchTT", "tntorch")
MODES = (2,) * 10
ROWS, SOME, FEW = 49_152, 4096, 200  # for all at once, for batches and for loops
MATRIX = (768, 3072, (12, 16, 16), (8, 8, 12), 8)  # sizes, modes of rows and of columns, rank


def measure(limits: dict) -> dict:
    """All contenders of a case in one run."""
    return {"cases": [run(case, limits) for case in tqdm(cases(), desc="trains", disable=None)]}


def cases() -> list[Case]:
    """All cases of this module, on Gaussian rows and on the rows of SmolLM2's token table."""
    gaussian = torch.randn(ROWS, 1024, generator=torch.Generator().manual_seed(0))
    table = load_language_model().model.get_input_embeddings().weight.detach()
    table = torch.nn.functional.pad(table[:ROWS], (0, 1024 - table.shape[1]))
    return [
        decompose("TT-SVD, Gaussian rows, 2^10, rank 4", gaussian, 4),
        decompose("TT-SVD, Gaussian rows, 2^10, rank 1", gaussian, 1),
        decompose("TT-SVD, SmolLM2 rows padded to 2^10, rank 4", table, 4),
        decompose("TT-SVD, SmolLM2 rows padded to 2^10, rank 1", table, 1),
        rebuild(gaussian[:SOME], 4),
        inner_products(gaussian[:SOME], 4),
        matrix(*MATRIX),
    ]


def decompose(name: str, rows: torch.Tensor, rank: int) -> Case:
    """Every row as one train; libraries without a batch mode loop over fewer rows."""
    few, some = rows[:FEW], rows[:SOME]
    solver = eigenproblems(MODES, rank, len(rows))
    return Case(
        name,
        "row",
        [
            Contender("ttref.tt_svd", lambda: tt_svd(rows, MODES, rank=rank, batch_dims=1), len(rows)),
            Contender("TensorLy, loop", lambda: [tensor_train(row.reshape(MODES), rank=rank) for row in few], len(few)),
            Contender(
                "tntorch, batch=True",
                lambda: tntorch.Tensor(some.reshape(-1, *MODES), ranks_tt=rank, batch=True),
                len(some),
            ),
            Contender("torchTT, loop", lambda: [torchtt.TT(row.reshape(MODES), rmax=rank) for row in few], len(few)),
            *solver,
        ],
        *_svd_floor(MODES, rank),
    )


def eigenproblems(modes: tuple[int, ...], rank: int, count: int) -> list[Contender]:
    """LAPACK alone on the eigenproblems of ``tt_svd``, on the same threads; empty if all are 2 x 2."""
    ranks = tt_ranks(modes, rank)
    sizes = [
        ranks[k] * n
        for k, n in enumerate(modes[:-1])
        if ranks[k + 1] < min(ranks[k] * n, math.prod(modes[k + 1 :])) and ranks[k] * n > 2
    ]
    if not sizes:
        return []
    grams = [torch.randn(count, size, 2 * size, dtype=torch.float64) for size in set(sizes)]
    grams = {gram.shape[1]: gram @ gram.mT for gram in grams}

    def solve(chunk: slice) -> None:
        for size in sizes:
            torch.linalg.eigh(grams[size][chunk])

    return [
        Contender(
            f"LAPACK, {len(sizes)} eigenproblems alone",
            lambda: map_chunks(solve, count, 8 * math.prod(modes), torch.device("cpu")),
            count,
        )
    ]


def rebuild(rows: torch.Tensor, rank: int) -> Case:
    """From cores back to rows."""
    cores = tt_svd(rows, MODES, rank=rank, batch_dims=1)
    single = [[core[i] for core in cores] for i in range(FEW)]
    batched = tntorch.Tensor(rows.reshape(-1, *MODES), ranks_tt=rank, batch=True)
    ranks = tt_ranks(MODES, rank)
    half = len(MODES) // 2
    flops = 2 * (2**10 * ranks[half] + 2 * sum(2 ** (k + 1) * ranks[k] * ranks[k + 1] for k in range(1, half)))
    return Case(
        f"tt_to_tensor, 2^10, rank {rank}",
        "row",
        [
            Contender("ttref.tt_to_tensor", lambda: tt_to_tensor(cores), len(rows)),
            Contender("TensorLy, loop", lambda: [tensorly.tt_to_tensor(train) for train in single], len(single)),
            Contender("tntorch, batch", batched.torch, len(rows)),
        ],
        flops,
        4 * (1024 + sum(core[0].numel() for core in cores)),
    )


def inner_products(rows: torch.Tensor, rank: int) -> Case:
    """Inner product of each train with its neighbor."""
    cores = tt_svd(rows, MODES, rank=rank, batch_dims=1)
    other = [core.roll(1, 0) for core in cores]
    pairs = [(torchtt.TT([core[i] for core in cores]), torchtt.TT([core[i] for core in other])) for i in range(FEW)]
    single = [tuple(tntorch.Tensor([core[i] for core in train]) for train in (cores, other)) for i in range(FEW)]
    ranks = tt_ranks(MODES, rank)
    flops = 2 * sum(2 * ranks[k] * ranks[k + 1] * (ranks[k] + ranks[k + 1]) for k in range(len(MODES)))
    return Case(
        f"tt_dot, pairs of trains, 2^10, rank {rank}",
        "pair",
        [
            Contender("ttref.tt_dot", lambda: tt_dot(cores, other), len(rows)),
            Contender("tntorch, loop", lambda: [tntorch.dot(x, y) for x, y in single], len(single)),
            Contender("torchTT, loop", lambda: [torchtt.dot(x, y) for x, y in pairs], len(pairs)),
        ],
        flops,
        4 * 2 * sum(core[0].numel() for core in cores),
    )


def matrix(n: int, m: int, rows: tuple[int, ...], cols: tuple[int, ...], rank: int) -> Case:
    """One weight matrix as a TT-matrix."""
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    modes = tuple(a * b for a, b in zip(rows, cols, strict=True))
    return Case(
        f"ttm_svd, {m} x {n} as {rows} x {cols}, rank {rank}",
        "matrix",
        [
            Contender("ttref.ttm_svd", lambda: ttm_svd(w, rows, cols, rank=rank), 1),
            Contender("TensorLy", lambda: tensor_train_matrix(w.reshape(*rows, *cols), rank=rank), 1),
            Contender("torchTT", lambda: torchtt.TT(w, shape=list(zip(rows, cols, strict=True)), rmax=rank), 1),
        ],
        *_svd_floor(modes, rank),
    )


def _svd_floor(modes: tuple[int, ...], rank: int) -> tuple[float, float]:
    """Flops and bytes no Gram-based TT-SVD can avoid: Gram matrix, its eigenproblem (9 m^3), projection; one read."""
    ranks, flops = tt_ranks(modes, rank), 0.0
    for k in range(len(modes) - 1):
        size, rest = ranks[k] * modes[k], math.prod(modes[k + 1 :])
        if ranks[k + 1] < min(size, rest):
            flops += size * rest * min(size, rest) + 9 * min(size, rest) ** 3 + 2 * size * ranks[k + 1] * rest
    params = sum(ranks[k] * n * ranks[k + 1] for k, n in enumerate(modes))
    return flops, 4.0 * (math.prod(modes) + params)


def draw(results: dict) -> Figure:
    """How many times as long as ttref the others take, a line for each task, on a logarithmic axis."""
    figures.use_house_style()
    figure, ax = plt.subplots(figsize=(6.2, 5.6), layout="constrained")
    cases = [case for case in results["cases"] if "SmolLM2" not in case["case"]]
    styles = dict(zip(("TensorLy", "tntorch", "torchTT"), zip(figures.OKABE_ITO[1:], "Ds^", strict=False), strict=True))
    for y, case in enumerate(cases):
        ax.plot(case["floor_us"] / case["rows"][0]["median_us"], y, "|", color="0.35", ms=18, mew=2)
        for row in case["rows"]:
            if style := styles.get(row["name"].split(",")[0]):
                ax.plot([row["ratio"]], [y], color=style[0], marker=style[1], markersize=9, linestyle="")
    ax.axvline(1, color=figures.OKABE_ITO[0], linewidth=2)
    for name, (color, marker) in styles.items():
        ax.plot([], [], color=color, marker=marker, markersize=9, linestyle="", label=name)
    ax.plot([], [], "|", color="0.35", ms=14, mew=2, label="floor")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4, columnspacing=1, handletextpad=0.3)
    ax.set(
        xscale="log",
        yticks=range(len(cases)),
        yticklabels=[f"{TASKS[case['case'].split(',')[0]]},\nrank {case['case'].rpartition(' ')[2]}" for case in cases],
        ylim=(len(cases) - 0.5, -0.5),
        xlabel="time, in multiples of ttref's (blue line)",
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="y", visible=False)
    return figure


def write(record: dict) -> None:
    """Redraw the figure and the tables of the performance page."""
    page.write(RESULT, markdown(record), draw(record))
