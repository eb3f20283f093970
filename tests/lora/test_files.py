"""Files of adapters: what comes back, what is refused, and that the model and an older file survive every refusal."""

import copy
import errno
import itertools
import json
import math
import os
import sys

import pytest
import safetensors.torch
import torch
from adapters import (
    FLOATS,
    adapted,
    anatomy,
    answers,
    bits,
    scatter_all,
    tiny_bert,
    tiny_classifier,
    tiny_gpt2,
    tiny_llama,
    trained,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import agree
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, files, load_tt_lora, merge_tt_lora, save_tt_lora
from ttref.lora.model import adapters

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


class Net(nn.Module):
    """Small enough to be saved hundreds of times: padded, straddling and aligned layers, buffers, a head."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(50, 12)
        self.norm = nn.BatchNorm1d(12)
        self.query, self.value, self.up = nn.Linear(12, 12), nn.Linear(12, 18), nn.Linear(12, 13)
        self.head = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5))
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("passing", torch.rand(3), persistent=False)
        self.to(dtype)

    def forward(self, input_ids):
        x = self.norm(self.embed(input_ids).mean(1))
        return {"logits": self.head(self.query(x)).sum() * self.scale.sum() + self.value(x).sum() + self.up(x).sum()}


SHAPES = {"query": (3, 4, 4, 3), "value": (4, 9, 6)}


def net(seed=0, dtype=torch.float32):
    return Net(seed, dtype).eval()


def prepared(model, **options):
    settings = {"rank": 2, "alpha": 1.5, "shape": SHAPES, "modules_to_save": "head", **options}
    torch.manual_seed(5)
    add_tt_lora(model, ["query", "value", "up"], **settings)
    scatter_all(model)
    with torch.no_grad():
        for parameter in model.head.parameters() if "head" in settings["modules_to_save"] else ():
            parameter.add_(0.5)
        if "head" in settings["modules_to_save"]:
            model.head[1].running_mean.add_(1)
            model.head[1].num_batches_tracked.add_(7)
    return model


MODELS = {
    "bert": (tiny_bert, ["query", "value"], ()),
    "classifier": (tiny_classifier, ["query", "value", "intermediate.dense"], ("classifier", "pooler")),
    "llama": (tiny_llama, ["q_proj", "v_proj"], ()),
    "gpt2": (tiny_gpt2, ["c_attn", "c_fc"], ()),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good file of the small model, written once."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save_tt_lora(prepared(net()), path)
    return path.read_bytes()


def opened(path):
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    return tensors, json.loads(about["header"]), {key: value for key, value in about.items() if key != "header"}


def same_content(one, other):
    return one.read_bytes() == other.read_bytes()


def refused(model, path, message, error=ValueError, **options):
    before = anatomy(model)
    with pytest.raises(error, match=message):
        load_tt_lora(model, path, **options)
    assert anatomy(model) == before


# What comes back


@pytest.mark.parametrize("dtype, init", [(torch.float32, "paper"), *((dtype, "zero_last") for dtype in FLOATS)])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(name, dtype, init, path):
    make, targets, along = MODELS[name]
    base = make(dtype=dtype).eval()
    model = add_tt_lora(copy.deepcopy(base), targets, rank=3, alpha=0.5, init=init, dropout=0.25, modules_to_save=along)
    scatter_all(model)
    with torch.no_grad():
        for name_along in along:
            for parameter in model.get_submodule(
                next(n for n, _ in model.named_modules() if n.endswith(name_along))
            ).parameters():
                parameter.mul_(1.5)
    save_tt_lora(model, str(path))
    assert load_tt_lora(base, path) is base
    assert base.state_dict().keys() == model.state_dict().keys()
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())
    assert trained(base) == trained(model)
    assert {name: repr(layer) for name, layer in adapters(base).items()} == {
        name: repr(layer) for name, layer in adapters(model).items()
    }
    assert agree(answers(base), answers(model))
    assert {layer.delta.init for layer in adapters(base).values()} == {init}
    again = path.with_name("again.safetensors")
    save_tt_lora(base, again)
    assert same_content(path, again)


def test_training_goes_on_where_it_stopped(path):
    """The same steps from a loaded model as from the one that was saved."""
    model, base = prepared(net()), net()
    save_tt_lora(model, path)
    load_tt_lora(base, path)
    for one in (model, base):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            one(torch.arange(20).reshape(4, 5))["logits"].square().backward()
            optimizer.step()
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_the_file_says(path):
    save_tt_lora(prepared(net(), dropout=0.25), path)
    tensors, header, about = opened(path)
    assert about.keys() == {"format", "version", "hashes", "sha256"} and about["format"] == "ttref.TT-LoRA"
    assert about["version"] == "3" and len(about["sha256"]) == 64
    layers = header["layers"]
    assert set(layers) == {"query", "value", "up"} and header["modules_to_save"] == ["head"]
    assert layers["value"] == {
        "shape": [4, 9, 6],
        "ranks": [1, 2, 2, 1],
        "alpha": 1.5,
        "init": "zero_last",
        "dropout": 0.25,
        "features": [18, 12],
        "automatic": False,
    }
    # 13 outputs are padded to 14: such modes cannot be given back as a shape.
    assert layers["up"]["automatic"] and math.prod(layers["up"]["shape"]) == 14 * 12
    assert len(header["base"]["sha256"]) == 64
    head = {f"head.{name}" for name in net().head.state_dict()}
    assert set(tensors) == head | {
        f"{name}.cores.{k}" for name, layer in layers.items() for k in range(len(layer["shape"]))
    }


def test_the_file_holds_no_more_than_it_must(path):
    """Cores, what is saved along, and a header of a few hundred bytes a layer."""
    model = prepared(net())
    save_tt_lora(model, path)
    tensors, _, _ = opened(path)
    payload = sum(x.numel() * x.element_size() for x in tensors.values())
    cores = sum(layer.params for layer in adapters(model).values()) * 4
    assert payload == cores + sum(x.numel() * x.element_size() for x in model.head.state_dict().values())
    assert path.stat().st_size < payload + 4000
    big = add_tt_lora(tiny_bert(), ["query", "key", "value"], rank=1, alpha=1)
    save_tt_lora(big, path)
    assert path.stat().st_size < 4 * sum(p.numel() for p in big.parameters() if p.requires_grad) + 6 * 700 + 40 * 4


def test_merged_or_not_is_one_file(path):
    for merged in itertools.product([False, True], repeat=3):
        model = prepared(net())
        save_tt_lora(model, path)
        for layer, merge in zip(adapters(model).values(), merged, strict=True):
            if merge:
                layer.merge()
        state = {key: bits(value) for key, value in model.state_dict().items()}
        other = path.with_name("merged.safetensors")
        save_tt_lora(model, other)
        assert same_content(path, other)
        assert {key: bits(value) for key, value in model.state_dict().items()} == state


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_stays(training, path):
    save_tt_lora(prepared(net(), dropout=0.5), path)
    base = net().train(training)
    assert {module.training for module in load_tt_lora(base, path).modules()} == {training}


def test_a_gradient_or_an_odd_place_in_memory_changes_no_file(path):
    model = prepared(net())
    save_tt_lora(model, path)
    model(torch.arange(20).reshape(4, 5))["logits"].backward()
    with torch.no_grad():
        model.head[0].weight.data = model.head[0].weight.data.T.contiguous().T
        model.query.base_layer.weight.data = model.query.base_layer.weight.data.T.contiguous().T
        model.up.cores[0].data = model.up.cores[0].data.transpose(0, 1).contiguous().transpose(0, 1)
    other = path.with_name("other.safetensors")
    save_tt_lora(model, other)
    assert same_content(path, other)
    load_tt_lora(net(), other)


def test_a_model_that_was_converted_comes_back_in_its_dtype(path):
    """Cores that went to half precision with their model compute there again."""
    model = prepared(net()).to(torch.bfloat16)
    save_tt_lora(model, path)
    base = load_tt_lora(net().to(torch.bfloat16), path)
    assert {core.dtype for core in base.query.cores} == {torch.bfloat16}
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())


def test_loading_draws_no_random_numbers(path):
    """Nor does it decompose a matrix that is thrown away."""
    save_tt_lora(prepared(net(), init="paper"), path)
    base = net()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_tt_lora(base, path)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_adapter_can_be_merged(path):
    model = prepared(net())
    save_tt_lora(model, path)
    base = merge_tt_lora(load_tt_lora(net(), path))
    assert all(bits(a) == bits(b) for a, b in zip(base.parameters(), merge_tt_lora(model).parameters(), strict=True))
    with pytest.raises(ValueError, match="no TT-LoRA layers to save"):
        save_tt_lora(base, path)


# Another model


@pytest.mark.parametrize("part", ["query.weight", "query.bias", "embed.weight", "norm.running_var", "scale"])
def test_another_base_is_refused_and_the_tensor_named(part, path):
    save_tt_lora(prepared(net()), path)
    base = net()
    with torch.no_grad():
        x = base.state_dict()[part]
        x.view(-1)[0] = torch.nextafter(x.view(-1)[0], torch.tensor(9.0))  # the last bit of one number
    refused(base, path, rf"another base model \(1 of 13 tensors differ, the first is {part}\).*check_base=False")
    load_tt_lora(base, path, check_base=False)
    assert trained(base) and torch.equal(base.query.cores[0], prepared(net()).query.cores[0])


def test_what_the_file_holds_may_differ(path):
    """A head saved along is the file's, and a buffer that is no part of the state is no other base."""
    model = prepared(net())
    save_tt_lora(model, path)
    base = net()
    with torch.no_grad():
        base.head[0].weight.normal_()
        base.head[1].running_mean.normal_()
        base.passing.normal_()
    load_tt_lora(base, path)
    assert all(bits(value) == bits(base.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_random_head_that_was_frozen_is_another_base(path):
    """As the published code trains: the head starts at random in every process, and nothing holds it."""
    model = add_tt_lora(tiny_classifier(seed=0), "query", rank=2, alpha=1)
    save_tt_lora(model, path)
    base = tiny_classifier(seed=0)
    with torch.no_grad():
        base.classifier.weight.normal_()
    refused(base, path, "the first is classifier.weight.*A head that starts at random, .* in modules_to_save")


def test_another_dtype_is_another_base(path):
    save_tt_lora(prepared(net()), path)
    refused(net().double(), path, "12 of 13 tensors differ, the first is embed.weight")
    base = load_tt_lora(net().double(), path, check_base=False)
    assert torch.equal(base.query.cores[0].float(), prepared(net()).query.cores[0])
    torch.testing.assert_close(
        base(torch.arange(20).reshape(4, 5))["logits"].float(),
        prepared(net())(torch.arange(20).reshape(4, 5))["logits"],
        rtol=1e-3,
        atol=1e-3,
    )


def test_another_architecture(path):
    save_tt_lora(prepared(net()), path)
    wider = net()
    wider.query = nn.Linear(12, 24)
    refused(wider, path, r"adapts query with 12 outputs and 12 inputs, but here it has 24 and 12")
    refused(wider, path, r"adapts query with 12 outputs", check_base=False)
    without = net()
    del without.query
    refused(without, path, "adapts query, which this model does not have")
    other = net()
    other.query = nn.Embedding(12, 12)
    refused(other, path, "query: TT-LoRA adapts nn.Linear", TypeError)
    more = net()
    more.extra = nn.Linear(2, 2)
    refused(more, path, r"that had 13 tensors, this has 15")
    headless = net()
    del headless.head
    refused(headless, path, "holds head, which this model does not have")
    head = net()
    head.head[0] = nn.Linear(12, 6)
    for check in (True, False):
        refused(head, path, r"has \(5.*\) for head.*and this model \(6", check_base=check)
    head.head = nn.Sequential(nn.Linear(12, 5))
    refused(head, path, "for head.1.*and this model nothing")
    renamed = net()
    renamed.embedding, renamed.embed = renamed.embed, nn.Identity()
    refused(renamed, path, "another base model")


def test_a_model_that_has_adapters(path):
    model = prepared(net())
    save_tt_lora(model, path)
    refused(model, path, "has TT-LoRA layers already, such as query; .*merge_tt_lora")
    refused(prepared(net()), path, "already", check_base=False)
    refused(adapted("aligned"), path, ".")


def test_layers_that_share_their_weight(path):
    class Tied(nn.Module):
        def __init__(self, tie):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.three.weight = self.two.weight if tie else nn.Parameter(self.two.weight.detach().clone())

    save_tt_lora(add_tt_lora(Tied(False), ["one", "two"], rank=1, alpha=1), path)
    refused(Tied(True), path, "two shares a parameter with three.weight")
    save_tt_lora(add_tt_lora(Tied(False), "one", rank=1, alpha=1, modules_to_save="two"), path)
    refused(Tied(True), path, "two .*shares a parameter with three.weight")


@pytest.mark.parametrize("where", ["query", "up"])
def test_an_interruption_while_layers_go_in(where, path):
    """Even one that nobody foresaw."""

    class Breaks(Net):
        def __setattr__(self, name, value):
            if name == where and isinstance(value, TTLoRALinear):
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    save_tt_lora(prepared(net()), path)
    refused(Breaks().eval(), path, "", KeyboardInterrupt)


# A damaged file


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere(data, good, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
    refused(net(), path, "cut.safetensors is no TT-LoRA saved by ttref, or is damaged .*; save it again")


def test_a_file_cut_at_the_seams(good, path):
    header = int.from_bytes(good[:8], "little")
    for size in (0, 1, 7, 8, 9, 8 + header - 1, 8 + header, 8 + header + 1, len(good) - 1):
        path.write_bytes(good[:size])
        refused(net(), path, "is damaged")
    path.write_bytes(good + b"more")
    refused(net(), path, "is damaged")


def test_foreign_files(path):
    for tensors, about, message in [
        ({"weight": torch.zeros(3)}, None, "it holds nothing of ttref"),
        ({"weight": torch.zeros(3)}, {"format": "pt"}, "it holds pt"),
        ({"weight": torch.zeros(3)}, {"format": "ttref.MPSEmbedding", "version": "1"}, "it holds ttref.MPSEmbedding"),
        ({}, {"format": "ttref.TT-LoRA", "version": "1", "header": "{}"}, "is damaged"),
    ]:
        safetensors.torch.save_file(tensors, path, about)
        refused(net(), path, f"adapter.safetensors is no TT-LoRA saved by ttref.*{message}")
    for content in (b"", b"{}", b"PK\x03\x04" + bytes(100), bytes(1000), b"text, and no tensors\n" * 9):
        path.write_bytes(content)
        refused(net(), path, "is damaged")
    refused(net(), path.with_name("nothing"), "there is no file .*nothing", FileNotFoundError)
    refused(net(), path.parent, "this is a folder", IsADirectoryError)


def rewrite(path, *, tensors=None, header=None, about=None, layer=None):
    """The same file, sealed anew, with tensors, header or metadata or the query's entries changed; None drops them."""
    held, read, metadata = opened(path)
    targets = [(tensors, held), (header, read), (layer, read["layers"]["query"]), (about, metadata)]
    for changes, target in targets:
        for name, value in (changes or {}).items():
            if value is None:
                target.pop(name, None)
            else:
                target[name] = value(target.get(name)) if callable(value) else value
    if "header" not in (about or {}):
        metadata["header"] = json.dumps(read)
    del metadata["sha256"], metadata["hashes"]
    path.write_bytes(b"".join(files.sealed(metadata, held)))


NONE = lambda old: None  # noqa: E731
CORE, HEAD = "query.cores.1", "head.0.weight"
DAMAGE = {
    "a core missing": {"tensors": {CORE: None}},
    "the last core missing": {"tensors": {"up.cores.0": None}},
    "a core too many": {"tensors": {"query.cores.4": lambda x: torch.zeros(1, 1, 1)}},
    "a tensor of no layer": {"tensors": {"key.cores.0": lambda x: torch.zeros(1, 1, 1)}},
    "a core of fewer numbers": {"tensors": {CORE: lambda x: x[:, :-1]}},
    "a core with another axis": {"tensors": {CORE: lambda x: x.unsqueeze(0)}},
    "a flat core": {"tensors": {CORE: lambda x: x.flatten()}},
    "a core turned": {"tensors": {"query.cores.0": lambda x: x.mT}},
    "a core of integers": {"tensors": {CORE: lambda x: x.to(torch.int32)}},
    "a core of truths": {"tensors": {CORE: lambda x: x > 0}},
    "a core of complex numbers": {"tensors": {CORE: lambda x: x.to(torch.complex64)}},
    "a core with NaN": {"tensors": {CORE: lambda x: x * math.nan}},
    "a core with one infinite entry": {"tensors": {CORE: lambda x: x.index_fill(1, torch.tensor(0), -math.inf)}},
    "a head with NaN": {"tensors": {HEAD: lambda x: x.index_fill(1, torch.tensor(0), math.nan)}},
    "no layers": {"header": {"layers": {}}},
    "layers in a list": {"header": {"layers": []}},
    "a layer of text": {"header": {"layers": {"query": "query"}}},
    "a layer more": {"header": {"layers": lambda x: {**x, "embed": x["query"]}}},
    "a layer less": {"header": {"layers": lambda x: {"query": x["query"]}}},
    "saved along: nothing": {"header": {"modules_to_save": []}},
    "saved along: none": {"header": {"modules_to_save": NONE}},
    "saved along: a number": {"header": {"modules_to_save": 3}},
    "saved along: numbers": {"header": {"modules_to_save": [3]}},
    "saved along: text": {"header": {"modules_to_save": "head"}},
    "saved along: everything": {"header": {"modules_to_save": [""]}},
    "saved along: an adapted layer": {"header": {"modules_to_save": ["head", "query"]}},
    "saved along: a layer more": {"header": {"modules_to_save": ["head", "norm"]}},
    "a base of text": {"header": {"base": "abc"}},
    "a base of nothing": {"header": {"base": NONE}},
    "a base without digits": {"header": {"base": {"sha256": "abc", "each": 3}}},
    "a base of numbers": {"header": {"base": {"sha256": 1, "each": 2}}},
    "a base without hash": {"header": {"base": {"each": ""}}},
    "another base": {"header": {"base": lambda x: {**x, "sha256": "0" * 64}}},
    "other modes": {"layer": {"shape": [4, 3, 4, 3]}},
    "more modes": {"layer": {"shape": [3, 4, 4, 3, 1]}},
    "fewer modes": {"layer": {"shape": [12, 12]}},
    "no modes": {"layer": {"shape": []}},
    "modes of text": {"layer": {"shape": "3443"}},
    "modes of none": {"layer": {"shape": NONE}},
    "modes of fractions": {"layer": {"shape": [3.5, 4, 4, 3]}},
    "a negative mode": {"layer": {"shape": [-3, 4, 4, -3]}},
    "other ranks": {"layer": {"ranks": [1, 2, 3, 2, 1]}},
    "end ranks": {"layer": {"ranks": [2, 2, 2, 2, 1]}},
    "fewer ranks": {"layer": {"ranks": [1, 2, 2, 1]}},
    "ranks of a number": {"layer": {"ranks": 2}},
    "ranks of none": {"layer": {"ranks": NONE}},
    "alpha of zero": {"layer": {"alpha": 0}},
    "alpha of text": {"layer": {"alpha": "1.5"}},
    "alpha of none": {"layer": {"alpha": NONE}},
    "alpha without end": {"layer": {"alpha": math.inf}},
    "alpha of NaN": {"layer": {"alpha": math.nan}},
    "an unknown start": {"layer": {"init": "ones"}},
    "a start of none": {"layer": {"init": NONE}},
    "a start in a list": {"layer": {"init": []}},
    "dropout above one": {"layer": {"dropout": 1.5}},
    "dropout of text": {"layer": {"dropout": "0"}},
    "dropout of none": {"layer": {"dropout": NONE}},
    "dropout of NaN": {"layer": {"dropout": math.nan}},
    "other widths": {"layer": {"features": [18, 8]}},
    "one width": {"layer": {"features": [12]}},
    "widths of text": {"layer": {"features": ["12", "12"]}},
    "widths of none": {"layer": {"features": NONE}},
    "negative widths": {"layer": {"features": [-12, -12]}},
    "modes said to be chosen": {"layer": {"automatic": True}},
    "automatic: text": {"layer": {"automatic": "no"}},
    "automatic: none": {"layer": {"automatic": NONE}},
    "another version": {"about": {"version": "4"}},
    "no version": {"about": {"version": None}},
    "another format": {"about": {"format": "ttref.Other"}},
    "no format": {"about": {"format": None}},
    "no header": {"about": {"header": None}},
    "a broken header": {"about": {"header": "{"}},
    "a header of a list": {"about": {"header": "[]"}},
    "a header of none": {"about": {"header": "null"}},
    "a header of a number": {"about": {"header": "3"}},
    **{
        f"the layer's {key} missing": {"layer": {key: None}}
        for key in ("shape", "ranks", "alpha", "init", "dropout", "features", "automatic")
    },
    **{f"{key} missing": {"header": {key: None}} for key in ("layers", "modules_to_save", "base")},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("check", [True, False])
def test_files_that_do_not_fit_together(damage, check, good, path):
    path.write_bytes(good)
    rewrite(path, **DAMAGE[damage])
    if damage == "another base" and not check:
        load_tt_lora(net(), path, check_base=False)
    else:
        refused(net(), path, "adapter.safetensors", check_base=check)


def test_a_mask_of_infinities_in_the_head_is_no_damage(path):
    """NaN in it is, whether in a parameter or a buffer."""

    def masked(value):
        model = net()
        model.head.register_buffer("mask", torch.tensor([0.0, value]))
        return model

    save_tt_lora(prepared(masked(-math.inf)), path)
    old = path.read_bytes()
    assert load_tt_lora(masked(0.0), path).head.mask.isinf().any()
    with pytest.raises(ValueError, match="head.mask has entries that are NaN"):
        save_tt_lora(prepared(masked(math.nan)), path)
    assert path.read_bytes() == old


def test_a_base_without_numbers(path):
    save_tt_lora(prepared(net()), path)
    with torch.device("meta"):
        base = net()
    for check in (True, False):
        refused(base, path, "query has no numbers yet .meta device.", check_base=check)


def test_rewriting_alone_changes_nothing(good, path):
    path.write_bytes(good)
    rewrite(path)
    assert torch.equal(load_tt_lora(net(), path).query.cores[0], prepared(net()).query.cores[0])


# What a failed save leaves


def full_disk(monkeypatch):
    """Which may say so only when what was written is to stay."""

    def full(number):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("merged", [False, True])
def test_a_failed_save_leaves_the_old_file_and_the_model(merged, path, monkeypatch):
    model = prepared(net())
    save_tt_lora(model, path)
    if merged:
        model.query.merge()
    old, before = path.read_bytes(), anatomy(model)
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        save_tt_lora(model, path)
    assert path.read_bytes() == old and [file.name for file in path.parent.iterdir()] == [path.name]
    assert anatomy(model) == before


def test_a_failed_first_save_leaves_nothing(path, monkeypatch):
    model = prepared(net())
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        save_tt_lora(model, path)
    assert list(path.parent.iterdir()) == []


def test_who_may_read_other_files_may_read_this_one(path):
    save_tt_lora(prepared(net()), path)
    path.with_name("other").touch()
    assert path.stat().st_mode == path.with_name("other").stat().st_mode


def test_a_folder_that_is_not_there(path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        save_tt_lora(prepared(net()), path.parent / "nowhere" / "adapter.safetensors")
    assert list(path.parent.iterdir()) == []


def test_a_model_without_adapters(path):
    with pytest.raises(ValueError, match="no TT-LoRA layers to save; add_tt_lora puts them in"):
        save_tt_lora(net(), path)
    with pytest.raises(ValueError):
        save_tt_lora(adapted("aligned"), path)
    assert not path.exists()


def test_a_training_that_ended_in_nan(path):
    """What could not be loaded again does not take the place of a good file."""
    model = prepared(net())
    save_tt_lora(model, path)
    old = path.read_bytes()
    with torch.no_grad():
        model.query.cores[0].fill_(math.nan)
    with pytest.raises(ValueError, match="query"):
        save_tt_lora(model, path)
    assert path.read_bytes() == old


def test_without_safetensors_the_install_line_is_given(path, monkeypatch):
    model = prepared(net())
    save_tt_lora(model, path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: save_tt_lora(model, path), lambda: load_tt_lora(net(), path)):
        with pytest.raises(ModuleNotFoundError, match="python -m pip install safetensors"):
            call()


def test_a_model_that_is_quantized_elsewhere(path):
    """Its state holds more than tensors; the float layers beside can be adapted, saved and loaded."""

    def make():
        torch.manual_seed(0)
        model = nn.ModuleDict({"query": nn.Linear(12, 12), "other": nn.Sequential(nn.Linear(12, 12))})
        model["other"] = torch.ao.quantization.quantize_dynamic(model["other"], {nn.Linear})
        return model

    model = scatter_all(add_tt_lora(make(), "query", rank=2, alpha=1))
    save_tt_lora(model, path)
    base = load_tt_lora(make(), path)
    assert agree(base["query"](torch.ones(12)), model["query"](torch.ones(12)))


def test_a_saved_module_with_a_tie_inside(path):
    def make():
        torch.manual_seed(0)
        model = nn.ModuleDict({"query": nn.Linear(6, 6), "head": nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))})
        model["head"][1].weight = model["head"][0].weight
        return model

    model = scatter_all(add_tt_lora(make(), "query", rank=2, alpha=1, modules_to_save="head"))
    with torch.no_grad():
        model["head"][0].weight.add_(1)
    save_tt_lora(model, path)
    base = load_tt_lora(make(), path)
    assert torch.equal(base["head"][1].weight, model["head"][0].weight)
    assert isinstance(base["query"], TTLoRALinear)
