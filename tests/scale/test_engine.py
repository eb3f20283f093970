"""The engine on this machine's processes: what ends, what fails, what is refused, and what a folder remembers."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_tasks
import torch

import ttref
from ttref.scale import run

TASKS = [{"id": f"t{x}", "x": x} for x in range(5)]


def expected(tasks):
    return [{"id": t["id"], "square": t["x"] ** 2, "third": t["x"] / 3, "error": None} for t in tasks]


@pytest.fixture
def do(tmp_path):
    """Runs small tasks; the work writes into one folder, the job keeps its state there too."""
    (tmp_path / "marks").mkdir()
    out = tmp_path / "out"
    work = functools.partial(small_tasks.work, out=str(out), marks=str(tmp_path / "marks"))

    def do(tasks=TASKS, job=None, **options):
        options = {"engine": "pool", "workers": 1} | options
        return run(options.pop("work", work), tasks, out, job=job or {"of": "squares"}, **options)

    do.out = out
    return do


@pytest.mark.parametrize("workers", [1, 2])
def test_records_in_the_order_of_the_tasks(do, workers):
    assert do(workers=workers) == expected(TASKS)
    assert do(workers=workers, work=None) == expected(TASKS)  # nothing is done twice
    assert do(TASKS[::-1], work=None) == expected(TASKS[::-1])


def test_errors_are_recorded_and_tried_again(do):
    tasks = [*TASKS[:2], TASKS[2] | {"do": "raise"}, TASKS[3] | {"do": "full"}, TASKS[4]]
    found = do(tasks)
    assert found[2] == {"id": "t2", "error": "ValueError: no t2"}
    assert found[3] == {"id": "t3", "error": "OSError: [Errno 28] No space left on device: 't3'"}
    assert [found[k] for k in (0, 1, 4)] == expected([TASKS[0], TASKS[1], TASKS[4]])
    assert [record["error"] for record in do(tasks)] == [None, None, "ValueError: no t2", None, None]


def test_one_thread_of_torch(do):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (record,) = do(TASKS[:1], work=lambda task: {"threads": torch.get_num_threads()})
        assert record["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_another_job_is_refused(do):
    do(job={"rank": 2, "eps": None})
    with pytest.raises(ValueError, match="out holds a job with rank 2, and this one has 3; give the same settings"):
        do(job={"rank": 3, "eps": None})
    with pytest.raises(ValueError, match="a job with eps None, and this one has 'left out'"):
        do(job={"rank": 2})
    (do.out / ".job" / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json is damaged; remove .*\.job to start anew"):
        do(job={"rank": 2, "eps": None})


def test_records_that_are_cut_short_are_none(do):
    do()
    (path,) = (do.out / ".job" / "records").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    done = []
    assert do(work=lambda task: done.append(task["id"]) or small_tasks.work(task, do.out)) == expected(TASKS)
    assert done == ["t4"]
    assert do(work=None) == expected(TASKS)


@pytest.mark.parametrize(
    "tasks, error, says",
    [
        ([{"x": 1}], ValueError, "every task needs an id, a str that is not empty, not None"),
        ([{"id": 3}], ValueError, "not 3"),
        ([{"id": "a"}, {"id": "a"}], ValueError, "two tasks have the id 'a'"),
        ([{"id": "a", "x": {1}}], TypeError, "a task must hold JSON values only"),
        (["a"], TypeError, "a task is a dict of JSON values, not str"),
    ],
)
def test_tasks_that_are_none(do, tasks, error, says):
    with pytest.raises(error, match=says):
        do(tasks)
    assert not do.out.exists()


def test_a_result_that_json_does_not_hold(do):
    (record,) = do(TASKS[:1], work=small_tasks.not_json)
    assert record["error"].startswith("TypeError: what work returns must hold JSON values only")


def test_arguments(do):
    with pytest.raises(ValueError, match="engine is one of pool, ray, not 'dask'"):
        do(engine="dask")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        do(workers=0)
    with pytest.raises(TypeError, match="job must hold JSON values only"):
        do(job={"shape": {1}})
    with pytest.raises(TypeError, match=r"work must be a function of a module.*with workers=1 it stays"):
        do(workers=2, work=lambda task: {})


def test_a_folder_that_cannot_be_written(do):
    do.out.write_text("a file")
    with pytest.raises(OSError, match="nothing was started"):
        do()


def test_the_state_is_plain_to_read(do):
    do()
    assert json.loads((do.out / ".job" / "job.json").read_text()) == {"of": "squares"}
    assert not list(do.out.glob("**/*.part"))


WINDOWS = """
import os, pkgutil, signal, sys, warnings
from importlib import import_module

import torch

for name in ("fcntl", "grp", "pwd", "resource"):
    sys.modules[name] = None
for of, name in ((os, "sched_getaffinity"), (signal, "SIGKILL")):
    vars(of).pop(name, None)
import ttref.scale

for module in pkgutil.iter_modules(ttref.scale.__path__):
    if module.name != "ray_data":
        import_module(f"ttref.scale.{module.name}")
with warnings.catch_warnings(record=True) as caught:
    print(ttref.scale.run(dict, [{"id": "a", "x": 1}], sys.argv[1], job={}, workers=1))
assert "cannot be locked" in str(caught[0].message)
"""


def test_a_system_without_what_unix_alone_has(tmp_path):
    """As on Windows: nothing that is imported asks for it."""
    found = subprocess.run(
        [sys.executable, "-c", WINDOWS, str(tmp_path)],
        cwd=Path(ttref.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr) == ("[{'id': 'a', 'x': 1, 'error': None}]\n", "")
