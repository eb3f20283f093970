"""Words of quantum physics as linear algebra: ranks from entropies, draws by Born's rule, overlaps as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from ttref import entanglement_entropy, schmidt_values, tt_orthogonalize, tt_params, tt_ranks
from ttref.shapes import largest

from .figures import MARKERS, OKABE_ITO

__all__ = ["budget_line", "draw_overlaps", "measured", "ranks_for", "train_errors"]

MOST = 6  # documents of a picture: the colors that are strong, and not the query's black
_MUTED = "#777777"


def ranks_for(x: Tensor, *, params: int, by: str) -> tuple[int, ...]:
    """Ranks of a train within a budget of numbers, shared out among the bonds by one of three rules.

    Each rule has one dial, which is turned up as far as the budget allows:

    - ``"uniform"``: the same rank at every bond.
    - ``"entropy"``: ranks in proportion to ``e^S`` with S the entropy of the bond in nats, the number of Schmidt values
      that matter.
    - ``"eps"``: at every bond the smallest rank that discards no more than the same share of the squared norm: what
      :func:`~ttref.entanglement.suggest_ranks` answers for the smallest ``eps`` that the budget affords.

    Args:
        x: Tensor in its modes ``(n_1, ..., n_d)``, d at least 2.
        params: Numbers that the cores may hold together.
        by: The rule.

    Returns:
        ``(1, r_1, ..., r_{d-1}, 1)``.

    Raises:
        TypeError, ValueError: As :func:`~ttref.entanglement.schmidt_values`; ValueError for another rule, and for a
            budget that does not hold ranks of 1, with the smallest that does.

    Cost:
        d - 1 times :func:`~ttref.entanglement.schmidt_values`.

    Example:
        >>> pair = torch.eye(4).reshape(4, 4, 1) * torch.ones(4)  # modes 1 and 2 depend on each other, 3 on none
        >>> ranks_for(pair, params=36, by="uniform"), ranks_for(pair, params=36, by="entropy")
        ((1, 2, 2, 1), (1, 4, 1, 1))
    """
    if by not in _RULES:
        raise ValueError(f"by must be one of {', '.join(map(repr, _RULES))}, got {by!r}")
    modes = tuple(x.shape)
    _check_budget(modes, params)
    prices = [_RULES[by](x, bond) for bond in range(1, len(modes))]
    dial = torch.cat(prices).unique()

    def ranks_at(place: int) -> tuple[int, ...]:
        bought = [max(int((price <= dial[place - 1]).sum()), 1) if place else 1 for price in prices]
        return tt_ranks(modes, (1, *bought, 1))

    return ranks_at(largest(lambda place: tt_params(modes, ranks_at(place)) <= params, len(dial)))


def _uniform(x: Tensor, bond: int) -> Tensor:
    """Rank j is had from the dial's place j on."""
    side = min(math.prod(x.shape[:bond]), math.prod(x.shape[bond:]))
    return torch.arange(1, side + 1, dtype=torch.float64)


def _by_entropy(x: Tensor, bond: int) -> Tensor:
    """Rank j is had where the dial, times the effective rank, has come to j."""
    return _uniform(x, bond) / math.exp(entanglement_entropy(x, bond, base=math.e).item())


def _by_eps(x: Tensor, bond: int) -> Tensor:
    """Rank j is had where less may be discarded than j - 1 values leave: the dial is minus that share."""
    energy = schmidt_values(x, bond).double().square()
    return -energy.flip(0).cumsum(0).flip(0) / energy.sum().clamp(min=torch.finfo(torch.float64).tiny)


_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {"uniform": _uniform, "entropy": _by_entropy, "eps": _by_eps}


@torch.no_grad()
def train_errors(x: Tensor) -> Tensor:
    """Relative errors of TT-SVD at all pairs of ranks of a tensor with three modes, without one TT-SVD.

    With the first basis cut to r values, a matrix of ``r n_2`` by ``n_3`` is left. Its Gram matrix is a sum over
    the r kept directions, so the Gram matrices for all r are one running sum; the error's square is what the largest
    eigenvalues leave of the squared norm.

    Args:
        x: Tensor ``(n_1, n_2, n_3)``.

    Returns:
        ``(n_1, n_3)`` in float64: entry ``[r_1 - 1, r_2 - 1]`` is the error of ``tt_svd(x, rank=(1, r_1, r_2, 1))``,
        exact to about 1e-7, the root of float64's rounding.

    Raises:
        ValueError: Another number of modes, or a tensor of zeros, which has no relative error.

    Cost:
        O(n_1 n_2 n_3 (n_1 + n_3)) multiply-adds and ``n_1`` eigenproblems of size ``n_3``.

    Example:
        >>> ramp = torch.linspace(0, 1, 64).reshape(4, 4, 4)  # of rank 2
        >>> train_errors(ramp).lt(1e-6).int().tolist()
        [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; all pairs of ranks are for three modes")
    total = x.double().square().sum()
    if not total:
        raise ValueError("x is zero everywhere, so no error is relative to it; give a tensor with a norm")
    folded = x.double().flatten(1)
    basis = torch.linalg.eigh(folded @ folded.mT).eigenvectors.flip(1)
    parts = (basis.mT @ folded).reshape(x.shape)
    kept = torch.linalg.eigvalsh((parts.mT @ parts).cumsum(0)).flip(1).cumsum(1)
    return (1 - kept / total).clamp(min=0).sqrt()


def budget_line(errors: Tensor, shape: Sequence[int], *, params: int) -> dict[tuple[int, ...], float]:
    """What a budget affords with three modes: for each first rank the largest second one, and TT-SVD's error there.

    Args:
        errors: What :func:`train_errors` found, ``(n_1, n_3)``.
        shape: The three modes.
        params: Numbers that the cores may hold together.

    Returns:
        From ranks ``(1, r_1, r_2, 1)`` to their error, by rising first rank. The least of them is the best choice.

    Raises:
        ValueError: A budget that does not hold ranks of 1.

    Cost:
        O(n_1 log n_3).

    Example:
        >>> ramp = torch.linspace(0, 1, 64).reshape(4, 4, 4)
        >>> line = budget_line(train_errors(ramp), (4, 4, 4), params=40)
        >>> list(line), min(line, key=line.get)
        ([(1, 1, 4, 1), (1, 2, 2, 1), (1, 3, 1, 1), (1, 4, 1, 1)], (1, 2, 2, 1))
    """
    _check_budget(shape, params)
    line = {}
    for first in range(1, len(errors) + 1):
        second = largest(partial(_affords, shape, params, first), errors.shape[1])
        if second:
            ranks = tt_ranks(shape, (1, first, second, 1))
            line[ranks] = errors[ranks[1] - 1, ranks[2] - 1].item()
    return line


def _affords(shape: Sequence[int], params: int, first: int, second: int) -> bool:
    """Whether two ranks stay within a budget."""
    return tt_params(shape, (1, first, second, 1)) <= params


def _check_budget(shape: Sequence[int], params: int) -> None:
    least = tt_params(shape, 1)
    if params < least:
        raise ValueError(f"params={params} holds no train of modes {tuple(shape)}; ranks of 1 take {least}")


@torch.no_grad()
def measured(cores: Sequence[Tensor], count: int, *, generator: torch.Generator) -> Tensor:
    """Draw places of a tensor with probabilities that are its squared entries over the squared norm: Born's rule.

    One mode after the other, and the tensor is never built: with the center at the first core, all cores on the right
    are an isometry, so the squared norms of the center's slices are the probabilities of the first digit. That digit
    is put in, and the next core is the center.

    Args:
        cores: Vector cores ``(r_{k-1}, n_k, r_k)``, at least one of their entries not zero.
        count: Number of draws, independent of each other.
        generator: torch's generator.

    Returns:
        int64 ``(count, d)``, a digit for each mode.

    Raises:
        TypeError, ValueError, IndexError: As :func:`~ttref.canonical.tt_orthogonalize`.

    Cost:
        O(count d n r^2) multiply-adds.

    Source:
        Ferris and Vidal (2012), Perfect sampling with unitary tensor networks.

    Example:
        >>> left, right = torch.eye(2)[None], torch.eye(2)[..., None]  # two digits that always agree: a Bell pair
        >>> drawn = measured([left, right], 100, generator=torch.Generator().manual_seed(0))
        >>> bool((drawn[:, 0] == drawn[:, 1]).all()), sorted(drawn[:, 0].unique().tolist())
        (True, [0, 1])
    """
    digits: list[Tensor] = []
    state = cores[0].new_ones(count, 1)
    for core in tt_orthogonalize(cores, 0):
        slices = torch.einsum("cr,rns->cns", state, core)
        digits.append(torch.multinomial(slices.square().sum(2), 1, generator=generator)[:, 0])
        state = slices[torch.arange(count), digits[-1]]
        state = state / torch.linalg.vector_norm(state, dim=1, keepdim=True)
    return torch.stack(digits, 1)


def draw_overlaps(axes: Sequence[Axes], angles: Mapping[str, float]) -> None:
    """Draw documents around a query, and their cosines and squared overlaps over the angle between them.

    Args:
        axes: Two Axes. The first shows unit vectors and the shadow that each casts on the query's line; the second both
            scores, and the right angle where a cosine changes its sign and a square does not.
        angles: Degrees from the query, 0 to 180, by the name of the document; at most six documents.

    Raises:
        ValueError: An angle outside 0 to 180, or more documents than can be told apart; nothing is drawn.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots(1, 2)
        >>> draw_overlaps(axes, {"a": 30, "b": 150})
        >>> [text.get_text() for text in axes[0].texts]
        ['query', 'a', 'b']
    """
    for name, angle in angles.items():
        if not 0 <= angle <= 180:
            raise ValueError(f"document {name!r} is at {angle} degrees; the angle of two vectors lies in 0 to 180")
    if len(angles) > MOST:
        raise ValueError(f"{len(angles)} documents cannot be told apart; draw at most {MOST}")
    plane, scores = axes
    turn = torch.linspace(0, math.pi, 181).tolist()
    plane.plot([math.cos(a) for a in turn], [math.sin(a) for a in turn], color="0.75", marker="", linewidth=1)
    plane.plot([-1, 1], [0, 0], color="0.75", marker="", linewidth=1)
    _arrow(plane, 0, "black", "query")
    scores.plot(range(181), [math.cos(a) for a in turn], color="black", marker="", linestyle="--", label="cosine")
    scores.plot(range(181), [math.cos(a) ** 2 for a in turn], color="black", marker="", label="squared overlap")
    scores.axvline(90, color=_MUTED, marker="", linestyle=":", linewidth=1)
    scores.axhline(0, color=_MUTED, marker="", linewidth=0.8)
    for (name, angle), color, marker in zip(angles.items(), OKABE_ITO, MARKERS, strict=False):
        cosine = math.cos(math.radians(angle))
        _arrow(plane, math.radians(angle), color, name)
        plane.plot([cosine, cosine], [0, math.sin(math.radians(angle))], color=color, marker="", linestyle=":")
        plane.plot(cosine, 0, color=color, marker=marker, linestyle="")
        scores.plot([angle, angle], [cosine, cosine**2], color=color, marker=marker, linestyle=":")
    plane.set(xlim=(-1.3, 1.3), ylim=(-0.3, 1.25), aspect="equal", xticks=[-1, 0, 1], yticks=[])
    plane.set(xlabel="shadow on the query = cosine")
    plane.spines["left"].set_visible(False)
    plane.grid(visible=False)
    scores.set(xlim=(0, 180), xticks=[0, 45, 90, 135, 180], xlabel="angle to the query, degrees", ylabel="score")
    scores.legend(loc="lower left")


def _arrow(ax: Axes, angle: float, color: str, name: str) -> None:
    """A unit vector from the origin, and its name beyond the tip."""
    tip = math.cos(angle), math.sin(angle)
    straight = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.8}
    ax.add_patch(FancyArrowPatch((0, 0), tip, color=color, **straight))
    ax.text(1.12 * tip[0], 1.12 * tip[1] - 0.14 * (tip[1] < 0.1), name, color=color, ha="center", va="center")
