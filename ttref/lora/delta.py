"""The update of one weight as a tensor train: its cores, their initialization, and products with vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ..canonical import tt_orthogonalize
from ..checks import check_real
from ..contraction import multiply
from ..costs import Plan, cost, price
from ..modules import Cores, cores_of
from ..plans import NOMINAL_BATCH, ORDERS, working_bytes
from ..precision import computable, full_precision
from ..shapes import tt_ranks
from ..steps import Shape, joins
from ..tracing import exported
from ..trains import middle, tt_svd, tt_to_tensor
from .modes import folded, paired
from .saved_delta import SavedDelta


class TTDelta(SavedDelta):
    """The update of a weight: ``alpha * TT(cores)``, read row-major as a matrix ``(out_features, in_features)``.

    :class:`TTLoRALinear` and the layers of :mod:`ttref.lora.peft` put it beside a frozen layer. The arguments are those
    of :class:`TTLoRALinear`.

    Attributes:
        cores: ``ParameterList`` of cores ``(r_{k-1}, n_k, r_k)``, output modes first.
        shape, ranks: Modes and full ranks.
        boundary_rank: Rank of the bond between rows and columns, which bounds the matrix rank; None if a mode
            straddles that boundary.
        modes: Pairs ``(m_k, n_k)`` of row and column mode, with straddling cores merged into one.
        params, nbytes, dense_nbytes, ratio: Numbers and bytes of the cores, bytes of the dense update in their dtype,
            and its numbers for each number in the cores.
        alpha, init, dropout: As given; ``dropout`` is a module.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        rank: int | Sequence[int],
        alpha: float,
        shape: Sequence[int] | None = None,
        init: str = "zero_last",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_real("alpha", alpha)
        if not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"alpha multiplies the update and must be finite and not zero, got {alpha}")
        if init not in _STARTS:
            raise ValueError(f"init must be one of {', '.join(map(repr, _STARTS))}, got {init!r}")
        check_real("dropout", dropout)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a probability and must lie in [0, 1], got {dropout}")
        self.out_features, self.in_features = out_features, in_features
        self.shape, self._rows = folded(out_features, in_features, shape)
        self.ranks = tt_ranks(self.shape, rank)
        if isinstance(rank, Integral) and len(self.ranks) > 2 and rank > max(self.ranks):
            warnings.warn(
                f"rank {rank} exceeds what modes {self.shape} can use; it is clipped to {self.ranks}", stacklevel=3
            )
        self.modes, (left, right) = paired(self.shape, self._rows)
        self.boundary_rank = self.ranks[left] if left == right else None
        bonds = self.ranks[: left + (left < right)] + self.ranks[right:]
        self._shapes = tuple((r, *pair, q) for r, pair, q in zip(bonds[:-1], self.modes, bonds[1:], strict=True))
        self._sizes = tuple(zip(self.ranks[:-1], self.shape, self.ranks[1:], strict=True))
        self._padding = math.prod(self.shape) // self._rows - in_features
        self._across, self._macs = (left, right), (_merging(self._sizes[left:right]), _rebuilding(self._sizes))
        # The cut at which "two-gemm" is LoRA's two factors, merged from the ends; modes of 1 make other ways cheaper.
        ends = zip((self._sizes[:left], self._sizes[left:]), (False, True), strict=True)
        thin = left == right < len(self.shape) and all(_merging(s, end) <= _merging(s, not end) for s, end in ends)
        self._cut = left if thin else 0
        self.alpha, self.init = float(alpha), init
        self.dropout = nn.Dropout(float(dropout)) if dropout else nn.Identity()
        self.cores = Cores(torch.empty(size, device=device, dtype=dtype) for size in self._sizes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new cores as ``init`` says."""
        if self.cores[0].is_meta:  # no numbers yet: to_empty and another call make them
            return
        drawn = _STARTS[self.init]([torch.empty_like(core, dtype=torch.float32) for core in self.cores], self)
        for core, start in zip(self.cores, drawn, strict=True):
            core.copy_(start)

    def dense(self) -> Tensor:
        """The update ``(out_features, in_features)``, alpha included. Differentiable. O(out in r) multiply-adds."""
        return self._update().to(self.cores[0].dtype)

    @full_precision
    def added_to_weight(self, weight: Tensor) -> Tensor:
        """``weight + update`` for a weight ``(out_features, in_features)``, in the weight's dtype. Differentiable."""
        if not self._cut:
            return (weight + self._update()).to(weight.dtype)
        rows, cols = self._factors(cores_of(self.cores))
        wide = torch.promote_types(weight.dtype, rows.dtype)
        return torch.addmm(weight.to(wide), rows.to(wide), cols.to(wide), alpha=self.alpha).to(weight.dtype)

    @full_precision  # products of cores are small: under autocast they would lose digits and save no time
    def added_to_answer(self, y: Tensor, x: Tensor, plan: Plan) -> Tensor:
        """``y + update x`` for vectors ``(batch, out)`` and ``(batch, in)``, in the dtype of y. Differentiable."""
        cores = cores_of(self.cores)
        if plan.order == "two-gemm" and plan.cut == self._cut:  # as LoRA: y is added to in the second product
            rows, cols = [factor.to(y.dtype) for factor in self._factors(cores)]
            return torch.addmm(y, linear(x.to(y.dtype), cols), rows.mT, alpha=self.alpha)
        wide = torch.promote_types(y.dtype, torch.float32)
        cores, x = [core.to(wide) for core in cores], x.to(wide)
        left, right = self._across
        if left < right:
            cores[left:right] = [reduce(_joined, cores[left:right])]
        x = pad(x, (0, self._padding)) if self._padding else x
        if plan.order == "right-to-left" and (torch.compiler.is_compiling() or plan.chunk >= len(x)):
            found = self._right_to_left(cores, x)
        else:
            cores = [core.reshape(shape) for core, shape in zip(cores, self._shapes, strict=True)]
            found = multiply(cores, x, plan)
        found = found[:, : self.out_features] if self._rows > self.out_features else found
        return y.add(found, alpha=self.alpha).to(y.dtype)

    def plan(self, batch: int, order: str = "auto", *, added: bool = False) -> Plan:
        """The order and costs of multiplying ``batch`` vectors by the update; the frozen layer's are not included.

        Args:
            batch: Number of vectors.
            order: "auto" for the cheapest, or the order to take.
            added: True if "dense" adds the update to the frozen weight, so that one product serves both.

        Returns:
            A :class:`Plan`. With gradients on, multiply-adds and bytes are those of forward and backward.

        Raises:
            ValueError: No such order.
        """
        if order not in ("auto", *ORDERS):
            raise ValueError(f"order must be 'auto' or one of {ORDERS}, got {order!r}")
        first = self.cores[0]
        options = working_bytes(first.device.type), order, added, torch.is_grad_enabled() and first.requires_grad
        if torch.compiler.is_compiling():  # it traces the arithmetic itself, and cannot read a cache
            batch = batch if order == "auto" and not exported(batch) else NOMINAL_BATCH
            return _cheapest.__wrapped__(self._shapes, self._macs, batch, *options)
        return _cheapest(self._shapes, self._macs, int(batch), *options)  # to a tracer, sizes are tensors

    @property
    def params(self) -> int:
        """Numbers in the cores."""
        return sum(map(math.prod, self._sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.params * self.cores[0].itemsize

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense update in the dtype of the cores."""
        return self.out_features * self.in_features * self.cores[0].itemsize

    @property
    def ratio(self) -> float:
        """Numbers in the dense update for each number in the cores."""
        return self.out_features * self.in_features / self.params

    def extra_repr(self) -> str:
        """Modes, ranks, alpha and parameters, as ``print(model)`` shows them."""
        return f"shape={self.shape}, ranks={self.ranks}, alpha={self.alpha:g}, params={self.params}"

    def _right_to_left(self, cores: Sequence[Tensor], x: Tensor) -> Tensor:
        """The walk of :func:`multiply`, faster for small batches: no axis of these cores is ever to be sorted.

        State ``(batch n_1 ... n_k, r_k)``, and from the boundary on ``(batch, r_k, m_{k+1} ... m_d)``.
        """
        state, width = x, 1
        for core, (r, m, n, q) in zip(reversed(cores), reversed(self._shapes), strict=True):
            matrix = core.reshape(r * m, n * q)
            if width == 1:
                state = linear(state.reshape(-1, n * q), matrix)
            else:
                state = torch.matmul(matrix, state.reshape(-1, q, width))
            width *= m
        return state.reshape(-1, width)

    def _factors(self, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """LoRA's factors ``(out, r)`` and ``(r, in)``: the row cores merged, and the column cores."""
        cores = [computable(core) for core in cores]
        left, right = reduce(_joined, cores[: self._cut]).reshape(self._rows, -1), cores[-1].flatten(1)
        for core in cores[-2 : self._cut - 1 : -1]:
            right = (core.flatten(0, 1) @ right).reshape(core.shape[0], -1)
        left = left[: self.out_features] if self._rows > self.out_features else left
        return left, right[:, : self.in_features] if self._padding else right

    @full_precision
    def _update(self) -> Tensor:
        """The dense update, alpha included; in float32 if the cores are in half precision."""
        first, *others = [computable(core) for core in cores_of(self.cores)]
        update = tt_to_tensor([self.alpha * first, *others]).reshape(self._rows, -1)
        return update[: self.out_features, : self.in_features]


class _Added(Plan):
    """The plan of "dense" where the update is added to the frozen weight, whose product then serves both."""

    @property
    def forward(self) -> int:
        """Peak of the float32 bytes alive at once: the update and its sum with the weight."""
        return 8 * math.prod(self.widths)

    @property
    def training(self) -> int:
        """The same: the gradient of the sum is also that of the update."""
        return self.forward


@lru_cache(maxsize=4096)
def _cheapest(
    shapes: tuple[Shape, ...],
    macs: tuple[int, int],
    batch: int,
    working: int,
    order: str,
    added: bool,
    training: bool,
) -> Plan:
    """The plan of the cheapest order, or of the one named; ``macs``: of merging straddling cores, and of rebuilding."""
    passes = 3 if training else 1  # backward: one product for each operand
    best, least = None, math.inf
    for way in ORDERS if order == "auto" else (order,):
        plan = cost(way, shapes, max(batch, 1), working)
        rows, cols = plan.widths
        if added and way == "dense":
            first = batch * rows * cols if training else 0  # the gradient of the sum of weight and update
            numbers = passes * macs[1] + first, 12 * passes * rows * cols, 4 * rows * cols, plan.batch
            plan = _Added(way, *numbers, shapes=shapes, batch=plan.batch, widths=plan.widths)
        else:
            plan = plan._replace(macs=passes * (plan.macs + macs[0]), bytes=passes * (plan.bytes + 12 * batch * rows))
        if price(plan) < least:  # a plain loop, because torch.compile follows it and not ``min`` with a key
            best, least = plan, price(plan)
    return best


def _joined(left: Tensor, right: Tensor) -> Tensor:
    """Two neighboring cores merged: entries of the right one for each row and rank of the left one."""
    return left.reshape(-1, len(right)) @ right.flatten(1)


def _merging(sizes: Sequence[tuple[int, int, int]], right: bool = False) -> int:
    """Multiply-adds of merging neighboring cores, from the left or from the right."""
    return sum(entries * bond for entries, bond, _ in joins([(r, n, 1, q) for r, n, q in sizes], right))


def _rebuilding(sizes: Sequence[tuple[int, int, int]]) -> int:
    """Multiply-adds of ``tt_to_tensor``."""
    modes = [n for _, n, _ in sizes]
    half = middle(modes)
    last = math.prod(modes) * sizes[half][0] if half < len(sizes) else 0
    return _merging(sizes[:half]) + _merging(sizes[half:], right=True) + last


def _zero_last(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """Gaussian cores and a last one of zeros, so that the update starts at exactly zero.

    The product of the others has the mean square 1 / (3 in_features) of PEFT's initial LoRA matrix, so learning rates
    carry over from there.
    """
    spread = (3 * delta.in_features) ** (-1 / (2 * max(len(cores) - 1, 1)))
    for core in cores:
        core.normal_(std=spread / core.shape[0] ** 0.5)
    return [*cores[:-1], torch.zeros_like(cores[-1])]


def _orthogonal(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """As ``_zero_last``, but the other cores are orthogonal, scaled to the same mean square."""
    drawn = tt_orthogonalize([core.normal_() for core in cores], len(cores) - 1)
    entries = math.prod(delta.shape[:-1])
    spread = (entries / (3 * delta.in_features)) ** (1 / (2 * max(len(cores) - 1, 1)))
    return [*[core * spread for core in drawn[:-1]], torch.zeros_like(cores[-1])]


def _paper(cores: list[Tensor], delta: TTDelta) -> list[Tensor]:
    """TT-SVD of a Kaiming-uniform matrix (a = sqrt 8), as in the method's published code: not zero at the start."""
    bound = (2 / (3 * delta.in_features)) ** 0.5
    return tt_svd(cores[0].new_empty(delta.shape).uniform_(-bound, bound), rank=delta.ranks)


_STARTS: dict[str, Callable[[list[Tensor], TTDelta], list[Tensor]]] = {
    "zero_last": _zero_last,
    "orthogonal": _orthogonal,
    "paper": _paper,
}
