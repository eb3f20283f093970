"""Files of adapters that are refused: made for another model, damaged or foreign; the model survives every refusal."""

import json
import math

import pytest
import safetensors.torch
import torch
from adapters import adapted, anatomy, bits, tiny_classifier, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_nets import (
    Net,
    net,
    opened,
    prepared,
)
from torch import nn

from ttref import TTLoRALinear, add_tt_lora, files, load_tt_lora, save_tt_lora

pytestmark = pytest.mark.filterwarnings("ignore:rank .* exceeds what modes")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """One good file of the small model, written once."""
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save_tt_lora(prepared(net()), path)
    return path.read_bytes()


def refused(model, path, message, error=ValueError, **options):
    before = anatomy(model)
    with pytest.raises(error, match=message):
        load_tt_lora(model, path, **options)
    assert anatomy(model) == before


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
    del metadata["sha256"], metadata["each"]
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
