"""TTLinear under what torch and accelerate hang onto modules: offloading, masks, parametrizations, replicas."""

import copy
import importlib

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from ttref import TTLinear, ttm_matvec


class Half(nn.Module):
    def forward(self, core):
        return core / 2


def made():
    torch.manual_seed(0)
    return TTLinear((4, 4, 4), (4, 4, 3), rank=4), torch.randn(5, 64)


def agrees(layer, x):
    weight, bias = layer.weight.clone(), layer.bias
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.testing.assert_close(layer(x), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


OFFLOADED = {
    "cpu_offload": lambda model, path: accelerate.cpu_offload(model, execution_device="cpu"),
    "with buffers": lambda model, path: accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True),
    "disk_offload": lambda model, path: accelerate.disk_offload(model, path, execution_device="cpu"),
    "dispatch_model": lambda model, path: accelerate.dispatch_model(
        model, {"0": "cpu", "1": "disk", "2": "cpu"}, main_device="cpu", offload_dir=path, force_hooks=True
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", OFFLOADED)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_an_offloaded_layer_computes_what_it_did(how, mode, tmp_path):
    layer, x = made()
    model = nn.Sequential(nn.Linear(64, 64), layer, nn.Linear(48, 8))
    twin = copy.deepcopy(model)
    OFFLOADED[how](model, str(tmp_path))
    with mode():
        for rows in (1, 5, 3):
            torch.testing.assert_close(model(x[:rows]), twin(x[:rows]), rtol=1e-5, atol=1e-5)
    assert all(core.is_meta for core in layer.cores)
    torch.testing.assert_close(layer.weight.clone(), twin[1].weight.clone())
    assert layer.plan(5) == twin[1].plan(5)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_core_without_numbers_is_an_error(mode):
    layer, x = made()
    cores = [*layer.cores]
    with mode(), pytest.raises(RuntimeError, match="meta device"):
        copy.deepcopy(layer).to("meta")(x)
    for plan in ("left-to-right", "right-to-left", "two-gemm", "dense"):
        with mode(), pytest.raises(RuntimeError, match="meta device"):
            ttm_matvec([cores[0], cores[1].to("meta"), cores[2]], x, plan)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_masks_hold_and_are_trained_through(k):
    layer, x = made()
    prune.l1_unstructured(layer.cores, str(k), amount=0.9)
    prune.random_unstructured(layer, "bias", amount=0.5)
    agrees(layer, x)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        layer(x)
        agrees(layer, x)
    wanted = layer(x)
    dense = layer.to_linear()
    torch.testing.assert_close(dense(x), wanted, rtol=1e-5, atol=1e-5)
    assert dense.bias.count_nonzero() <= 24 and dense.weight.requires_grad and dense.bias.requires_grad
    prune.remove(layer.cores, str(k))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize(
    "hang",
    [
        lambda cores, name: parametrize.register_parametrization(cores, name, Half()),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_cores_that_are_computed(hang, k):
    layer, x = made()
    layer.eval()
    hang(layer.cores, str(k))
    parametrize.register_parametrization(layer, "bias", Half())
    agrees(layer, x)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(RuntimeError, match=rf"cores\[{k}\] is computed from other numbers"):
        layer.reset_parameters()


@pytest.mark.parametrize("hung", ["nothing", "mask", "parametrization"])
def test_replicas_compute_the_same(hung, monkeypatch):
    """Copies as on two GPUs, the copying itself done on the CPU."""
    replicate = importlib.import_module("torch.nn.parallel.replicate")
    copies = lambda found, devices, detach=False: [[t.clone() for t in found] for _ in devices]  # noqa: E731
    monkeypatch.setattr(replicate, "_broadcast_coalesced_reshape", copies)
    layer, x = made()
    if hung == "mask":
        prune.l1_unstructured(layer.cores, "0", amount=0.5)
    if hung == "parametrization":
        parametrize.register_parametrization(layer.cores, "2", Half())
    for replica in replicate.replicate(nn.Sequential(layer), [0, 1]):
        torch.testing.assert_close(replica(x), layer(x))
        assert replica[0].plan(5) == layer.plan(5)
        replica(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_copies_and_memory_without_numbers():
    layer, x = made()
    torch.testing.assert_close(copy.copy(layer)(x), layer(x))
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    torch.testing.assert_close(empty(x), layer(x))
    other = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
    found = torch.func.functional_call(layer, other, (x,))
    torch.testing.assert_close(found, TTLinear.from_cores([other[f"cores.{k}"] for k in range(3)], other["bias"])(x))


@pytest.mark.parametrize("order", ["left-to-right", "right-to-left", "two-gemm", "dense"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_named_order_can_be_exported_with_a_dynamic_batch(order, strict):
    layer, x = made()
    layer.order = order
    assert layer.plan(7).order == order
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict).module()
    for rows in (2, 5, 300):
        given = torch.randn(rows, 64)
        torch.testing.assert_close(exported(given), layer(given), rtol=1e-4, atol=1e-5)


def test_an_order_that_there_is_not():
    layer, x = made()
    layer.order = "sideways"
    with pytest.raises(ValueError, match="order must be 'auto' or one of"):
        layer(x)


def test_a_state_goes_through_a_file_of_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    layer = TTLinear.from_linear(nn.Linear(61, 48), eps=0.5)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    state = load_file(tmp_path / "layer.safetensors")  # 61 is padded, which from_cores is told
    loaded = TTLinear.from_cores([state[f"cores.{k}"] for k in range(3)], state["bias"], in_features=61)
    x = torch.randn(3, 61)
    torch.testing.assert_close(loaded(x), layer(x))
