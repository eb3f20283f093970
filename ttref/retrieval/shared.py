"""The cores that all documents share, and the random rotation of the bond in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codes import to_codes
from ..rows.frame import AT_ONCE, Frame
from ..trains import tt_svd

FLOOR = 1e-3  # of the largest standard deviation: the least weight of a direction when the basis becomes a train
GONE = 1e-10  # of the largest eigenvalue: directions that the ranks of the train have cut off


@dataclass(frozen=True, eq=False)
class SharedCores:
    """``document = mean + coordinates @ basis``; the basis is one core ``(r, width, 1)`` or a train of several.

    Attributes:
        mean: float32 ``(width,)``.
        cores: ``(r, n_1, r_1)``, ``(r_1, n_2, r_2)``, ..., int8 or float32.
        scales: bfloat16 ``(r_left, 1, 1)`` for each int8 core, else empty.
    """

    mean: Tensor
    cores: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        x: Tensor,
        count: int,
        *,
        shape: tuple[int, ...] | None,
        rank: int | Sequence[int] | None,
        rotate: bool,
        bits: int,
        seed: int,
    ) -> SharedCores:
        """Principal axes of documents ``(n, width)``, at most ``count`` of them, as a core or a train.

        The bond in front of the cores has a gauge: a rotation of it costs no bytes. A random one spreads every document
        evenly over its coordinates, which is what makes codes of few bits work.
        """
        mean, axes = Frame.of(x, center=True, rotate=True).tensors()
        basis = axes[:count].double()
        if shape is None or len(shape) == 1:
            cores = [basis.unsqueeze(2)]
        else:
            cores = _as_train(basis, _weights(x, mean, basis), shape, rank)
        if rotate:
            turn = _rotation(len(cores[0]), seed).to(x.device)
            cores[0] = torch.tensordot(turn, cores[0], 1)
        if bits == 32:
            return cls(mean, tuple(core.float().contiguous() for core in cores), ())
        rounded = [to_codes(core.flatten(1), 8) for core in cores]
        codes = tuple(one.view(core.shape) for (one, _), core in zip(rounded, cores, strict=True))
        return cls(mean, codes, tuple(scales.unsqueeze(2) for _, scales in rounded))

    @property
    def rank(self) -> int:
        """The bond r in front of the shared cores."""
        return len(self.cores[0])

    @property
    def width(self) -> int:
        """Entries of a document."""
        return len(self.mean)

    def floats(self) -> list[Tensor]:
        """The cores in float32."""
        if not self.scales:
            return list(self.cores)
        return [core.float() * scale.float() for core, scale in zip(self.cores, self.scales, strict=True)]

    def carried(self, q: Tensor) -> Tensor:
        """Queries ``(b, width)`` carried through the cores from the right, once: ``(b, r)``."""
        state = q
        for core in reversed(self.floats()):
            left, n, right = core.shape
            state = state.reshape(-1, n * right) @ core.reshape(left, -1).mT
        return state.reshape(len(q), -1)

    def basis(self) -> Tensor:
        """The basis as the stored cores make it, float32 ``(r, width)``."""
        made, *rest = self.floats()
        for core in rest:
            made = torch.tensordot(made, core, 1)
        return made.reshape(len(made), -1)

    def projected(self, x: Tensor) -> Tensor:
        """The coordinates that come closest to documents ``(n, width)``: ``(n, r)``.

        Rounded cores are not quite orthogonal; these are least squares on the stored ones, so their rounding costs
        nothing that more coordinates do not win back. In float64: a code then hardly ever depends on what is projected
        beside it.
        """
        basis, mean = self.basis().double(), self.mean.double()
        onto = torch.linalg.solve(basis @ basis.mT, basis).mT
        return torch.cat([((part - mean) @ onto).float() for part in x.split(AT_ONCE)])

    def rebuilt(self, coordinates: Tensor) -> Tensor:
        """Documents from their coordinates: ``(n, width)``."""
        return coordinates @ self.basis() + self.mean


def _weights(x: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """Standard deviation of the documents along each direction, ``(r, 1)``."""
    onto, total = basis.mT.to(x.dtype), 0
    for part in x.split(AT_ONCE):
        total = total + ((part - mean) @ onto).double().square().sum(0)
    weights = (total / len(x)).sqrt()
    largest = weights.max()
    return (weights if largest > 0 else torch.ones_like(weights)).clamp(min=FLOOR * largest).unsqueeze(1)


def _as_train(basis: Tensor, weights: Tensor, shape: tuple[int, ...], rank: int | Sequence[int] | None) -> list[Tensor]:
    """The weighted basis by TT-SVD, then the gauge in which its rows are orthonormal, with no more of them."""
    r, (first, *rest) = len(basis), shape
    tensor = (weights * basis).reshape(r * first, *rest)
    cores = tt_svd(tensor, eps=0.0) if rank is None else tt_svd(tensor, rank=rank)
    made = cores[0].reshape(r * first, -1)
    for core in cores[1:]:
        made = torch.tensordot(made, core, 1)
    rows = made.reshape(r, -1)
    energies, turn = torch.linalg.eigh(rows @ rows.mT)
    kept = energies > GONE * energies[-1]
    gauge = (turn[:, kept] / energies[kept].sqrt()).mT.flip(0)
    return [torch.tensordot(gauge, cores[0].reshape(r, first, -1), 1), *cores[1:]]


def _rotation(r: int, seed: int) -> Tensor:
    """A random rotation, uniformly distributed, float64 ``(r, r)``; the same for the same seed."""
    q, upper = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q * upper.diagonal().sign()
