"""The engine on this machine's processes when workers die, the driver dies, and two drivers meet."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import small_tasks

from ttref.scale import run
from ttref.scale.jobs import opened

TASKS = [{"id": f"t{x}", "x": x} for x in range(5)]
JOB = {"of": "squares"}
TESTS = Path(small_tasks.__file__).parent


def working(tmp_path):
    (tmp_path / "marks").mkdir(exist_ok=True)
    return functools.partial(small_tasks.work, out=str(tmp_path / "out"), marks=str(tmp_path / "marks"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    records = run(working(folder), TASKS, folder / "out", job=JOB, engine="pool", workers=1)
    return records, small_tasks.hashes(folder / "out")


def disturbed(**does):
    return [task | {"do": does.get(task["id"], "")} for task in TASKS]


@pytest.mark.parametrize(
    "when", ["within", *(pytest.param(when, marks=pytest.mark.slow) for when in ("before", "after"))]
)
def test_a_worker_that_dies(undisturbed, tmp_path, when):
    """Before it writes its file, while it does, and between its file and its record."""
    out = tmp_path / "out"
    found = run(working(tmp_path), disturbed(t1=f"die {when}"), out, job=JOB, engine="pool", workers=2)
    assert (found, small_tasks.hashes(out)) == undisturbed
    assert [path.name for path in (tmp_path / "marks").iterdir()] == ["t1"]


@pytest.mark.slow
def test_a_task_that_kills_every_worker(undisturbed, tmp_path):
    out = tmp_path / "out"
    records, files = undisturbed
    found = run(working(tmp_path), disturbed(t3="die always"), out, job=JOB, engine="pool", workers=2)
    assert found[3] == {"id": "t3", "error": "RuntimeError: its worker died 4 times, at last by SIGKILL"}
    assert found[:3] + found[4:] == records[:3] + records[4:]
    assert run(working(tmp_path), TASKS, out, job=JOB, engine="pool", workers=1) == records
    assert small_tasks.hashes(out) == files


DRIVER = """
import functools, json, signal, sys
import small_tasks
from ttref.scale import run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has told all to ignore it
    tasks, out, marks = json.loads(sys.argv[1]), *sys.argv[2:]
    work = functools.partial(small_tasks.work, out=out, marks=marks)
    run(work, tasks, out, job={"of": "squares"}, engine="pool", workers=2)
"""


def test_a_worker_that_dies_when_nobody_else_has_work(undisturbed, tmp_path):
    """The other worker has answered and is idle: it gets the task that is left."""
    (tmp_path / "marks").mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    tasks = disturbed(t0="end first", t1="die last")[:2]
    arguments = [json.dumps(tasks), str(tmp_path / "out"), str(tmp_path / "marks")]
    subprocess.run([sys.executable, str(script), *arguments], env=environment, check=True, timeout=240)
    assert (tmp_path / "marks" / "t1").exists()
    records, _ = undisturbed
    assert run(None, TASKS[:2], tmp_path / "out", job=JOB, engine="pool", workers=1) == records[:2]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_dies(undisturbed, tmp_path, sent):
    """Killed, or stopped by Ctrl-C, while a worker is in a task: nothing runs on, and the next run goes on."""
    work, out, marks = working(tmp_path), tmp_path / "out", tmp_path / "marks"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    arguments = [json.dumps(disturbed(t4="wait")), str(out), str(marks)]
    driver = subprocess.Popen(
        [sys.executable, str(script), *arguments], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 240
    try:
        while not ((marks / "t4").exists() and len(small_tasks.hashes(out)) == 5):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert len(family) >= 2
        with pytest.raises(BlockingIOError, match="another run works on this folder now"):
            run(work, TASKS, out, job=JOB)
        os.killpg(driver.pid, sent) if sent == signal.SIGINT else driver.send_signal(sent)
        assert driver.wait(60) != 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
    finally:
        driver.kill()
    done = []

    def again(task):
        done.append(task["id"])
        return work(task)

    found = run(again, TASKS, out, job=JOB, engine="pool", workers=1)
    assert (found, small_tasks.hashes(out)) == undisturbed
    assert "t4" in done and len(done) <= 2  # the record of the task before it may be lost


def test_a_worker_that_is_killed_while_it_starts_is_replaced(undisturbed, tmp_path):
    (tmp_path / "marks").mkdir()
    fatal = small_tasks.Fatal(tmp_path / "marks", tmp_path / "out", times=1)
    found = run(fatal, TASKS, tmp_path / "out", job=JOB, engine="pool", workers=2)
    assert (found, small_tasks.hashes(tmp_path / "out")) == undisturbed
    assert len(list((tmp_path / "marks").iterdir())) == 1


@pytest.mark.slow
def test_workers_that_are_all_killed_while_they_start_end_the_run(tmp_path):
    (tmp_path / "marks").mkdir()
    fatal = small_tasks.Fatal(tmp_path / "marks", tmp_path / "out", times=4)
    with pytest.raises(RuntimeError, match="a worker could not start .SIGKILL"):
        run(fatal, TASKS, tmp_path / "out", job=JOB, engine="pool", workers=2)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace('if __name__ == "__main__":', "if True:"))
    arguments = ['[{"id": "a", "x": 1}]', str(tmp_path / "out"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    ended = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    assert "a worker could not start" in ended.stderr.splitlines()[-1]
    assert 'under `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]


def test_two_drivers(tmp_path):
    with opened(tmp_path, JOB) as job:
        assert [run(dict, [{"id": name}], job, workers=1)[0]["id"] for name in "ab"] == ["a", "b"]
        with pytest.raises(TypeError, match="job was given when the job was opened"):
            run(dict, [], job, job=JOB)
        with pytest.raises(BlockingIOError, match="another run works on this folder now; wait for its end, or stop it"):
            run(small_tasks.work, TASKS, tmp_path, job=JOB)
    assert run(working(tmp_path), TASKS[:1], tmp_path / "out", job=JOB)[0]["error"] is None
