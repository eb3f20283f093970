"""From a search over acceptance to a release, a load and the way back, with the tools that a user has."""

import copy
import json

import pytest
import torch
from language_models import gpt2
from releases import same_state
from torch import nn

from ttref import TTLinear, swap_layer
from ttref.release import AcceptanceSuite, Metric, load_release, rollback, save_release, verify
from ttref.release.deriving import relative_error
from ttref.release.manifest import ACCEPTANCE, MANIFEST
from ttref.surgery import partial_tensorize


def net():
    """A classifier whose first layer has rank one, so that a train of it changes nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.linspace(-1, 1, 64), torch.linspace(1, 2, 32)))
    return model


def test_search_accept_release_load_undo(tmp_path):
    torch.manual_seed(1)
    x = torch.randn(200, 32)
    dense = net()
    with torch.no_grad():
        answers = dense(x).argmax(-1)

    def right(model, data):
        with torch.no_grad():
            return (model(data).argmax(-1) == answers).float()

    small = copy.deepcopy(dense)
    found = partial_tensorize(small, lambda model: right(model, x), max_drop=0.02, eps=0.05, progress=False)
    assert found.names() == ["0"]
    suite = AcceptanceSuite(Metric("accuracy", right, margin=0.05), data=x, turns=0)
    report = suite.run(dense, small)
    assert report.accepted
    other = copy.deepcopy(small)  # of the same size
    with torch.no_grad():
        other[0].cores[0].mul_(-5)
    with pytest.raises(ValueError, match="the report is of another model"):
        save_release(other, tmp_path / "r", source=dense, report=report)
    name = save_release(small, tmp_path / "r", source=dense, report=report, recipe=found, base_model="a/b")
    manifest = json.loads((tmp_path / "r" / MANIFEST).read_bytes())
    assert manifest["recipe"]["settings"]["candidate"] == "TT eps 0.05"
    assert manifest["acceptance"]["data_hash"] == report.data_hash == suite.data_hash
    scores = json.loads((tmp_path / "r" / ACCEPTANCE).read_bytes())["scores"]["accuracy"]
    assert scores["dense"] == [1.0] * 200
    card = (tmp_path / "r" / "README.md").read_text(encoding="utf-8")
    assert report.card().strip() in card and manifest["files"][ACCEPTANCE]["sha256"] in card
    checked = verify(tmp_path / "r", dense, sha256=name, progress=False)
    assert checked.proved and checked.sha256 == name
    assert same_state(load_release(tmp_path / "r", net(), sha256=name), small)
    assert same_state(rollback(tmp_path / "r", small), dense)


def test_a_suite_that_fails_stops_the_release(tmp_path):
    dense = net()
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    small = copy.deepcopy(dense)
    nn.init.zeros_(small[2].weight)

    def near(model, data):
        with torch.no_grad():
            return -(model(data) - dense(data)).square().mean(-1)

    report = AcceptanceSuite(Metric("nearness", near, margin=1e-3), data=x, turns=0).run(dense, small)
    assert not report.accepted
    with pytest.raises(ValueError, match="did not accept the model"):
        save_release(small, tmp_path / "r", source=dense, report=report)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("form", ["model", "state", "modules"])
def test_a_square_linear_layer_comes_back_as_one(form, tmp_path):
    """Also where a trained train is nearer to the transpose by chance."""
    torch.manual_seed(3)
    dense = nn.Sequential(nn.Linear(16, 16))
    small = copy.deepcopy(dense)
    swap_layer(small, "0", TTLinear((4, 4), (4, 4), rank=2))
    layer, weight = small[0], dense[0].weight
    assert relative_error(layer, weight.mT) < relative_error(layer, weight)
    source = {"model": dense, "state": dense.state_dict(), "modules": {"0": dense[0]}}[form]
    save_release(small, tmp_path / "r", source=source, override="a test")
    assert type(rollback(tmp_path / "r", small)[0]) is nn.Linear and same_state(small, dense)


@pytest.mark.parametrize("form", ["model", "state"])
def test_a_square_conv1d_comes_back_as_one(form, tmp_path):
    dense = gpt2()
    small = copy.deepcopy(dense)
    name = "transformer.h.0.attn.c_proj"
    swap_layer(small, name, TTLinear.from_linear(small.get_submodule(name), rank=2))
    save_release(small, tmp_path / "r", source=dense if form == "model" else dense.state_dict(), override="a test")
    source = tmp_path / "dense"
    dense.save_pretrained(source)
    assert (
        verify(tmp_path / "r", source, progress=False).proved and verify(tmp_path / "r", dense, progress=False).proved
    )
    assert type(rollback(tmp_path / "r", small).get_submodule(name)).__name__ == "Conv1D"
