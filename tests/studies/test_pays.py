"""The numbers that the map of gains lacked: slices measured again, and what the record must keep."""

import json
import os
from pathlib import Path

import pytest
import torch

from book.tools.results import RESULTS
from studies.pays import digits, study, weights
from ttref import gaussian_null, quantize_integer

DATA = os.environ.get("TTREF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set TTREF_DATA to the folder of data that is not shipped")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "pays.json").read_text(encoding="utf-8"))


@needs_data
def test_a_table_is_as_recorded(recorded):
    known = {row["key"]: row for row in recorded["tables"] if row["key"] != "MiniLM, 0.2"}
    (found,) = weights.tables(Path(DATA), known)
    (kept,) = (row for row in recorded["tables"] if row["key"] == "MiniLM, 0.2")
    assert (found["bytes"], found["ranks"]) == (kept["bytes"], kept["ranks"])
    for key in ("train", "noise"):
        assert found[key] == pytest.approx(kept[key], rel=1e-3)
    for one, other in zip(found["svds"], kept["svds"], strict=True):
        assert (one["rank"], one["bytes"]) == (other["rank"], other["bytes"])
        assert one["error"] == pytest.approx(other["error"], rel=1e-3)


@needs_data
def test_some_matrices_are_as_recorded(recorded):
    wanted = {"ViT pos_embed", "ViT transformer.layers.0.linear1.weight", "ResNet-20 layer3.2.conv2.weight"}
    known = {row["key"]: row for row in recorded["objects"] if row["key"] not in wanted}
    left = [row for row in recorded["objects"] if row["key"] in wanted]
    found = {row["key"]: row for row in weights.objects(Path(DATA), known)}
    assert set(found) == {row["key"] for row in left} == wanted
    for row in left:
        for size, errors in row["at"].items():
            assert found[row["key"]]["at"][size]["form"] == errors["form"]
            for key in ("train", "svd", "noise"):
                assert found[row["key"]]["at"][size][key] == pytest.approx(errors[key], rel=1e-3)


def test_a_digits_layer_is_as_recorded(recorded):
    (kept,) = (row for row in recorded["digits"] if row["key"] == "train, 2 cores, 0")
    found = digits.run(digits.LAYERS["train, 2 cores"], 0)
    assert abs(found["right"] - kept["right"]) <= 4  # another processor may round otherwise
    assert (found["bytes"], found["layer_numbers"]) == (kept["bytes"], kept["layer_numbers"])


def test_rivals_are_of_the_size_of_the_train(recorded):
    for row in recorded["tables"]:
        fits, next_larger = row["svds"]
        assert fits["bytes"] <= row["bytes"] < next_larger["bytes"] and next_larger["rank"] == fits["rank"] + 1
    sizes = {row["layer"]: row["bytes"] for row in recorded["digits"]}
    for name, size in sizes.items():
        assert size <= 1.1 * sizes["train, 2 cores"], name
    seeds = {(row["layer"], row["seed"]) for row in recorded["digits"]}
    assert seeds == {(name, seed) for name in digits.LAYERS for seed in digits.SEEDS}


def test_every_matrix_is_compared_at_equal_numbers(recorded):
    assert len(recorded["objects"]) > 70
    for row in recorded["objects"]:
        assert all(0 < share[0] < 1.1 * share[1] for share in row["entropy"].values()), row["key"]
        for errors in row["at"].values():
            assert all(0 < errors[key] < 1.01 for key in ("train", "svd", "noise")), row["key"]


def smooth(m, n):
    time = torch.linspace(0, 3, m).unsqueeze(1)
    return time * (time * torch.linspace(1, 6, n)).sin()


def test_structure_shows_in_entropies_and_errors_and_noise_does_not():
    for weight, structured in ((smooth(256, 96), True), (gaussian_null(torch.ones(256, 96)), False)):
        entropies = {cut: weights.entropy(matrix) for cut, matrix in weights.cuts(weight).items()}
        null = {cut: weights.entropy(matrix) for cut, matrix in weights.cuts(gaussian_null(weight)).items()}
        share = min(entropies[cut] / null[cut] for cut in entropies)
        errors = weights.compared(weight, 4)
        assert (share < 0.5) is structured and (errors["train"] < 0.5 * errors["noise"]) is structured


def test_cores_in_eight_bits_are_counted_and_near():
    weight = smooth(256, 96)
    cores = weights.ttm_svd(weight, (32, 8, 1), (1, 1, 96), eps=0.05)
    made, nbytes = weights.rounded(cores)
    assert weights.relative(weight, made) < 0.06
    ranks = [core.shape[-1] for core in cores[:-1]]
    scales = 2 * (ranks[0] + ranks[1] + ranks[1])
    assert nbytes == sum(core.numel() for core in cores) + scales
    fits, next_larger = weights.svds(weight, nbytes)
    assert fits["rank"] == nbytes // (256 + 96 + 4) and fits["bytes"] == fits["rank"] * (256 + 96 + 4)
    assert next_larger["error"] < fits["error"]


def test_a_matrix_that_is_too_small_is_left_out():
    assert weights.compared(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), 16) is None
    assert quantize_integer(smooth(16, 8), 8).nbytes == 16 * 8 + 32


def test_the_study_names_what_it_needs():
    assert all("/" in name for name in study.NEEDED)
