"""What the studies keep between runs: in the user's own folders, whole, and made anew where it is damaged."""

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from strategies import gaussian

from book.tools import results as record
from studies.embeddings import methods as embedding_methods
from studies.embeddings import study as embeddings
from studies.tt_lora import study as tt_lora
from ttref import files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "shared").mkdir()
    return tmp_path / "cache"


def counted(monkeypatch):
    calls, real = [], embedding_methods.product_quantize

    def quantize(table, **options):
        calls.append(options)
        return real(table, **options)

    monkeypatch.setattr(embedding_methods, "product_quantize", quantize)
    return calls


def test_product_quantization_is_kept_for_its_user_alone(cache, monkeypatch):
    calls, table = counted(monkeypatch), gaussian((40, 8), 0, torch.float32)
    made, nbytes = embedding_methods.product(table, 2)
    again, same = embedding_methods.product(table, 2)
    assert torch.equal(made, again) and nbytes == same and len(calls) == 1
    (kept,) = cache.rglob("*.safetensors")
    assert stat.S_IMODE(kept.parent.stat().st_mode) == stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert list((cache.parent / "shared").iterdir()) == []
    for other in (table + 1, table.reshape(20, 16), table[:39]):
        embedding_methods.product(other, 2)
    embedding_methods.product(table, 4)
    assert len(calls) == 5


@pytest.mark.parametrize("damage", ["cut", "other", "text"])
def test_a_damaged_product_quantization_is_made_anew(damage, cache, monkeypatch, capsys):
    calls, table = counted(monkeypatch), gaussian((40, 8), 0, torch.float32)
    made, nbytes = embedding_methods.product(table, 2)
    (kept,) = cache.rglob("*.safetensors")
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif damage == "text":
        kept.write_text("text")
    else:
        files.write(kept, "product quantization", {"approximation": made[:, :4]}, {"nbytes": 1}, lambda *content: None)
    again, same = embedding_methods.product(table, 2)
    assert torch.equal(made, again) and nbytes == same and len(calls) == 2
    assert f"{kept} is no product quantization" in capsys.readouterr().out
    embedding_methods.product(table, 2)
    assert len(calls) == 2


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_record_is_written_whole(results, monkeypatch):
    path = record.write("some", {"value": 1}, command="python -m some")
    assert record.read("some")["value"] == 1 and record.read("other") == {}
    before = path.read_bytes()

    def stop(number):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        record.write("some", {"value": 2}, command="python -m some")
    assert path.read_bytes() == before and list(results.iterdir()) == [path]


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "", '{"a":' * 100_000])
@pytest.mark.parametrize("study, name", [(embeddings, "embeddings"), (tt_lora, "tt_lora")])
def test_a_damaged_record_is_named(study, name, content, results, tmp_path, monkeypatch):
    results.mkdir()
    (results / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=f"{name}.json is damaged .*; restore it, or remove it to measure all anew"):
        record.read(name)
    monkeypatch.setenv("TTREF_DATA", str(tmp_path))
    monkeypatch.setattr(study, "SECTIONS", {"section": lambda folder, keep, recorded: {}})
    with pytest.raises(ValueError, match="is damaged"):
        study.main("section")
    assert (results / f"{name}.json").read_text() == content


def test_nothing_is_kept_where_everybody_writes():
    """Nor read by what would run code from it: no pickles, and no names in the shared temporary folder."""
    folders = ("studies", "benchmarks", "book")
    sources = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    words = ("gettempdir", "mkdtemp", "mktemp(", "NamedTemporaryFile", "torch.load", "import pickle", "torch.save")
    found = {f"{path.name}: {word}" for path in sources for word in words if word in path.read_text(encoding="utf-8")}
    assert not found


def test_every_record_can_be_read():
    assert all(isinstance(record.read(path.stem), dict) for path in record.RESULTS.glob("*.json"))
    assert json.loads((record.RESULTS / "overview.json").read_text(encoding="utf-8")) == record.read("overview")
