"""An audit followed: what pays is put into the model, all of it or nothing."""

import json

import pytest
import torch
from safetensors.torch import save_model
from small_checkpoints import falling, noise, waves
from torch import nn

import ttref
from ttref.audit import audit, follow
from ttref.surgery import partial_tensorize
from ttref.surgery.candidates import integer, svd, tensor_train


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wpe = nn.Embedding(512, 96)
        self.fc1 = nn.Linear(96, 256)
        self.fc2 = nn.Linear(96, 64)
        with torch.no_grad():
            self.wpe.weight.copy_(waves())
            self.fc1.weight.copy_(falling())
            self.fc2.weight.copy_(noise(64, 96))

    def forward(self, ids):
        return self.fc1(self.wpe(ids)), self.fc2(self.wpe(ids))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "model.safetensors"
    save_model(Net(), str(path))
    return audit(path)


@pytest.mark.parametrize("eps", [None, 0.1, 0.5])
@pytest.mark.parametrize("saved", [False, True])
def test_what_pays_is_put_in_with_the_size_and_the_error_that_were_told(found, eps, saved):
    model, k = Net(), 1 if eps is None else found.eps.index(eps)
    dense = follow(model, json.loads(json.dumps(found.as_dict())) if saved else found, eps=eps)
    assert sorted(dense) == ["fc1", "wpe"] and type(model.fc2) is nn.Linear
    assert isinstance(model.fc1, ttref.TTLinear) and isinstance(model.wpe, ttref.TTMEmbedding)
    table, layer = found.row("wpe.weight"), found.row("fc1.weight")
    assert sum(core.numel() for core in model.wpe.cores) == waves().numel() / table["train"][k]
    assert sum(core.numel() for core in model.fc1.cores) == pytest.approx(falling().numel() / layer["svd"][k])
    for made, old in ((model.wpe, waves()), (model.fc1, falling())):
        assert (made.dense() - old).norm() <= (found.eps[k] + 1e-5) * old.norm()
    with ttref.edit(model) as change:
        change.put(dense)
    ids = torch.arange(5)
    assert all(torch.equal(a, b) for a, b in zip(model(ids)[:1], dense["fc1"](dense["wpe"](ids))[None], strict=True))


def test_a_model_inside_another_is_found_by_the_end_of_its_names(found):
    outer = nn.ModuleDict({"net": Net()})
    assert sorted(follow(outer, found)) == ["net.fc1", "net.wpe"]


def without(name):
    model = Net()
    delattr(model, name)
    return model


def tied():
    model = Net()
    model.head = nn.Linear(96, 512, bias=False)
    model.head.weight = model.wpe.weight
    return model


def twice():
    return nn.ModuleDict({"a": Net(), "b": Net()})


def torn():
    """Each name is the end of one in the model, but what stands before them differs."""
    return nn.ModuleDict({"a": without("wpe"), "b": without("fc1")})


@pytest.mark.parametrize("make", [lambda: without("wpe"), twice, torn, tied])
def test_nothing_changes_if_one_does_not_fit(found, make):
    model = make()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match="wpe|fit several layers"):
        follow(model, found)
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_what_is_no_audit_is_refused(found):
    for wrong in ({}, {"eps": [0.1], "rows": [{}], "sampled": False}, {"eps": 3, "rows": [], "sampled": False}):
        with pytest.raises(ValueError, match="no audit"):
            follow(Net(), wrong)
    with pytest.raises(ValueError, match="a sample tells of some layers only"):
        follow(Net(), found.as_dict() | {"sampled": True})
    with pytest.raises(ValueError, match="was not asked about"):
        follow(Net(), found, eps=0.2)
    part = found.as_dict()
    part["rows"] = [row for row in part["rows"] if row["name"] == "fc2.weight"]
    with pytest.raises(ValueError, match="neither a train nor factors pay"):
        follow(Net(), part)


def searched(tmp_path, model, candidate, **settings):
    """What a search over the linear layers saves."""
    report = partial_tensorize(model, lambda model: 0.9, candidate=candidate, progress=False, **settings)
    report.save(tmp_path / "search.json")
    report.undo()
    return report, json.loads((tmp_path / "search.json").read_text())


@pytest.mark.parametrize("candidate", [tensor_train(eps=0.3), svd(rank=4)])
def test_what_a_search_accepted_is_made_again(tmp_path, candidate):
    report, held = searched(tmp_path, Net(), candidate)
    assert report.names("accepted")
    model, other = Net(), Net()
    follow(model, held)
    with ttref.edit(other) as change:
        change.put({name: candidate.make(other.get_submodule(name)) for name in report.names("accepted")})
    for name in report.names("accepted"):
        made, wanted = model.get_submodule(name), other.get_submodule(name)
        assert type(made) is type(wanted) and made.modes == wanted.modes and made.ranks == wanted.ranks
        torch.testing.assert_close(
            made.dense(), wanted.dense(), rtol=1e-4, atol=1e-5 * wanted.dense().abs().max().item()
        )


def test_a_search_that_cannot_be_made_again_is_refused(tmp_path):
    _, held = searched(tmp_path, Net(), integer(8))
    with pytest.raises(ValueError, match="only plain trains and SVD"):
        follow(Net(), held)
    _, held = searched(tmp_path, Net(), tensor_train(eps=0.3, core_bits=8))
    with pytest.raises(ValueError, match="only plain trains and SVD"):
        follow(Net(), held)
    _, held = searched(tmp_path, Net(), tensor_train(eps=0.3))
    with pytest.raises(ValueError, match="belongs to an audit"):
        follow(Net(), held, eps=0.3)
    with pytest.raises(ValueError, match="accepted no layer"):
        follow(Net(), held | {"rows": []})


def test_a_layer_that_errs_by_more_than_its_audit_found_is_refused(found):
    """Its weight was trained further since it was audited; nothing changes."""
    model = Net()
    with torch.no_grad():
        model.wpe.weight.copy_(noise(512, 96))
    with pytest.raises(ValueError, match=r"wpe\.weight would err by [01].*, and the audit found 0\.3 at most"):
        follow(model, found)
    assert type(model.wpe) is nn.Embedding and type(model.fc1) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_to_the_dtype_of_a_model_is_no_such_error(found, dtype):
    assert sorted(follow(Net().to(dtype), found, eps=0.1)) == ["fc1", "wpe"]


def square():
    """Smooth along the rows alone: its transpose has another train."""
    return waves(128, 128)[:, torch.randperm(128, generator=torch.Generator().manual_seed(0))]


class Block(nn.Module):
    """nanoGPT's names: those of GPT-2, in plain linear layers."""

    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
        with torch.no_grad():
            self.c_attn.weight.copy_(noise(384, 128))
            self.c_proj.weight.copy_(square())


def test_square_layers_with_names_of_gpt2_keep_the_error(tmp_path):
    model = nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"attn": Block()})])})
    save_model(model, str(tmp_path / "model.safetensors"))
    assert list(follow(model, audit(tmp_path), eps=0.1)) == ["h.0.attn.c_proj"]
    made = model.get_submodule("h.0.attn.c_proj").dense()
    assert (made - square()).norm() <= 0.1001 * square().norm()
