"""The example in the README runs and prints what its comments say."""

import re
import subprocess
import sys

from book.tools.notebooks import ROOT


def test_the_examples_run():
    train, layer = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    shapes, numbers, close = run(train)
    assert {max(shape) for shape in eval(shapes)} == {2}
    assert numbers == "72"
    assert close == "tensor(True)"
    shape, plan = run(layer)
    assert shape == "(8, 8, 12) (16, 16, 12) (1, 8, 8, 1) 228"
    assert plan.startswith("Plan(order=")


def run(example: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n")
