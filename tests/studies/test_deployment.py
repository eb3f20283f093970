"""What deployment is measured with, on a tiny encoder; its record; and a slice of it, made again without times."""

import json
import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from book.tools import results
from book.workbook import sources
from studies.deployment import graphs, memory, speeds, study, variants
from studies.deployment.costing import Work, of_layer, of_model, told
from studies.deployment.exports import CANNOT, CASES
from studies.deployment.variants import FORMS, Codes, int8_linear, layer_of
from ttref import TTLinear, quantize_integer
from ttref.fitting import collect_gram

LIMITS = {"flops32_per_s": 2e9, "int8_ops_per_s": 8e9, "bytes_per_s": 1e9, "threads": 1}
RECORD = results.RESULTS / "deployment.json"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny encoder in the place of MiniLM, its files in a folder of their own."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    net = BertModel(BertConfig(vocab_size=3000, max_position_embeddings=40, **sizes), add_pooling_layer=False).eval()
    loaded = sources.LoadedModel(net, None, "tiny", "drawn")
    ids = torch.randint(3000, (32, 12), generator=torch.Generator().manual_seed(1))
    names = variants.linears("minilm", net)
    monkeypatch.setattr(variants, "dense", lambda model: loaded)
    monkeypatch.setattr(variants, "grams", lambda model: collect_gram(net, names, [ids], progress=False))
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path))
    return net


@pytest.mark.filterwarnings("ignore:the inputs behind gram do not span")
def test_all_forms_of_a_model_are_made_once_and_answer(tiny):
    ids = torch.arange(24).reshape(2, 12) * 7
    found, files, held = {}, {}, {}
    for form in FORMS:
        made = variants.folder("minilm", form)
        assert variants.folder("minilm", form) == made
        net = variants.load("minilm", form, made)
        assert not net.training and not any(part.is_meta for part in (*net.parameters(), *net.buffers()))
        with torch.no_grad():
            found[form] = net(ids).last_hidden_state
        files[form] = (made / "model.safetensors").stat().st_size
        held[form] = sum(p.numel() * p.element_size() for p in net.parameters())
    with torch.no_grad():
        assert torch.equal(found["dense"], tiny(ids).last_hidden_state)
    assert torch.allclose(found["merged"], found["trains"], atol=1e-5)
    assert (found["codes"] - found["dense"]).abs().max() < 0.1 > (found["int8"] - found["codes"]).abs().max()
    assert files["merged"] == files["trains"] < files["dense"] > files["codes"] == files["int8"]
    assert held["merged"] == held["dense"] > max(held["trains"], held["svd"])
    inside = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert held["dense"] - held["svd"] >= 4 * inside / 2


def test_codes_are_those_of_the_rounding_and_both_layers_take_them():
    draw = torch.Generator().manual_seed(0)
    w, x, bias = (torch.randn(*shape, generator=draw) for shape in ((24, 16), (5, 16), (24,)))
    made = quantize_integer(w, 8)
    codes, scales = made.stored["codes"].reshape(24, 16), made.stored["scales"].float()
    expected = x @ made.approximation.T + bias
    assert torch.allclose(Codes(codes, scales, bias)(x), expected, atol=1e-5)
    assert torch.allclose(Codes(codes, scales, None)(x), expected - bias, atol=1e-5)
    error = (int8_linear(codes, scales, bias)(x) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.03  # the vectors are rounded, too


def test_work_is_counted_by_the_shapes():
    dense = nn.Linear(16, 24)
    assert of_layer(dense, 5) == Work(5 * 16 * 24, 4 * (16 * 24 + 5 * 40))
    train = TTLinear((4, 4), (4, 6), rank=3)
    assert of_layer(train, 5) == Work(train.plan(5).macs, train.plan(5).bytes)
    codes = torch.ones(24, 16, dtype=torch.int8)
    assert of_layer(Codes(codes, torch.ones(24), None), 5) == Work(5 * 16 * 24, 9 * 16 * 24 + 4 * 5 * 40)
    assert of_layer(int8_linear(codes, torch.ones(24), None), 5) == Work(5 * 16 * 24, 16 * 24 + 4 * 5 * 40, True)
    assert type(layer_of("merged", {f"cores.{k}": core.detach() for k, core in enumerate(train.cores)})) is nn.Linear


def test_a_roofline_is_the_slower_of_arithmetic_and_memory():
    assert Work(1000, 1).seconds(LIMITS) == pytest.approx(1e-6)
    assert Work(1, 1000).seconds(LIMITS) == pytest.approx(1e-6)
    assert Work(1000, 1, integer=True).seconds(LIMITS) == pytest.approx(2.5e-7)
    sums = told([Work(1000, 1), Work(1, 1000)], LIMITS)
    assert sums == {"macs": 1001, "bytes": 1001, "roofline_ms": pytest.approx(2e-3)}


def test_work_of_a_model_holds_its_matrices_and_attention(tiny):
    names = variants.linears("minilm", tiny)
    works = of_model("minilm", tiny, names, 3, 10)
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert len(names) == 12 and sum(work.macs for work in works) == 30 * matrices + 2 * (2 * 3 * 10 * 10 * 32)
    later = of_model("minilm", tiny, names, 1, 1, 9)
    assert sum(work.macs for work in later) == matrices + 2 * (2 * 10 * 32)


def test_calls_are_compared_with_the_first(monkeypatch):
    monkeypatch.setattr(speeds, "ROUNDS", 2)
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    rows = speeds.compared({name: lambda: layer(x) for name in "ab"}, {"a": [of_layer(layer, 2)]}, 2, LIMITS)
    assert [row["form"] for row in rows] == ["a", "b"] and rows[0]["times_dense"] == 1
    assert rows[0]["roofline_ms"] == pytest.approx(1e3 * 4 * (16 + 16) / 1e9) and "roofline_ms" not in rows[1]
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(2e3 / row["median_ms"])


def test_the_system_tells_the_memory_of_a_process():
    assert 0 < memory.status("VmRSS") <= memory.status("VmHWM")


def test_times_of_two_processors_do_not_stand_in_one_record(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    path = study.keep({"machine": {"processor": "another one", "threads": 1}, "minilm": []})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was begun on another one; times of two processors"):
        study.main("minilm")
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["dense", "trains", "codes"])
def test_a_matrix_of_the_encoder_answers_the_same_in_onnxruntime(form):
    layer = sources.load_encoder().model.get_submodule(graphs.LAYER)
    if form == "trains":
        layer = TTLinear.from_linear(layer, rank=31, out_shape=(1536, 1), in_shape=(6, 64))
    if form == "codes":
        stored = quantize_integer(layer.weight.detach(), 8).stored
        layer = Codes(stored["codes"].reshape(1536, 384), stored["scales"].float(), layer.bias.detach())
    x = torch.randn(7, 384, generator=torch.Generator().manual_seed(0))
    graph = graphs.written(layer, (x,))
    with torch.no_grad():
        assert graphs.apart(graphs.session(graph)(x), layer(x)) < 2e-5
    if form == "dense":
        small = graphs.in_int8(graph)
        assert len(small) < 0.3 * len(graph)
        assert 0 < graphs.apart(graphs.session(small)(x), layer(x)) < 0.05


@pytest.mark.skipif(not RECORD.is_file(), reason="python -m studies.deployment has not been run")
def test_the_record_is_whole():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["ratio"] == 2 and record["int8_engine"] in torch.backends.quantized.supported_engines
    assert {row["key"] for row in record["exports"]} == {*CASES, *CANNOT}
    for row in record["exports"]:
        assert "reason" in row or max(row["torch.export"], row["onnxruntime"]) < 2e-5
    assert len(record["memory"]) == 2 * len(FORMS)
    for row in record["memory"]:
        assert row["imported"] < row["loaded"] <= row["loading"] and row["file_bytes"] > 0
        assert all(row["imported"] < value for key, value in row.items() if key.startswith("running"))
    for section, count in (("minilm", len(speeds.SENTENCES)), ("smollm2", len(speeds.PREFILL) + 1)):
        assert len(record[section]) == count
        for case in record[section]:
            assert [row["form"] for row in case["rows"]] == list(FORMS)
            by_form = {row["form"]: row for row in case["rows"]}
            assert by_form["merged"]["macs"] == by_form["dense"]["macs"] > by_form["trains"]["macs"]
            assert by_form["codes"]["bytes"] > by_form["dense"]["bytes"] > by_form["int8"]["bytes"]
            for row in case["rows"]:
                assert row["low_ms"] <= row["median_ms"] <= row["high_ms"] and math.isfinite(row["roofline_ms"])
    for section in ("graph_layers", "graph_models"):
        for case in record[section]:
            for row in case["rows"]:
                assert row["apart"] < (0.2 if row["form"].startswith("int8") else 2e-5)
