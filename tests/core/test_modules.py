"""Cores are read as torch means them, whatever was hung onto the list that holds them."""

import copy
import pickle

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from ttref.modules import Cores, cores_of


class Half(nn.Module):
    def forward(self, core):
        return core / 2


def held(count=3):
    torch.manual_seed(0)
    return Cores([torch.randn(2, 3, 4) for _ in range(count)])


def same(found, wanted):
    return len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3, 11, 70])
def test_all_cores_come_in_order(count):
    cores = held(count)
    assert all(a is b for a, b in zip(cores_of(cores), list(cores), strict=True))


def test_names_and_print_are_those_of_a_parameter_list():
    cores, plain = held(), nn.ParameterList(list(held()))
    assert list(cores.state_dict()) == list(plain.state_dict()) and repr(cores) == repr(plain)
    cores.load_state_dict(plain.state_dict())
    assert same(cores_of(plain), list(plain)) and isinstance(cores, nn.ParameterList)


def test_a_core_taken_out_and_put_back_keeps_its_place():
    cores = held()
    wanted = [core.detach().clone() for core in cores]
    parametrize.register_parametrization(cores, "0", nn.Identity())
    parametrize.remove_parametrizations(cores, "0")
    assert list(cores._parameters) == ["1", "2", "0"] and same(cores_of(cores), wanted)
    prune.remove(prune.identity(cores, "1"), "1")
    assert same(cores_of(cores), wanted)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_mask_holds_after_the_numbers_have_changed(k):
    cores = held()
    prune.ln_structured(cores, str(k), amount=1, n=2, dim=1)
    mask = getattr(cores, f"{k}_mask")
    with torch.no_grad():
        getattr(cores, f"{k}_orig").fill_(5)
    assert torch.equal(cores_of(cores)[k], 5 * mask) and len(cores_of(cores)) == 3
    for _ in range(2):  # and every reading can be differentiated anew
        cores_of(cores)[k].sum().backward()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_norms_are_computed_at_each_reading(norm, k):
    cores = held().eval()
    norm(cores, str(k))
    before = cores_of(cores)[k].detach().clone()
    with torch.no_grad():
        for name, parameter in cores.named_parameters():
            if name.endswith(("_g", "original0", "original")):
                parameter.mul_(2)
    factor = 1 if norm is parametrizations.spectral_norm else 2
    assert torch.allclose(cores_of(cores)[k], factor * before, rtol=1e-5) and len(cores_of(cores)) == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cores: pickle.loads(pickle.dumps(cores))])
def test_copies_hold_the_same(copied):
    cores = held()
    with torch.no_grad():  # torch copies no module deeply that keeps what a gradient flows through
        prune.identity(cores, "0")
    assert same(cores_of(copied(cores)), cores_of(cores))


def test_a_functional_call_reads_what_it_is_given():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.cores = held(2)

        def forward(self):
            return sum(core.sum() for core in cores_of(self.cores))

    other = torch.ones(2, 3, 4)
    module = Sum()
    found = torch.func.functional_call(module, {"cores.0": other, "cores.1": other}, ())
    assert found == 48 and module() != 48


def test_offloaded_cores_are_loaded_and_dropped_again():
    cores = held()
    wanted = [core.detach().clone() for core in cores]
    accelerate.cpu_offload(cores, execution_device="cpu")
    for _ in range(2):
        assert cores[0].is_meta and same(cores_of(cores), wanted)
    accelerate.hooks.remove_hook_from_submodules(cores)
    assert same(list(cores), wanted) and same(cores_of(cores), wanted)


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.parametrize("hung", ["nothing", "mask", "parametrization"])
def test_a_tracing_compiler_reads_them_too(hung):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.cores = Cores([torch.full((2, 2), 2.0) for _ in range(3)])

        def forward(self, x):
            for core in cores_of(self.cores):
                x = x @ core
            return x

    module, x = Product(), torch.eye(2)
    if hung == "mask":
        prune.ln_structured(module.cores, "2", amount=1, n=2, dim=1)
    if hung == "parametrization":
        parametrize.register_parametrization(module.cores, "2", Half())
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))
    assert torch.equal(torch.export.export(module, (x,)).module()(x), module(x))
