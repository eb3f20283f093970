"""What a run took is written down part by part, and the book shows it, or says that there is nothing to show."""

import json
import os
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from recorded_runs import RUN

from book.tools import last_run, notebooks, used

EXTENSION = notebooks.ROOT / "book/_ext/last_run.py"
TESTS = """
import pytest

def test_passes():
    held = bytearray(200_000_000)
    assert len(held)

def test_fails():
    assert False

@pytest.fixture
def broken():
    yield
    raise RuntimeError

def test_fails_afterwards(broken):
    pass

@pytest.mark.skip(reason="not here")
def test_is_skipped():
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small project with tests, examples and a notebook."""
    top = tmp_path_factory.mktemp("project")
    for name in ("tests/one", "ttref/deep", "notebooks"):
        (top / name).mkdir(parents=True)
    (top / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (top / "tests/one/test_a.py").write_text(TESTS, encoding="utf-8")
    (top / "tests/test_b.py").write_text("def test_small():\n    pass\n", encoding="utf-8")
    (top / "ttref/deep/x.py").write_text('"""\n>>> 1 + 1\n2\n"""\n', encoding="utf-8")
    cells = [nbformat.v4.new_code_cell("x = bytearray(300_000_000)\nlen(x)"), nbformat.v4.new_code_cell("1 / 1")]
    for k, (cell, stored) in enumerate(zip(cells, ["300000000", "2.0"], strict=True), start=1):
        cell.execution_count = k
        cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": stored}, execution_count=k)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), top / "notebooks/a.ipynb")
    return top


@pytest.fixture(scope="module", params=[[], ["-n2", "--dist=loadfile"]], ids=["one process", "two"])
def run(request, folder):
    """The record of a run of that project."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--doctest-modules", *request.param]
    command += ["-p", "no:cacheprovider", "-p", "book.tools.last_run", "--last-run", "_build/deep/run.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(notebooks.ROOT)})  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"2 failed, 5 passed, 1 skipped, 1 error in [\d.]+s", done.stdout.splitlines()[-1]), done.stdout
    return last_run.read(folder / "_build/deep/run.json")


def test_each_part_is_written_down(run):
    parts = {part["name"]: part for part in run["parts"]}
    ends = {name: (part["passed"], part["failed"], part["skipped"]) for name, part in parts.items()}
    assert ends == {"notebooks/a.ipynb": (1, 1, 0), "tests/one": (1, 2, 1), "tests": (1, 0, 0), "ttref": (1, 0, 0)}
    assert all(part["seconds"] >= 0 for part in run["parts"]) and parts["notebooks/a.ipynb"]["seconds"] > 0
    assert run["seconds"] > 0 and run["cores"] > 0 and run["workers"] in {1, 2}
    assert run["versions"]["python"] and run["versions"]["torch"] and run["processor"]


@pytest.mark.skipif(last_run.peak() is None, reason="only Linux tells the peak of a process")
@pytest.mark.skipif(not last_run.forgotten(), reason="this system lets no peak begin anew")
def test_the_peak_is_of_the_process_that_ran_the_file(run):
    parts = {part["name"]: part["peak_mib"] for part in run["parts"]}
    assert 280 < parts["notebooks/a.ipynb"] < 800
    assert 190 < parts["tests/one"] < 800
    assert parts["ttref"] < parts["tests/one"], "the peak of one file is counted for the next"


def test_a_run_of_nothing_leaves_the_record(tmp_path):
    recorder = last_run.Recorder(SimpleNamespace(
        rootpath=tmp_path, option=SimpleNamespace(), getoption=lambda name: "run.json"
    ))  # fmt: skip
    recorder.pytest_sessionfinish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"format": 0}', "\udcff"], ids=repr)
def test_what_is_no_record_of_this_version_reads_as_none(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    assert last_run.read(path) is None


def test_make_test_writes_where_the_book_reads_and_git_does_not_look():
    makefile = (notebooks.ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    assert (
        recipe.count("-p book.tools.last_run --last-run _build/last_run.json") == makefile.count("last_run.json") == 1
    )
    assert '"_build" / "last_run.json"' in EXTENSION.read_text(encoding="utf-8")
    assert "/_build/" in (notebooks.ROOT / ".gitignore").read_text(encoding="utf-8").split("\n")
    page = (notebooks.ROOT / "book/last_run.md").read_text(encoding="utf-8")
    assert "```{last-run}\n```" in page and not re.search(r"\d", page), "the committed page knows no figures"


def shown(monkeypatch, path):
    """What the directive makes of a record, and what its page depends on."""
    directive = runpy.run_path(str(EXTENSION))["LastRun"]
    monkeypatch.setenv("TTREF_LAST_RUN", str(path))
    noted = []
    env = SimpleNamespace(note_dependency=noted.append, docname="book/last_run")
    made = directive.run(SimpleNamespace(env=env))
    assert noted == [str(path)], "the page would not be made anew after the next run"
    return made


def test_without_a_record_one_sentence_stands_there(monkeypatch, tmp_path):
    (told,) = shown(monkeypatch, tmp_path / "none.json")
    assert told.astext().startswith("Not run yet where these pages were built")


def test_a_record_is_shown_whole(monkeypatch, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN), encoding="utf-8")
    summary, versions, chapters, tests = shown(monkeypatch, path)
    assert summary.astext().startswith(
        "1,331 passed, 1 failed, 6 skipped, in 9 min 58 s on 2026-01-02, commit abc1234."
    )
    assert "A processor" in summary.astext() and versions.astext() == "python 3.11.7; torch 2.13.0."
    rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in chapters.findall(nodes.row)]
    title = used.title(notebooks.chapters()[0])
    assert rows == [["Notebook", "Time, s", "Peak, MiB", "Tests"],
                    [title, "61.5", "1,402", "30 passed, 1 failed"]]  # fmt: skip
    rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in tests.findall(nodes.row)]
    assert rows[1:] == [["tests/core", "80.0", "", "1,301 passed, 6 skipped"]]
