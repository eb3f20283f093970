"""What a record says that it was made by can be run: a module with a main, or a target of make."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS
from book.tools.results import RESULTS, read
from studies.__main__ import STUDIES

COMMANDS = {path.stem: read(path.stem)["command"] for path in sorted(RESULTS.glob("*.json"))}
ROOT = Path(__file__).resolve().parents[2]
TARGETS = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_recorded_command_can_be_run(name):
    program, *rest = COMMANDS[name].split()
    if program == "make":
        assert f"\n{rest[0]}:" in TARGETS
        return
    assert [program, rest[0]] == ["python", "-m"]
    assert find_spec(f"{rest[1]}.__main__") is not None
    assert callable(importlib.import_module(f"{rest[1]}.__main__").main)
    if rest[1] == "benchmarks":
        assert [PARTS[part].RESULT for part in rest[2:]] == [name]
    else:
        assert rest[1:] == [f"studies.{name}"]


def test_make_studies_runs_every_study():
    folders = {path.parent.name for path in ROOT.glob("studies/*/__main__.py")}
    assert folders == {study.__name__.split(".")[1] for study in STUDIES}
