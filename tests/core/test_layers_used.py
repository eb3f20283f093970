"""TTLinear saved, copied and moved, under autocast, compilers and transforms, and inside of other layers."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from linears import (
    ARGUMENTS,
    assert_close,
    made,
    state,
    vectors,
    weight_of,
)
from strategies import agree, dense_matrix, norm
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ttref import TTLinear, scratch, swap_layer

FLOATS = [torch.float64, torch.float32]
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


# Saving, copying, moving


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_state_goes_into_a_fresh_layer_of_the_same_arguments(arguments):
    layer, fresh = made(arguments, seed=0), made(arguments, seed=1)
    x = vectors(layer, 4)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert fresh.load_state_dict(torch.load(file, weights_only=True)).missing_keys == []
    assert agree(fresh(x), layer(x))
    with torch.device("meta"):
        bare = TTLinear(**arguments)
    bare.load_state_dict(layer.state_dict(), assign=True)
    assert agree(bare(x), layer(x))


def test_state_of_another_rank_is_refused():
    layer = TTLinear(64, 48, 3)
    before = state(layer)
    with pytest.raises(RuntimeError, match=r"size mismatch for cores\.0"):
        layer.load_state_dict(TTLinear(64, 48, 2).state_dict())
    assert layer.ranks == (1, 3, 3, 1) and layer.state_dict()["cores.0"].shape == before["cores.0"].shape


def through_torch_save(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_torch_save])
def test_copies_work_and_share_nothing(copied):
    layer = made(ARGUMENTS[3])
    layer.cores[1].requires_grad_(False)
    x = vectors(layer, 4)
    twin, before = copied(layer.eval()), layer(x)
    assert agree(twin(x), before) and repr(twin) == repr(layer) and not twin.training
    assert [p.requires_grad for p in twin.cores] == [True, False, True] and twin.bias.requires_grad
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert agree(layer(x), before)


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arguments", ARGUMENTS[:4], ids=str)
def test_a_layer_moves_to_another_dtype(arguments, dtype, mode):
    layer = made(arguments)
    moved = copy.deepcopy(layer).to(dtype)
    x = vectors(layer, 6)
    with mode():
        y, expected = moved(x.to(dtype)), layer(x)
    assert y.dtype == dtype and {p.dtype for p in moved.parameters()} == {dtype}
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert norm(y.double() - expected.double()) <= 10 * unit * norm(expected)
    assert moved.to_linear().weight.dtype == dtype


def test_half_and_double_are_short_for_that():
    x = torch.randn(3, 64)
    for short, dtype in ((nn.Module.half, torch.float16), (nn.Module.double, torch.float64)):
        assert short(TTLinear(64, 48, 2))(x.to(dtype)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_layer_moves_to_a_gpu():
    for arguments, mode in itertools.product(ARGUMENTS, MODES):
        layer = made(arguments, torch.float64)
        x = vectors(layer, 70)
        with mode():
            assert_close(copy.deepcopy(layer).cuda()(x.cuda()).cpu(), layer(x))
        assert {p.device.type for p in TTLinear(**arguments, device="cuda").parameters()} == {"cuda"}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_a_layer_without_numbers(arguments):
    """On the meta device, as large models are laid out before their weights are read."""
    with torch.device("meta"):
        layer = TTLinear(**arguments)
    assert {p.device.type for p in (*layer.parameters(), *TTLinear(**arguments, device="meta").parameters())} == {
        "meta"
    }
    x = torch.empty(5, layer.in_features, device="meta")
    assert layer(x).shape == (5, layer.out_features) and layer(x).is_meta
    assert repr(layer) == repr(made(arguments))
    layer.to_empty(device="cpu").reset_parameters()
    mean_square = dense_matrix([core.detach().double() for core in layer.cores]).square().mean()
    assert float(mean_square) == pytest.approx(1 / (3 * layer.in_features), rel=1e-5)


def test_a_default_device_of_the_callers_does_not_matter():
    with torch.device("meta"):
        layer = TTLinear(64, 48, 3, device="cpu")
    assert float(weight_of(layer).detach().square().mean()) == pytest.approx(1 / 192, rel=1e-5)


def test_construction_can_skip_the_initialization():
    layer = nn.utils.skip_init(TTLinear, 64, 48, 3)
    assert layer(torch.randn(2, 64)).shape == (2, 48)


# Autocast, compilers, transforms


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer_dtype", FLOATS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_autocast_answers_as_linear_does(arguments, layer_dtype, mode, monkeypatch):
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    layer = made(arguments, layer_dtype)
    dense = layer.to_linear()
    x = vectors(layer, 6)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), dense(x)
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if layer_dtype == torch.float32 else torch.float64)
    assert norm(ours.double() - dense(x).double()) <= torch.finfo(ours.dtype).eps * 10 * norm(theirs)


def test_autocast_takes_the_half_precision_of_the_layer_before():
    model = nn.Sequential(nn.Linear(16, 24), TTLinear(24, 32, 3), nn.ReLU(), TTLinear(32, 7, 3), nn.Linear(7, 3))
    x = torch.randn(5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    gradients = [p.grad for p in (x, *model.parameters())]
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in gradients)
    assert norm(y.detach() - model(x).detach()) <= 0.05 * norm(model(x).detach())


def test_compressing_under_autocast_loses_no_digits():
    dense = nn.Linear(24, 36)
    with torch.autocast("cpu", torch.bfloat16):
        layer = TTLinear.from_linear(dense, eps=0)
    assert layer.cores[0].dtype == torch.float32
    assert_close(weight_of(layer), dense.weight)


@pytest.mark.filterwarnings("error:.*lru_cache")  # the compiler warns where it has to look behind a cache
@pytest.mark.parametrize(("arguments", "dynamic"), [(ARGUMENTS[0], None), (ARGUMENTS[3], True)], ids=str)
def test_a_compiled_layer_gives_the_same_results(arguments, dynamic):
    """In one graph; ``aot_eager`` traces forward and backward as the full compiler does, without C++ at the end."""
    layer = made(arguments)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (1, 2, 40):
        ours, theirs = vectors(layer, batch).requires_grad_(), vectors(layer, batch).requires_grad_()
        y, expected = compiled(ours), layer(theirs)
        assert_close(y, expected)
        gradients = torch.autograd.grad(y.square().sum(), [ours, *layer.parameters()])
        references = torch.autograd.grad(expected.square().sum(), [theirs, *layer.parameters()])
        for gradient, reference in zip(gradients, references, strict=True):
            assert_close(gradient, reference)
        with torch.no_grad():
            assert_close(compiled(ours), expected)


def test_a_compiled_graph_does_not_grow_with_the_batch():
    """Cutting the batch into chunks would be unrolled: a minute of tracing for a hundred chunks."""
    layer, sizes = made(ARGUMENTS[1]), []

    def backend(graph, _):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    for batch in (64, 2000):
        torch._dynamo.reset()
        assert_close(
            torch.compile(layer, backend=backend, fullgraph=True)(vectors(layer, batch)), layer(vectors(layer, batch))
        )
    assert layer.plan(2000).chunk < 200
    assert max(sizes) <= min(sizes) + 5


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_layer_can_be_exported_for_a_batch_size(mode, monkeypatch):
    """For one: the exported graph holds one plan, and the plan follows the batch."""
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    layer = made(ARGUMENTS[3]).eval()
    x = vectors(layer, 4)
    with mode():
        program = torch.export.export(layer, (x,))
        assert_close(program.module()(2 * x), layer(2 * x))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_the_full_compiler_gives_the_same_results(dynamic):
    layer = made(ARGUMENTS[1])
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    for batch in (1, 2, 64, 512):
        ours, theirs = vectors(layer, batch).requires_grad_(), vectors(layer, batch).requires_grad_()
        y, expected = compiled(ours), layer(theirs)
        assert_close(y, expected)
        assert_close(*torch.autograd.grad(y.sum(), ours), *torch.autograd.grad(expected.sum(), theirs))


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("arguments", ARGUMENTS[:4], ids=str)
def test_transforms_of_functions(arguments, mode, monkeypatch):
    """An ensemble, each member's bias alone, and the gradient of every example."""
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    layers = [made(arguments, torch.float64, seed) for seed in range(3)]
    layer, x = layers[0], vectors(layers[0], 5)
    parameters, buffers = torch.func.stack_module_state(layers)
    names = [name for name, _ in layer.named_parameters()]

    def call(parameters, x):
        return torch.func.functional_call(layer, (parameters, buffers), (x,))

    def loss(parameters, x):
        return call(parameters, x).square().sum()

    own = dict(layer.named_parameters())
    examples = [dict(zip(names, torch.autograd.grad(loss(own, row), list(own.values())), strict=True)) for row in x]
    with mode():
        ensemble = torch.func.vmap(call, (0, None))(parameters, x)
        assert_close(ensemble, torch.stack([member(x) for member in layers]))
        if layer.bias is not None:
            biased = torch.func.vmap(lambda bias: call({**own, "bias": bias}, x))(parameters["bias"])
            assert_close(biased, torch.stack([layer(x) - layer.bias + member.bias for member in layers]))
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(own, x)
    for name in names:
        assert_close(gradients[name], torch.stack([example[name] for example in examples]))


# Code that looks at nn.Linear's weight


def test_a_transformer_layer_may_hold_one():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    dense = copy.deepcopy(encoder)
    swap_layer(encoder, "linear1", TTLinear.from_linear(encoder.linear1, eps=0))
    x = torch.randn(2, 3, 16)
    for fast in (torch.no_grad, torch.enable_grad):
        with fast():
            torch.testing.assert_close(encoder(x), dense(x), rtol=1e-4, atol=1e-5)


def test_the_dense_weight_is_exact_under_autocast():
    layer = TTLinear(64, 48, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        torch.testing.assert_close(layer.to_linear().weight, layer.weight)
    torch.testing.assert_close(layer.to_linear().weight, layer.weight)


def test_a_parametrized_layer_stays_trainable():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(12, 20))
    assert all(core.requires_grad for core in TTLinear.from_linear(layer, rank=2).cores)
    layer.parametrizations.weight.requires_grad_(False)
    assert not any(core.requires_grad for core in TTLinear.from_linear(layer, rank=2).cores)


@pytest.mark.parametrize("bias", [True, False])
def test_a_padded_answer_lies_in_one_piece(bias):
    layer = TTLinear(64, 769, 4, bias=bias)
    assert layer(torch.randn(5, 64)).view(-1).shape == (5 * 769,)


def test_without_a_bias_one_can_still_be_registered():
    layer = TTLinear(8, 8, 2, bias=False)
    assert layer.bias is None
    layer.register_parameter("bias", nn.Parameter(torch.ones(8)))
    torch.testing.assert_close(layer(torch.zeros(1, 8)), torch.ones(1, 8))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the trace is for one batch size, as it says
@pytest.mark.parametrize("how", ["jit", "fx"])
def test_a_traced_layer_holds_no_memory_of_the_thread(how, monkeypatch):
    """Kept memory inside a graph would be shared by every thread that runs it."""
    monkeypatch.setattr("ttref.scratch.WORTH_KEEPING", 0)
    layer, x = TTLinear((4, 4, 4), (4, 4, 4), 3), torch.randn(6, 64)
    with torch.no_grad():
        expected = layer(x)
        if how == "jit":
            traced = torch.jit.trace(layer, (x,), check_trace=False)
            constants = [node for node in traced.graph.nodes() if node.kind() == "prim::Constant"]
            held = [node.t("value") for node in constants if "Tensor" in str(node.output().type())]
        else:
            traced = make_fx(layer)(x)
            held = [value for value in vars(traced).values() if isinstance(value, torch.Tensor)]
        kept = {buffer.data_ptr() for buffer in getattr(scratch._KEPT, "buffers", ())}
        assert not kept & {tensor.data_ptr() for tensor in held}
        torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_saved_layer_is_the_same_layer(bias, tmp_path):
    layer = TTLinear(61, 60, 3, bias)
    layer.order, layer.recompute = "two-gemm", True
    layer.cores.requires_grad_(False)
    layer.save(tmp_path / "layer.safetensors")
    found = TTLinear.load(tmp_path / "layer.safetensors")
    assert repr(found) == repr(layer) and (found.order, found.recompute) == ("two-gemm", True)
    assert found.state_dict().keys() == layer.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in layer.state_dict().items())
    assert not any(core.requires_grad for core in found.cores) and (not bias or found.bias.requires_grad)
    assert found.params * 4 == found.nbytes and found.dense_nbytes == 4 * 61 * 60 and found.dense().shape == (60, 61)
    assert found.modes == tuple(zip(found.out_shape, found.in_shape, strict=True))
