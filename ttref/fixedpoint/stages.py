"""The contraction of a tensor-train matrix with vectors as a sequence of matrix products, without one reshape.

Cores ``G_k`` of shape ``(r_{k-1}, m_k, n_k, r_k)`` are contracted from the last to the first. The state between two of
them is a flat array read as ``[A][K][B]``, and a stage is one matrix product::

    A = n_1 ... n_{k-1}    K = n_k r_k    B = m_{k+1} ... m_d
    G = G_k read as (r_{k-1} m_k) x (n_k r_k)

    out[a, m, b] = sum over k of G[m, k] * z[a, k, b]

In row-major order ``out`` already is the ``[A'][K'][B']`` of the next stage. No reshape is ever executed: what papers
call a reshape is a stride in an address counter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Stage", "tt_stages", "contract_float"]


@dataclass(frozen=True)
class Stage:
    """One matrix product of the contraction: ``out[a, m, b] = sum_k G[m, k] z[a, k, b]``.

    Args:
        core: Index of the core, counted from the first.
        A: Outer positions, ``n_1 ... n_{k-1}``.
        B: Inner positions, ``m_{k+1} ... m_d``.
        r0: Left rank of the core.
        m: Its row mode.
        n: Its column mode.
        r1: Its right rank.

    Example:
        >>> stage = Stage(core=1, A=4, B=4, r0=4, m=4, n=4, r1=4)
        >>> stage.M, stage.K, stage.macs
        (16, 16, 4096)
    """

    core: int
    A: int
    B: int
    r0: int
    m: int
    n: int
    r1: int

    @property
    def M(self) -> int:
        """Rows of the product, ``r0 * m``."""
        return self.r0 * self.m

    @property
    def K(self) -> int:
        """Terms of each sum, ``n * r1``."""
        return self.n * self.r1

    @property
    def macs(self) -> int:
        """Multiplications, each with its addition: ``A M K B``."""
        return self.A * self.M * self.K * self.B


def tt_stages(cores: Sequence[Any]) -> list[Stage]:
    """The products of a contraction from the last core to the first, in the order in which they are run.

    Args:
        cores: Matrix cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, or just their shapes, first core first.

    Returns:
        One stage for each core, the last core's first.

    Raises:
        ValueError: No cores, a shape that is not a matrix core's, bonds or batch axes that do not match, or end ranks
            other than 1.

    Example:
        >>> stages = tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)])  # 64 x 64 at rank 4
        >>> [(s.core, s.A, s.M, s.K, s.B, s.macs) for s in stages]
        [(2, 16, 16, 4, 1, 1024), (1, 4, 16, 16, 4, 4096), (0, 1, 4, 16, 16, 1024)]
    """
    shapes = [tuple(int(size) for size in getattr(core, "shape", core)) for core in cores]
    if not shapes:
        raise ValueError("a train has at least one core")
    for k, shape in enumerate(shapes):
        if len(shape) < 4 or min(shape) < 1:
            raise ValueError(f"core {k} has shape {shape}; a matrix core is (r_left, m, n, r_right), no size zero")
    if len({shape[:-4] for shape in shapes}) > 1:
        raise ValueError(f"the cores' batch axes differ: {[shape[:-4] for shape in shapes]}")
    last = len(shapes) - 1
    if shapes[0][-4] != 1 or shapes[last][-1] != 1:
        raise ValueError(f"end ranks must be 1, got {shapes[0][-4]} at core 0 and {shapes[last][-1]} at core {last}")
    for k in range(last):
        if shapes[k][-1] != shapes[k + 1][-4]:
            raise ValueError(
                f"core {k} ends with rank {shapes[k][-1]} but core {k + 1} begins with rank {shapes[k + 1][-4]}"
            )
    core_sizes = [shape[-4:] for shape in shapes]
    return [
        Stage(k, math.prod(s[2] for s in core_sizes[:k]), math.prod(s[1] for s in core_sizes[k + 1 :]), *core_sizes[k])
        for k in range(last, -1, -1)
    ]


def contract_float(cores: Sequence[np.ndarray], x: Any) -> np.ndarray:
    """The same stages on real numbers, in float64: the reference for the integer train.

    Args:
        cores: Real cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, first core first.
        x: Real vectors ``(..., n_1 ... n_d)``; for cores with batch axes any shape that broadcasts against
            ``(*batch, n_1 ... n_d)``.

    Returns:
        float64 ``(..., m_1 ... m_d)``, or ``(*batch, m_1 ... m_d)``.

    Raises:
        TypeError: Cores that are not real.
        ValueError: Cores that do not chain to a train or hold NaN or infinity, or vectors of another length.

    Cost:
        O(MACs of the stages) for each vector.

    Example:
        >>> cores = [np.full((1, 2, 2, 1), 0.5), np.full((1, 1, 3, 1), 2.0)]
        >>> contract_float(cores, np.ones(6))
        array([6., 6.])
    """
    cores, x = real_cores(cores), np.asarray(x, dtype=np.float64)
    stages = tt_stages(cores)
    inputs = math.prod(core.shape[-2] for core in cores)
    if x.shape[-1:] != (inputs,):
        raise ValueError(f"x has shape {x.shape}, but the train takes (..., {inputs})")
    batch = cores[0].shape[:-4]
    state = columns(x, batch)
    for stage in stages:
        state = product(cores[stage.core], state, stage, np.float64)
    if batch:
        return state.reshape(*batch, -1)
    return np.ascontiguousarray(state[0].T).reshape(*x.shape[:-1], state.shape[1])


def real_cores(cores: Sequence[Any]) -> list[np.ndarray]:
    """The cores as new float64 arrays; an error names the first that is not a finite real core of a train."""
    arrays = [np.asarray(core) for core in cores]
    tt_stages(arrays)
    for k, core in enumerate(arrays):
        if core.dtype.kind not in "fiu":
            raise TypeError(f"core {k} is an array of {core.dtype}; cores are real numbers")
        arrays[k] = core.astype(np.float64)
        if not np.isfinite(arrays[k]).all():
            raise ValueError(f"core {k} holds NaN or infinity")
    return arrays


def check_chain(stages: Sequence[Stage]) -> Sequence[Stage]:
    """``stages``, checked to be a list in which each stage reads as many numbers as the one before it writes."""
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, Stage) for stage in stages):
        raise TypeError(f"stages is a list from tt_stages, got {stages!r}")
    if not stages:
        raise ValueError("no stages; a layer has at least one product")
    for before, after in zip(stages, stages[1:], strict=False):
        written, read = before.A * before.M * before.B, after.A * after.K * after.B
        if written != read:
            raise ValueError(
                f"the stage of core {before.core} writes {written} numbers and that of core {after.core} reads {read}; "
                "pass all stages of one layer, in the order of tt_stages"
            )
    return stages


def columns(x: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """Vectors as ``(trains, features, vectors)``; with the vectors last, the rows of every product are long."""
    if not batch:
        return x.reshape(1, -1, x.shape[-1]).swapaxes(1, 2)
    wanted = (*batch, x.shape[-1])
    try:
        return np.broadcast_to(x, wanted).reshape(-1, x.shape[-1], 1)
    except ValueError:
        raise ValueError(
            f"these cores are {math.prod(batch)} trains, each for one vector: the input must broadcast against "
            f"{wanted}, got {x.shape}"
        ) from None


def product(core: np.ndarray, state: np.ndarray, stage: Stage, dtype: type) -> np.ndarray:
    """One stage: ``(trains, A K B, vectors)`` to ``(trains, A M B, vectors)``, computed in ``dtype``."""
    trains, _, vectors = state.shape
    weights = core.reshape(-1, 1, stage.M, stage.K).astype(dtype)
    columns = state.reshape(trains, stage.A, stage.K, stage.B * vectors).astype(dtype, copy=False)
    return np.matmul(weights, columns).reshape(trains, stage.A * stage.M * stage.B, vectors)
