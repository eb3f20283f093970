"""Cases: cores fitted to what a layer sees, with modes given and with modes searched, on matrices of MiniLM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorly
import torch
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from book.workbook.sources import load_encoder, token_windows
from ttref import balanced_modes, truncated_svd, ttm_svd, ttm_to_matrix
from ttref.fitting import Gram, choose_modes, collect_gram, fit_cores, output_error
from ttref.fitting.choosing import within
from ttref.gptq import gptq_quantize

from . import page
from .measure import Case, Contender, run

RESULT, MODELS = "fits", ["sentence-transformers/all-MiniLM-L6-v2"]
PACKAGES = ("torch", "tensorly")
RATIO = 4  # numbers of the matrix for each one stored
WINDOWS, LENGTH = 128, 64  # of prose: half to fit, half to judge
BLOCK = "encoder.layer.2."
# Of each matrix: its name, and how many seconds a fit and a search may take.
NAMES = {"attention.self.query": (2, 120), "intermediate.dense": (20, 120), "output.dense": (20, 120)}
ROUNDS, SEARCHES = 5, 3
FIT, SEARCH = "ttref.fit_cores", "ttref.choose_modes"


class Seen(NamedTuple):
    """A matrix ``(out, in)``, the Gram matrices of its inputs to fit and to judge, and seconds that are wanted."""

    weight: Tensor
    gram: Gram
    other: Gram
    wanted: tuple[float, float]


def measure(limits: dict) -> dict:
    """A fit and a search for each matrix; all contenders of a case in one run, on all threads."""
    found = []
    with torch.no_grad():
        for layer in tqdm(list(layers()), desc="fits", disable=None):
            for make, rounds in ((fit, ROUNDS), (search, SEARCHES)):
                case, extra = make(layer)
                found.append(run(case, limits, rounds, limits["threads"]) | extra)
    return {"cases": found}


def layers() -> Iterator[Seen]:
    """Three matrices of the third block of MiniLM, and what they see of scikit-learn's prose."""
    encoder = load_encoder()
    windows = token_windows(encoder.tokenizer, length=LENGTH, count=WINDOWS)
    grams = [
        collect_gram(encoder.model, [BLOCK + name for name in NAMES], half.split(16), progress=False)
        for half in (windows[::2], windows[1::2])
    ]
    for name, wanted in NAMES.items():
        weight = encoder.model.get_submodule(BLOCK + name).weight.detach()
        yield Seen(weight, *(gram[BLOCK + name] for gram in grams), wanted)


def fit(layer: Seen) -> tuple[Case, dict]:
    """A fit with modes given, beside plain decompositions of the same ranks, and rivals of as many numbers."""
    weight, gram = layer.weight, layer.gram
    (m, n), budget = weight.shape, weight.numel() // RATIO
    rows, cols = balanced_modes(m), balanced_modes(n)
    ranks = within(rows, cols, budget)
    tensor = weight.reshape(*rows, *cols)
    calls = {
        FIT: lambda: ttm_to_matrix(fit_cores(weight, gram, rows, cols, rank=ranks)),
        "ttref.ttm_svd": lambda: ttm_to_matrix(ttm_svd(weight, rows, cols, rank=ranks)),
        "TensorLy's TT-SVD": lambda: ttm_to_matrix(in_tensorly(tensor, ranks)),
        "truncated_svd(gram=)": lambda: truncated_svd(weight, params=budget, gram=gram).dense(),
        "gptq_quantize, int4": lambda: gptq_quantize(weight, gram, 4).dense(),
    }
    name = f"fit, {m:,} x {n:,} as {rows} x {cols}, rank {max(ranks)}"
    return _case(name, calls, layer), {"kind": "fit", "shape": [m, n], "wanted_s": layer.wanted[0]} | _errors(
        calls, layer
    )


def in_tensorly(tensor: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """TensorLy's plain decomposition of a matrix ``(m_1, ..., m_d, n_1, ..., n_d)``, on PyTorch."""
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        return list(tensor_train_matrix(tensor, rank=list(ranks)))


def search(layer: Seen) -> tuple[Case, dict]:
    """The search for modes of the same budget, beside one fit and whitened SVD, which is one of the modes tried."""
    weight, gram = layer.weight, layer.gram
    (m, n), budget = weight.shape, weight.numel() // RATIO
    rows, cols = balanced_modes(m), balanced_modes(n)
    ranks = within(rows, cols, budget)
    calls = {
        SEARCH: lambda: ttm_to_matrix(choose_modes(weight, gram, params=budget, progress=False).cores),
        FIT: lambda: ttm_to_matrix(fit_cores(weight, gram, rows, cols, rank=ranks)),
        "truncated_svd(gram=)": lambda: truncated_svd(weight, params=budget, gram=gram).dense(),
    }
    name = f"search for modes, {m:,} x {n:,}, a quarter of the numbers"
    return _case(name, calls, layer), {"kind": "search", "shape": [m, n], "wanted_s": layer.wanted[1]} | _errors(
        calls, layer
    )


def _case(name: str, calls: dict[str, Callable[[], Tensor]], layer: Seen) -> Case:
    """The floor: products and factorizations of the first contender, counted, and its arguments read once."""
    contenders = [Contender(label, call, 1) for label, call in calls.items()]
    moved = 8 * (layer.weight.numel() + layer.gram.matrix.numel())
    return Case(name, "call", contenders, counted(contenders[0].call), moved)


def _errors(calls: dict[str, Callable[[], Tensor]], layer: Seen) -> dict:
    """Output errors of all contenders on text that none of them has seen."""
    return {"errors": {label: output_error(layer.weight, call(), layer.other) for label, call in calls.items()}}


def counted(call: Callable[[], object]) -> int:
    """Floating-point operations of a call's matrix products and factorizations; what is elementwise is left out."""
    with FlopCounterMode(display=False, custom_mapping=FACTORIZATIONS) as counter:
        call()
    return counter.get_total_flops()


def _square(shape: tuple[int, ...], times: float) -> int:
    return round(times * math.prod(shape[:-2]) * shape[-1] ** 3)


def _tall(shape: tuple[int, ...], times: float) -> int:
    return round(times * math.prod(shape) * min(shape[-2:]))


FACTORIZATIONS = {
    torch.ops.aten.linalg_cholesky_ex: lambda a, *_, **__: _square(a, 1 / 3),
    torch.ops.aten.cholesky_solve: lambda b, a, *_, **__: 2 * math.prod(b) * a[-1],
    torch.ops.aten.linalg_inv_ex: lambda a, *_, **__: _square(a, 2),
    torch.ops.aten._linalg_eigh: lambda a, *_, **__: _square(a, 9),
    torch.ops.aten._linalg_svd: lambda a, *_, **__: _tall(a, 6),
    torch.ops.aten.linalg_qr: lambda a, *_, **__: _tall(a, 4),
}


def markdown(record: dict) -> str:
    """A table for each case: times, and the output error on other text that they buy."""
    lines = [
        page.measured(record),
        "",
        "Floor: the products and factorizations of the first row, counted in one call, at the speed of a large matrix "
        "product. Error: of the outputs, on text that was not used to fit. All but int4 store at most a quarter of "
        "the numbers; int4 has all of them in an eighth of the bytes.",
    ]
    for case in record["cases"]:
        lines += [
            "",
            f"**{page.readable(case['case'])}**; floor {page.duration(case['floor_us'])}; "
            f"wanted: under {case['wanted_s']} s",
            "",
            "| call | time / ttref's | median | fastest to slowest round | error |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in case["rows"]:
            times = " | ".join(page.spread(row))
            lines.append(
                f"| {row['name']} | {page.short(row['ratio'])}× | {times} | {case['errors'][row['name']]:.3f} |"
            )
    return page.folded(record, "\n".join(lines))


def write(record: dict) -> None:
    """Rewrite the tables of the performance page."""
    page.write(RESULT, markdown(record))
