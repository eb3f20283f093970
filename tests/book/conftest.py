"""Fixtures for the checks of notebooks and pages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_runs import RUN

from book.tools.notebooks import ROOT, revision

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "_build", "ttref-book", "__pycache__", ".*_cache", ".hypothesis", ".ipynb_checkpoints"
)


@pytest.fixture
def copy_of_the_checkout(tmp_path) -> Path:
    """A copy of the working tree that a test may change."""
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=NOT_COPIED))


@pytest.fixture(scope="session")
def remote(tmp_path_factory) -> str:
    """A local git repository with the working tree in it, to stand for the public address."""
    folder = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("remote") / "owner-name", ignore=NOT_COPIED))
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--no-verify", "-m", "the working tree"], check=True)
    subprocess.run([*git, "tag", revision()], check=True)
    subprocess.run([*git, "commit", "--quiet", "--no-verify", "--allow-empty", "-m", "later work"], check=True)
    subprocess.run([*git, "repack", "-adq"], check=True)  # compressed once, and not for each clone
    return folder.as_uri()


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    """The book, built afresh with the command of `make book` into a folder of its own; it shows a record."""
    out = tmp_path_factory.mktemp("book")
    run = out / "run.json"
    run.write_text(json.dumps(RUN), encoding="utf-8")
    builder = Path(sys.executable).with_name("jupyter-book")
    command = [builder, "build", ".", "--toc", "book/_toc.yml", "--path-output", out, "-W", "-n", "--keep-going"]
    env = os.environ | {"NO_COLOR": "1", "TTREF_LAST_RUN": str(run)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build/html"
