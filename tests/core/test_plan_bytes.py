"""The bytes that a plan promises, against every storage that comes and goes; recomputing against keeping."""

import itertools

import pytest
import torch
from strategies import gaussian, norm
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from benchmarks.live import forward_peak, training_peak
from ttref import TTLinear, scratch, ttm_matvec
from ttref.plans import ORDERS, plan_contraction, plan_for

SHAPES = [
    ((8, 8), (8, 8)),
    ((4, 4, 6), (6, 8, 8)),
    ((8, 6, 4), (4, 3, 4)),
    ((4, 2, 2, 4), (2, 4, 4, 2)),
    ((96,), (60,)),
    ((8, 8, 6, 1, 1, 1), (1, 1, 1, 6, 8, 8)),
    (61, 59),  # padded
]


def made(shape, rank, order="auto", recompute=False):
    torch.manual_seed(0)
    layer = TTLinear(*shape, rank)
    layer.order, layer.recompute = order, recompute
    return layer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_plan_knows_the_bytes_that_live(shape):
    """Within a tenth, over batch, rank and order, with and without recomputing."""
    for batch, rank, order, recompute in itertools.product((1, 40), (2, 12), ORDERS, (False, True)):
        layer = made(shape, rank, order, recompute)
        x, plan = torch.randn(batch, layer.in_features), layer.plan(batch)
        near = 0.25 if shape == (61, 59) else 0.1  # copies of padded vectors come and go in more ways
        vars(scratch._KEPT).clear()
        assert plan.forward == pytest.approx(forward_peak(layer, x), rel=near), (batch, rank, order, recompute)
        assert plan.training == pytest.approx(training_peak(layer, x), rel=near), (batch, rank, order, recompute)


def test_the_figures_of_the_dense_layer():
    layer = made(((8, 8, 12), (12, 16, 16)), 4)
    dense, x, found = layer.to_linear(), torch.randn(64, 768), layer.plan(64).dense
    assert found["forward"] == forward_peak(dense, x) and found["macs"] == 64 * 768 * 3072
    assert found["training"] == training_peak(dense, x)
    assert found["weights"] == layer.dense_nbytes == 4 * dense.weight.numel()


def test_a_plan_is_printed_beside_the_dense_layer():
    plan = made(((8, 8, 12), (12, 16, 16)), 4).plan(64)
    first, head, *rows = str(plan).splitlines()
    assert first.startswith(plan.order) and head.split() == ["TT", "dense"]
    assert [row.split()[-2] for row in rows] == [
        f"{getattr(plan, name):,}" for name in ("macs", "bytes", "forward", "training", "weights")
    ]
    assert len({len(row) for row in rows}) == 1
    assert repr(plan).startswith("Plan(order=")


@pytest.mark.parametrize("widths", [(512, 512), (768, 3072), (3072, 768), (1024, 1024), (4096, 4096)])
def test_inference_stays_within_the_dense_layer_and_a_tenth(widths):
    """Wherever the cores hold at most an eighth of the dense weight; with more it would cost over a tenth more time."""
    for rank, batch in itertools.product((1, 4, 8, 16, 32, 64), (1, 16, 128, 512, 4096)):
        layer = TTLinear(*widths, rank, device="meta")
        plan = plan_for(layer._shapes, batch, "cpu")
        dense = plan.dense["forward"] + plan.dense["weights"]
        if 8 * plan.weights <= plan.dense["weights"]:
            assert plan.forward + plan.weights <= 1.1 * dense, (rank, batch, plan.order)


@pytest.mark.parametrize("widths", [(768, 3072), (3072, 768), (1024, 1024)])
def test_training_with_recomputation_stays_below_the_dense_layer(widths):
    layer, x = made(widths, 16, recompute=True), torch.randn(2048, widths[0])
    plan, dense = layer.plan(2048), nn.Linear(*widths)
    assert plan.training + plan.weights < plan.dense["training"] + plan.dense["weights"]
    ours, theirs = (training_peak(m, x) + sum(4 * p.numel() for p in m.parameters()) for m in (layer, dense))
    assert ours < theirs


@pytest.mark.parametrize("order", ORDERS)
def test_recomputed_gradients_are_those_that_are_kept(order, monkeypatch):
    monkeypatch.setattr("ttref.plans.WORKING_BYTES", 4096)
    layer = made(((4, 3, 2), (3, 4, 5)), 3, order).double()
    layer.cores[1].requires_grad_(False)
    x, upstream = gaussian((50, 24), 1).requires_grad_(), gaussian((50, 60), 2)
    inputs = [x, layer.cores[0], layer.cores[2], layer.bias]
    kept = torch.autograd.grad(layer(x), inputs, upstream)
    layer.recompute = True
    plan = layer.plan(50)
    assert plan.block < 3 if order == "dense" else plan.chunk < 50
    found = torch.autograd.grad(layer(x), inputs, upstream)
    assert all(norm(one - other) <= 1e-12 * norm(other) for one, other in zip(found, kept, strict=True))
    frozen = layer(x.detach().requires_grad_(False))
    assert norm(torch.autograd.grad(frozen, layer.bias, upstream)[0] - kept[3]) <= 1e-12 * norm(kept[3])


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_of_recomputed_gradients(order):
    torch.manual_seed(0)
    cores = [core.double().detach().requires_grad_() for core in TTLinear((2, 3), (3, 2), 2).cores]
    plan = plan_contraction(cores, 5, order)._replace(recompute=True, chunk=2, block=1)
    inputs = [gaussian((5, 6), 1).requires_grad_(), *cores]

    def product(x, *cores):
        return ttm_matvec(list(cores), x, plan)

    assert gradcheck(product, inputs, fast_mode=True)
    assert gradgradcheck(product, inputs, fast_mode=True)


def test_recomputing_under_transforms_and_compilers_gives_way_to_keeping():
    layer = made(((4, 4), (4, 4)), 3, recompute=True).double()
    x, own = gaussian((6, 16), 0), dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(own, x)
    expected = torch.autograd.grad(layer(x).square().sum(), list(own.values()))
    for name, whole in zip(own, expected, strict=True):
        torch.testing.assert_close(found[name].sum(0), whole)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
