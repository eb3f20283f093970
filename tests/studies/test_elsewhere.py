"""What the chapters say of other data: the record, its arithmetic, and a slice of it run again where the data is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from book.tools.results import RESULTS
from studies.cifar import pixels
from studies.elsewhere import fixed as elsewhere_fixed
from studies.elsewhere import study as elsewhere
from studies.elsewhere.networks import ResNet20, ViT, rounded
from studies.toy_classifier import mnist
from studies.toy_classifier.data import three_parts
from studies.toy_classifier.training import SCRATCH, Arm
from studies.tt_lora.tasks import load_glue
from ttref import tt_to_tensor, ttm_svd, ttm_to_matrix

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "elsewhere.json").read_text(encoding="utf-8"))


@needs_data
@pytest.mark.parametrize("network, bits", [(ResNet20, 3), (ViT, 4)])
def test_rounded_networks_get_as_many_right_as_recorded(recorded, network, bits):
    net, (x, y) = network(Path(DATA)), pixels(Path(DATA), "test")
    (row,) = (row for row in recorded["integers"] if row["network"] == net.trained.name)
    assert abs(rounded(net, bits).correct(x, y) - row[f"right_int{bits}"]) <= 4  # answers near a tie may turn
    assert row["total"] == len(y)


@needs_data
def test_errors_of_a_convolution_and_of_a_matrix(recorded):
    rows = {(row["network"], row["layer"]): row for row in recorded["errors"]}
    for network, layer in ((ResNet20, "layer1.0.conv1.weight"), (ViT, "transformer.layers.0.linear1.weight")):
        w = network(Path(DATA)).weights()[layer]
        tries = elsewhere.convolutions(w) if w.ndim == 4 else elsewhere.linears(w)
        found = min(elsewhere.at_most(w.numel() // 4, decompose, w) for decompose in tries)
        assert found == pytest.approx(rows[network.trained.name, layer]["train_error"], abs=2e-3)


def test_the_error_read_off_the_last_core_is_that_of_the_train():
    w = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    for decompose in elsewhere.linears(w):
        cores = decompose(eps=0.5)
        dense = ttm_to_matrix(cores) if cores[0].ndim == 4 else tt_to_tensor(cores).reshape(w.shape)
        assert elsewhere.error(cores, w) == pytest.approx(((dense - w).norm() / w.norm()).item(), abs=1e-4)
        assert elsewhere.at_most(sum(core.numel() for core in cores), decompose, w) <= 0.5


def test_the_summary_counts_what_the_rows_say(recorded):
    assert elsewhere.brief(elsewhere.summary(recorded["errors"])) == [
        {key: pytest.approx(value, abs=1e-4) if not isinstance(value, str) else value for key, value in row.items()}
        for row in recorded["errors_summary"]
    ]


@needs_data
def test_draws_of_reviews_share_no_text():
    draws = [load_glue("sst2", Path(DATA), draw=draw) for draw in (0, *elsewhere.DRAWS)]
    texts = [{tuple(row) for ids in draw.ids.values() for row in ids.tolist()} for draw in draws]
    overlap = len(texts[0] & texts[1]) / len(texts[0])
    assert overlap < 0.02  # different phrases may have the same first 32 tokens
    assert len(draws[1].labels["test"]) == len(draws[0].labels["test"])


@needs_data
def test_one_network_for_other_digits_ends_near_the_record(recorded):
    held = np.load(Path(DATA) / "mnist" / "mnist_t10k_0_5000.npz")
    x, y = held["x"].reshape(5000, -1) / 255, held["y"].astype(np.int64)
    arm = Arm(mnist.TT, 1, SCRATCH)
    found = mnist.after_training(arm, elsewhere.RATE, 0, three_parts(x, y, (1000, 1000), 0))[1]
    (row,) = (row for row in recorded["digits"]["rows"] if (row["family"], row["rank"]) == (arm.family, arm.size))
    assert abs(found[2] - row["test_correct"][0]) <= 15  # another processor ends 20 epochs elsewhere


def test_the_spread_of_the_fixed_point_costs_is_that_of_the_rows(recorded):
    found = elsewhere_fixed.spreads(recorded["fixed"])
    for name, value in recorded["fixed_spread"].items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@needs_data
def test_fixed_point_costs_of_one_layer(recorded):
    network, (x, _) = ViT(Path(DATA)), pixels(Path(DATA), "test")
    name = "transformer.layers.0.self_attn.out_proj.weight"
    given = network.activations(x[: elsewhere_fixed.PICTURES])[name]
    inputs = given[:: len(given) // elsewhere_fixed.VECTORS][: elsewhere_fixed.VECTORS].double().numpy()
    modes = elsewhere_fixed.MODES[128]
    cores = [core.numpy() for core in ttm_svd(network.state[name].double(), modes, modes, rank=4)]
    rows = [row for row in recorded["fixed"] if (row["layer"], row["rank"]) == (name, 4)]
    for found, row in zip(elsewhere_fixed.lost(cores, inputs), rows, strict=True):
        assert found["bits"] == row["bits"]
        assert found["guarantee_db"] == pytest.approx(row["guarantee_db"], abs=0.5)
        assert found["cutting_db"] == pytest.approx(row["cutting_db"], abs=0.5)
