"""The search of the TT-LoRA study with trials that train nothing: failures, a kill, damaged files, what is reported."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("ray.tune", reason="Ray Tune is not installed", exc_type=ImportError)

import ray
from ray import tune

from book.tools.results import RESULTS
from studies.tt_lora import search as tt_lora_search
from studies.tt_lora import selection, tuner
from ttref import TTLoRALinear

ROOT = Path(__file__).resolve().parents[2]
EVERY = {"x": tune.grid_search(list(range(6)))}


@pytest.fixture(scope="module")
def address():
    """One cluster for all tests. It must leave nothing running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with tuner.cluster() as cpus:
            assert cpus >= 1
            yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()
    assert not [child for child in psutil.Process().children(recursive=True) if "ray" in child.name()]


def test_failed_trials_do_not_end_the_search(address, tmp_path):
    def train(config, report):
        for epoch in range(4):
            if config["x"] == 1:
                raise FloatingPointError("the loss is nan")
            loss = float("nan") if config["x"] == 4 and epoch == 1 else 0.5
            report({"validation_accuracy": config["x"] / 10 + epoch / 100, "loss": loss})

    space = {"x": tune.grid_search(list(range(5)))}
    found = tuner.trials(train, space, tmp_path / "some", cpus=1, samples=1, epochs=4)
    assert [row["number"] for row in found] == [row["config"]["x"] for row in found] == list(range(5))
    assert {row["number"]: row["error"] for row in found if row["error"]} == {
        1: "FloatingPointError: the loss is nan",
        4: "FloatingPointError: loss is nan after epoch 2",
    }
    assert [len(found[k]["reports"]) for k in (1, 4)] == [0, 1]
    assert len(found[3]["reports"]) == 4  # the best of the others is never stopped
    assert found[3]["reports"][-1] == {"validation_accuracy": pytest.approx(0.33), "loss": 0.5}


def test_a_search_in_which_all_fail_says_so(address, tmp_path, monkeypatch):
    def train(config, report):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setenv("TTREF_CACHE", str(tmp_path))
    monkeypatch.setattr(tt_lora_search, "train", train)
    monkeypatch.setattr(tt_lora_search, "cluster", lambda: contextlib.nullcontext(1))  # it runs already
    with pytest.raises(RuntimeError, match=r"all trials failed \(1\); the first, \{'x': 3, 'epochs': 1\}: Floating"):
        tt_lora_search.tuned("fails", {"x": 3}, {"x": 3}, samples=1, epochs=1)


@pytest.mark.parametrize("name", ["3f0c1_00004", "3f0c1_00004_3a51", "00004_00004_0007"])
def test_the_number_of_a_trial_whose_folder_was_there_already(name):
    """A kill may come between the folder and the record of the trial; Ray then appends four hex digits to the name."""
    result = SimpleNamespace(path=f"/somewhere/{name}", config={}, metrics=None, error=None)
    assert tuner.as_row(result)["number"] == 4


KILLED = """
import sys, time
from pathlib import Path
from ray import tune
from studies.tt_lora.tuner import cluster, trials

folder, log = map(Path, sys.argv[1:])

def train(config, report):
    for epoch in range(2):
        report({"validation_accuracy": config["x"] / 10})
    with open(log, "a") as lines:
        lines.write(f"{config['x']}\\n")
    if config["x"] > 1:
        time.sleep(600)

with cluster():
    trials(train, {"x": tune.grid_search(list(range(6)))}, folder, cpus=1, samples=1, epochs=3)
"""


def halted(driver: subprocess.Popen, folder: Path, ended: int) -> bool:
    """Stops the search, and says whether its state is whole and holds so many trials that ended: no clock decides."""
    driver.send_signal(signal.SIGSTOP)
    while psutil.Process(driver.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        time.sleep(0.01)
    found = tuner.state(folder)
    if not tuner.whole(found):
        return False
    (saved,) = [json.loads(content) for name, content in found.items() if name.startswith("experiment_state")]
    return sum(json.loads(trial)["status"] == "TERMINATED" for trial, _ in saved["trial_data"]) >= ended


def test_a_killed_search_goes_on(address, tmp_path):
    folder, log = tmp_path / "killed", tmp_path / "log"
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([sys.executable, "-c", KILLED, folder, log], env=environment, cwd=tmp_path)
    until = time.monotonic() + 240
    try:
        while not halted(driver, folder, ended=2):
            assert driver.poll() is None
            assert time.monotonic() < until
            driver.send_signal(signal.SIGCONT)
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    assert {"0", "1"} <= set(log.read_text().split())

    again = tmp_path / "again"

    def train(config, report):
        with open(again, "a") as lines:
            lines.write(f"{config['x']}\n")
        for _ in range(3):
            report({"validation_accuracy": config["x"] / 10, "resumed": True})

    assert tuner.resumable(folder)
    found = tuner.trials(train, EVERY, folder, cpus=1, samples=1, epochs=3)
    assert sorted(again.read_text().split()) == ["2", "3", "4", "5"]
    assert [row["config"]["x"] for row in found] == list(range(6))
    assert not any(row["error"] for row in found)
    assert not any("resumed" in report for row in found[:2] for report in row["reports"])
    # ASHA remembers the trials from before the kill.
    newest = max(folder.glob("callback-states-*.pkl"))
    (watch,) = [state for state in pickle.loads(newest.read_bytes()).values() if state and "scheduler" in state]
    assert len(watch["scheduler"]["_brackets"][0]._rungs[-1][1]) == 6


def test_a_file_cut_short_is_replaced_by_its_copy(tmp_path):
    contents = {
        "tuner.pkl": pickle.dumps([1]),
        "basic-variant-state-1.json": pickle.dumps([2]),
        "experiment_state-1.json": json.dumps({"trials": [1, 2, 3]}).encode(),
    }
    assert not tuner.resumable(tmp_path / "nowhere")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    tuner.keep_copy(tmp_path)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content[:-2])
        tuner.keep_copy(tmp_path)  # what is damaged is not copied
        assert tuner.resumable(tmp_path)
        assert tuner.state(tmp_path) == contents
    with zipfile.ZipFile(tmp_path / tuner.KEPT) as kept:
        assert set(kept.namelist()) == set(contents)
    (tmp_path / tuner.KEPT).unlink()
    (tmp_path / "experiment_state-1.json").write_bytes(b"")
    assert not tuner.resumable(tmp_path)


DAMAGED = {
    "cut": pickle.dumps([1, 2, 3])[:-2],
    "empty": b"",
    "text": b"no pickle at all",
    "a module that is not there": b"cnowhere_at_all\nthing\n.",
    "a name that is not there": b"cjson\nnothing\n.",
    "an empty stack": b"\x80\x04.",
    "a memo that is not there": b"\x80\x04h\x07.",
    "a call that fails": b"cjson\nloads\n(I1\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_search_starts_anew_from_a_damaged_state(damage, tmp_path, capsys):
    """Whatever a pickle raises when it is read; a line says why the trials are trained once more."""
    folder = tmp_path / "search"
    folder.mkdir()
    for copy in (None, b"no archive", b"PK\x05\x06" + bytes(18)):
        (folder / "tuner.pkl").write_bytes(DAMAGED[damage])
        (folder / "experiment_state-1.json").write_bytes(b"{}")
        if copy is not None:
            (folder / tuner.KEPT).write_bytes(copy)
        assert not tuner.resumable(folder)
        assert tuner.restored(folder, lambda config: None) is None
        assert f"the search in {folder} starts anew: its state is damaged" in capsys.readouterr().out
    (folder / tuner.KEPT).unlink()
    (folder / "tuner.pkl").write_bytes(pickle.dumps([1]))
    (folder / "experiment_state-1.json").write_bytes(b"[" * 100_000)
    assert not tuner.resumable(folder)
    (folder / "experiment_state-1.json").write_bytes(b"{}")  # whole, and nothing that Ray has written
    assert tuner.resumable(folder) and tuner.restored(folder, lambda config: None) is None
    assert "starts anew: its state cannot be read" in capsys.readouterr().out
    assert tuner.restored(tmp_path / "nowhere", lambda config: None) is None and not capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="only where files have one owner")
@pytest.mark.parametrize("change", ["rights", "a file's rights", "owner", "a link"])
def test_a_state_that_others_may_have_left_is_never_read(change, tmp_path, monkeypatch):
    """To read a pickle is to run it."""
    folder = tmp_path / "search"
    folder.mkdir(mode=0o700)
    for name in ("tuner.pkl", "trial/params.pkl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"cstudies.tt_lora.tuner\nnobody_may_look_this_up\n.")
    (folder / "experiment_state-1.json").write_bytes(b"{}")
    tuner.check_own(folder)
    tuner.check_own(tmp_path / "nowhere")
    if change == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    elif change == "a link":
        folder = tmp_path / "other"
        folder.symlink_to("search")
    else:
        (folder if change == "rights" else folder / "trial" / "params.pkl").chmod(0o777)
    monkeypatch.setattr(tuner.cloudpickle, "loads", lambda content: pytest.fail("it was read"))
    with pytest.raises(PermissionError, match="set TTREF_CACHE to a folder of your own"):
        tuner.trials(None, {}, folder, cpus=1, samples=1, epochs=1)


def test_answers_survive_packing():
    right = np.random.default_rng(0).random(421) < 0.6
    assert (selection.unpack(selection.pack(right), 421) == right).all()
    assert selection.pack([True, False, False]) == "80"


def test_choosing_among_equals_flatters_as_theory_says():
    # Independent trials of the same accuracy: the better of two on m examples is sqrt(p(1-p)/(pi m)) above its mean.
    right = np.random.default_rng(0).random((24, 2000)) < 0.7
    rows = {row["trials"]: row for row in selection.flattering(right, [100], draws=1000)}
    assert list(rows) == [1, 2, 4, 8, 16, 24]
    assert abs(rows[1]["gap"]) < 4 * rows[1]["sd"] / 1000**0.5
    assert rows[2]["gap"] == pytest.approx((0.21 / np.pi / 100) ** 0.5, abs=0.006)
    gaps = [row["gap"] for row in rows.values()]
    assert gaps == sorted(gaps) and gaps[-1] > 0.07
    assert all(row["test"] == pytest.approx(0.7, abs=0.01) for row in rows.values())
    with pytest.raises(ValueError, match="of 2000 examples, 1800 to choose by"):
        next(selection.flattering(right, [1800], draws=10))


def synthetic(name, plan, space, *, samples, epochs, grace=1):
    """What a search might bring back: a trial is better the nearer its learning rate is to 0.001; one fails."""
    draw = np.random.default_rng(samples)
    found = []
    for number in range(samples if name == "search" else 8):
        lr = 10 ** draw.uniform(-4, -2)
        config = {"shape": "aligned", "rank": 1 + number % 2, "alpha": 2 - number % 2, "lr": lr}
        config = config if name == "search" else {"seed": number}
        reports = []
        for epoch in range(1 + number % 4):
            skill = 0.6 + 0.02 * epoch - (0.1 * abs(np.log10(lr) + 3) if name == "search" else 0)
            right = {split: draw.random(total) < skill for split, total in (("validation", 390), ("test", 990))}
            reports.append({f"{split}_accuracy": float(part.mean()) for split, part in right.items()})
            reports[-1] |= {f"{split}_right": selection.pack(part) for split, part in right.items()}
        error = "FloatingPointError: the loss is nan" if number == 2 and name == "search" else None
        found.append({"number": number, "config": config | {"epochs": epochs}, "reports": reports, "error": error})
    return found, 1


def test_what_a_search_records(monkeypatch, tmp_path):
    monkeypatch.setenv("TTREF_CACHE", str(tmp_path))
    task = SimpleNamespace(labels={"validation": range(390), "test": range(990)})
    monkeypatch.setattr(tt_lora_search, "docstrings", lambda: task)
    monkeypatch.setattr(tt_lora_search, "params", lambda shape, rank: 100 * rank)
    monkeypatch.setattr(tt_lora_search, "DRAWS", 200)
    called, kept = [], []

    def tuned(name, *rest, **more):
        called.append(name)
        return synthetic(name, *rest, **more)

    monkeypatch.setattr(tt_lora_search, "tuned", tuned)
    found = json.loads(json.dumps(tt_lora_search.search(lambda values: kept.append(json.dumps(values)), {})))
    assert called == ["search", "seeds"]
    values = found["search"]
    rows = {row["number"]: row for row in values["trials"] if row["error"] is None}
    assert len(rows) == len(values["trials"]) - 1 == values["sensitivity"]["trials"]
    chosen = rows[values["reported"]["number"]]
    assert values["reported"]["validation_accuracy"] == max(row["validation"][-1] for row in rows.values())
    assert values["reported"]["test_accuracy"] == chosen["test"][-1] <= values["chosen_on_test"]["test_accuracy"]
    assert values["seeds"]["config"] == {name: chosen[name] for name in ("shape", "rank", "alpha", "lr")}
    assert sum(part["trials"] for part in values["sensitivity"]["by"]["lr"]) == len(rows)
    for name, count in (("search", len(rows)), ("seeds", 8)):
        gaps = values["flattering"][name]
        assert {row["size"] for row in gaps} == {50, 100, 277, 390, 408}
        assert max(row["trials"] for row in gaps) == count
    # Killed after the search itself, it trains the seeds and nothing else; complete, it does nothing.
    first = json.loads(kept[0])["search"]
    called.clear()
    assert json.loads(json.dumps(tt_lora_search.search(kept.append, first))) == found
    assert called == ["seeds"]
    assert tt_lora_search.search(kept.append, values) == found
    assert called == ["seeds"]


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RESULTS / "tt_lora.json").read_text(encoding="utf-8"))["search"]


def test_the_record_follows_from_its_trials(recorded):
    totals = {split: recorded[f"{split}_total"] for split in ("validation", "test")}
    found = json.loads(json.dumps(tt_lora_search.outcome(recorded["trials"], totals)))
    assert found == {name: recorded[name] for name in found}
    rows = {"search": recorded["trials"], "seeds": recorded["seeds"]["trials"]}
    for name, trials in rows.items():
        right = tt_lora_search.answers(trials, totals)
        assert right.shape == (len(tt_lora_search.ended(trials)), sum(totals.values()))
        for answers, row in zip(right, tt_lora_search.ended(trials), strict=True):
            assert answers[: totals["validation"]].mean() == pytest.approx(row["validation"][-1], abs=1e-6)
            assert answers[totals["validation"] :].mean() == pytest.approx(row["test"][-1], abs=1e-6)
        for gap in selection.flattering(right, [277], recorded["flattering"]["draws"]):
            (expected,) = (
                row
                for row in recorded["flattering"][name]
                if (row["size"], row["trials"]) == (gap["size"], gap["trials"])
            )
            assert gap == pytest.approx(expected, abs=1e-6)


def test_recorded_sizes_are_those_of_the_adapters(recorded):
    for row in recorded["trials"]:
        shape = tt_lora_search.MODES[row["shape"]]
        layer = TTLoRALinear(torch.nn.Linear(384, 384), rank=row["rank"], alpha=1, shape=shape)
        assert 12 * layer.params == row["params"]  # query and value of six layers


@pytest.mark.slow
def test_one_epoch_of_the_chosen_trial(recorded):
    row = recorded["trials"][recorded["reported"]["number"]]
    found = []
    config = {name: row[name] for name in tt_lora_search.FACTORS} | {"seed": recorded["seed"], "epochs": 1}
    tt_lora_search.train(config, found.append)
    assert found[0]["validation_accuracy"] == pytest.approx(row["validation"][0], abs=0.03)
    assert found[0]["test_accuracy"] == pytest.approx(row["test"][0], abs=0.03)
