"""Where no browser is found, tests that need one are skipped; run by .ci/run, they fail instead."""

import os
import subprocess
import sys

import pytest

from book.tools.notebooks import ROOT


@pytest.mark.parametrize(("asked", "end"), [({}, "1 skipped"), ({"TTREF_BROWSER": "required"}, "1 error")], ids=repr)
def test_without_a_browser_tests_are_skipped_or_fail(asked, end, tmp_path):
    """GitHub sets CI everywhere, and its machines for Windows have no browser that the tests would find."""
    (tmp_path / "test_page.py").write_text("def test_page(browser):\n    assert browser\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in {"PATH", "TTREF_BROWSER"}}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=kept | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "tests"), "CI": "true"} | asked,
    )  # fmt: skip
    assert end in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert "install it with: apt-get install chromium" in done.stdout or not asked


def test_the_promise_of_the_readme_needs_a_browser():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert script.index("TTREF_BROWSER=required") < script.index("\nmake test\n")
