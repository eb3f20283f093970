"""What people copy: `ttref/` alone. The core runs with torch, fixed point with NumPy, at any depth of a project."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from book.tools.notebooks import ROOT

MODULES = {".".join(path.relative_to(ROOT / "ttref").with_suffix("").parts) for path in ROOT.glob("ttref/**/*.py")}
MODULES = {name.removesuffix(".__init__") for name in MODULES} - {"__init__"}
FIXED_POINT = sorted(name for name in MODULES if name.startswith("fixedpoint") and "rtl" not in name)
FIXED_POINT.remove("fixedpoint.synthesis")  # with the circuits: they need Amaranth
MORE_ROOMS = "fixedpoint", "lora.peft", "release.quantizer", "scale.ray_data"
CORE = sorted(name for name in MODULES if not name.startswith(MORE_ROOMS))
# Examples that show what needs one more package; without it, its absence is all that they may fail for.
NEEDS_MORE = {
    "ttref.audit.auditing.audit": "safetensors",
    "ttref.audit.following.follow": "safetensors",
    "ttref.audit.reading.open_checkpoint": "safetensors",
    "ttref.audit.report.Audit": "safetensors",
    "ttref.baselines.product_quantize": "sklearn",
    "ttref.clusters.cluster_rows": "sklearn",
    "ttref.embeddings.replacing.replace_embedding": "transformers",
    "ttref.embeddings.row_table.RowTable.load": "safetensors",
    "ttref.files.load": "safetensors",
    "ttref.interop.with_quimb.from_quimb": "quimb",
    "ttref.interop.with_tensorly.from_tensorly": "tensorly",
    "ttref.interop.with_torchtt.from_torchtt": "torchtt",
    "ttref.interop.with_quimb.to_quimb": "quimb",
    "ttref.interop.with_tensorly.to_tensorly": "tensorly",
    "ttref.interop.with_torchtt.to_torchtt": "torchtt",
    "ttref.layers.TTLinear": "safetensors",
    "ttref.lora.saving.save_tt_lora": "safetensors",
    "ttref.pretrained.model_class": "transformers",
    "ttref.release.accepting.report.AcceptanceReport": "safetensors",
    "ttref.release.accepting.suite.AcceptanceSuite": "safetensors",
    "ttref.release.drift.Shadow": "scipy",
    "ttref.release.loading.load_release": "safetensors",
    "ttref.release.saving.save_release": "safetensors",
    "ttref.release.signing.sign": "cryptography",
    "ttref.release.undoing.rollback": "safetensors",
    "ttref.release.verifying.verify": "safetensors",
    "ttref.retrieval.account.Held.load": "safetensors",
    "ttref.scale.audits.audit": "safetensors",
    "ttref.scale.fits.Fitted": "safetensors",
    "ttref.scale.fits.fit_cores": "safetensors",
    "ttref.scale.grams.collect_gram": "safetensors",
    "ttref.scale.rows.compress_rows": "numpy",
    "ttref.scale.table.Table": "numpy",
    "ttref.scale.table.Table.index": "numpy",
    "ttref.surgery.gates.equivalence_gate": "scipy",
    "ttref.surgery.gates.false_accepts": "scipy",
    "ttref.surgery.paired.mcnemar": "scipy",
}

ALONE = """
import doctest, importlib, io, json, sys

from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

allowed = set(sys.stdlib_module_names) | {"ttref", "myproject", *sys.argv[1].split(",")}

class Allowed:
    def find_spec(self, name, path=None, target=None):
        # The build settings are of the standard library, under a name that differs from machine to machine.
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata_"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Allowed()]  # all else is as if it were not installed
for name in (sys.argv[2], "book"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
    else:
        sys.exit(f"{name} could be imported, so this test hides nothing")
"""
EXAMPLES = """
import ttref
assert ttref.__file__ == sys.argv[3], ttref.__file__
modules = [importlib.import_module(f"ttref.{name}") for name in sys.argv[4].split(",")]
needs_more = json.loads(sys.argv[5])
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
CORE_NAMES = """
import myproject.vendored.ttref as copy, torch
assert "myproject" in copy.__file__ and "ttref" not in sys.modules
assert all(getattr(copy, name).__module__.startswith("myproject.vendored.ttref.") for name in copy.__all__)
x = torch.arange(64.0).reshape(4, 16)
assert torch.allclose(copy.tt_to_tensor(copy.tt_svd(x, (4, 4, 4), eps=1e-6)).reshape(4, 16), x, atol=1e-3)
assert copy.TTLinear((4, 4), (2, 4), 2)(x).shape == (4, 8)
"""
INTEGER_NAMES = """
import myproject.vendored.ttref.fixedpoint as copy, numpy
assert "myproject" in copy.__file__ and "ttref" not in sys.modules
assert all(getattr(copy, name).__module__.startswith("myproject.vendored.ttref.") for name in copy.__all__)
rng = numpy.random.default_rng(0)
cores = [rng.normal(size=shape) for shape in [(1, 4, 4, 2), (2, 4, 4, 1)]]
q = copy.QuantizedTT.from_float(cores, weight_width=8, act_width=12, x_max=1.0)
assert q.matvec_float(rng.uniform(-1, 1, (3, 16))).shape == (3, 16) and copy.cycles(q.stages, lanes=2) > 0
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


def copy_to(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / "ttref", folder / "ttref", ignore=shutil.ignore_patterns("__pycache__")))


def run_alone(folder: Path, code: str, package: str, *arguments: str) -> None:
    """Run code where of all that is installed only a package is there, with what it needs itself."""
    arguments = (",".join(sorted(what_it_needs(package))), {"torch": "numpy", "numpy": "torch"}[package], *arguments)
    done = subprocess.run(
        [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", ALONE + code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "package, modules, examples", [("torch", CORE, NEEDS_MORE), ("numpy", FIXED_POINT, {})], ids=["core", "fixed point"]
)
def test_every_module_and_its_examples_run_alone(tmp_path, package, modules, examples):
    top = copy_to(tmp_path) / "__init__.py"
    run_alone(tmp_path, EXAMPLES, package, str(top), ",".join(modules), json.dumps(examples))


@pytest.mark.parametrize(
    "package, code", [("torch", CORE_NAMES), ("numpy", INTEGER_NAMES)], ids=["core", "fixed point"]
)
def test_every_name_of_a_vendored_copy_is_there(tmp_path, package, code):
    copy_to(tmp_path / "myproject/vendored")
    run_alone(tmp_path, code, package)


BELOW_THE_TOP = """
import importlib, pkgutil, sys

top, other = sys.argv[1:3]
import transformers.quantizers.auto  # before it wakes the quantizer of an installed one, which is not the copy's doing
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
fixed = copy.fixedpoint
q = fixed.QuantizedTT.from_float(cores, weight_width=8, act_width=12, calibration=x.numpy())
assert fixed.sqnr_db(fixed.contract_float(cores, x.numpy()), q.matvec_float(x.numpy())) > 20
assert fixed.cycles(q.stages, lanes=2) > 0
assert {name for name in sys.modules if name.partition(".")[0] == "ttref"} == elsewhere
if other:
    assert ttref.fixedpoint.QuantizedTT is not fixed.QuantizedTT and not isinstance(layer, ttref.TTLinear)
"""


@pytest.mark.parametrize("beside", ["", "installed"], ids=["alone", "beside an installed one"])
def test_a_copy_below_the_top_uses_nothing_but_itself(tmp_path, beside):
    """All of it, what needs an extra too. Two copies in one program stay two."""
    for place in ["project/myproject/vendored", *([beside] if beside else [])]:
        copy_to(tmp_path / place)
    done = subprocess.run(
        [sys.executable, "-c", BELOW_THE_TOP, "myproject.vendored.ttref", str(tmp_path / beside) if beside else ""],
        cwd=tmp_path / "project",
        env=os.environ | {"PYTHONPATH": str(tmp_path / beside) if beside else "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
