"""Linear layers of four structures, started and stepped by one rule: dense, low rank, TT-matrix, block tensor train.

Each is a chain of batched matrix products, and the rule speaks of these (Qiu et al. 2024, arXiv:2406.06248, after Yang
et al.): a factor that sums over ``f`` entries and gives ``g`` starts with entries of standard deviation
sqrt(min(f, g)) / f, and Adam's step for it is proportional to 1 / f. Without it a step that suits a dense layer is far
too short for a factor that sums over sixteen entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ttref import TTLinear

BASE = 64  # the fan-in for which a rate is stated
VECTORS = 1024  # at once, for which an order of the product is planned

Make = Callable[[int, int], nn.Module]  # from input and output width to a layer


class Factors(nn.Module):
    """A layer that is a chain of products; its biases start at zero.

    Attributes:
        fans: For each factor's name, the entries that it sums over and those that it gives.
        macs: Multiply-adds for one vector.
    """

    fans: dict[str, tuple[int, int]]
    macs: int

    def start(self, generator: torch.Generator) -> None:
        """Draw the factors."""
        with torch.no_grad():
            for name, (ins, outs) in self.fans.items():
                self.get_parameter(name).normal_(0, math.sqrt(min(ins, outs)) / ins, generator=generator)
            self.bias.zero_()

    def rates(self) -> dict[str, float]:
        """What each factor's learning rate is multiplied by."""
        return {name: BASE / ins for name, (ins, _) in self.fans.items()}


class Dense(Factors):
    """``W x + b``."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(outs, ins)), nn.Parameter(torch.empty(outs))
        self.fans, self.macs = {"weight": (ins, outs)}, ins * outs

    def forward(self, x: Tensor) -> Tensor:
        """``(..., ins)`` to ``(..., outs)``."""
        return nn.functional.linear(x, self.weight, self.bias)


class LowRank(Factors):
    """``U V x + b`` with ``rank`` columns of U."""

    def __init__(self, ins: int, outs: int, rank: int) -> None:
        super().__init__()
        self.v, self.u = nn.Parameter(torch.empty(rank, ins)), nn.Parameter(torch.empty(outs, rank))
        self.bias = nn.Parameter(torch.empty(outs))
        self.fans, self.macs = {"v": (ins, rank), "u": (rank, outs)}, rank * (ins + outs)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., ins)`` to ``(..., outs)``."""
        return nn.functional.linear(nn.functional.linear(x, self.v), self.u, self.bias)


class TTMatrix(Factors):
    """A TT-matrix of two cores, by ``ttref.TTLinear``."""

    def __init__(self, ins: int, outs: int, rank: int) -> None:
        super().__init__()
        (n1, n2), (m1, m2) = pair(ins), pair(outs)
        self.tt = TTLinear((n1, n2), (m1, m2), rank)
        rank = self.tt.ranks[1]
        self.fans = {"tt.cores.1": (n2, rank * m2), "tt.cores.0": (rank * n1, m1)}
        self.macs = self.tt.plan(VECTORS).macs // VECTORS

    @property
    def bias(self) -> Tensor:
        """The train's bias."""
        return self.tt.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., ins)`` to ``(..., outs)``."""
        return self.tt(x)


class BlockTensorTrain(Factors):
    """A TT-matrix whose cores differ from block to block: as many numbers as multiply-adds.

    ``W[(a b), (c d)] = sum over s of left[b, a, (c s)] right[c, (s b), d]``. If left does not depend on b, nor right
    on c, it is a TT-matrix of two cores and rank s. Qiu et al. (2024), section 3.
    """

    def __init__(self, ins: int, outs: int, rank: int) -> None:
        super().__init__()
        (c, d), (a, b) = pair(ins), pair(outs)
        self.sizes = a, b, c, d, rank
        self.right, self.left = nn.Parameter(torch.empty(c, rank * b, d)), nn.Parameter(torch.empty(b, a, c * rank))
        self.bias = nn.Parameter(torch.empty(outs))
        self.fans = {"right": (d, rank * b), "left": (c * rank, a)}
        self.macs = self.right.numel() + self.left.numel()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., ins)`` to ``(..., outs)``."""
        a, b, c, d, rank = self.sizes
        blocks = x.reshape(-1, c, d).transpose(0, 1)  # (c, vectors, d)
        inner = torch.bmm(blocks, self.right.mT).unflatten(2, (rank, b))  # (c, vectors, s, b)
        inner = inner.permute(3, 1, 0, 2).flatten(2)  # (b, vectors, c s)
        found = torch.bmm(inner, self.left.mT).permute(1, 2, 0)  # (vectors, a, b)
        return found.reshape(*x.shape[:-1], a * b) + self.bias


def pair(width: int) -> tuple[int, int]:
    """The two factors of a width that are nearest to each other, the larger one first."""
    small = next(n for n in range(math.isqrt(width), 0, -1) if width % n == 0)
    return width // small, small
