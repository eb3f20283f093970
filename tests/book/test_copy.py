"""`ttref/` copied elsewhere: the core with torch, fixed point with NumPy and nothing else; then below the top level."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from book.tools.notebooks import ROOT

CORE = """
shapes checks precision tracing threads powers truncation trains wide canonical algebra matrices modules starts plans
contraction rebuilt linears layers surgery entanglement codes bounds files rows embeddings lora
""".split()
BELOW_RTL = "formats arithmetic errors stages gauge ranges contract accuracy hardware scheduling timeline"
FIXED_POINT = [f"fixedpoint.{name}" for name in BELOW_RTL.split()]
# Examples that show what needs one more package; without it, its absence is all that they may fail for.
NEEDS_MORE = {
    "ttref.embeddings.mps.MPSEmbedding.load": "safetensors",
    "ttref.embeddings.replacing.replace_embedding": "transformers",
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
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=heard.write)
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


BELOW_THE_TOP = """
import importlib, pkgutil, sys

top, other = sys.argv[1:3]
if other:
    import ttref  # one that is installed beside the copy
    assert ttref.__file__.startswith(other), ttref.__file__
    ttref.TTLinear, ttref.fixedpoint.cycles
elsewhere = {name for name in sys.modules if name.partition(".")[0] == "ttref"}
assert bool(elsewhere) == bool(other)
copy = importlib.import_module(top)
for found in pkgutil.walk_packages(copy.__path__, f"{top}.", onerror=None):
    importlib.import_module(found.name)
wanted = [getattr(copy, name) for name in dir(copy)] + [getattr(copy.fixedpoint, name) for name in dir(copy.fixedpoint)]
strangers = [thing for thing in wanted if getattr(thing, "__module__", top).partition(".")[0] == "ttref"]
assert not strangers, strangers

import numpy, torch
x = torch.arange(64.0).reshape(4, 16)
assert torch.allclose(copy.tt_to_tensor(copy.tt_svd(x, (4, 4, 4), eps=1e-6)).reshape(4, 16), x, atol=1e-3)
layer = copy.TTLinear((4, 4), (2, 4), 2)
adapted = copy.TTLoRALinear(torch.nn.Linear(16, 8), rank=2, alpha=1.0)
assert layer(x).shape == adapted(x).shape == (4, 8)
cores = [core.detach().double().numpy() for core in layer.cores]
q = copy.fixedpoint.QuantizedTT.from_float(cores, weight_width=8, act_width=12, calibration=x.numpy())
assert copy.sqnr_db(copy.contract_float(cores, x.numpy()), q.matvec_float(x.numpy())) > 20
assert copy.cycles(q.stages, lanes=2) > 0
assert {name for name in sys.modules if name.partition(".")[0] == "ttref"} == elsewhere
if other:
    assert ttref.QuantizedTT is not copy.QuantizedTT and not isinstance(layer, ttref.TTLinear)
"""


@pytest.mark.parametrize("beside", ["", "installed"], ids=["alone", "beside an installed one"])
def test_a_copy_below_the_top_uses_nothing_but_itself(tmp_path, beside):
    """All of it: what needs an extra too, the workbook too. Two copies in one program stay two."""
    places = ["project/myproject/vendor", *([beside] if beside else [])]
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        shutil.copytree(ROOT / "ttref", tmp_path / place / "ttref", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BELOW_THE_TOP, "myproject.vendor.ttref", str(tmp_path / beside) if beside else ""],
        cwd=tmp_path / "project",
        env=os.environ | {"PYTHONPATH": str(tmp_path / beside) if beside else "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
