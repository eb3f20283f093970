"""Whatever wraps a model or its parts, adapters have the names of the bare model, going in, out, to files and back."""

import datetime

import pytest
import torch
from adapters import compiled, inside, trained
from strategies import gaussian
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from ttref import TTLoRALinear, add_tt_lora, load_tt_lora, merge_tt_lora, save_tt_lora
from ttref.lora.model import adapters
from ttref.surgery.wrappers import bare, bare_modules, bare_state, find

pytestmark = pytest.mark.filterwarnings("ignore:DistributedDataParallel knows only")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(16, 16), nn.ReLU())  # a name that wrappers use as well
        self.block = nn.ModuleDict({"q": nn.Linear(16, 16), "head": nn.Linear(16, 2)})

    def forward(self, x):
        return self.block["head"](self.block["q"](self.module(x)))


WRAPS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "compiled in parallel": lambda model: nn.DataParallel(compiled(model)),
    "parallel compiled": lambda model: compiled(nn.DataParallel(model)),
    "twice": lambda model: nn.DataParallel(nn.DataParallel(model)),
    "averaged": AveragedModel,
    "a part compiled": inside(compiled, "module"),
    "each layer compiled": inside(compiled, "module.0", "block.q", "block.head"),
    "layers and all": lambda model: compiled(inside(compiled, "module.0", "block.q")(model)),
    "a part in parallel": inside(nn.DataParallel, "module", "block.q"),
    "checkpointed": inside(checkpoint_wrapper, "module", "block.q"),
}
wraps = pytest.mark.parametrize("wrap", WRAPS)
OPTIONS = {"rank": 2, "alpha": 2.0, "init": "paper", "modules_to_save": "head"}
TARGETS = ["module.0", "q"]
X = gaussian((4, 16), 1, torch.float32)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.fixture
def saved(tmp_path):
    """File and answers of a model that nothing wraps."""
    model = add_tt_lora(Net(), TARGETS, **OPTIONS)
    with torch.no_grad():
        find(model, "block.head").weight.add_(1)
    save_tt_lora(model, tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors", model(X)


@wraps
def test_put_in_then_wrapped_then_saved(wrap, tmp_path):
    model = add_tt_lora(Net(), TARGETS, **OPTIONS)
    wanted, wrapped = model(X), WRAPS[wrap](model)
    assert list(adapters(wrapped)) == ["module.0", "block.q"]
    save_tt_lora(wrapped, tmp_path / "a.safetensors")
    loaded = load_tt_lora(Net(), tmp_path / "a.safetensors")
    torch.testing.assert_close(loaded(X), wanted)
    assert trained(loaded) == trained(add_tt_lora(Net(), TARGETS, **OPTIONS))


@wraps
def test_wrapped_then_put_in_then_saved(wrap, tmp_path):
    model, wrapped = Net(), WRAPS[wrap](Net())
    before = wrapped(X)  # what is compiled now must not be answered with later
    torch.manual_seed(1)
    wanted = add_tt_lora(model, TARGETS, **OPTIONS)(X)
    torch.manual_seed(1)
    assert add_tt_lora(wrapped, TARGETS, **OPTIONS) is wrapped
    torch.testing.assert_close(wrapped(X), wanted)
    assert not torch.allclose(before, wanted)
    save_tt_lora(wrapped, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_tt_lora(Net(), tmp_path / "a.safetensors")(X), wanted)


@wraps
def test_loaded_into_a_wrapped_base_and_merged_there(wrap, saved):
    path, wanted = saved
    wrapped = WRAPS[wrap](Net())
    kinds = [type(module) for module in wrapped.modules()]
    wrapped(X)
    assert load_tt_lora(wrapped, path) is wrapped
    torch.testing.assert_close(wrapped(X), wanted)
    assert merge_tt_lora(wrapped) is wrapped
    torch.testing.assert_close(wrapped(X), wanted, rtol=0, atol=1e-4)
    assert [type(module) for module in wrapped.modules()] == kinds
    assert list(bare_state(wrapped)) == list(Net().state_dict())


@wraps
def test_merging_and_unmerging_layer_by_layer(wrap):
    wrapped = WRAPS[wrap](add_tt_lora(Net(), TARGETS, **OPTIONS))
    wanted = wrapped(X)
    for verb in ("merge", "unmerge"):
        for layer in adapters(wrapped).values():
            getattr(layer, verb)()
        torch.testing.assert_close(wrapped(X), wanted, rtol=0, atol=1e-4)


@wraps
def test_what_does_not_fit_changes_nothing(wrap, saved):
    wrapped = WRAPS[wrap](Net())
    before, modules = wrapped(X), [id(module) for module in wrapped.modules()]
    with torch.no_grad():
        find(wrapped, "module.0").bias.add_(1)
    with pytest.raises(ValueError, match="tensors differ, the first is module.0.bias"):
        load_tt_lora(wrapped, saved[0])
    with pytest.raises(TypeError, match="^module.1: "):
        add_tt_lora(wrapped, ["q", "module.1"], rank=2, alpha=1)
    with torch.no_grad():
        find(wrapped, "module.0").bias.sub_(1)
    assert [id(module) for module in wrapped.modules()] == modules
    torch.testing.assert_close(wrapped(X), before)


def test_a_shared_weight_is_found_through_wrappers():
    model = Net()
    model.block["head"] = compiled(nn.Linear(16, 16))
    model.block["head"].weight = model.block["q"].weight
    with pytest.raises(ValueError, match="block.q shares a parameter with block.head.weight"):
        add_tt_lora(nn.DataParallel(model), "q", rank=2, alpha=1)


@pytest.fixture
def group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=0, world_size=1, timeout=datetime.timedelta(seconds=60)
    )
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(group, saved, tmp_path):
    path, wanted = saved
    wrapped = nn.parallel.DistributedDataParallel(load_tt_lora(Net(), path))
    wrapped(X).sum().backward()
    torch.testing.assert_close(wrapped(X), wanted)
    save_tt_lora(wrapped, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_tt_lora(Net(), tmp_path / "a.safetensors")(X), wanted)
    torch.testing.assert_close(merge_tt_lora(wrapped)(X), wanted, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("default:DistributedDataParallel knows only")
def test_adapters_that_ddp_would_not_know_are_warned_of(group, saved):
    path, wanted = saved
    for put_in in (lambda model: load_tt_lora(model, path), lambda model: add_tt_lora(model, "q", rank=2, alpha=1)):
        wrapped = nn.parallel.DistributedDataParallel(Net())
        with pytest.warns(UserWarning, match="gradients will not be shared .* wrap the model then"):
            put_in(wrapped)
    torch.testing.assert_close(load_tt_lora(nn.parallel.DistributedDataParallel(Net()), path)(X), wanted)


def test_an_adapter_that_is_the_model_is_one_when_wrapped():
    with pytest.raises(ValueError, match="itself a TT-LoRA layer"):
        merge_tt_lora(compiled(TTLoRALinear(nn.Linear(4, 4), rank=1, alpha=1)))


def test_modules_by_their_bare_names():
    model = Net()
    model.block["again"] = model.block["q"]
    wrapped = compiled(inside(nn.DataParallel, "module")(model))
    names = ["", "module", "module.0", "module.1", "block", "block.q", "block.head"]
    assert list(bare_modules(wrapped)) == names
    assert list(bare_modules(wrapped, remove_duplicate=False)) == [*names, "block.again"]
    assert bare(wrapped) is find(wrapped, "") is model and isinstance(find(wrapped, "module.0"), nn.Linear)
    with pytest.raises(AttributeError):
        find(wrapped, "block.nothing")
