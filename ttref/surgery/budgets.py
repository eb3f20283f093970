"""A candidate for each layer within a budget: the least predicted loss, by Lagrangian relaxation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from ..checks import check_number
from .sensed import Sensitivity

__all__ = ["Choice", "search_ranks"]


class Choice(dict[str, str | None]):
    """From each layer to the name of its candidate; None where it stays as it is.

    Attributes:
        loss: The sum of what the chosen candidates lose, in the units of the method.
        params, nbytes, macs: Sums over the layers of the table, those that stay included.
        bound: No choice within the budget can lose less than this.
    """

    def __init__(self, chosen: dict[str, _Option], bound: float) -> None:
        super().__init__({layer: option.candidate for layer, option in chosen.items()})
        self.loss = math.fsum(option.loss for option in chosen.values())
        self.params, self.nbytes, self.macs = (
            sum(option.costs[kind] for option in chosen.values()) for kind in ("params", "nbytes", "macs")
        )
        self.bound = bound


class _Option(NamedTuple):
    """One way for one layer: the candidate, its costs by kind, the one that is budgeted, and what it loses."""

    candidate: str | None
    costs: dict[str, int]
    cost: int
    loss: float


def search_ranks(
    table: Sensitivity,
    *,
    params: int | None = None,
    nbytes: int | None = None,
    macs: int | None = None,
    by: str | None = None,
) -> Choice:
    """Choose a candidate for each layer, so that the budget is kept and the sum of the losses is small.

    Losses of single layers are added up. That is a model of what happens when many layers are replaced at once; only
    an evaluation tells. A layer may also stay as it is, which loses nothing. With candidates at several ratios, this
    is the choice of the layers' ranks.

    Each layer's options are reduced to their lower convex hull of loss over cost, and the steps of all hulls are taken
    in the order of loss for each unit saved until the budget is kept; then what is left of it is spent on the single
    changes that lower the loss most.

    Args:
        table: What :func:`sensitivity` found, with candidates at several sizes.
        params: Budget of numbers for the weights of the table's layers together, those that stay included; the rest of
            the model is not in it.
        nbytes: Budget of bytes.
        macs: Budget of multiply-adds for one vector in each layer; give exactly one of the three. Layers of a
            convolutional network see unequally many vectors: scale the rows' ``macs`` first.
        by: The method whose losses count: "exact", "gradient" or "output"; by default the first that was asked for.

    Returns:
        A :class:`Choice`: the name of a candidate, or None, for each layer.

    Raises:
        TypeError: A budget that is no number, a table that is none.
        ValueError: Not exactly one budget; one below what is reachable, with the smallest reachable figure; a method
            that the table does not have.

    Guarantee:
        The loss exceeds the best possible one by at most ``choice.loss - choice.bound``, and that is at most the loss
        of one step of one hull. Where the budget falls onto a corner of the sum of the hulls, the choice is optimal.

    Cost:
        O(rows log rows) for the hulls, and O(rows) for each single change after them: O(rows^2) at most.

    Source:
        Everett (1963), Generalized Lagrange multiplier method for solving problems of optimum allocation of resources.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ttref.surgery import candidates, search_ranks, sensitivity
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16)).eval(), torch.randn(64, 16)
        >>> y = model(x).detach()
        >>> table = sensitivity(
        ...     model,
        ...     lambda model: -(model(x) - y).square().mean().item(),
        ...     candidates=[candidates.integer(bits) for bits in (2, 3, 4, 8)],
        ... )
        >>> choice = search_ranks(table, nbytes=1024 + 100)             # about four bits for each of 2,048 numbers
        >>> choice.nbytes <= 1124, sorted(choice)
        (True, ['0', '1'])
    """
    if not isinstance(table, Sensitivity):
        raise TypeError(f"table must be what sensitivity found, got {type(table).__name__}")
    given = {
        name: value for name, value in (("params", params), ("nbytes", nbytes), ("macs", macs)) if value is not None
    }
    if len(given) != 1:
        raise ValueError(f"give exactly one of params, nbytes and macs, got {' and '.join(given) or 'none'}")
    [(kind, budget)] = given.items()
    check_number(kind, budget)
    options = _options(table, kind, table._column(by))
    hulls = {layer: _hull(found) for layer, found in options.items()}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    left = budget - sum(option.cost for option in chosen.values())
    steps = [(_slope(*pair), k, layer, pair) for layer, hull in hulls.items() for k, pair in enumerate(pairwise(hull))]
    bound = math.fsum(option.loss for option in chosen.values())
    for slope, _, layer, (before, after) in sorted(steps, key=lambda step: step[:2]):
        if left >= 0:
            break
        saved = before.cost - after.cost
        bound += slope * min(saved, -left)
        chosen[layer], left = after, left + saved
    if left < 0:
        least = math.ceil(budget - left)
        raise ValueError(f"{kind}={budget} cannot be reached with these candidates; the smallest reachable is {least}")
    while better := [
        (option.loss - chosen[layer].loss, layer, option)
        for layer, found in options.items()
        for option in found
        if option.loss < chosen[layer].loss and option.cost - chosen[layer].cost <= left
    ]:
        _, layer, option = min(better, key=lambda one: one[0])
        chosen[layer], left = option, left - (option.cost - chosen[layer].cost)
    return Choice(chosen, bound)


def _options(table: Sensitivity, kind: str, column: str) -> dict[str, list[_Option]]:
    """The options of each layer, the one to stay among them."""
    found: dict[str, list[_Option]] = {}
    for row in table.rows:
        if row["layer"] not in found:
            costs = {name: row[f"dense_{name}"] for name in ("params", "nbytes", "macs")}
            found[row["layer"]] = [_Option(None, costs, costs[kind], 0.0)]
        if row[column] is not None:
            costs = {name: row[name] for name in ("params", "nbytes", "macs")}
            found[row["layer"]].append(_Option(row["candidate"], costs, costs[kind], row[column]))
    return found


def _hull(options: list[_Option]) -> list[_Option]:
    """The lower convex hull of loss over cost, from the option that loses least to the cheapest one."""
    hull: list[_Option] = []
    best = min(options, key=lambda one: (one.loss, one.cost))
    for option in sorted(options, key=lambda one: (-one.cost, one.loss)):
        if option.cost > best.cost or (option.cost == best.cost and option is not best):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], option):
            hull.pop()
        if not hull or option.cost < hull[-1].cost:
            hull.append(option)
    return hull


def _slope(before: _Option, after: _Option) -> float:
    """Loss for each unit of cost that is saved."""
    return (after.loss - before.loss) / (before.cost - after.cost) if before.cost > after.cost else math.inf
