"""Pictures drawn from recorded results: each must be what its JSON draws today, so a figure cannot outlive its data."""

import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from benchmarks import adapters, layers, page, tables, trains
from studies.convolutions import figure as convolutions_figure
from studies.overview import figure as overview_figure

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"


@pytest.mark.parametrize(
    ("name", "draw", "picture"),
    [
        *((part.RESULT, part.draw, page.picture(part.RESULT)) for part in (trains, layers, tables, adapters)),
        ("overview", overview_figure.draw, overview_figure.PICTURE),
        ("convolutions", convolutions_figure.draw, convolutions_figure.PICTURE),
    ],
)
def test_a_picture_is_what_its_results_draw(name, draw, picture):
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    fresh = io.BytesIO()
    drawn = draw(results)
    drawn.savefig(fresh, format="png", facecolor="white")
    plt.close(drawn)
    ours, stored = (np.asarray(Image.open(source).convert("RGB"), dtype=float) for source in (fresh, picture))
    command = "bench" if "benchmarks" in draw.__module__ else "studies"
    assert ours.shape == stored.shape, f"make {command} redraws the picture"
    assert np.abs(ours - stored).mean() < 0.5
    assert (np.abs(ours - stored).max(-1) > 64).mean() < 1e-3


def ratios(case):
    return {row["name"]: row["ratio"] for row in case["rows"]}


def only(results, **wanted):
    (case,) = (case for case in results["cases"] if wanted.items() <= case.items())
    return case


def test_recorded_layers_keep_what_the_page_says():
    for case in json.loads((RESULTS / "layers.json").read_text(encoding="utf-8"))["cases"]:
        ratio = ratios(case)
        fastest_peer = min(ratio[name] for name in layers.PEERS)
        where = case["in_shape"], case["out_shape"], case["rank"], case["batch"]
        if case["macs"] <= case["dense_macs"] / 2:
            assert ratio["nn.Linear"] >= 1 / 1.1, where
        if case["batch"] == 1 and case["rank"] == 8 and case["in_shape"] == [16, 16, 16]:
            assert ratio["nn.Linear"] >= 10, where
        if case["in_shape"] == [8, 8, 12]:
            assert fastest_peer >= {64: 1.8, 512: 1.2}.get(case["batch"], 0), where


def test_recorded_integers_keep_what_the_page_says():
    """Eight bits in float32, 16 in float64: both beat NumPy's integer products and apytypes."""
    for case in json.loads((RESULTS / "integers.json").read_text(encoding="utf-8"))["cases"]:
        ours = case["rows"][0]
        ratio = ratios(case)
        assert ours["median_us"] <= 300_000, case["case"]
        assert min(ratio["the same in int64"], ratio["apytypes"]) >= 2, case["case"]
        assert ratio["dense layer, products alone"] < 1, case["case"]


def test_recorded_reshapes_keep_what_the_page_says():
    for case in json.loads((RESULTS / "reshapes.json").read_text(encoding="utf-8"))["cases"]:
        ratio = ratios(case)
        kind, torch_too = case["kind"], case.get("library") == "PyTorch"
        if kind == "rows" or (kind == "layer" and case["rank"] == 8 and torch_too):
            assert ratio["copied"] >= 1.5, case["case"]
        if kind == "rebuild" and not torch_too:
            assert ratio["copied"] >= 1.5, case["case"]
        if kind == "einsum":
            assert ratio["np.einsum, optimal"] > 1000 and ratio["np.einsum, optimal, no memory limit"] < 3
            macs = case["macs"]
            assert macs["np.einsum, optimal"] == macs["np.einsum"] > 100 * macs["ttref.ttm_matvec"]


def test_every_result_says_where_it_comes_from():
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    assert names == [
        *"adapters advise audits convolutions deployment elsewhere embeddings fits fitting fpga fusion".split(),
        *"integers layers memory overview partial_tensorization pays reshapes retrieval scale".split(),
        *"speed structures tables toy_classifier tt_lora".split(),
    ]
    for name in names:
        record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert {"command", "date", "seed", "machine"} <= set(record), name


@pytest.mark.parametrize(("rank", "peer", "least"), [(4, "TensorLy, loop", 36), (1, "TensorLy, loop", 100)])
def test_recorded_speed_keeps_what_the_page_says(rank, peer, least):
    results = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    cases = [
        case for case in results["cases"] if case["case"].startswith("TT-SVD") and case["case"].endswith(str(rank))
    ]
    assert len(cases) == 2
    for case in cases:
        (row,) = (row for row in case["rows"] if row["name"] == peer)
        assert row["ratio"] >= least


def test_recorded_tables_keep_what_the_page_says():
    results = json.loads((RESULTS / "tables.json").read_text(encoding="utf-8"))
    assert ratios(only(results, case="build, one train a row, rank 4"))["TensorLy on PyTorch, loop"] >= 30
    for count in (512, 8192):
        ratio = ratios(only(results, case=f"look-up, one TT-matrix, rank 8, {count:,} ids"))
        assert ratio["tltorch FactorizedEmbedding"] >= 1.5
    ratio = ratios(only(results, case="look-up, one train a row, rank 4, 512 ids"))
    assert ratio["nn.Embedding"] >= 1 / 12
    assert ratio["rebuild, then index"] >= 100


def test_recorded_adapters_keep_what_the_page_says():
    results = json.loads((RESULTS / "adapters.json").read_text(encoding="utf-8"))
    peer, base, rebuilt = "PEFT LoRA, r = 8", adapters.BASE, "rebuilt as in the published code"
    training, apart, merged = (ratios(only(results, kind=kind)) for kind in ("train", "apart", "merged"))
    assert training[peer] >= 1 / 1.1 and apart[peer] >= 1 / 1.05
    assert abs(merged[base] - 1) <= 0.05
    assert training[rebuilt] > 1.05 and apart[rebuilt] > 1.05
    weights = {row["name"]: row for row in results["cases"][0]["weights"]}
    ours = next(row for name, row in weights.items() if name.startswith("TT-LoRA, rank 4"))
    for cost in ("adam_bytes", "file_bytes"):
        assert 8 * ours[cost] <= weights[peer][cost], cost
