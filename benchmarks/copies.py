"""Cases: the cost of reshapes. A train contracted with its state copied into order at every core, or never copied.

Both compute the same products of the same numbers, on one thread, so that copies and products do not compete. Also: a
weight rebuilt from its cores, with the large transpose at the end and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import numpy as np
import torch

from ttref.fixedpoint import Stage, tt_stages

from .measure import Case, repeated

LAYERS = (
    ((8, 8, 12), (12, 16, 16), 8),
    ((16, 16, 16), (43, 16, 16), 8),
    ((16, 16, 16), (43, 16, 16), 16),
)
BATCHES = (1, 16, 128)
ROWS, ROW_MODES, ROW_RANK = 2048, (2,) * 10, 4
LIBRARIES = {"PyTorch": torch, "NumPy": np}


def cases() -> Iterator[tuple[Case, dict]]:
    """One case after the other, because together their arrays would take gigabytes."""
    for library in LIBRARIES.values():
        for layer in LAYERS:
            for batch in BATCHES:
                yield matvec(library, *layer, batch)
        yield rows(library)
        for layer in LAYERS[:2]:
            yield rebuild(library, *layer)


def timed(
    library: ModuleType | None, title: str, calls: dict[str, Callable[[], object]], flops: float, moved: float
) -> Case:
    """A case of short calls whose floor counts float32 arithmetic."""
    title = f"{title}, {label(library)}" if library else title
    contenders = [repeated(name, call) for name, call in calls.items()]
    return Case(title, "call", contenders, flops, moved, "flops32_per_s")


def train(ins: tuple[int, ...], outs: tuple[int, ...], rank: int, *batch: int) -> list[np.ndarray]:
    """Gaussian cores, float32; no time depends on the values."""
    ranks = (1, *[rank] * (len(ins) - 1), 1)
    rng = np.random.default_rng(0)
    shapes = [(*batch, ranks[k], m, n, ranks[k + 1]) for k, (m, n) in enumerate(zip(outs, ins, strict=True))]
    return [rng.standard_normal(shape, dtype=np.float32) / math.sqrt(shape[-1] * shape[-2]) for shape in shapes]


def name(ins: tuple[int, ...], outs: tuple[int, ...], rank: int) -> str:
    """A layer in words."""
    return f"{math.prod(ins):,} -> {math.prod(outs):,}, rank {rank}"


def matvec(
    library: ModuleType, ins: tuple[int, ...], outs: tuple[int, ...], rank: int, batch: int
) -> tuple[Case, dict]:
    """A layer times a batch of vectors."""
    cores = train(ins, outs, rank)
    x = np.random.default_rng(1).standard_normal((batch, math.prod(ins)), dtype=np.float32)
    case, extra = contraction(library, f"{name(ins, outs, rank)}, {batch} vectors", cores, x)
    return case, {"kind": "layer", "in_shape": ins, "out_shape": outs, "rank": rank, "batch": batch, **extra}


def rows(library: ModuleType) -> tuple[Case, dict]:
    """Rows of an embedding table, one train each: the input is the number one, and no mode is summed over."""
    cores = train((1,) * len(ROW_MODES), ROW_MODES, ROW_RANK, ROWS)
    title = f"{ROWS:,} rows of {math.prod(ROW_MODES):,}, rank {ROW_RANK}"
    case, extra = contraction(library, title, cores, np.ones((ROWS, 1), dtype=np.float32))
    return case, {"kind": "rows", "rank": ROW_RANK, "batch": ROWS, **extra}


def contraction(library: ModuleType, title: str, cores: list[np.ndarray], x: np.ndarray) -> tuple[Case, dict]:
    """Both ways; the copies and the products of the copying one are also timed alone, on the same arrays."""
    stages = tt_stages(cores)
    flat = [cores[s.core].reshape(*cores[s.core].shape[:-4], s.M, s.K) for s in stages]
    steps = [put(library, step) for step in flat]
    turned = [put(library, np.ascontiguousarray(step.swapaxes(-1, -2))) for step in flat]
    state = put(library, x)
    copies, products = parts(library, stages, turned, state)
    calls = {
        "no copy": partial(merged, stages, steps, state),
        "copied": partial(copied, library, stages, turned, state),
        "the copies alone": partial(every, copies),
        "the products alone": partial(every, products),
    }
    answers = [merged(stages, flat, x), calls["no copy"](), calls["copied"]()]
    agree(answers)
    total = len(x) * sum(stage.macs for stage in stages)
    moved = 4 * (x.size + answers[0].size + sum(core.size for core in cores))
    # A transposed copy reads its array and writes it; with one position there is nothing to transpose.
    twice = sum(8 * len(x) * s.A * s.B * (s.K + s.M) for s in stages if s.B > 1)
    return timed(library, title, calls, 2 * total, moved), {
        "library": label(library),
        "macs": total,
        "copied_bytes": twice,
        "stages": [(s.A, s.M, s.K, s.B) for s in stages],
    }


def put(library: ModuleType, array: np.ndarray) -> object:
    """The same numbers as the library's own array."""
    return torch.from_numpy(array) if library is torch else array


def label(library: ModuleType) -> str:
    """The library's name for tables."""
    return next(name for name, module in LIBRARIES.items() if module is library)


def merged(stages: list[Stage], steps: list, state: object) -> object:
    """Each product reads the state as [A][K][B] and writes [A][M][B], which is the next one's [A'][K'][B']."""
    batch = len(state)
    for stage, step in zip(stages, steps, strict=True):
        if stage.B == 1 and step.ndim == 2:
            state = state.reshape(-1, stage.K) @ step.T
        else:
            state = step @ state.reshape(batch * stage.A, stage.K, stage.B)
    return state.reshape(batch, -1)


def copied(library: ModuleType, stages: list[Stage], turned: list, state: object) -> object:
    """A general tensor product: move the summed axis to the end, one product, move the new axis to its place."""
    batch = len(state)
    for stage, step in zip(stages, turned, strict=True):
        state = product(to_the_end(library, state, stage.K, stage.B), step)
        state = to_the_end(library, state, stage.B, stage.M)
    return state.reshape(batch, -1)


def to_the_end(library: ModuleType, state: object, middle: int, last: int) -> object:
    """A state read as [...][middle][last], with the middle axis moved to the end: a copy, unless one of them is 1."""
    return contiguous(library, state.reshape(-1, middle, last).swapaxes(1, 2))


def product(state: object, step: object) -> object:
    """One matrix product if the trains share the step's matrix, else one for each train."""
    if step.ndim == 2:
        return state.reshape(-1, step.shape[0]) @ step
    return state.reshape(len(step), -1, step.shape[1]) @ step


def parts(library: ModuleType, stages: list[Stage], turned: list, state: object) -> tuple[list, list]:
    """The copies and the products of :func:`copied`, each as a call on its own input array."""
    copies, products = [], []
    for stage, step in zip(stages, turned, strict=True):
        copies.append(partial(to_the_end, library, state, stage.K, stage.B))
        state = copies[-1]()
        products.append(partial(product, state, step))
        state = products[-1]()
        copies.append(partial(to_the_end, library, state, stage.B, stage.M))
        state = copies[-1]()
    return copies, products


def every(calls: list[Callable[[], object]]) -> None:
    """Run the calls one after the other; each result is freed before the next."""
    for call in calls:
        call()


def contiguous(library: ModuleType, array: object) -> object:
    """The array in contiguous memory: a copy if it is not contiguous."""
    return array.contiguous() if library is torch else np.ascontiguousarray(array)


def rebuild(library: ModuleType, ins: tuple[int, ...], outs: tuple[int, ...], rank: int) -> tuple[Case, dict]:
    """The dense weight from its cores: all products and one transpose at the end, or only small cores transposed."""
    cores = [put(library, core) for core in train(ins, outs, rank)]
    calls = {
        "no copy": partial(rebuilt, library, cores),
        "copied": partial(rebuilt_and_turned, library, cores),
        "the copies alone": partial(turn, library, chain(cores), ins, outs),
        "the products alone": partial(chain, cores),
    }
    agree([calls["no copy"](), calls["copied"]()])
    size = math.prod(ins) * math.prod(outs)
    case = timed(library, f"rebuild {name(ins, outs, rank)}", calls, 2 * size * rank, 4 * size)
    extra = {"library": label(library), "copied_bytes": 8 * size}
    return case, {"kind": "rebuild", "in_shape": ins, "out_shape": outs, "rank": rank, **extra}


def chain(cores: list) -> object:
    """Core times core, modes in the order in which they come: (m_1 n_1 m_2 n_2 m_3 n_3)."""
    first, second, third = cores
    left = first.reshape(-1, first.shape[-1]) @ second.reshape(second.shape[0], -1)
    return left.reshape(-1, second.shape[-1]) @ third.reshape(third.shape[0], -1)


def turn(library: ModuleType, tensor: object, ins: tuple[int, ...], outs: tuple[int, ...]) -> object:
    """Row modes in front, column modes behind: the large copy."""
    paired = tensor.reshape([size for pair in zip(outs, ins, strict=True) for size in pair])
    order = (0, 2, 4, 1, 3, 5)
    return contiguous(library, paired.permute(order) if library is torch else paired.transpose(order))


def rebuilt_and_turned(library: ModuleType, cores: list) -> object:
    """All products first, then a copy of every number of the weight."""
    ins, outs = tuple(core.shape[2] for core in cores), tuple(core.shape[1] for core in cores)
    return turn(library, chain(cores), ins, outs).reshape(math.prod(outs), -1)


def rebuilt(library: ModuleType, cores: list) -> object:
    """The last product as one small product for each row mode, which writes every number to its final place."""
    first, second, third = cores
    (_, m1, n1, r), (_, m2, n2, q), (_, m3, n3, _) = (core.shape for core in cores)
    right = (second.reshape(-1, q) @ third.reshape(q, -1)).reshape(r, m2, n2, m3, n3)
    order = (1, 3, 0, 2, 4)
    right = contiguous(library, right.permute(order) if library is torch else right.transpose(order))
    return (first.reshape(m1, 1, n1, r) @ right.reshape(1, m2 * m3, r, n2 * n3)).reshape(m1 * m2 * m3, -1)


def agree(answers: list) -> None:
    """Check that all contenders compute the same."""
    first = np.asarray(answers[0])
    for answer in answers[1:]:
        if (gap := np.abs(np.asarray(answer) - first).max() / np.abs(first).max()) > 1e-4:
            raise AssertionError(f"the answers differ by {gap:.1e}")
