"""A rebuilt weight: read like any tensor, and never written to in silence."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ttref import TTLinear


class Reads(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x @ self.layer.weight.T


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return TTLinear(12, 20, 2)


INITIALIZERS = "uniform_ normal_ trunc_normal_ ones_ zeros_ eye_ xavier_uniform_ kaiming_uniform_ orthogonal_"
WRITES = {
    **{name: lambda weight, name=name: getattr(nn.init, name)(weight) for name in INITIALIZERS.split()},
    "constant_": lambda weight: nn.init.constant_(weight, 1),
    "data": lambda weight: weight.data.zero_(),
    "set data": lambda weight: setattr(weight, "data", torch.ones(1)),
    "detach": lambda weight: weight.detach().mul_(2),
    "copy_": lambda weight: weight.copy_(torch.ones(20, 12)),
    "item": lambda weight: weight.__setitem__(0, 1),
    "row": lambda weight: weight[0].fill_(1),
    "transposed": lambda weight: weight.T.zero_(),
    "function": lambda weight: torch.zero_(weight),
    "out": lambda weight: torch.add(torch.ones(20, 12), 1, out=weight),
    "+=": lambda weight: weight.__iadd__(1),
    "chunk": lambda weight: weight.chunk(2)[0].zero_(),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WRITES)
def test_writing_is_an_error_that_says_what_to_do(name, mode, layer):
    before = copy.deepcopy(layer.state_dict())
    with mode(), pytest.raises(RuntimeError, match="weight of this TTLinear is rebuilt .* TTLinear.from_linear, or"):
        WRITES[name](layer.weight)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("value", [torch.ones(20, 12), nn.Parameter(torch.ones(20, 12)), None])
def test_it_cannot_be_assigned(value, layer):
    names = list(layer.state_dict())
    with pytest.raises(AttributeError, match="rebuilt from its cores and cannot be set; compress another weight"):
        layer.weight = value
    assert list(layer.state_dict()) == names


def test_what_is_computed_from_it_is_plain(layer):
    weight, x = layer.weight, torch.randn(3, 12)
    for found in (weight + 1, weight.clone(), x @ weight.T, weight.sum(0), nn.functional.linear(x, weight)):
        assert type(found) is torch.Tensor
        found.detach().zero_()
    weight.square().sum().backward()
    assert all(core.grad is not None for core in layer.cores)
    assert repr(weight.detach()).startswith("tensor(")
    with torch.no_grad():
        assert type(pickle.loads(pickle.dumps(layer.weight))) is torch.Tensor
        assert type(copy.deepcopy(layer.weight)) is torch.Tensor
        file = io.BytesIO()
        torch.save(layer.weight, file)
    file.seek(0)
    assert type(torch.load(file)) is torch.Tensor


def test_a_parameter_made_of_it_is_like_any_other(layer):
    for weight in (layer.weight, layer.weight.detach(), layer.weight.data):
        parameter = nn.Parameter(weight)
        assert type(parameter) is nn.Parameter and parameter.is_leaf and parameter.requires_grad
        nn.init.zeros_(parameter)
        assert not parameter.any() and layer.weight.any()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_tracers_and_transforms_see_a_plain_tensor(layer):
    model, x = Reads(layer), torch.randn(3, 12)
    wanted = model(x)
    programs = [
        torch.compile(model, fullgraph=True, backend="eager"),
        torch.export.export(model, (x,)).module(),
        torch.jit.trace(model, (x,)),
        make_fx(model)(x),
        make_fx(model, pre_dispatch=True)(x),
    ]
    for program in programs:
        out = program(x)
        torch.testing.assert_close(out[0] if isinstance(out, list) else out, wanted)
    core = layer.cores[0].detach()

    def changed(core):
        return torch.func.functional_call(model, {"layer.cores.0": core}, (x,))

    torch.testing.assert_close(torch.func.jacrev(changed)(core), torch.func.jacfwd(changed)(core))
    torch.testing.assert_close(torch.vmap(changed)(torch.stack([core, core]))[1], wanted)
