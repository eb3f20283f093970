"""What `ttref` and `ttref.fixedpoint` hold at the top: with every package, without the extras, NumPy or torch."""

import ast
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import ttref
from ttref import fixedpoint

FOLDER = Path(ttref.__file__).parent
PACKAGES = {"ttref": FOLDER / "__init__.py", "ttref.fixedpoint": FOLDER / "fixedpoint" / "__init__.py"}
EXTRAS = "peft amaranth safetensors transformers accelerate sklearn scipy matplotlib tqdm"

# Hides packages, so that they are as if not installed; `missing` tries the two ways of asking for what needs them.
HIDE = """
import importlib, inspect, pydoc, rlcompleter, sys
hidden = set(sys.argv[1].split())

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import ttref, ttref.fixedpoint

def star(package):
    space = {}
    exec(f"from {package.__name__} import *", space)
    assert set(space) - {"__builtins__"} == set(package.__all__)

def looked_at(package):
    assert set(package.__all__) <= set(dir(package))
    assert pydoc.render_doc(package) and inspect.getmembers(package)
    space, found = {"package": package}, []
    complete = rlcompleter.Completer(space).complete
    while match := complete("package.", len(found)):
        found.append(match)
    assert found

def missing(package, name, says):
    assert not hasattr(package, name) and getattr(package, name, 5) == 5
    try:
        getattr(package, name)
    except AttributeError as error:
        assert says in str(error) and isinstance(error.__cause__, ModuleNotFoundError), error
    try:
        exec(f"from {package.__name__} import {name}")
    except ModuleNotFoundError as error:
        assert says in str(error), error
    else:
        raise AssertionError(f"{name} could be imported, so this test hides nothing")
"""
WITHOUT_EXTRAS = """
for package in (ttref, ttref.fixedpoint):
    star(package)
    looked_at(package)
    assert all(hasattr(package, name) for name in dir(package))
for name in ("TTMatvec", "simulate"):
    missing(ttref.fixedpoint, name, "python -m pip install 'amaranth")
"""
WITHOUT_NUMPY = """
star(ttref)
for package in (ttref, ttref.fixedpoint):
    looked_at(package)
missing(ttref.fixedpoint, "QuantizedTT", "No module named 'numpy'")
"""
WITHOUT_TORCH = """
star(ttref.fixedpoint)
for package in (ttref, ttref.fixedpoint):
    looked_at(package)
missing(ttref, "tt_svd", "No module named 'torch'")
try:
    star(ttref)
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise AssertionError("torch is not hidden")
"""


@pytest.mark.parametrize(
    "hidden, code",
    [(EXTRAS, WITHOUT_EXTRAS), (f"{EXTRAS} numpy", WITHOUT_NUMPY), (f"{EXTRAS} torch", WITHOUT_TORCH)],
    ids=["extras", "numpy", "torch"],
)
def test_what_is_not_installed_is_not_there(hidden, code):
    command = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", HIDE + code, hidden]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stderr


def test_with_everything_installed_every_name_is_there():
    for package in (ttref, ttref.fixedpoint):
        for module, names in package._HOME.items():
            for name in names:
                assert getattr(package, name) is getattr(sys.modules[f"{package.__name__}.{module}"], name)
                assert name in vars(package)  # the second time nothing is looked up
        assert pydoc.render_doc(package)
    with pytest.raises(AttributeError, match="module 'ttref' has no attribute 'nothing'"):
        _ = ttref.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'ttref'"):
        from ttref import nothing  # noqa: F401


def test_a_fault_inside_a_module_is_no_missing_package(monkeypatch):
    """Only ImportError means "not there"; what else goes wrong while a module is read must be seen."""

    def broken(name, package):
        raise ZeroDivisionError(name)

    monkeypatch.setattr("ttref.lazy.importlib.import_module", broken)
    monkeypatch.delitem(vars(ttref), "tt_svd", raising=False)
    with pytest.raises(ZeroDivisionError):
        hasattr(ttref, "tt_svd")


def typed_names(tree: ast.Module) -> dict[str, str]:
    """The names of the block for type checkers, each with its module."""
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    assert len(blocks) == 1
    found = {}
    for line in blocks[0].body:
        assert isinstance(line, ast.ImportFrom) and line.level == 1
        for alias in line.names:
            assert alias.asname in (None, alias.name) and alias.name not in found
            found[alias.name] = line.module
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_the_lists_of_names_agree(name):
    """What type checkers read, what is looked up, and what a star imports; names outside of `__all__` say so twice."""
    package = sys.modules[name]
    tree = ast.parse(PACKAGES[name].read_text(encoding="utf-8"))
    typed = typed_names(tree)
    assert typed == {public: module for module, names in package._HOME.items() for public in names}
    assert sum(map(len, package._HOME.values())) == len(typed)
    assert package.__all__ == sorted(set(package.__all__)) and set(package.__all__) <= set(typed)
    beyond = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
    assert beyond == set(typed) - set(package.__all__)


def test_the_top_is_small_and_fixed_point_is_not_there():
    assert len(ttref.__all__) <= 45 and not {*ttref.__all__} & {*fixedpoint.__all__, "TTMatvec", "simulate"}
    for name in [*fixedpoint.__all__, "TTMatvec", "simulate", "TTLoraConfig"]:
        assert not hasattr(ttref, name), name


def test_every_module_says_what_is_public():
    """All that a module calls public is taken from the top, and nothing else is."""
    for package in (ttref, ttref.fixedpoint):
        for module, names in package._HOME.items():
            _ = [getattr(package, name) for name in names]
            assert set(sys.modules[f"{package.__name__}.{module}"].__all__) == set(names), module


def test_imports_inside_are_relative():
    """An absolute one would be another `ttref`, or none, once the folder stands anywhere but at the top."""
    files = sorted(FOLDER.rglob("*.py"))
    assert len(files) > 40
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "import_module",
                "__import__",
            ):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            ours = [name for name in names if str(name).partition(".")[0] in ("ttref", "book", "studies", "benchmarks")]
            assert not ours, f"{path.relative_to(FOLDER)}:{node.lineno} imports {ours}"
