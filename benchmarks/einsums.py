"""Cases: einsum on a train. The order of the products decides the time, and finding the order takes time too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import cotengra
import numpy as np
import opt_einsum
import torch

from ttref import plan_contraction, ttm_matvec
from ttref.plans import cheapest

from .copies import LAYERS, agree, name, timed, train
from .measure import Case

LAYER, BATCH = LAYERS[0], 2
NUMPY = {
    "np.einsum": False,
    "np.einsum, optimal": "optimal",
    "np.einsum, greedy, no memory limit": ("greedy", 2**60),
    "np.einsum, optimal, no memory limit": ("optimal", 2**60),
}
EQUATION = "zxyw,aixb,bjyc,ckwd->zijk"


def cases() -> Iterator[tuple[Case, dict]]:
    """A layer times two vectors, and the search for its order."""
    yield einsums()
    yield searches()


def operands() -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """Input and cores of the einsum cases, for NumPy and for PyTorch."""
    ins, outs, rank = LAYER
    x = np.random.default_rng(1).standard_normal((BATCH, *ins), dtype=np.float32)
    arrays = [x, *train(ins, outs, rank)]
    return arrays, [torch.from_numpy(array) for array in arrays]


def einsums() -> tuple[Case, dict]:
    """One layer, two vectors: ttref's planned order beside einsum, NumPy's with a path found before.

    By default NumPy refuses intermediate results larger than the largest operand. A train has such results, so NumPy
    then finds no path but one loop over all letters.
    """
    arrays, tensors = operands()
    x, shapes = tensors[0].reshape(BATCH, -1), [array.shape for array in arrays]
    paths = {label: np.einsum_path(EQUATION, *arrays, optimize=how)[0] for label, how in NUMPY.items()}
    best = opt_einsum.contract_expression(EQUATION, *shapes, optimize="optimal")
    calls = {
        "ttref.ttm_matvec": lambda: ttm_matvec(tensors[1:], x),
        "torch.einsum": lambda: torch.einsum(EQUATION, *tensors),
        "opt_einsum on PyTorch, optimal": lambda: best(*tensors),
        "cotengra.einsum on PyTorch": lambda: cotengra.einsum(EQUATION, *tensors),
        **{label: partial(np.einsum, EQUATION, *arrays, optimize=path) for label, path in paths.items()},
    }
    agree([call().reshape(BATCH, -1) for call in calls.values()])
    found = {label: path_macs(path[1:], shapes) for label, path in paths.items()}
    found["ttref.ttm_matvec"] = plan_contraction(tensors[1:], BATCH).macs
    found["opt_einsum on PyTorch, optimal"] = path_macs(best_path(shapes), shapes)
    case = timed(None, f"einsum, {name(*LAYER)}, {BATCH} vectors", calls, 2 * found["ttref.ttm_matvec"], 0)
    return case, {"kind": "einsum", "macs": found, "batch": BATCH}


def searches() -> tuple[Case, dict]:
    """The time of finding the order, which np.einsum with ``optimize=`` repeats in every call."""
    arrays, _ = operands()
    shapes = [array.shape for array in arrays]
    calls = {
        "ttref.plan_contraction": partial(cheapest.__wrapped__, tuple(shapes[1:]), BATCH),
        "opt_einsum.contract_path, optimal": partial(best_path, shapes),
    }
    for label, how in NUMPY.items():
        if how:
            calls[label.replace("np.einsum", "np.einsum_path")] = partial(
                np.einsum_path, EQUATION, *arrays, optimize=how
            )
    return timed(None, "finding the order", calls, 0, 0), {"kind": "search", "batch": BATCH}


def best_path(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The path with fewest operations that opt_einsum finds."""
    return opt_einsum.contract_path(EQUATION, *shapes, shapes=True, optimize="optimal")[0]


def path_macs(path: list[tuple[int, ...]], shapes: list[tuple[int, ...]]) -> int:
    """Multiply-adds of a path: for each step, the product of the sizes of all letters in it."""
    terms, result = EQUATION.split("->")[0].split(","), set(EQUATION.split("->")[1])
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    operands, total = [set(term) for term in terms], 0
    for step in path:
        taken = set().union(*(operands[k] for k in step))
        operands = [operand for k, operand in enumerate(operands) if k not in step]
        total += math.prod(sizes[letter] for letter in taken)
        operands.append(taken & result.union(*operands))
    return total
