"""Ways to store the kernels of a network in few bits, each with its approximation and an exact count of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttref import kernel_modes, quantize_integer, tt_params, ttm_svd, ttm_to_matrix
from ttref.codes import packed_size
from ttref.fitting import fit_cores, output_error
from ttref.gptq import gptq_quantize
from ttref.integer_cores import quantize_cores

RIDGE = 1e-6  # of the mean of the Gram matrix's diagonal: channels that are never on have no inputs at all
SWEEPS = 8
FINEST = 1200  # columns of a core's least-squares problem in the search for modes
LARGE = 600  # columns of a kernel for which fewer modes are tried, because one fit takes seconds
AGAIN = 12  # modes that are tried again at the smaller size


@dataclass(frozen=True)
class Modes:
    """How a kernel is read as a matrix, and its modes: ``taps`` first, (height, width, in), or channels first."""

    taps: bool
    rows: tuple[int, ...]
    cols: tuple[int, ...]


@dataclass
class Kernel:
    """One convolution: its weight ``(out, in height width)``, and a Gram matrix of the patches it sees."""

    name: str
    weight: Tensor
    gram: Tensor
    area: int  # height times width

    def read(self, modes: Modes) -> tuple[Tensor, Tensor, Tensor]:
        """Weight and Gram matrix with the columns in the order of the modes, and that order."""
        count = self.weight.shape[1]
        order = torch.arange(count)
        if modes.taps:
            order = order.reshape(-1, self.area).mT.reshape(-1)
        return self.weight[:, order], self.gram[order][:, order], order

    def back(self, matrix: Tensor, order: Tensor) -> Tensor:
        """A matrix in the order of modes as a kernel ``(out, in height width)``."""
        return torch.empty_like(matrix).index_copy_(1, order, matrix)

    @property
    def plain(self) -> Modes:
        """The weight as one matrix."""
        return Modes(False, (self.weight.shape[0],), (self.weight.shape[1],))

    @property
    def factors(self) -> Modes:
        """Modes whose train is a matrix product of two, as truncated SVD has it."""
        return Modes(False, (self.weight.shape[0], 1), (1, self.weight.shape[1]))


def unseen(kernel: Kernel) -> Kernel:
    """The kernel for methods that see the weight alone: all patches count alike."""
    return Kernel(kernel.name, kernel.weight, torch.eye(len(kernel.gram), dtype=kernel.gram.dtype), kernel.area)


Stored = tuple[Tensor, int]  # the approximation of a kernel, and its bytes


def rank_within(modes: Modes, numbers: float) -> int:
    """The largest rank whose train has at most so many numbers, at least 1."""
    return kernel_modes.rank_within(modes.rows, modes.cols, numbers)


def rounded(kernel: Kernel, modes: Modes, cores: Sequence[Tensor], bits: int, group: int = 64) -> Stored:
    """Cores as integers, rounded against the Gram matrix, with bfloat16 scales."""
    weight, gram, order = kernel.read(modes)
    codes, scales, made = quantize_cores(cores, weight, gram, bits, group=group, rounds=0)
    nbytes = sum(packed_size(part.numel(), bits) for part in codes) + sum(2 * part.numel() for part in scales)
    return kernel.back(ttm_to_matrix(made), order), nbytes


def fitted(kernel: Kernel, modes: Modes, share: float) -> list[Tensor]:
    """Cores with a share of the kernel's numbers, fitted to the patches."""
    weight, gram, _ = kernel.read(modes)
    rank = rank_within(modes, share * weight.numel())
    return fit_cores(weight, gram, modes.rows, modes.cols, rank=rank, sweeps=SWEEPS, ridge=RIDGE)


def decomposed(kernel: Kernel, modes: Modes, share: float) -> list[Tensor]:
    """The same by TT-SVD, which sees the weight alone; for the modes of factors this is truncated SVD."""
    weight, _, _ = kernel.read(modes)
    return ttm_svd(weight, modes.rows, modes.cols, rank=rank_within(modes, share * weight.numel()))


def whitened(kernel: Kernel, share: float) -> list[Tensor]:
    """Truncated SVD of ``W L`` with ``L L^T`` the Gram matrix: the best factors for the patches."""
    weight, gram = kernel.weight, kernel.gram.clone()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    left = torch.linalg.svd(weight @ torch.linalg.cholesky(gram), full_matrices=False)[0]
    left = left[:, : rank_within(kernel.factors, share * weight.numel())]
    return [left[None, :, None, :], (left.mT @ weight)[:, None, :, None]]


def gptq(kernel: Kernel, bits: int, group: int, zero: bool | None = None) -> Stored:
    """The kernel itself rounded by ``ttref.gptq.gptq_quantize``."""
    made = gptq_quantize(kernel.weight, kernel.gram, bits, group=group, zero=zero)
    return made.approximation, made.nbytes


def ternary(kernel: Kernel, group: int) -> Stored:
    """Three levels, zero among them, packed five to a byte."""
    approximation, nbytes = gptq(kernel, 2, group, zero=True)
    count = kernel.weight.numel()
    return approximation, nbytes - packed_size(count, 2) + -(-count // 5)


def nearest(kernel: Kernel, bits: int, group: int) -> Stored:
    """Rounding to nearest, with the best of 33 scales for each group."""
    made = quantize_integer(kernel.weight, bits, group=group, best=True)
    return made.approximation, made.nbytes


def candidates(kernel: Kernel) -> Iterator[Modes]:
    """Modes to try: two cores that split outputs and patch in all ways but the most uneven, and Tucker's three."""
    outs, count = kernel.weight.shape
    ins = count // kernel.area
    for taps in (False, True):
        for m in sorted({1, outs} if count > LARGE else {1, 2, outs // 2, outs}):
            for n in (n for n in range(3, count // 2) if count % n == 0):
                yield Modes(taps, (m, outs // m), (n, count // n))
    yield Modes(True, (outs, 1, 1), (1, kernel.area, ins))


def searched(kernel: Kernel, shares: Sequence[float]) -> dict[float, Modes]:
    """For each share of the numbers the modes of least output error: one sweep ranks, the best three are finished.

    All candidates are ranked at the first share, at the others the best of these.
    """
    tried, found = list(candidates(kernel)), {}

    def error(modes: Modes, share: float, sweeps: int) -> float:
        weight, gram, _ = kernel.read(modes)
        rank = rank_within(modes, share * weight.numel())
        cores = fit_cores(weight, gram, modes.rows, modes.cols, rank=rank, sweeps=sweeps, ridge=RIDGE)
        return output_error(weight, ttm_to_matrix(cores), gram)

    for share in shares:
        ranked = {modes: error(modes, share, 1) for modes in tried if fits(kernel, modes, share)}
        tried = sorted(ranked, key=ranked.__getitem__)[:AGAIN]
        found[share] = min(tried[:3], key=lambda modes: error(modes, share, SWEEPS))
    return found


def fits(kernel: Kernel, modes: Modes, share: float) -> bool:
    """True if the modes use the share's numbers up, nearly, and their cores are small enough for a search."""
    numbers = share * kernel.weight.numel()
    rank = rank_within(modes, numbers)
    used = tt_params([m * n for m, n in zip(modes.rows, modes.cols, strict=True)], rank)
    return 0.8 * numbers <= used <= numbers and rank * max(modes.cols) <= FINEST
