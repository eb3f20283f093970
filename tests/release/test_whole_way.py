"""From a search over acceptance to a release, a load and the way back, with the tools that a user has."""

import copy
import json

import pytest
import torch
from releases import same_state
from torch import nn

from ttref.release import AcceptanceSuite, Metric, load_release, rollback, save_release, verify
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
