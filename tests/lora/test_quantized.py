"""Beside a base with a weight in a form of its own, the ways that only call it work; the others say why they do not."""

import pytest
import torch
from adapters import ORDERS, scatter
from strategies import agree, gaussian
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora


class Params4bit(nn.Parameter):
    """As bitsandbytes has it: a kind of parameter of its own, packed or not."""


class Int8Linear(nn.Linear):
    """A linear layer whose integer weight has one scale for each output."""

    def __init__(self, out, ins, kind=nn.Parameter):
        super().__init__(ins, out)
        self.scale = self.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = kind((self.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class Packed(nn.Module):
    """No ``nn.Linear``, no weight: buffers and widths, as GPTQ's layers have."""

    def __init__(self, out, ins):
        super().__init__()
        self.in_features, self.out_features = ins, out
        self.register_buffer("qweight", torch.randint(-8, 8, (ins, out), dtype=torch.int32))
        self.register_buffer("scales", torch.full((out,), 0.01))

    def forward(self, x):
        return x @ (self.qweight * self.scales)


def float8(out, ins):
    layer = nn.Linear(ins, out)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight.float(), layer.bias)
    return layer


def of_its_own_kind(out, ins):
    layer = nn.Linear(ins, out)
    layer.weight = Params4bit(layer.weight.detach(), requires_grad=False)
    return layer


KINDS = {
    "int8": Int8Linear,
    "int8 of its own kind": lambda out, ins: Int8Linear(out, ins, Params4bit),
    "packed": Packed,
    "float8": float8,
    "float of its own kind": of_its_own_kind,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind, **options):
    torch.manual_seed(0)
    return scatter(TTLoRALinear(KINDS[kind](24, 36), **{"rank": 3, "alpha": 1.5, **options}))


@kinds
@pytest.mark.parametrize("order", ["auto", *ORDERS])
@pytest.mark.parametrize("batch", [(1,), (7,), (3000,), (2, 5), (0,)])
def test_layer_plus_update(kind, order, batch):
    layer, x = made(kind), gaussian((*batch, 36), 1, torch.float32)
    layer.order = order
    wanted = layer.base_layer(x) + x @ layer.get_delta_weight().T
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=2e-4)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == layer.params


@kinds
def test_gradients_reach_cores_and_input(kind):
    layer, x = made(kind), gaussian((7, 36), 1, torch.float32).requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(core.grad.abs().sum() > 0 for core in layer.cores)


@kinds
def test_what_reads_the_weight_says_that_it_cannot(kind):
    layer, x = made(kind), torch.randn(3, 36)
    before = layer(x)
    for merge in (layer.merge, lambda: merge_tt_lora(nn.ModuleDict({"q": layer}))):
        with pytest.raises(TypeError, match="quantized, so the update cannot be added to it"):
            merge()
        assert not layer.merged and agree(layer(x), before)
    if kind != "packed":
        assert layer.weight is layer.base_layer.weight


def test_one_of_many_that_cannot_be_merged_leaves_all():
    model = nn.ModuleDict({"a": nn.Linear(24, 24), "b": Int8Linear(24, 24)})
    add_tt_lora(model, ["a", "b"], rank=2, alpha=1, init="paper")
    with pytest.raises(TypeError, match="^b: .*quantized"):
        merge_tt_lora(model)
    assert all(isinstance(layer, TTLoRALinear) and not layer.merged for layer in model.values())


@kinds
def test_models_and_files(kind, tmp_path):
    def base():
        torch.manual_seed(0)
        return nn.Sequential(KINDS[kind](24, 36), nn.Linear(24, 2))

    model, x = add_tt_lora(base(), "0", rank=2, alpha=1, init="paper"), gaussian((3, 36), 1, torch.float32)
    save_tt_lora(model, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_tt_lora(base(), tmp_path / "a.safetensors")(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_a_layer_through_which_no_gradient_passes_is_refused():
    """torch's own quantized layers have no backward: adapters before them would not learn, without a word."""
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(12, 12)), {nn.Linear})
    with pytest.raises(TypeError, match="not torch.*quantized.*Linear"):
        TTLoRALinear(model[0], rank=1, alpha=1)
