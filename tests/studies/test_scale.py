"""The cost model; what the study on scaling is made of, on tiny tables; its record, and the bars it keeps."""

import json
import math
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from book.tools import results
from book.workbook.scaling import (
    LLAMA_405B,
    QUOTED,
    Job,
    Place,
    audit_flops,
    break_even,
    draws,
    euros,
    middle,
    row_work,
    terms,
)
from studies.scale import large, once, processes, sections, source, study
from ttref import MPSEmbedding
from ttref.rows.packed import RowLayout
from ttref.scale import Table, compress_rows

RECORD = results.RESULTS / "scale.json"
recorded = pytest.mark.skipif(not RECORD.is_file(), reason="python -m studies.scale has not been run")


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture
def pieces(tmp_path):
    """A table of 700 rows in three files, drawn in this process."""
    tmp_path.joinpath("source").mkdir()
    for seed, count in enumerate((300, 300, 100)):
        source.drawn({"id": f"rows-{seed}.safetensors", "seed": seed, "rows": count}, str(tmp_path / "source"))
    return sorted(tmp_path.joinpath("source").iterdir())


def test_time_is_a_start_tasks_computing_and_bytes():
    job, place = Job(100, 6e8, 4e8, 10), Place(2, 0.1, 0.5, network=1e8, storage=5e8)
    found = terms(job, place, 4)
    assert found == {"start": 2, "tasks": 1.0, "compute": 50.0, "network": 2.5, "storage": 2.0}
    assert terms(job, place._replace(wait=0.4), 4) == found | {"tasks": 2.0}
    more = terms(job, place, 8)
    assert {name: found[name] / more[name] for name in found} == {
        "start": 1, "tasks": 1, "compute": 2, "network": 2, "storage": 1,
    }  # fmt: skip


def test_both_places_take_as_long_at_the_break_even():
    row = Job(3e-5, 3072, 80, 1 / 16_384)
    here, there = Place(3, 0.001, network=1e9), Place(200, 0.01, 0.8, network=5e7)
    rows = break_even(row, here, there, 2, 64)
    whole = Job(*(rows * each for each in row))
    assert sum(terms(whole, here, 2).values()) == pytest.approx(sum(terms(whole, there, 64).values()))
    assert break_even(row, here, here, 2, 2) == math.inf == break_even(row, here, there._replace(storage=1e6), 2, 64)
    several = break_even(row, here, there._replace(start=np.array([200.0, 400.0])), 2, 64)
    assert several[0] == pytest.approx(rows) and several[1] > rows


def test_draws_are_the_same_in_every_run_and_lie_between_their_bounds():
    drawn = draws(QUOTED)
    for name, quote in QUOTED.items():
        assert (quote.low <= drawn[name]).all() and (drawn[name] <= quote.high).all() and quote.sources
        low, high = middle(drawn[name])[1:]
        assert quote.low < low < high < quote.high
        assert np.array_equal(drawn[name], draws(QUOTED)[name])
    assert euros(3600, 10, 0.05) == 0.5


def test_counts_follow_from_shapes():
    assert sum(math.prod(shape) * count for shape, count in LLAMA_405B.values()) == 405_853_388_800
    needs = row_work((2,) * 10, 1, 768)
    assert needs["bytes_in"] == 3072 and needs["bytes_out"] == 4 * RowLayout((2,) * 10, 1, 768).numbers == 80
    bonds = [1024 >> k for k in range(1, 10)]
    assert needs["flops"] == sum(2 * 4 * columns + 72 + 4 * columns for columns in bonds)
    assert row_work((2,) * 10, 64, 768)["bytes_out"] == 3072  # nothing is truncated
    assert audit_flops(64, 96, noise=0) * 4 == pytest.approx(audit_flops(64, 96))
    assert audit_flops(1024, 1024) > 7 * audit_flops(512, 512)


def test_a_table_is_drawn_from_the_seed_of_each_file(pieces, tmp_path):
    again = source.drawn({"id": "again.safetensors", "seed": 1, "rows": 300}, str(tmp_path))
    assert again == {"rows": 300}
    assert (tmp_path / "again.safetensors").read_bytes() == pieces[1].read_bytes()
    assert load_file(pieces[1])["rows"].shape == (300, source.WIDTH)


def test_one_run_says_how_long_it_took(pieces, tmp_path):
    given = {"source": [str(path) for path in pieces], "destination": str(tmp_path / "out"), "rank": 1}
    found = once.rows(given | {"engine": "pool", "workers": 1, "rows_per_shard": 256})
    assert 0 < found["work_s"] <= found["seconds"] and found["spills"] == 0
    assert once.empty({"tasks": 3, "folder": str(tmp_path / "none"), "engine": "pool", "workers": 1})["seconds"] > 0


def test_shards_are_checked_across_files(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "CHECKED", 1)
    out = tmp_path / "out"
    compress_rows(pieces, out, rank=large.RANK, rows_per_shard=256, engine="pool", workers=1)
    assert large.checked(pieces, out) == {"checked": 3, "checked_and_same": 3}
    assert (
        [shard.rows for shard in Table(out).shards]
        == [256, 256, 188]
        == [MPSEmbedding.load(path).num_embeddings for path in large.written(out)]
    )
    rows = load_file(pieces[2])["rows"]
    save_file({"rows": rows + 1}, pieces[2])
    assert large.checked(pieces, out) == {"checked": 3, "checked_and_same": 2}


def test_the_memory_of_a_driver_is_that_of_all_its_descendants():
    inner = "import time; held = bytearray(60 << 20); time.sleep(30)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with processes.subprocess.Popen([sys.executable, "-c", outer]) as process:
        try:
            for _ in range(200):
                family = processes.descendants(process.pid)
                if sum(map(processes.proportional, family)) > 60 << 20:  # pages come as they are filled
                    break
                processes.time.sleep(0.05)
            assert len(family) == 2 == len(processes.alive(family))
            assert 60 << 20 < sum(map(processes.proportional, family)) <= sum(map(processes.resident, family))
        finally:
            process.kill()
    processes.wait_for_end(family, patience=0)
    processes.wait_for_end(family)
    assert processes.alive(family) == [] and processes.resident(process.pid) == processes.proportional(process.pid) == 0


def test_a_record_of_another_processor_is_not_continued():
    with pytest.raises(ValueError, match="was begun on another one; times of two processors"):
        study.begun({"machine": {"processor": "another one"}})


def test_what_is_recorded_is_not_measured_again():
    keys = [f"{engine} {turn}" for turn in range(sections.STARTS) for engine in sections.ENGINES]
    assert list(sections.engines(dict.fromkeys(keys, {}))) == []
    done = {sections.key_of(one, turn): {} for turn in range(sections.ROUNDS) for one in sections.settings()}
    assert len(done) == 6 * sections.ROUNDS and list(sections.runs(done)) == []
    keys = [sections.about(*one) for one in sections.shard_sizes()]
    assert list(sections.overhead(dict.fromkeys(keys, {}))) == []
    assert (
        list(large.large(dict.fromkeys(("pool", "ray", "killed"), {}))) == list(sections.audits({"minilm": {}})) == []
    )


@pytest.mark.slow
def test_a_table_is_the_same_on_both_engines_and_after_a_kill(monkeypatch):
    monkeypatch.setattr(large, "CHECKED", 2)
    rows = {row["key"]: row for row in large.large({}, rows=60_000, shard=2048)}
    whole(rows)


def whole(rows):
    assert len({row["sha256"] for row in rows.values()}) == 1
    assert all(row["spills"] == 0 for row in rows.values())
    killed = rows["killed"]
    assert not killed["finished_when_killed"] and killed["kept_and_same"] == killed["kept_when_killed"] > 0
    assert killed["checked_and_same"] == killed["checked"] > 0


@recorded
def test_the_record_is_whole(record):
    assert {row["rank"] for row in record["core"] if "rank" in row} == {1, 2, 4} and record["core"][-1]["key"] == "read"
    assert len(record["engines"]) == len(sections.ENGINES) * sections.STARTS
    wanted = {sections.key_of(one, turn) for turn in range(sections.ROUNDS) for one in sections.settings()}
    assert {row["key"] for row in record["runs"]} == wanted
    assert [row["key"] for row in record["overhead"]] == [sections.about(*one) for one in sections.shard_sizes()]
    assert all(row["spills"] == 0 and row["rss"] < 4e9 for row in record["runs"])


@recorded
def test_the_recorded_figures_keep_the_bars(record):
    rows = {row["key"]: row for row in record["large"]}
    whole(rows)
    assert all((row["rows"], row["width"]) == (5_000_000, 768) and row["rss"] < 4e9 for row in rows.values())
    assert rows["killed"]["first_rss"] < 4e9
    idle = {
        (row["engine"], row["workers"], row["rows_per_shard"]): row["workers"] * row["seconds"] / row["work_s"] - 1
        for row in record["overhead"]
    }
    assert idle["ray", 1, 65_536] <= 0.1 and idle["ray", 1, 262_144] <= 0.1
    assert idle["ray", 2, 262_144] < idle["ray", 2, 65_536] < idle["ray", 2, 16_384]
