"""TTLoRALinear against its dense twin: forward, gradients, dropout, and what it says about itself."""

import itertools
import math

import pytest
import torch
from adapters import (
    FLOATS,
    ORDERS,
    SHAPES,
    STRADDLING,
    WIDE,
    adapted,
    base_layer,
    bits,
    padded_width,
    scatter,
    trains,
    update_of,
    vectors,
    weight_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_twins import (
    assert_close,
    largest,
    names,
    reach,
    twin,
)
from strategies import agree, gaussian, seeds
from torch import nn

from ttref import TTLoRALinear

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")
BATCHES = [(), (1,), (0,), (70,), (2, 3), (2, 0, 3), (2, 1, 2, 3)]


def gradients(layer, x, upstream):
    """Answers, and gradients of x, every core, weight and bias: the base is made to ask for its own here."""
    layer.base_layer.requires_grad_(True)
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y, [x, *layer.cores, *layer.base_layer.parameters()], upstream)


# Forward and gradients against the dense twin


@pytest.mark.parametrize("kind, bias", [("linear", True), ("linear", False), ("conv1d", True)])
@pytest.mark.parametrize("dtype", FLOATS)
@names
def test_every_order_is_the_dense_layer(name, dtype, kind, bias):
    layer = adapted(name, kind=kind, bias=bias, dtype=dtype)
    half = dtype not in WIDE
    for batch in BATCHES if dtype == torch.float64 else BATCHES[::3]:
        x = vectors(layer, *batch)
        upstream = gaussian((*batch, layer.out_features), 3, dtype)
        expected, wanted = twin(layer, x, upstream)
        for order in ["auto", *ORDERS]:
            layer.order = order
            y, found = gradients(layer, x, upstream)
            assert y.shape == (*batch, layer.out_features) and y.dtype == dtype, order
            assert_close(y, expected, dtype, reach(layer, x), 4 if half else 100)
            assert [g.dtype for g in found[1:-1]][: len(layer.cores)] == [core.dtype for core in layer.cores]
            for gradient, reference in zip(found, wanted, strict=True):
                # Sums cancel, and half precision rounds every term of them.
                scale = largest(reference) + largest(wanted[0])
                assert_close(gradient, reference, dtype, scale, 10 if half else 100)


@settings(max_examples=150)
@given(trains(), st.integers(1, 6), st.integers(0, 9), st.sampled_from([2.0, -0.5]), st.booleans(), seeds)
def test_every_order_over_random_modes(modes, rank, batch, alpha, conv1d, seed):
    out, ins, shape = modes
    base = base_layer(out, ins, dtype=torch.float64, kind="conv1d" if conv1d else "linear", seed=seed)
    layer = scatter(TTLoRALinear(base, rank=rank, alpha=alpha, shape=shape), seed)
    x, upstream = vectors(layer, batch), gaussian((batch, out), 3)
    expected, wanted = twin(layer, x, upstream)
    for order in ORDERS:
        layer.order = order
        y, found = gradients(layer, x, upstream)
        assert_close(y, expected, torch.float64, reach(layer, x))
        for gradient, reference in zip(found, wanted, strict=True):
            assert_close(gradient, reference, torch.float64, 1 + largest(reference), 1000)
    assert_close(layer.get_delta_weight(), update_of(layer).T if conv1d else update_of(layer), torch.float64)


@pytest.mark.parametrize("name", ["aligned", "straddling", "padded"])
def test_vectors_that_lie_apart_in_memory(name):
    layer = adapted(name, dtype=torch.float64)
    wide = gaussian((4, 3, 2 * layer.in_features), 1)
    views = [
        gaussian((layer.in_features, 5), 1).T,
        wide[..., ::2],
        wide[..., : layer.in_features].transpose(0, 1),
        gaussian((1, layer.in_features), 1).expand(6, -1),
    ]
    for x, order in itertools.product(views, ["auto", *ORDERS]):
        assert not x.is_contiguous()
        layer.order = order
        assert_close(layer(x), layer(x.contiguous()), torch.float64)


def test_a_wrong_width_is_named():
    layer = adapted("aligned")
    for order in ["auto", *ORDERS]:
        layer.order = order
        with pytest.raises(ValueError, match=r"x has shape \(5, 24\); its last axis must hold in_features = 36"):
            layer(torch.ones(5, 24))


# What it says about itself


@names
def test_what_the_layer_knows(name):
    out, ins, shape = SHAPES[name]
    layer = adapted(name, rank=3, alpha=1.5)
    assert (layer.out_features, layer.in_features, layer.alpha) == (out, ins, 1.5)
    assert [tuple(core.shape) for core in layer.cores] == list(
        zip(layer.ranks[:-1], layer.shape, layer.ranks[1:], strict=True)
    )
    assert layer.params == sum(core.numel() for core in layer.cores) and layer.rank == max(layer.ranks) <= 3
    assert all(isinstance(core, nn.Parameter) and core.requires_grad for core in layer.cores)
    assert set(layer.state_dict()) == {
        *(f"delta.cores.{k}" for k in range(len(layer.cores))),
        *(f"base_layer.{name}" for name in layer.base_layer.state_dict()),
    }
    if shape is not None:
        assert layer.shape == shape
    # The bond at the boundary by the definition: so many modes multiply to the rows exactly.
    rows = out if math.prod(layer.shape) == out * ins else padded_width(out)
    meets = [k for k in range(len(layer.shape) + 1) if math.prod(layer.shape[:k]) == rows]
    assert layer.boundary_rank in [layer.ranks[k] for k in meets] if meets else layer.boundary_rank is None
    assert (layer.boundary_rank is None) == (name in STRADDLING)
    for fact in (f"shape={layer.shape}", f"ranks={layer.ranks}", "alpha=1.5", f"params={layer.params}", "merged=False"):
        assert fact in repr(layer)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 9))
def test_automatic_modes(out, ins, rank):
    """At most 12 each, a bond exactly at the boundary, padding only where a prime factor needs it, and no further."""
    layer = TTLoRALinear(nn.Linear(ins, out, device="meta"), rank=rank, alpha=1)
    assert max(layer.shape) <= 12 and layer.boundary_rank is not None
    assert math.prod(layer.shape) == padded_width(out) * padded_width(ins)
    ends = [k for k in range(len(layer.shape) + 1) if math.prod(layer.shape[:k]) == padded_width(out)]
    assert ends and layer.shape[: ends[0]] == tuple(sorted(layer.shape[: ends[0]], reverse=True))
    assert layer.shape[ends[0] :] == tuple(sorted(layer.shape[ends[0] :]))
    assert layer.shape.count(1) == (out == 1) + (ins == 1)


def test_where_the_boundary_bond_is_among_modes_of_one():
    """Several bonds lie at the boundary; whichever is named bounds the rank, and the orders agree on it."""
    for shape in [(4, 6, 1, 1, 4, 9), (1, 4, 6, 1, 36), (24, 1, 36), (1, 24, 36, 1)]:
        layer = scatter(TTLoRALinear(base_layer(24, 36, dtype=torch.float64), rank=3, alpha=2, shape=shape))
        assert layer.boundary_rank == 3
        x, answers = vectors(layer, 5), []
        for order in ORDERS:
            layer.order = order
            answers.append(layer(x))
        expected = x @ (weight_of(layer) + update_of(layer)).T + layer.bias
        for y in answers:
            assert_close(y, expected, torch.float64)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"alpha": 0}, ValueError, "alpha multiplies the update and must be finite and not zero, got 0"),
        ({"alpha": math.nan}, ValueError, "must be finite"),
        ({"alpha": math.inf}, ValueError, "must be finite"),
        ({"alpha": "2"}, TypeError, "alpha must be a number, got '2' of type str"),
        ({"alpha": True}, TypeError, "alpha must be a number"),
        ({"alpha": None}, TypeError, "alpha must be a number"),
        ({"init": "zeros"}, ValueError, "init must be one of 'zero_last', 'orthogonal', 'paper', got 'zeros'"),
        ({"rank": 0}, ValueError, "rank must be"),
        ({"rank": 2.5}, TypeError, "rank must be"),
        ({"rank": (1, 2, 1)}, ValueError, "4 modes have 5 ranks"),
        ({"rank": (2, 2, 2, 2, 1)}, ValueError, "both ends must be 1"),
        ({"shape": (4, 6, 4, 8)}, ValueError, r"multiplies to 768, but a 24 x 36 matrix \(out x in\) has 864"),
        ({"shape": ()}, ValueError, "shape is empty"),
        ({"shape": 864}, TypeError, "shape must be a sequence"),
        ({"shape": (4, 6, -4, -9)}, ValueError, "shape"),
        ({"shape": (4, 6.0, 4, 9)}, TypeError, "shape"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"dropout": math.nan}, ValueError, "dropout"),
        ({"dropout": "0.1"}, TypeError, "dropout"),
    ],
)
def test_arguments_that_cannot_be(arguments, error, message):
    base = base_layer(24, 36)
    before = bits(base.weight)
    with pytest.raises(error, match=message):
        TTLoRALinear(base, **{"rank": 2, "alpha": 2, "shape": (4, 6, 4, 9), **arguments})
    assert bits(base.weight) == before and set(vars(base)) == set(vars(base_layer(24, 36)))


def test_a_rank_that_no_bond_can_use_is_clipped_and_said(recwarn):
    layer = TTLoRALinear(base_layer(24, 36), rank=24, alpha=1, shape=(4, 6, 4, 9))
    assert layer.ranks == (1, 4, 24, 9, 1) and not recwarn
    with pytest.warns(UserWarning, match=r"rank 25 exceeds what modes \(4, 6, 4, 9\) can use; .*\(1, 4, 24, 9, 1\)"):
        assert TTLoRALinear(base_layer(24, 36), rank=25, alpha=1, shape=(4, 6, 4, 9)).ranks == layer.ranks


# Dropout


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("name", ["aligned", "straddling", "padded"])
def test_dropout_acts_on_the_adapter_alone(name, kind):
    layer = adapted(name, rank=9, kind=kind, dtype=torch.float64, dropout=0.5)
    for batch in (3, 500):
        x = vectors(layer, batch)
        torch.manual_seed(4)
        y = layer(x)
        torch.manual_seed(4)
        kept = nn.functional.dropout(x, 0.5)
        assert (kept == 0).any() and not torch.equal(kept, x)
        assert_close(y, layer.base_layer(x) + kept @ update_of(layer).T, torch.float64)
        layer.eval()
        assert_close(layer(x), layer.base_layer(x) + x @ update_of(layer).T, torch.float64)
        layer.train()
    layer.eval()
    assert layer.plan(500).order == "dense"


def test_dropping_everything_leaves_the_base():
    layer = adapted("aligned", dropout=1.0)
    x = vectors(layer, 7)
    assert agree(layer(x), layer.base_layer(x))


def test_the_layer_starts_in_the_mode_of_its_base():
    for training in (True, False):
        base = base_layer(24, 36).train(training)
        layer = TTLoRALinear(base, rank=2, alpha=1, dropout=0.5)
        assert layer.training == layer.delta.dropout.training == base.training == training
