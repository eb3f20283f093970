"""Whole models: the study's own parts on small models, its record, and a slice of it run again where the data is."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from book.tools.results import RESULTS
from studies.cifar import ViT, vit_parts
from studies.partial_tensorization import accepts, gains, healing, layer_map, loops, methods, shares, tasks
from studies.partial_tensorization.networks import Staged
from ttref.fitting import Gram, output_error
from ttref.surgery import edit

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "partial_tensorization.json").read_text(encoding="utf-8"))


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = ViT().eval()
    nn.init.normal_(model.patches.positions, std=0.1)
    nn.init.normal_(model.patches.class_vector, std=0.1)
    return model


def test_shares_by_the_shapes():
    bert = shares.bert_base()
    assert (bert["params"], bert["embeddings"]) == (109_482_240, 23_837_184)
    assert bert["share_of_model"] == pytest.approx(0.2177, abs=5e-5)
    assert bert["share_of_blocks"] == pytest.approx(0.2803, abs=5e-5)
    assert bert["largest_ratio_by_embeddings_alone"] == pytest.approx(1.278, abs=5e-4)
    vit = shares.vit_base()
    assert (vit["params"], vit["embeddings"]) == (86_567_656, 742_656)


def test_higher_eps_and_a_steeper_spectrum_compress_more():
    rapid, flat = shares.spectra()
    for row in (rapid, flat):
        ratios = [row[f"tt_ratio_{eps}"] for eps in shares.EPS]
        assert ratios == sorted(ratios)
    assert rapid["svd_error_at_4x"] < 0.1 < flat["svd_error_at_4x"]


def test_a_staged_model_gives_what_the_model_gives(network):
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    staged = Staged(vit_parts, x.split(3))

    def agrees():
        with torch.no_grad():
            return torch.allclose(torch.cat(staged(network)), network(x), atol=1e-5)

    assert agrees() and staged.computed == 8
    assert agrees() and staged.computed == 8
    with edit(network) as change:
        change.put({"blocks.4.key": nn.Linear(128, 128)})
    assert agrees() and staged.computed == 8 + 3
    change.undo()
    assert agrees() and staged.computed == 8 + 6
    with torch.no_grad():
        network.blocks[5].norm2.weight.mul_(2)
    assert agrees() and staged.computed == 8 + 8


def test_an_interrupted_pass_is_begun_anew(network):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    staged = Staged(vit_parts, [x])
    with edit(network) as change:
        change.put({"blocks.2.key": nn.Bilinear(128, 128, 128)})  # one input short
    with pytest.raises(TypeError):
        staged(network)
    change.undo()
    with torch.no_grad():
        assert torch.allclose(staged(network)[0], network(x), atol=1e-5)


def test_scores_are_remembered_by_the_modules(network):
    seen = []

    def scores(model):
        seen.append(model)
        return torch.ones(3)

    memory = loops.Memory(scores)
    memory(network), memory(network)
    assert (memory.calls, memory.computed) == (2, 1)
    with edit(network) as change:
        change.put({"blocks.0.key": nn.Linear(128, 128)})
    memory(network)
    change.undo()
    memory(network)
    assert (memory.calls, memory.computed, len(seen)) == (4, 2, 2)


def test_noise_and_svd_have_the_size_they_say():
    w = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    noisy = gains.noisy(w, 0.3, torch.Generator().manual_seed(1))
    assert ((noisy - w).norm() / w.norm()).item() == pytest.approx(0.3, rel=1e-4)
    error = ((gains.truncated(w, 0.3) - w).norm() / w.norm()).item()
    assert 0.15 < error <= 0.3


def test_fitted_candidates_keep_the_budget_and_help():
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(48, 64)
    mix = torch.randn(48, 48, generator=draw) * torch.linspace(2, 0.05, 48).unsqueeze(1)
    gram = Gram.from_inputs(torch.randn(400, 48, generator=draw) @ mix)
    w = layer.weight.detach()
    errors = {}
    for name in ("tt", "whitened", "fitted"):
        made = methods.made(name, 4).make(layer, gram)
        assert made.params <= w.numel() / 4 and torch.equal(made.bias, layer.bias)
        errors[name] = output_error(w, made.weight.detach(), gram)
    assert max(errors["whitened"], errors["fitted"]) < 0.9 * errors["tt"]
    assert methods.made("fitted", 4).make(layer) is None
    kept = methods.once(methods.made("tt", 4))
    assert kept.make(layer) is kept.make(layer)


def test_neighbors_leave_out_the_vector_itself():
    found = healing.neighbors(torch.eye(12) + 0.01 * torch.arange(12))
    assert found.shape == (12, 10) and not (found == torch.arange(12).unsqueeze(1)).any()


def test_the_record_follows_from_its_rows(recorded):
    for tau, known in zip(layer_map.taus(recorded["layers"]), recorded["taus"], strict=True):
        for name, value in tau["distance"].items():
            assert value == pytest.approx(known["distance"][name], abs=5e-3)  # rounding makes ties
    for rate, known in zip(accepts.rates(recorded["accepts"]), recorded["accept_rates"], strict=True):
        for key, value in rate.items():
            assert value == (pytest.approx(known[key], abs=1e-5) if isinstance(value, float) else known[key])
    for row in recorded["loops"]:
        assert row["decisions"].count("a") == row["accepted"] and len(row["decisions"]) == row["layers"]
        if row["gate"] == "drop":
            assert row["dense_validation"] - row["validation"] <= row["max_drop"] + 1e-6
        if row["gate"] == "equivalence" and row["accepted"]:
            assert row["p"] < 0.05


@needs_data
def test_one_layer_of_the_map(recorded):
    task = tasks.load("vit", Path(DATA))
    layer = "blocks.3.linear1"
    (known,) = (row for row in recorded["layers"] if row["key"] == f"vit {layer} tt 4.4")
    old = task.model.get_submodule(layer)
    new = methods.made("tt", 4.4).make(old)
    w = old.weight.detach()
    assert ((new.weight.detach() - w).norm() / w.norm()).item() == pytest.approx(known["weight_error"], abs=1e-3)
    before = task.splits["validation"](task.model)
    with edit(task.model) as change:
        change.put({layer: new})
    drop = (before - task.splits["validation"](task.model)).mean().item()
    change.undo()
    assert drop == pytest.approx(known["drop"], abs=0.011)  # answers near a tie may turn
