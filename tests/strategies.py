"""Hypothesis strategies shared by the tests: random modes, trains and matrices, reproducible from a drawn seed."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from shake import shaken

modes = st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda shape: math.prod(shape) <= 600)
seeds = st.integers(0, 2**31 - 1)
# Pairs (m_k, n_k) of a TT-matrix; rectangular, single and trivial modes included.
pairs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def gaussian(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return shaken(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype))


def random_train(
    shape: list[int], rank: int, seed: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """A train with Gaussian cores and the same rank at every inner bond (not clipped)."""
    generator = torch.Generator().manual_seed(seed)
    ranks = [1] + [rank] * (len(shape) - 1) + [1]
    return [
        shaken(torch.randn(*batch, ranks[k], n, ranks[k + 1], generator=generator, dtype=torch.float64).to(dtype))
        for k, n in enumerate(shape)
    ]


def dense(cores: list[torch.Tensor]) -> torch.Tensor:
    """The oracle: contract with one einsum per core, written independently of ``ttref``."""
    total = cores[0]
    for core in cores[1:]:
        total = torch.einsum("...aib,...bjc->...aijc", total, core).flatten(-3, -2)
    total = total.squeeze(-1).squeeze(-2)
    return total.reshape(*cores[0].shape[:-3], *(core.shape[-2] for core in cores))


def rows_and_columns(shape: list[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(m for m, _ in shape), tuple(n for _, n in shape)


def random_matrix_train(
    shape: list[tuple[int, int]],
    seed: int,
    dtype: torch.dtype = torch.float64,
    ranks: tuple[int, ...] = (2, 4, 3),
) -> list[torch.Tensor]:
    """Gaussian cores with unequal ranks, so that an order which mixes two bonds up is found out."""
    bonds = (1, *ranks[: len(shape) - 1], 1)
    generator = torch.Generator().manual_seed(seed)
    return [
        shaken(torch.randn(bonds[k], m, n, bonds[k + 1], generator=generator, dtype=torch.float64).to(dtype))
        for k, (m, n) in enumerate(shape)
    ]


def dense_matrix(cores: list[torch.Tensor]) -> torch.Tensor:
    """The oracle: one einsum per core, rows and columns gathered apart."""
    total = cores[0][0]
    for core in cores[1:]:
        total = torch.einsum("ijr,rmns->imjns", total, core)
        total = total.flatten(0, 1).flatten(1, 2)
    return total[..., 0]


def norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x.detach().double())


def agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    """What is computed twice agrees to rounding: a matrix product does not promise its last bits."""
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2}
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    gap = (one.detach().double() - other.detach().double()).abs()
    return not one.numel() or bool(gap.max() <= close[one.dtype] * other.detach().double().abs().max())
