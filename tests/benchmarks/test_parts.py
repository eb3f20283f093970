"""Every part of the benchmarks measured small: what it records, what it writes, and that its contenders agree."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from seen_layers import small
from small_checkpoints import saved, small_model
from torch import nn

from benchmarks import __main__ as benchmarks
from benchmarks import (
    adapters,
    audits,
    copies,
    einsums,
    fits,
    integers,
    layers,
    measure,
    memory,
    page,
    reshapes,
    tables,
    trains,
)
from book.tools import results


def checkpoint():
    return saved(small_model(), Path(tempfile.mkdtemp()))


LAYER = ((2, 3, 2), (3, 2, 2), 2)
SMALL = {
    "trains": [(trains, {"ROWS": 12, "SOME": 8, "FEW": 4, "MATRIX": (12, 20, (5, 2, 2), (3, 2, 2), 2)})],
    "layers": [(layers, {"LAYERS": (LAYER,), "ROUNDS": 1})],
    "memory": [(memory, {"LAYERS": ((12, 18, 2),), "BATCH": 4, "ROUNDS": 1})],
    "tables": [
        (tables, {"ROWS": 300, "LOOK_UPS": (1, 4), "APPENDED": (2,), "ROW_SHAPE": (8, 8, 5), "RANK": 2, "ROUNDS": 1})
    ],
    "fits": [(fits, {"layers": small, "ROUNDS": 1, "SEARCHES": 1})],
    "audits": [(audits, {"CHECKPOINTS": (audits.Checkpoint("small", checkpoint, 1),)})],
    "integers": [(integers, {"VECTORS": 4, "ROUNDS": 1})],
    "reshapes": [
        (copies, {"LAYERS": (LAYER, LAYER), "BATCHES": (2,), "ROWS": 3, "ROW_MODES": (2, 2, 2)}),
        (einsums, {"LAYER": LAYER}),
        (reshapes, {"ROUNDS": 1}),
    ],
    "adapters": [(adapters, {"BATCH": 2, "LENGTH": 8, "SHORT": 4, "ROUNDS": 1})],
}
SLOW = {"adapters"}


@pytest.fixture
def limits(tmp_path, monkeypatch):
    given = results.here() | {"flops_per_s": 1e11, "flops32_per_s": 2e11, "bytes_per_s": 1e10}
    for module in (benchmarks, reshapes):
        monkeypatch.setattr(module, "machine", given.copy)
    for module in (results, page):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "_static").mkdir()
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0)
    monkeypatch.setattr(measure, "_best_threads", lambda contender: 1)
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)  # it takes longer than all that is measured here
    table = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(20, 960))
    monkeypatch.setattr(trains, "load_language_model", lambda: SimpleNamespace(model=table))
    return given


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in benchmarks.PARTS])
def test_a_part_is_measured_recorded_and_written(name, limits, monkeypatch, capsys):
    for module, sizes in SMALL[name]:
        for constant, value in sizes.items():
            assert hasattr(module, constant)
            monkeypatch.setattr(module, constant, value)
    threads = torch.get_num_threads()
    benchmarks.main([name])
    part = benchmarks.PARTS[name]
    record = results.read(part.RESULT)
    assert list(record)[:7] == ["command", "date", "models", "data", "seed", "machine", "versions"]
    assert record["command"] == f"python -m benchmarks {name}" and record["machine"] == limits
    assert set(record["versions"]) == {"python", *part.PACKAGES}
    timed = {"memory": ("forward_ms", "training_ms"), "audits": ("seconds", "cpu_seconds", "floor_s")}
    timed = timed.get(name, ("median_us",))
    assert all(row[key] > 0 for case in record["cases"] for row in case["rows"] for key in timed)
    shown = page.table(part.RESULT).read_text(encoding="utf-8")
    assert shown == part.markdown(record) and shown in capsys.readouterr().out
    assert page.picture(part.RESULT).is_file() == hasattr(part, "draw")
    assert torch.get_num_threads() == threads
