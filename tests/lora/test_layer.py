"""TTLoRALinear against its dense twin: forward, gradients, the choice of a form, dropout, checkpoints, compilers."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from adapters import (
    FLOATS,
    FORMS,
    SHAPES,
    STRADDLING,
    WIDE,
    adapted,
    base_layer,
    bits,
    forms_of,
    padded_width,
    scatter,
    trains,
    update_of,
    vectors,
    weight_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import agree, dense, gaussian, seeds
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ttref import TTLoRALinear
from ttref.lora.forms import LoRAPlan

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")
BATCHES = [(), (1,), (0,), (70,), (2, 3), (2, 0, 3), (2, 1, 2, 3)]
names = pytest.mark.parametrize("name", SHAPES)


def twin(layer, x, upstream):
    """Answers and gradients of ``x (W + update)^T + b`` in double precision, by autograd through einsum alone."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *layer.cores, *layer.base_layer.parameters())]
    x, cores, (weight, *bias) = leaves[0], leaves[1 : 1 + len(layer.cores)], leaves[1 + len(layer.cores) :]
    turned = weight if isinstance(layer.base_layer, nn.Linear) else weight.T
    y = x @ (turned + update_of(layer, cores)).T
    y = y + bias[0] if bias else y
    return y.detach(), torch.autograd.grad(y, leaves, upstream.double())


def reach(layer, x):
    """The largest answer there could be if no two terms canceled: what rounding is measured by."""
    cores = [core.detach().double().abs() for core in layer.cores]
    most = weight_of(layer).detach().double().abs() + update_of(layer, cores).abs()
    bias = 0 if layer.bias is None else float(layer.bias.detach().double().abs().max())
    return float((x.detach().double().abs() @ most.T).max()) + bias if x.numel() else 1.0


def assert_close(actual, expected, dtype, scale=None, factor=100):
    scale = largest(expected.detach()) if scale is None else scale
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=factor * torch.finfo(dtype).eps * scale + 1e-300
    )


def largest(x):
    return float(x.abs().max()) if x.numel() else 0.0


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
def test_every_form_is_the_dense_layer(name, dtype, kind, bias):
    layer = adapted(name, kind=kind, bias=bias, dtype=dtype)
    half = dtype not in WIDE
    for batch in BATCHES if dtype == torch.float64 else BATCHES[::3]:
        x = vectors(layer, *batch)
        upstream = gaussian((*batch, layer.out_features), 3, dtype)
        expected, wanted = twin(layer, x, upstream)
        for form in ["auto", *forms_of(layer)]:
            layer.form = form
            y, found = gradients(layer, x, upstream)
            assert y.shape == (*batch, layer.out_features) and y.dtype == dtype, form
            assert_close(y, expected, dtype, reach(layer, x), 4 if half else 100)
            assert [g.dtype for g in found[1:-1]][: len(layer.cores)] == [core.dtype for core in layer.cores]
            for gradient, reference in zip(found, wanted, strict=True):
                # Sums cancel, and half precision rounds every term of them.
                scale = largest(reference) + largest(wanted[0])
                assert_close(gradient, reference, dtype, scale, 10 if half else 100)


@settings(max_examples=150)
@given(trains(), st.integers(1, 6), st.integers(0, 9), st.sampled_from([2.0, -0.5]), st.booleans(), seeds)
def test_every_form_over_random_modes(modes, rank, batch, alpha, conv1d, seed):
    out, ins, shape = modes
    base = base_layer(out, ins, dtype=torch.float64, kind="conv1d" if conv1d else "linear", seed=seed)
    layer = scatter(TTLoRALinear(base, rank=rank, alpha=alpha, shape=shape), seed)
    x, upstream = vectors(layer, batch), gaussian((batch, out), 3)
    expected, wanted = twin(layer, x, upstream)
    for form in forms_of(layer):
        layer.form = form
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
    for x, form in itertools.product(views, ["auto", *forms_of(layer)]):
        assert not x.is_contiguous()
        layer.form = form
        assert_close(layer(x), layer(x.contiguous()), torch.float64)


def test_a_wrong_width_is_named():
    layer = adapted("aligned")
    for form in ["auto", *FORMS]:
        layer.form = form
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
    """Several bonds lie at the boundary; whichever is named bounds the rank, and the forms agree on it."""
    for shape in [(4, 6, 1, 1, 4, 9), (1, 4, 6, 1, 36), (24, 1, 36), (1, 24, 36, 1)]:
        layer = scatter(TTLoRALinear(base_layer(24, 36, dtype=torch.float64), rank=3, alpha=2, shape=shape))
        assert layer.boundary_rank == 3
        x, answers = vectors(layer, 5), []
        for form in FORMS:
            layer.form = form
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


# Costs


def counted(layer, batch, training):
    """Multiply-adds that torch really does, without those of the frozen layer."""
    x = vectors(layer, batch).requires_grad_(training)
    with FlopCounterMode(display=False) as counter:
        if training:
            layer(x).sum().backward()
        else:
            with torch.no_grad():
                layer(x)
    own = batch * layer.in_features * layer.out_features * (2 if training else 1)
    return counter.get_total_flops() / 2 - own


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in SHAPES if "padded" not in name])
def test_the_plan_counts_what_runs(name, training, batch):
    layer = adapted(name)
    for form in forms_of(layer):
        layer.form = form
        with torch.set_grad_enabled(training):
            plan = layer.plan(batch)
        assert isinstance(plan, LoRAPlan) and plan.form == form and plan.bytes > 0
        # Where one side of the boundary has no cores, a product with a constant needs no second gradient.
        one_sided = training and (layer.delta.layout.right in (0, len(layer.shape)))
        spare = max(batch, layer.out_features * layer.in_features) if one_sided else 0
        assert 0 <= plan.macs - counted(layer, batch, training) <= spare, form


@pytest.mark.parametrize("name", ["padded", "rows padded"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_is_counted_in_full(name, training):
    """What is cut off early is not computed, so the plan is at most the padded share too high."""
    layer = adapted(name)
    share = math.prod(layer.shape) / (layer.out_features * layer.in_features)
    for form in forms_of(layer):
        layer.form = form
        with torch.set_grad_enabled(training):
            macs = layer.plan(33).macs
        assert macs / share <= counted(layer, 33, training) <= macs


def test_the_plan_by_hand():
    """[12, 8, 8 | 8, 8, 12] on 768 x 768 at rank 4, and the same matrix with the mode 16 across the boundary."""
    layer = TTLoRALinear(nn.Linear(768, 768), rank=4, alpha=1, shape=(12, 8, 8, 8, 8, 12))
    with torch.no_grad():
        macs = {}
        for layer.form in FORMS:
            macs[layer.form] = layer.plan(10).macs
    side = 12 * 8 * 4 * 4 + 12 * 8 * 8 * 4 * 4  # cores meet: (12 x 4)(4 x 32), then (96 x 4)(4 x 32)
    assert macs["factors"] == 2 * side + 10 * 4 * (768 + 768)
    # The last core leaves 64 positions of 4, the next 8 of 4, the third one of 4; then the same upward.
    steps = 64 * 12 * 4 + 8 * 32 * 4 + 32 * 4
    assert macs["cores"] == 10 * 2 * steps
    assert macs["dense"] == 2 * side + 768 * 4 * 768
    layer = TTLoRALinear(nn.Linear(768, 768), rank=4, alpha=1, shape=(64, 16, 9, 64))
    layer.form = "cores"
    with torch.no_grad():
        # Modes 16 and 9 merge, which are 12 rows by 12 columns; 64 columns go in, 64 rows come out.
        assert layer.plan(10).macs == 16 * 4 * 9 * 4 * 4 + 10 * (12 * 64 * 4 + 48 * 48 + 12 * 4 * 64)
    layer.form = "factors"
    with pytest.raises(ValueError, match="form must be 'auto' or one of .'cores', 'dense'. for this layer, got 'fac"):
        layer.plan(10)


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=100)
@given(trains(), st.integers(1, 6), st.sampled_from([0, 1, 7, 64, 1000, 10**5]))
def test_auto_takes_the_cheapest(training, modes, rank, batch):
    out, ins, shape = modes
    layer = TTLoRALinear(nn.Linear(ins, out), rank=rank, alpha=1, shape=shape)
    with torch.set_grad_enabled(training):
        chosen, plans = layer.plan(batch), {}
        for form in forms_of(layer):
            layer.form = form
            plans[form] = layer.plan(batch)
    assert plans[chosen.form] == chosen
    assert chosen.macs + chosen.bytes // 4 == min(plan.macs + plan.bytes // 4 for plan in plans.values())


def test_auto_is_the_form_it_names():
    """Each form is the cheapest somewhere, and what auto computes is that form's answer to the last bit."""
    taken = set()
    for name, rank, batch in itertools.product(["aligned", "straddling", "padded"], [1, 3, 9], [1, 3, 40, 400]):
        layer = adapted(name, rank=rank)
        x = vectors(layer, batch)
        for training in (True, False):
            with torch.set_grad_enabled(training):
                layer.form = "auto"
                y, form = layer(x), layer.plan(batch).form
                taken.add((form, training))
                layer.form = form
                assert agree(layer(x), y)
    assert taken == set(itertools.product(FORMS, [True, False]))


def test_gradients_make_a_difference_to_the_plan():
    layer = adapted("aligned")
    assert layer.plan(9).macs > (frozen := plan_without_grad(layer, 9)).macs
    layer.cores.requires_grad_(False)
    assert layer.plan(9) == frozen


def plan_without_grad(layer, batch):
    with torch.no_grad():
        return layer.plan(batch)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(register):
    return lambda layer: getattr(layer, register)(lambda *args: None)


def replaced(layer):
    plain = layer.forward
    layer.forward = lambda x: plain(x) + 1


WAYS_TO_CHANGE_THE_BASE = {
    "forward hook": hooked("register_forward_hook"),
    "forward pre-hook": hooked("register_forward_pre_hook"),
    "backward hook": hooked("register_full_backward_hook"),
    "backward pre-hook": hooked("register_full_backward_pre_hook"),
    "forward replaced": replaced,
}


@pytest.mark.parametrize("change", WAYS_TO_CHANGE_THE_BASE)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_base_that_does_more_than_multiply_is_called(change, kind):
    layer = adapted("aligned", rank=9, kind=kind, dtype=torch.float64)
    x = vectors(layer, 500)
    assert layer.plan(500).form == "dense"
    WAYS_TO_CHANGE_THE_BASE[change](layer.base_layer)
    assert layer.plan(500).form != "dense"
    assert_close(layer(x), layer.base_layer(x) + x @ update_of(layer).T, torch.float64)
    layer.form = "dense"
    with pytest.raises(ValueError, match="one of .'factors', 'cores'. for this layer, got 'dense'"):
        layer(x)


def test_a_hook_on_the_base_runs():
    layer, seen = adapted("aligned", rank=9), []
    layer.base_layer.register_full_backward_pre_hook(lambda *args: seen.append("before backward"))
    layer.base_layer.register_full_backward_hook(lambda *args: seen.append("backward"))
    layer.base_layer.register_forward_pre_hook(lambda *args: seen.append("before"))
    layer.base_layer.register_forward_hook(lambda *args: seen.append("after"))
    layer(vectors(layer, 500).requires_grad_()).sum().backward()
    assert seen == ["before", "after", "before backward", "backward"]


def test_a_subclass_of_linear_is_called():
    base = Doubled(36, 24, dtype=torch.float64)
    layer = scatter(TTLoRALinear(base, rank=9, alpha=1, shape=(4, 6, 4, 9)))
    x = vectors(layer, 500)
    assert layer.plan(500).form != "dense"
    assert_close(layer(x), base(x) + x @ update_of(layer).T, torch.float64)


def test_an_unknown_form():
    layer = adapted("aligned")
    layer.form = "fastest"
    with pytest.raises(ValueError, match="form must be 'auto' or one of .'factors', 'cores', 'dense'.*got 'fastest'"):
        layer(vectors(layer, 2))


# Dropout


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("name", ["aligned", "straddling", "padded"])
def test_dropout_acts_on_the_adapter_alone(name, kind):
    layer = adapted(name, rank=9, kind=kind, dtype=torch.float64, dropout=0.5)
    for batch in (3, 500):
        x = vectors(layer, batch)
        assert layer.plan(batch).form != "dense"
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
    assert layer.plan(500).form == "dense"


def test_dropping_everything_leaves_the_base():
    layer = adapted("aligned", dropout=1.0)
    x = vectors(layer, 7)
    assert agree(layer(x), layer.base_layer(x))


def test_the_layer_starts_in_the_mode_of_its_base():
    for training in (True, False):
        base = base_layer(24, 36).train(training)
        layer = TTLoRALinear(base, rank=2, alpha=1, dropout=0.5)
        assert layer.training == layer.delta.dropout.training == base.training == training


# Where it is used


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_changes_no_gradient(form, reentrant):
    layer = adapted("aligned", dropout=0.0 if form == "dense" else 0.3)
    layer.form = form
    x = vectors(layer, 6).requires_grad_()
    found = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        loss = call(x).square().sum()
        x.grad = None
        layer.zero_grad()
        loss.backward()
        found.append([x.grad, *(core.grad for core in layer.cores)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["auto", *FORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_autocast(kind, dtype, form):
    """The base's answer comes in bfloat16, as without an adapter; the cores stay float32, and so do their products."""
    layer = adapted("aligned", kind=kind, dtype=dtype)
    layer.form = form
    x = gaussian((6, 36), 1, torch.float32)
    upstream = gaussian((6, 24), 2, torch.bfloat16)
    expected, wanted = twin(layer, x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == layer.base_layer(x).dtype == torch.bfloat16
    assert_close(y, expected, torch.bfloat16, reach(layer, x), 4)
    for gradient, reference in zip(torch.autograd.grad(y, list(layer.cores), upstream), wanted[1:], strict=False):
        assert gradient.dtype == torch.float32
        assert_close(gradient, reference, torch.bfloat16, float(wanted[0].abs().max() + reference.abs().max()), 10)


def test_cores_beside_half_precision_are_single():
    for dtype in FLOATS:
        layer = adapted("aligned", dtype=dtype)
        assert {core.dtype for core in layer.cores} == {dtype if dtype in WIDE else torch.float32}
        assert layer.base_layer.weight.dtype == dtype


def test_products_of_cores_lose_no_digits_under_autocast():
    layer = adapted("aligned")
    for form in ("dense", "factors"):
        layer.form = form
        with torch.autocast("cpu", torch.bfloat16):
            delta = layer.get_delta_weight()
            weight = layer.weight
        assert delta.dtype == weight.dtype == torch.float32
        assert_close(delta, update_of(layer), torch.float32)
        assert_close(weight, layer.base_layer.weight + update_of(layer), torch.float32)


def test_torch_compile():
    """Forward and backward in one graph each, for batches that take different forms."""
    layer = adapted("aligned", rank=9, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch in (2, 500):
        x, upstream = vectors(layer, batch), gaussian((batch, 24), 2)
        assert_close(compiled(x), layer(x), torch.float64)
        found, wanted = (torch.autograd.grad(call(x), list(layer.cores), upstream) for call in (compiled, layer))
        for gradient, reference in zip(found, wanted, strict=True):
            assert_close(gradient, reference, torch.float64)
    assert layer.plan(2).form != layer.plan(500).form


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_torch_export(form):
    layer = adapted("aligned", dtype=torch.float64)
    layer.form = form
    with torch.no_grad():
        program = torch.export.export(layer, (vectors(layer, 6),))
    x = vectors(layer, 6, seed=33)
    assert_close(program.module()(x), layer(x), torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["aligned", "straddling"])
def test_functional_calls_and_vmap(name, form):
    """Several adapters of one base at once, as in a search: each answer is that of its own cores."""
    layer = adapted(name, dtype=torch.float64)
    layer.form = form if form in forms_of(layer) else "auto"
    many = {f"delta.cores.{k}": gaussian((3, *core.shape), k) for k, core in enumerate(layer.cores)}
    x = vectors(layer, 5)
    call = lambda cores, x: torch.func.functional_call(layer, cores, (x,))  # noqa: E731
    found = torch.func.vmap(call, (0, None))(many, x)
    for k in range(3):
        update = update_of(layer, [cores[k] for cores in many.values()])
        expected = x @ (layer.base_layer.weight + update).T + layer.bias
        assert_close(found[k], expected, torch.float64)
        one = {key: cores[k] for key, cores in many.items()}
        assert_close(call(one, x), expected, torch.float64)
    loss = lambda cores: call(cores, x).square().sum()  # noqa: E731
    own = {key: value.detach() for key, value in layer.named_parameters() if "delta" in key}
    for key, gradient in torch.func.grad(loss)(own).items():
        reference = torch.autograd.grad(layer(x).square().sum(), layer.get_parameter(key))[0]
        assert_close(gradient, reference, torch.float64)


def test_second_derivatives():
    for form in FORMS:
        layer = adapted("aligned", rank=2, dtype=torch.float64)
        layer.form = form
        x = vectors(layer, 2)

        def answer(*cores, layer=layer, x=x):
            named = {f"delta.cores.{k}": core for k, core in enumerate(cores)}
            return torch.func.functional_call(layer, named, (x,)).sum(1)

        assert torch.autograd.gradgradcheck(answer, tuple(core.detach().requires_grad_() for core in layer.cores))


@names
def test_on_the_meta_device(name):
    out, ins, shape = SHAPES[name]
    layer = TTLoRALinear(nn.Linear(ins, out, device="meta"), rank=3, alpha=1, shape=shape)
    assert all(core.is_meta for core in layer.cores)
    assert layer(torch.empty(5, ins, device="meta")).shape == (5, out)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.base_layer.weight.fill_(1)
        layer.base_layer.bias.fill_(1)
    layer.delta.reset_parameters()
    assert agree(layer(torch.ones(2, ins)), layer.base_layer(torch.ones(2, ins)))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pickled_and_copied(dtype, merged):
    layer = adapted("aligned", dtype=dtype, dropout=0.25)
    original = bits(layer.base_layer.weight)
    if merged:
        layer.merge()
    x = vectors(layer.eval(), 3)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for again in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert agree(again(x), layer(x)) and repr(again) == repr(layer)
        assert again.merged == merged and again.form == layer.form
        with torch.no_grad():
            again.cores[0].add_(1)
        if merged:
            again.unmerge()
            assert bits(again.base_layer.weight) == original and layer.merged
        assert not agree(again(x), layer(x))


def test_the_state_goes_into_another_layer():
    layer, other = adapted("aligned", seed=0), adapted("aligned", seed=50)
    assert other.load_state_dict(layer.state_dict()).missing_keys == []
    x = vectors(layer, 3)
    assert agree(other(x), layer(x))
    assert {p.data_ptr() for p in layer.parameters()}.isdisjoint(p.data_ptr() for p in other.parameters())


def test_a_step_of_training_moves_the_cores_and_nothing_else():
    layer = adapted("aligned")
    layer.base_layer.requires_grad_(False)
    before = {name: bits(value) for name, value in layer.state_dict().items()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
    x, wanted = vectors(layer, 64), gaussian((64, 24), 5, torch.float32)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(after < before for before, after in itertools.pairwise(losses))
    moved = {name for name, value in layer.state_dict().items() if bits(value) != before[name]}
    assert moved == {f"delta.cores.{k}" for k in range(4)}


def test_the_oracle_disagrees_with_a_transposed_update():
    """The check on the checks: rows and columns swapped, or a core reversed, would be seen."""
    layer = adapted("aligned", dtype=torch.float64)
    train = dense(list(layer.cores))
    swapped = layer.alpha * train.reshape(36, 24).T
    assert float((swapped - update_of(layer)).detach().abs().max()) > 0.01
