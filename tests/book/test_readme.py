"""The example in the README runs and prints what its comments say."""

import re
import subprocess
import sys

from book.tools.notebooks import ROOT


def test_the_example_runs():
    (example,) = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shapes, numbers, close = done.stdout.strip().split("\n")
    assert {max(shape) for shape in eval(shapes)} == {2}
    assert numbers == "72"
    assert close == "tensor(True)"
