"""The choice of candidates within a budget, against all choices of small tables."""

import itertools
import math

import pytest
import torch
from torch import nn

from ttref.surgery import candidates, search_ranks, sensitivity
from ttref.surgery.sensed import COLUMNS, Sensitivity

KINDS = ("params", "nbytes", "macs")


def row(layer, candidate, cost, loss, dense=100):
    costs = {"params": cost, "nbytes": 2 * cost, "macs": 3 * cost}
    whole = {"dense_params": dense, "dense_nbytes": 4 * dense, "dense_macs": 3 * dense}
    return {"layer": layer, "candidate": candidate, **costs, **whole, **dict.fromkeys(COLUMNS.values()), "drop": loss}


def table_of(rows):
    return Sensitivity(1.0, ["exact"], rows, [], {"exact": len(rows) + 1}, {})


def drawn(seed, layers=4, options=3):
    """Costs and losses without rule: losses that do not rise as costs fall, equal costs, gains."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(5, 120, (layers, options), generator=generator).tolist()
    losses = (torch.randn(layers, options, generator=generator).abs() - 0.1).tolist()
    return table_of(
        [row(f"l{k}", f"c{j}", costs[k][j], round(losses[k][j], 3)) for k in range(layers) for j in range(options)]
    )


def everything(table, kind):
    """All choices as (cost, loss)."""
    found = {}
    for one in table.rows:
        found.setdefault(one["layer"], [(one[f"dense_{kind}"], 0.0)]).append((one[kind], one["drop"]))
    for choice in itertools.product(*found.values()):
        yield sum(cost for cost, _ in choice), math.fsum(loss for _, loss in choice)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_within_its_bound_of_the_best_of_all_choices(seed, kind):
    table = drawn(seed)
    choices = list(everything(table, kind))
    least = min(cost for cost, _ in choices)
    largest = max(one["drop"] for one in table.rows) + 0.1
    for budget in (least, least + 7, 1.2 * least, 2 * least, 10 * least):
        choice = search_ranks(table, **{kind: budget})
        assert getattr(choice, kind) <= budget
        optimum = min(loss for cost, loss in choices if cost <= budget)
        assert choice.bound - 1e-9 <= optimum <= choice.loss + 1e-9
        assert choice.loss - choice.bound <= largest + 1e-9  # one step of one hull
        chosen = {(one["layer"], one["candidate"]): one for one in table.rows}
        parts = [(layer, chosen.get((layer, name))) for layer, name in choice.items()]
        assert abs(sum(one["drop"] for _, one in parts if one) - choice.loss) < 1e-9
        dense = {one["layer"]: one[f"dense_{kind}"] for one in table.rows}
        assert sum(one[kind] if one else dense[layer] for layer, one in parts) == getattr(choice, kind)


@pytest.mark.parametrize("seed", range(12))
def test_on_the_corners_of_the_hull_it_is_the_best_choice(seed):
    table = drawn(seed)
    choices = sorted(everything(table, "params"))
    front = [(cost, loss) for cost, loss in choices if loss <= min(one for size, one in choices if size <= cost)]
    corners = [
        (cost, loss)
        for cost, loss in front
        if any(
            all(loss + price * cost <= other + price * size + 1e-12 for size, other in front)
            for price in torch.logspace(-6, 1, 3000).tolist()
        )
    ]
    assert len(corners) > 3
    for cost, loss in corners:
        choice = search_ranks(table, params=cost)
        assert abs(choice.loss - loss) < 1e-9 and abs(choice.bound - loss) < 1e-9


def test_what_is_left_is_spent():
    """The hull goes from 100 straight to 10; the option between lies above it, and fits."""
    table = table_of([row("a", "small", 10, 1.0), row("a", "between", 60, 0.9)])
    assert search_ranks(table, params=99) == {"a": "between"}
    assert search_ranks(table, params=59) == {"a": "small"} and search_ranks(table, params=100) == {"a": None}


def test_a_layer_that_gains_is_replaced_without_need():
    assert search_ranks(table_of([row("a", "better", 60, -0.1)]), params=1e9) == {"a": "better"}


@pytest.mark.parametrize(
    "make, error, says",
    [
        (lambda table: search_ranks(table), ValueError, "exactly one of params, nbytes and macs, got none"),
        (lambda table: search_ranks(table, params=1, macs=2), ValueError, "got params and macs"),
        (lambda table: search_ranks(table, params="1"), TypeError, "params must be a number"),
        (lambda table: search_ranks(table, params=float("nan")), ValueError, "params must be a finite number"),
        (lambda table: search_ranks(table, params=29), ValueError, "params=29 .*smallest reachable is 30"),
        (lambda table: search_ranks(table, nbytes=1.5), ValueError, "smallest reachable is 60"),
        (lambda table: search_ranks(table, params=50, by="output"), ValueError, "the table has exact, not 'output'"),
        (lambda table: search_ranks(table.rows, params=50), TypeError, "table must be what sensitivity found"),
    ],
)
def test_what_cannot_be_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make(table_of([row("a", "x", 10, 1.0), row("b", "x", 20, 1.0), row("b", "y", 40, 0.2)]))


def test_ranks_of_a_real_model():
    """Of two equal layers the one that counts ten times as much keeps more numbers."""
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"loud": nn.Linear(24, 24), "soft": nn.Linear(24, 24)}), torch.randn(50, 24)
    with torch.no_grad():
        model["soft"].weight.copy_(model["loud"].weight)
        wanted = 10 * model["loud"](x), model["soft"](x)

    @torch.no_grad()
    def evaluate(model):
        found = 10 * model["loud"](x), model["soft"](x)
        return -sum((a - b).square().mean().item() for a, b in zip(found, wanted, strict=True))

    table = sensitivity(model.eval(), evaluate, candidates=[candidates.svd(rank=r) for r in (1, 2, 4, 6, 8, 10)])
    choice = search_ranks(table, params=12 * 48)
    kept = {layer: int(name.split()[-1]) for layer, name in choice.items()}
    assert kept["loud"] > kept["soft"] and 10 * 48 <= choice.params <= 12 * 48
