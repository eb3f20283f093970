"""`ttref/` alone, in an empty folder: the core with torch, fixed point with NumPy, and nothing else."""

import importlib.metadata
import json
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from book.tools.notebooks import ROOT

CORE = """
shapes trains canonical algebra matrices plans contraction layers surgery entanglement rounding bounds files embeddings
lora
""".split()
BELOW_RTL = "formats arithmetic errors stages gauge ranges contract accuracy hardware scheduling timeline"
FIXED_POINT = [f"fixedpoint.{name}" for name in BELOW_RTL.split()]
# Examples that show what needs one more package; without it, its absence is all that they may fail for.
NEEDS_MORE = {
    "ttref.embeddings.mps.MPSEmbedding.load": "safetensors",
    "ttref.embeddings.head.replace_embedding": "transformers",
    "ttref.lora.saving.save_tt_lora": "safetensors",
}

SCRIPT = """
import doctest, importlib, io, json, pkgutil, sys

from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

allowed = set(sys.stdlib_module_names) | {"ttref", *sys.argv[1].split(",")}

class Allowed:
    def find_spec(self, name, path=None, target=None):
        # The build settings are of the standard library, under a name that differs from machine to machine.
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata_"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Allowed()]  # all else is as if it were not installed
import ttref
assert ttref.__file__ == sys.argv[3], ttref.__file__
try:
    importlib.import_module(sys.argv[5])
except ModuleNotFoundError:
    pass
else:
    sys.exit(f"{sys.argv[5]} could be imported, so this test hides nothing")
modules = [importlib.import_module(f"ttref.{name}") for name in sys.argv[2].split(",")]
for package in [module for module in modules if hasattr(module, "__path__")]:
    inside = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    modules += map(importlib.import_module, inside)
needs_more = json.loads(sys.argv[4])
for module in modules:
    attempted = 0
    for example in doctest.DocTestFinder().find(module):
        heard = io.StringIO()
        result = doctest.DocTestRunner().run(example, out=heard.write)
        attempted += result.attempted
        package = needs_more.pop(example.name, None)
        if package is None and result.failed:
            sys.exit(heard.getvalue())
        if package and f"No module named {package!r}" not in heard.getvalue():
            sys.exit(f"{example.name} does not fail for want of {package}: {heard.getvalue()}")
    if not attempted and hasattr(module, "__all__") and not hasattr(module, "__path__"):
        sys.exit(f"{module.__name__} is public and has no examples")
if needs_more:
    sys.exit(f"there are no such examples: {sorted(needs_more)}")
"""


def what_it_needs(package: str) -> set[str]:
    """Return the top-level modules of a package and of all it requires."""
    wanted, packages = [package], set()
    while wanted:
        package = wanted.pop()
        if package not in packages:
            packages.add(package)
            lines = [Requirement(line) for line in importlib.metadata.requires(package) or []]
            wanted += [r.name for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})]
    names = {package.lower().replace("_", "-") for package in packages}
    return {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if names & {owner.lower().replace("_", "-") for owner in owners}
    }


@pytest.mark.parametrize(
    "package, modules, examples, hidden",
    [("torch", CORE, NEEDS_MORE, "numpy"), ("numpy", FIXED_POINT, {}, "torch")],
    ids=["core", "fixed point"],
)
def test_the_core_runs_alone(tmp_path, package, modules, examples, hidden):
    shutil.copytree(ROOT / "ttref", tmp_path / "ttref", ignore=shutil.ignore_patterns("__pycache__"))
    arguments = [",".join(sorted(what_it_needs(package))), ",".join(modules), str(tmp_path / "ttref/__init__.py")]
    arguments += [json.dumps(examples), hidden]
    done = subprocess.run(
        [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
