"""`ttref/` alone, in an empty folder, with torch and nothing else: the core imports and its examples hold."""

import importlib.metadata
import shutil
import subprocess
import sys

from packaging.requirements import Requirement

from book.tools.notebooks import ROOT

CORE = "shapes trains canonical algebra matrices plans contraction layers surgery entanglement".split()

SCRIPT = """
import doctest, importlib, sys

allowed = set(sys.stdlib_module_names) | {"ttref", *sys.argv[1].split(",")}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r} (this test hides it)", name=name)

sys.meta_path.insert(0, Nothing())
import ttref
assert ttref.__file__ == sys.argv[3], ttref.__file__
try:
    import numpy
except ModuleNotFoundError:
    pass
else:
    sys.exit("numpy could be imported, so this test hides nothing")
for name in sys.argv[2].split(","):
    result = doctest.testmod(importlib.import_module(f"ttref.{name}"))
    if result.failed or not result.attempted:
        sys.exit(f"ttref.{name}: {result.failed} of {result.attempted} examples failed")
"""


def what_torch_needs() -> set[str]:
    """Return the top-level modules of torch and of all it requires."""
    wanted, packages = ["torch"], set()
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


def test_the_core_runs_alone(tmp_path):
    shutil.copytree(ROOT / "ttref", tmp_path / "ttref", ignore=shutil.ignore_patterns("__pycache__"))
    arguments = [",".join(sorted(what_torch_needs())), ",".join(CORE), str(tmp_path / "ttref/__init__.py")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
