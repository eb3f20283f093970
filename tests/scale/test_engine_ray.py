"""The engine on Ray: the records of the pool, its own checkpoints, and the same faults; one cluster for all of it."""

import functools
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import row_sources
import scale_models
import small_tasks
import torch
from compressed import smooth
from row_sources import written
from scale_models import Experts, batches
from small_checkpoints import saved
from strategies import gaussian

pytest.importorskip("ray.data", reason="Ray Data is not installed", exc_type=ImportError)

import ray

import ttref
from ttref.scale import audit, cluster, collect_gram, compress_rows, fit_cores, rows, run

TASKS = [{"id": f"t{x}", "x": x} for x in range(4)]
JOB = {"of": "squares"}
TESTS = Path(small_tasks.__file__).parent


@pytest.fixture(scope="module")
def address():
    """Ray with two workers. It must leave nothing running, and the environment as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        before = dict(os.environ)
        with cluster(workers=2) as cpus:
            assert cpus == 2
            yield ray.get_runtime_context().gcs_address
        assert dict(os.environ) == before
    assert not ray.is_initialized()
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "ray" in name or "gcs" in name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the pool returns and writes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    records = run(working(folder), TASKS, folder / "out", job=JOB, engine="pool", workers=1)
    return records, small_tasks.hashes(folder / "out")


def working(tmp_path):
    (tmp_path / "marks").mkdir(exist_ok=True)
    return functools.partial(small_tasks.work, out=str(tmp_path / "out"), marks=str(tmp_path / "marks"))


def disturbed(**does):
    return [task | {"do": does.get(task["id"], "")} for task in TASKS]


def test_nobody_else_can_reach_it(address):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    open_to = {found.laddr.ip for one in family for found in one.net_connections("inet") if found.status == "LISTEN"}
    assert address.startswith("127.0.0.1:")
    assert open_to and open_to <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_faults_and_a_second_run(address, undisturbed, tmp_path):
    """A worker killed between its file and its record, a full disk, and a record that was cut short."""
    work, out = working(tmp_path), tmp_path / "out"
    records, files = undisturbed
    tasks = disturbed(t1="die after", t2="full")
    found = run(work, tasks, out, job=JOB, engine="ray")
    assert found[2] == {"id": "t2", "error": "OSError: [Errno 28] No space left on device: 't2'"}
    assert [found[k] for k in (0, 1, 3)] == [records[k] for k in (0, 1, 3)]

    written = [path for path in (out / ".job" / "records").iterdir() if '"t3"' in path.read_text()]
    written[0].write_bytes(written[0].read_bytes()[:-9])
    untouched = (out / "t0.txt").stat().st_mtime_ns
    assert run(work, tasks, out, job=JOB, engine="ray") == records
    assert small_tasks.hashes(out) == files
    assert (out / "t0.txt").stat().st_mtime_ns == untouched
    assert run(None, tasks, out, job=JOB, engine="pool", workers=1) == records  # either knows what the other has done


def test_what_the_pool_has_done_is_left_out(address, undisturbed, tmp_path):
    work, out = working(tmp_path), tmp_path / "out"
    run(work, TASKS[:3], out, job=JOB, engine="pool", workers=1)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("t*.txt")}
    assert (run(work, TASKS, out, job=JOB, engine="ray"), small_tasks.hashes(out)) == undisturbed
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times


def test_a_function_of_the_script_that_runs(address, tmp_path):
    """Ray sends what is in no module, where processes of the pool could not find it."""
    factor = 3
    (record,) = run(lambda task: {"found": factor * task["x"]}, TASKS[2:3], tmp_path, job=JOB, engine="ray")
    assert record == {"id": "t2", "found": 6, "error": None}


def test_work_is_read_once_in_each_process(address, tmp_path):
    """It may hold batches."""
    (tmp_path / "marks").mkdir()
    tasks = [{"id": f"t{k}"} for k in range(8)]
    run(small_tasks.Counted(tmp_path / "marks"), tasks, tmp_path / "out", job=JOB, engine="ray")
    read = [path.name.partition(" ")[0] for path in (tmp_path / "marks").iterdir()]
    assert read and len(read) == len(set(read))


def test_the_jobs_write_the_bytes_of_the_pool(address, tmp_path):
    """Although a worker is killed while it sums Gram matrices."""
    state = {f"h.{k}.fc.weight": gaussian((16, 24), k, torch.float32) for k in range(3)}
    checkpoint = saved(state, tmp_path / "model")
    found = []
    for engine, workers in (("ray", None), ("pool", 1)):
        how, out = {"engine": engine, "workers": workers}, tmp_path / engine
        forward = functools.partial(scale_models.dying, marks=str(tmp_path))
        collect_gram(Experts, ["q", "first"], batches(), out / "grams", forward=forward, parts=3, **how)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of few tokens
            fit_cores(Experts, out / "grams", out / "cores", rank=2, **how)
        audit(checkpoint, out / "audit", **how)
        found.append([small_tasks.hashes(out / name) for name in ("grams", "cores", "audit")])
    assert (tmp_path / "died").exists()
    assert found[0] == found[1]
    assert [len(hashes) for hashes in found[0]] == [2, 3, 1]


def test_rows_are_those_of_the_pool(address, tmp_path, monkeypatch):
    """Although a worker is killed within a shard; and neither engine repeats what the other has done."""
    source = [written(tmp_path, part, "npy", f"{k}") for k, part in enumerate(smooth(40, 24, 4).split(15))]
    how, out = {"eps": 0.3, "center": True, "rows_per_shard": 12}, tmp_path / "ray"
    compress_rows(source, tmp_path / "pool", engine="pool", workers=1, **how)
    undisturbed = small_tasks.hashes(tmp_path / "pool")
    monkeypatch.setattr(rows, "compress", functools.partial(row_sources.dying, marks=str(tmp_path), within=True))
    assert not compress_rows(source, out, engine="ray", **how).errors
    assert (tmp_path / "rows-00002-of-00004.safetensors").exists() and small_tasks.hashes(out) == undisturbed
    times = {path: path.stat().st_mtime_ns for path in out.glob("rows-*")}
    (out / "rows-00003-of-00004.safetensors").unlink()
    compress_rows(source, out, engine="pool", workers=1, **how)
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["rows-00003-of-00004.safetensors"] and small_tasks.hashes(out) == undisturbed


def test_a_folder_with_an_odd_name(address, tmp_path):
    out = tmp_path / "a b#c%20?;*ä" / "id=3"
    work = functools.partial(small_tasks.work, out=str(out))
    run(work, TASKS[:1], out, job=JOB, engine="ray")
    records = run(work, [TASKS[0], TASKS[1] | {"do": "raise"}], out, job=JOB, engine="ray")
    assert [record["error"] for record in records] == [None, "ValueError: no t1"]
    assert list((out / ".job" / "checkpoint").glob("*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_worker_that_dies(address, undisturbed, tmp_path, when):
    out = tmp_path / "out"
    found = run(working(tmp_path), disturbed(t1=f"die {when}"), out, job=JOB, engine="ray")
    assert (found, small_tasks.hashes(out)) == undisturbed


@pytest.mark.slow
def test_a_task_that_kills_every_worker(address, undisturbed, tmp_path):
    out = tmp_path / "out"
    found = run(working(tmp_path), disturbed(t1="die always"), out, job=JOB, engine="ray")
    assert found[1]["error"].startswith("RuntimeError: there is no record of it, after 4 tries if its worker died; Ray")
    assert "worker died unexpectedly" in found[1]["error"] and "\n" not in found[1]["error"]
    assert run(working(tmp_path), TASKS, out, job=JOB, engine="ray") == undisturbed[0]
    assert small_tasks.hashes(out) == undisturbed[1]


DRIVER = """
import functools, json, sys
import small_tasks
from ttref.scale import run

tasks, out, marks = json.loads(sys.argv[1]), *sys.argv[2:]
work = functools.partial(small_tasks.work, out=out, marks=marks)
print(json.dumps(run(work, tasks, out, job={"of": "squares"})))
"""


def driven(address, tmp_path, tasks, **options):
    """A driver in a process of its own, which works on the cluster at RAY_ADDRESS."""
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    arguments = [json.dumps(tasks), str(tmp_path / "out"), str(tmp_path / "marks")]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], env=environment, cwd=tmp_path, text=True, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_dies(address, undisturbed, tmp_path, sent):
    work, out, marks = working(tmp_path), tmp_path / "out", tmp_path / "marks"
    driver = driven(address, tmp_path, disturbed(t3="wait"), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    try:
        while not ((marks / "t3").exists() and len(small_tasks.hashes(out)) == 4):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(BlockingIOError, match="another run works on this folder now"):
            run(work, TASKS, out, job=JOB, engine="ray")
        driver.send_signal(sent)
        assert driver.wait(60) != 0
    finally:
        driver.kill()
    assert (run(work, TASKS, out, job=JOB, engine="ray"), small_tasks.hashes(out)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_dies_takes_its_own_ray_with_it(undisturbed, tmp_path, sent):
    work, out, marks = working(tmp_path), tmp_path / "out", tmp_path / "marks"
    driver = driven("local", tmp_path, disturbed(t3="wait"), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    try:
        while not (marks / "t3").exists():
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert "raylet" in [one.name() for one in family]
        driver.send_signal(sent)
        assert driver.wait(120) != 0
        _, alive = psutil.wait_procs(family, timeout=120)
        assert not alive
    finally:
        driver.kill()
    assert (run(work, TASKS, out, job=JOB, engine="pool", workers=1), small_tasks.hashes(out)) == undisturbed


@pytest.mark.slow
def test_a_cluster_gets_ttref_from_here(address, tmp_path):
    script = (
        "from ttref.scale import run\nimport ttref\n"
        "print(run(lambda task: {'file': ttref.__file__}, [{'id': 'a'}], 'out', job={})[0])"
    )
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(TESTS.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, text=True, capture_output=True, check=True
    )
    found = ended.stdout.partition("'file': '")[2].partition("'")[0]
    assert found.endswith("ttref/__init__.py") and "py_modules" in found and found != ttref.__file__


def test_read_work_and_write_are_one_task(address, tmp_path):
    """Reads of their own would keep a CPU from the work as long as there are any: at first one task at a time."""
    operators = Operators()
    logger = logging.getLogger("ray.data._internal.execution.streaming_executor")
    logger.addHandler(operators)
    try:
        run(working(tmp_path), TASKS, tmp_path / "job", job=JOB, engine="ray", workers=1)
    finally:
        logger.removeHandler(operators)
    assert operators.found == ["InputDataBuffer[Input]", "TaskPoolMapOperator[ReadTasks->Map(record_of)->Write]"]


class Operators(logging.Handler):
    """What Ray Data made of a job, by its log."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.found = []

    def emit(self, record):
        """Keep the name of an operator that has ended."""
        self.found += re.findall(r"Operator (\S+) completed", record.getMessage())


def test_no_more_workers_than_allowed(address, tmp_path):
    """Also where the cluster has more."""
    tasks = [{"id": f"t{k}"} for k in range(5)]
    spans = run(small_tasks.timed, tasks, tmp_path / "job", job=JOB, engine="ray", workers=1)
    spans = sorted((one["begun"], one["ended"]) for one in spans)
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(spans))
