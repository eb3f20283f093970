"""The methods: each replaces a matrix within a budget of numbers, or by integers."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from ttref import quantize_integer, truncated_svd, ttm_svd, ttm_to_matrix
from ttref.fitting.als import fit_cores
from ttref.fitting.choosing import Chosen, candidates, choose_modes, within
from ttref.fitting.errors import output_error
from ttref.gptq import gptq_quantize

from .data import Layer

Modes = tuple[tuple[int, ...], tuple[int, ...]]
GROUP = 64


def balanced(m: int, n: int) -> Modes:
    """Two cores of equal size, their modes as even as they can be."""
    rows = min((k for k in range(1, m + 1) if m % k == 0), key=lambda k: abs(k * k - m))
    cols = min((k for k in range(1, n + 1) if n % k == 0), key=lambda k: abs(rows * k - m * n / (rows * k)))
    return (rows, m // rows), (cols, n // cols)


def shared(m: int, n: int) -> Modes:
    """One projection for both halves of the inputs."""
    return (m, 1), (2, n // 2)


@cache
def fitted(layer: Layer, modes: Modes, budget: int) -> list[Tensor]:
    """A train of these modes, fitted; kept for the measurement of all layers at once."""
    return fit_cores(layer.weight, layer.gram, *modes, rank=within(*modes, budget))


def tt_svd(layer: Layer, modes: Modes, budget: int) -> list[Tensor]:
    """A train of these modes, the best in the norm of the weights up to a factor."""
    return ttm_svd(layer.weight, *modes, rank=within(*modes, budget))


def best_tt_svd(layer: Layer, budget: int) -> list[Tensor]:
    """TT-SVD with the modes, of those that the search tries for fits, that are best on calibration data.

    The plain SVD is among these modes, and left out here.
    """
    m, n = layer.weight.shape
    made = []
    for modes in candidates(m, n):
        if within(*modes, budget) and modes != ((m, 1), (1, n)):
            cores = tt_svd(layer, modes, budget)
            made.append((output_error(layer.weight, ttm_to_matrix(cores), layer.gram), cores))
    return min(made, key=lambda each: each[0])[1]


def low_rank(layer: Layer, ratio: float, *, search: bool = True) -> dict:
    """Held-out errors of every method at equal numbers, and what the search chose."""
    m, n = layer.weight.shape
    budget = int(m * n / ratio)
    trains = {
        "tt_svd_balanced": tt_svd(layer, balanced(m, n), budget),
        "balanced": fitted(layer, balanced(m, n), budget),
        "shared": fitted(layer, shared(m, n), budget),
    }
    found = {}
    if search:
        chosen = choose_modes(layer.weight, layer.gram, params=budget, progress=False)
        trains |= {"tt_svd": best_tt_svd(layer, budget), "searched": chosen.cores}
        found = {"modes": told(chosen), "ranks": "x".join(map(str, chosen.ranks[1:-1])), "numbers": chosen.params}
    dense = {
        "svd": truncated_svd(layer.weight, params=budget).approximation,
        "whitened": truncated_svd(layer.weight, params=budget, gram=layer.gram).approximation,
    } | {name: ttm_to_matrix(cores) for name, cores in trains.items()}
    return {"layer": layer.name, "ratio": ratio} | errors(layer, dense) | found


def errors(layer: Layer, dense: dict[str, Tensor]) -> dict[str, float]:
    """Held-out output errors."""
    return {
        name + end: output_error(layer.weight, made, gram)
        for end, gram in layer.held_out.items()
        for name, made in dense.items()
    }


def told(chosen: Chosen) -> str:
    """Modes in words: ``128x2 1x64``, rows x columns of each core."""
    return " ".join(f"{a}x{b}" for a, b in zip(chosen.row_shape, chosen.col_shape, strict=True))


def integers(layer: Layer, group: int = GROUP) -> dict:
    """Held-out errors of rounding and of GPTQ to few bits, groups of 64 entries that share a scale."""
    dense = {"gptq1": gptq_quantize(layer.weight, layer.gram, 1, group=group).approximation}
    for bits in (4, 3, 2):
        dense[f"int{bits}"] = quantize_integer(layer.weight, bits, group=group, best=True).approximation
        dense[f"gptq{bits}"] = gptq_quantize(layer.weight, layer.gram, bits, group=group).approximation
    return {"layer": layer.name} | errors(layer, dense)
