"""TTLoRALinear where it is used: checkpoints, autocast, compilers, transforms, copies, training."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from adapters import FLOATS, ORDERS, SHAPES, WIDE, adapted, bits, update_of, vectors
from lora_twins import (
    assert_close,
    names,
    reach,
    twin,
)
from strategies import agree, dense, gaussian
from torch import nn
from torch.utils.checkpoint import checkpoint

from ttref import TTLoRALinear

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


# Where it is used


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_changes_no_gradient(order, reentrant):
    layer = adapted("aligned", dropout=0.0 if order == "dense" else 0.3)
    layer.order = order
    x = vectors(layer, 6).requires_grad_()
    found = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        loss = call(x).square().sum()
        x.grad = None
        layer.zero_grad()
        loss.backward()
        found.append([x.grad, *(core.grad for core in layer.cores)])
    assert all(agree(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("order", ["auto", *ORDERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_autocast(kind, dtype, order):
    """The base's answer comes in bfloat16, as without an adapter; the cores stay float32, and so do their products."""
    layer = adapted("aligned", kind=kind, dtype=dtype)
    layer.order = order
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
    for order in ("dense", "two-gemm"):
        layer.order = order
        with torch.autocast("cpu", torch.bfloat16):
            delta = layer.get_delta_weight()
            weight = layer.weight
        assert delta.dtype == weight.dtype == torch.float32
        assert_close(delta, update_of(layer), torch.float32)
        assert_close(weight, layer.base_layer.weight + update_of(layer), torch.float32)


def test_torch_compile():
    """Forward and backward in one graph each, for batches that take different orders."""
    layer = adapted("aligned", rank=9, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch in (2, 500):
        x, upstream = vectors(layer, batch), gaussian((batch, 24), 2)
        assert_close(compiled(x), layer(x), torch.float64)
        found, wanted = (torch.autograd.grad(call(x), list(layer.cores), upstream) for call in (compiled, layer))
        for gradient, reference in zip(found, wanted, strict=True):
            assert_close(gradient, reference, torch.float64)
    assert layer.plan(2).order != layer.plan(500).order


@pytest.mark.parametrize("order", ["auto", *ORDERS])
def test_torch_export(order):
    layer = adapted("aligned", dtype=torch.float64)
    layer.order = order
    with torch.no_grad():
        program = torch.export.export(layer, (vectors(layer, 6),))
    x = vectors(layer, 6, seed=33)
    assert_close(program.module()(x), layer(x), torch.float64)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["aligned", "straddling"])
def test_functional_calls_and_vmap(name, order):
    """Several adapters of one base at once, as in a search: each answer is that of its own cores."""
    layer = adapted(name, dtype=torch.float64)
    layer.order = order
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
    for order in ORDERS:
        layer = adapted("aligned", rank=2, dtype=torch.float64)
        layer.order = order
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
        assert again.merged == merged and again.order == layer.order
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


def test_a_gradient_that_exceeds_half_precision_on_its_way_stays_finite():
    torch.manual_seed(0)
    layer = TTLoRALinear(nn.Linear(768, 768).half(), rank=4, alpha=2, shape=(64, 16, 9, 64))
    with torch.no_grad():
        for core in layer.cores:
            core.normal_(std=0.3)
    x = torch.randn(400, 768).half().requires_grad_()
    layer(x).float().square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *layer.cores))
