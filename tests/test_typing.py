"""What a type checker sees at the top level: every public name with its type, and no other name."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ttref
from book.tools.notebooks import ROOT

# Reading all of torch takes mypy a minute; these few names are all that the types of ttref stand on.
TORCH = {
    "__init__.pyi": """
from typing import Any, Callable, TypeVar
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
class Tensor:
    def __getattr__(self, name: str) -> Any: ...
class no_grad:
    def __call__(self, function: Decorated) -> Decorated: ...
class inference_mode:
    def __init__(self, mode: bool = True) -> None: ...
    def __call__(self, function: Decorated) -> Decorated: ...
def __getattr__(name: str) -> Any: ...
""",
    "nn.pyi": """
from typing import Any
class Module:
    def __getattr__(self, name: str) -> Any: ...
    def __call__(self, *args: Any) -> Any: ...
def __getattr__(name: str) -> Any: ...
""",
}
SETTINGS = """
[mypy]
ignore_missing_imports = True
[mypy-ttref.*]
follow_imports = silent
[mypy-numpy.*,peft.*,amaranth.*,transformers.*,safetensors.*,sklearn.*,scipy.*]
follow_imports = skip
"""
USES = """
from typing import assert_type
from torch import Tensor

import ttref
from ttref import MPSEmbedding, TTLinear, TTLoRALinear, swap_layer, tt_round, tt_svd, tt_to_tensor
from ttref.fixedpoint import QuantizedTT, cycles, error_bound_prior, simulate

def readme(x: Tensor, layer: TTLinear, table: MPSEmbedding, q: QuantizedTT) -> None:
    cores = tt_svd(x, (2,) * 10, eps=1e-3)
    assert_type(cores, list[Tensor])
    assert_type(tt_to_tensor(cores), Tensor)
    assert_type(tt_round(cores, rank=2), list[Tensor])
    assert_type(layer.plan(64), ttref.Plan)
    assert_type(table.params, int)
    assert_type(ttref.factorize(12), tuple[int, ...])
    assert_type(cycles(q.stages, lanes=8), int)
    assert_type(error_bound_prior([], q, x_max=1.0), float)
    assert_type(ttref.fixedpoint.predicted_sqnr_db([], q, 0), float)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("typed")  # one for all, so that mypy reads ttref once


def checked(folder: Path, code: str) -> str:
    stubs = folder / "stubs" / "torch"
    stubs.mkdir(parents=True, exist_ok=True)
    for name, text in TORCH.items():
        (stubs / name).write_text(text, encoding="utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    (folder / "uses.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "uses.py"],
        cwd=folder,
        env={"MYPYPATH": f"stubs:{ROOT}", "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_every_public_name_has_a_type(folder):
    assert "Success: no issues found" in (said := checked(folder, USES)), said
    names = {"ttref": ttref, "ttref.fixedpoint": ttref.fixedpoint}
    shown = [f"{package}.{name}" for package in names for held in names[package]._HOME.values() for name in held]
    shown.append("ttref.lora.peft.TTLoraConfig")
    asked = "import ttref, ttref.fixedpoint, ttref.lora.peft\n" + "".join(f"reveal_type({name})\n" for name in shown)
    said = checked(folder, asked + "ttref.nothing\nttref.fixedpoint.nothing\n").splitlines()
    types = [line.partition("Revealed type is ")[2] for line in said if "Revealed type" in line]
    assert len(types) == len(shown)
    # A name whose package is not read is at least known to be a class or a function; Any would be no type at all.
    untyped = [name for name, kind in zip(shown, types, strict=True) if kind in ('"Any"', '"def (*Any, **Any) -> Any"')]
    assert not untyped
    assert sum('has no attribute "nothing"' in line for line in said) == 2, said


def test_the_examples_in_the_readme_have_types(folder):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"(?s)```python\n(.*?)```", readme)
    code = "".join(f"def example_{k}() -> None:\n{textwrap.indent(text, '    ')}" for k, text in enumerate(examples))
    assert len(examples) >= 5 and "Success: no issues found" in (said := checked(folder, code)), said


def test_a_star_import_brings_the_types(folder):
    said = checked(folder, "from ttref import *\nreveal_type(tt_svd)\nreveal_type(TTLinear)\nQuantizedTT\n")
    assert said.count("Revealed type is") == 2 and 'Name "QuantizedTT" is not defined' in said, said
    assert "Tensor" in said and '"Any"' not in said
