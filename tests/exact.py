"""Oracles in exact rationals for the fixed-point tests, and strategies for formats and integer trains. No torch."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from ttref.fixedpoint import FixedPointFormat, QuantizedTT

ROUNDINGS = ("TRN", "RND", "RND_CONV")
HALF = Fraction(1, 2)
roundings = st.sampled_from(ROUNDINGS)
seeds = st.integers(0, 2**31 - 1)


def rounded(value: Fraction, mode: str) -> int:
    """One rounding, by the definition: Python's round() of a fraction takes ties to the even neighbor."""
    return {"TRN": math.floor, "RND": lambda v: math.floor(v + HALF), "RND_CONV": round}[mode](value)


def fitted(whole: int, fmt: FixedPointFormat) -> int:
    if fmt.overflow == "WRAP":
        return (whole - fmt.min_int) % 2**fmt.width + fmt.min_int
    return min(max(whole, fmt.min_int), fmt.max_int)


def counted(wholes: list[int], fmt: FixedPointFormat) -> tuple[int, int, float]:
    """What OverflowStats should say about these rounded values."""
    beyond = [max(fmt.min_int - whole, whole - fmt.max_int, 0) for whole in wholes]
    return sum(b > 0 for b in beyond), len(beyond), float(max(beyond, default=0))


def stats_tuple(stats) -> tuple[int, int, float]:
    return stats.count, stats.total, stats.worst


@st.composite
def formats(draw, widths=(1, 32), frac_bits=(-12, 40), overflows=("SAT", "WRAP"), signed=None) -> FixedPointFormat:
    width = draw(st.integers(*widths))
    return FixedPointFormat(
        width,
        width - draw(st.integers(*frac_bits)),
        draw(roundings),
        draw(st.sampled_from(overflows)),
        draw(st.booleans()) if signed is None else signed,
    )


@st.composite
def core_shapes(draw, most=4, ranks=3, cores=4) -> list[tuple[int, int, int, int]]:
    """One to ``cores`` cores with modes and ranks of any parity; single and trivial modes included."""
    modes = draw(st.lists(st.tuples(*[st.integers(1, most)] * 2), min_size=1, max_size=cores))
    bonds = [1, *draw(st.lists(st.integers(1, ranks), min_size=len(modes) - 1, max_size=len(modes) - 1)), 1]
    return [(bonds[k], m, n, bonds[k + 1]) for k, (m, n) in enumerate(modes)]


def integers_of(fmt: FixedPointFormat, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Uniform over the format, with both ends far more often than chance would bring them."""
    values = rng.integers(fmt.min_int, fmt.max_int + 1, size=shape)
    ends = rng.integers(0, 8, size=shape)
    return np.where(ends == 0, fmt.min_int, np.where(ends == 1, fmt.max_int, values))


@st.composite
def integer_trains(draw, widths=(1, 10), signed=None, **shape) -> tuple[QuantizedTT, np.random.Generator]:
    """A train of arbitrary formats: shifts to the right by up to 30 bits, none, and to the left by up to 16."""
    shapes = draw(core_shapes(**shape))
    kind = dict(widths=widths, signed=signed)
    weights = [draw(formats(frac_bits=(-4, 10), **kind)) for _ in shapes]
    stages = [draw(formats(frac_bits=(-4, 8), **kind)) for _ in range(len(shapes) + 1)]
    rng = np.random.default_rng(draw(seeds))
    cores = [integers_of(fmt, size, rng) for fmt, size in zip(weights, shapes, strict=True)]
    return QuantizedTT(tuple(cores), tuple(weights), tuple(stages)), rng


def slow_matvec(qtt: QuantizedTT, xq: list[int]) -> tuple[list[int], list[tuple[int, int, float]], int]:
    """One vector through the train, entry by entry over named indices, every sum a fraction in real units.

    Returns the output, the expected statistics of each stage, and the multiplications that were made. It knows nothing
    of layouts: a state is a dictionary from ((n_1..n_{k-1}), bond, (m_k..m_d)) to an integer.
    """
    columns = [range(core.shape[-2]) for core in qtt.cores]
    state = {(index, 0, ()): int(value) for index, value in zip(itertools.product(*columns), xq, strict=True)}
    stats, products = [], 0
    for s, k in enumerate(reversed(range(len(qtt.cores)))):
        core, before, after = qtt.cores[k], qtt.stage_formats[s], qtt.stage_formats[s + 1]
        scale = Fraction(2) ** -(qtt.core_formats[k].frac_bits + before.frac_bits) / Fraction(2) ** -after.frac_bits
        r0, rows, n, r1 = core.shape
        tails = sorted({tail for _, _, tail in state})
        wholes = {}
        for head in itertools.product(*columns[:k]):
            for left, m, tail in itertools.product(range(r0), range(rows), tails):
                inner = itertools.product(range(n), range(r1))
                terms = [int(core[left, m, j, right]) * state[(*head, j), right, tail] for j, right in inner]
                products += len(terms)
                wholes[head, left, (m, *tail)] = rounded(sum(terms) * scale, after.rounding)
        stats.append(counted(list(wholes.values()), after))
        state = {index: fitted(whole, after) for index, whole in wholes.items()}
    outputs = itertools.product(*(range(core.shape[-3]) for core in qtt.cores))
    return [state[(), 0, index] for index in outputs], stats, products


def gaussian_cores(shapes, rng: np.random.Generator, batch: tuple[int, ...] = ()) -> list[np.ndarray]:
    return [rng.normal(size=(*batch, *shape)) for shape in shapes]


def chain(modes_out, modes_in, rank: int) -> list[tuple[int, int, int, int]]:
    """Shapes of a train with one rank at every inner bond, never more than the bond can hold."""
    pairs = list(zip(modes_out, modes_in, strict=True))
    sizes = [m * n for m, n in pairs]
    cut = range(len(pairs) + 1)
    bonds = [min(rank, math.prod(sizes[:k]), math.prod(sizes[k:])) for k in cut]
    return [(bonds[k], m, n, bonds[k + 1]) for k, (m, n) in enumerate(pairs)]


def right_part(cores: list[np.ndarray], k: int) -> np.ndarray:
    """The product of the cores ``k..d-1``: ``(*batch, r_{k-1} m_k..m_d, n_k..n_d)``, a row for each entry written."""
    total = cores[-1]
    for core in reversed(cores[k:-1]):
        total = np.einsum("...amnb,...bpqc->...ampnqc", core, total)
        *batch, a, m, p, n, q, c = total.shape
        total = total.reshape(*batch, a, m * p, n * q, c)
    *batch, a, m, n, _ = total.shape
    return total.reshape(*batch, a * m, n)


def dense_matrix(cores: list[np.ndarray]) -> np.ndarray:
    return right_part(list(cores), 0)
