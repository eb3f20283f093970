"""The examples in the README run and print what their comments say."""

import re
import subprocess
import sys

from book.tools.notebooks import ROOT


def test_the_examples_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    train, advice, layer, table, adapter, index, shipped, integers = re.findall(r"(?s)```python\n(.*?)```", readme)
    shapes, numbers, close = run(train)
    assert {max(shape) for shape in eval(shapes)} == {2}
    assert numbers == "72"
    assert close == "tensor(True)"
    told = run(advice)
    assert any(line.startswith("position table") for line in told) and max(map(len, told)) <= 88
    assert told[-1] == "weight.copy_(ttref.quantize_integer(weight, 3).dense())"
    shape, how, *figures = run(layer)
    assert shape == "(8, 8, 12) (16, 16, 12) (1, 8, 8, 1) 228"
    assert how.endswith(", 64 of 64 vectors at a time") and any(line.startswith("multiply-adds") for line in figures)
    size, looked_up, appended, shared = run(table)
    assert size == f"{192 * 50257} {4 * 192 * 50257} 4.0"
    assert looked_up == "torch.Size([1, 3, 768])"
    assert appended == "tensor([50257, 50258, 50259])"
    assert shared == "35712 torch.Size([2, 50257])"
    *printed, trained = run(adapter)
    assert any("shape=(8, 8, 6, 4, 6, 8, 8)" in line and "params=576" in line for line in printed)
    assert trained == str(2 * 576 + 384 * 2 + 2)
    assert run(index) == ["[0, 1, 2] 98", "tensor([2000])"]
    assert run(shipped) == ["True", "True"]
    made, shape, bound, taken = run(integers)
    assert made.startswith("QuantizedTT(64 -> 64, ranks (1, 4, 4, 1), weights 8 bits, activations 16 bits, 3072 bits)")
    assert shape == "(10, 64)"
    assert 0 < float(bound) < 1
    assert 6144 / 8 <= int(taken) <= 1.25 * 6144 / 8


def test_the_lines_without_make_are_those_of_make():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    typed = re.findall(r"(?m)^\.venv/bin/python -m (pip install .*)$", readme)
    made = re.findall(r"(?m)^\t\$\(PYTHON\) -m (pip install .*)$", makefile)
    # What remains is how make and the README fetch torch from an index of its own, and what only make fpga brings.
    assert [line for line in typed if "<" not in line] == [
        line for line in made if "$" not in line and "fpga" not in line
    ]
    assert len(typed) == 4
    wanted = re.search(r"(?m)^sed .* requirements.txt", readme)[0]
    assert wanted.replace("$/p", "$$/p") in makefile, "both cut torch's pin out of the file in the same way"


def run(example: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("\n")
