"""The lists of packages agree: pyproject.toml, the requirements files, environment.yml."""

import importlib.metadata
import re
import tomllib

import pytest
import rattler
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book.tools import notebooks

ROOT = notebooks.ROOT
CONDA_NAMES = {"python", "pip", "git", "make"}
ON_DEMAND = "requirements-fpga.txt"  # what only `make fpga` installs
GPU = "requirements-gpu.txt"  # a constraint: what torch's GPU build asks for, where that build is taken
MADE = ["requirements.txt", "requirements-pip.txt", "requirements-source.txt", "requirements-models.txt"]  # by make
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))


def pins(text: str) -> list[tuple[str, list[str]]]:
    """Each requirement of a file with its hashes; comments and options are left out."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    split = [re.split(r"\s+--hash=sha256:", line) for line in lines if line and line[0] not in "#-"]
    return [(requirement, hashes) for requirement, *hashes in split]


def requirements(name: str) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line, _ in pins((ROOT / name).read_text(encoding="utf-8"))]
    found = {canonicalize_name(r.name): r for r in parsed}
    assert len(found) == len(parsed), f"{name} lists a package twice"
    return found


def project() -> dict[str, Requirement]:
    """Everything pyproject.toml asks for, in the core or in an extra; one requirement for each package."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = table["dependencies"] + [line for extra in table["optional-dependencies"].values() for line in extra]
    found: dict[str, Requirement] = {}
    for line in lines:
        requirement = Requirement(line)
        first = found.setdefault(canonicalize_name(requirement.name), requirement)
        assert first == requirement, f"two extras disagree: {first} and {requirement}"
    return found


def faults(environment: object) -> list[str]:
    """What is wrong with an environment file, without solving it (no conda is needed)."""
    if not isinstance(environment, dict):
        return ["not a map"]
    found = [f"key {key}" for key in set(environment) - {"name", "channels", "dependencies"}]
    found += [f"no {key}" for key in {"name", "channels", "dependencies"} - set(environment)]
    dependencies = environment.get("dependencies", [])
    blocks = [entry["pip"] for entry in dependencies if isinstance(entry, dict) and set(entry) == {"pip"}]
    names = set()
    for line in (entry for entry in dependencies if isinstance(entry, str)):
        try:
            names.add(rattler.MatchSpec(line).name.normalized)
        except Exception as error:  # the parser has its own error types, none of them public
            found.append(f"conda line {line!r}: {error}")
    if names != CONDA_NAMES:
        found.append(f"conda packages {sorted(names)}")
    if len(blocks) != 1:
        found.append(f"{len(blocks)} pip blocks")
    # The lock itself, with its hashes: a second list of ranges would be one more to keep, and would bring other files.
    if blocks and blocks[0] != ["--requirement requirements.txt"]:
        found.append(f"pip lines {blocks[0]}")
    return found


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_environment_yml_is_sound():
    assert faults(environment()) == []


@pytest.mark.parametrize(
    "good, bad",
    [("python >=3.11,<3.14", "python=3..x"), ("git", "git=>2"), ("make", "mkae"), ("git", {"pip": ["numpy"]})],
)
def test_a_fault_in_a_conda_line_is_seen(good, bad):
    broken = environment()
    broken["dependencies"][broken["dependencies"].index(good)] = bad
    assert faults(broken)


@pytest.mark.parametrize("lines", [["torch==2.13.0"], ["--requirement requirements.txt", "numpy"], []], ids=str)
def test_a_fault_in_a_pip_line_is_seen(lines):
    broken = environment()
    broken["dependencies"][-1]["pip"] = lines
    assert faults(broken)


def test_the_pins_satisfy_pyproject():
    pinned = requirements("requirements.txt") | requirements("requirements-source.txt") | requirements(ON_DEMAND)
    for name, wanted in project().items():
        assert name in pinned, f"requirements.txt does not pin {name}"
        (pin,) = pinned[name].specifier
        assert wanted.specifier.contains(pin.version), f"{pinned[name]} does not satisfy {wanted}"


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_an_exact_pin_with_hashes(name):
    for line, hashes in pins((ROOT / name).read_text(encoding="utf-8")):
        (pin,) = Requirement(line).specifier
        assert pin.operator == "==" and "*" not in pin.version, f"{name}: {line}"
        assert hashes, f"{name}: {line} has no hash; make hashes writes them"
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes), f"{name}: {line}"
        assert len(set(hashes)) == len(hashes), f"{name}: {line} names a hash twice"


@pytest.mark.parametrize("name", MADE)
def test_what_is_installed_is_what_is_pinned(name):
    for package, requirement in requirements(name).items():
        (pin,) = requirement.specifier
        if (requirement.marker or Marker("python_version > '3'")).evaluate():
            installed = importlib.metadata.version(package).split("+")[0]
            assert installed == pin.version, f"{package} {installed} is installed; make brings {pin.version}"


def test_the_tools_for_circuits_are_pinned_and_change_nothing_that_is_installed():
    always, on_demand = requirements("requirements.txt"), requirements(ON_DEMAND)
    for name, requirement in on_demand.items():
        assert always.get(name, requirement) == requirement, f"the files pin two versions of {name}"


def test_torch_and_jupyter_book_are_spelled_as_they_must_be():
    lines = [line for line, _ in pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))]
    assert {"torch==2.13.0", "jupyter-book==1.0.4.post1"} <= set(lines)


def test_the_lock_is_of_wheels_and_knows_what_the_gpu_build_asks_for():
    """No program of a package runs during the installation, and Linux without a CPU wheel needs the constraint."""
    options = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n") if line[:1] == "-"]
    assert options == ["--only-binary :all:", f"--constraint {GPU}"]
    assert not requirements(GPU).keys() & requirements("requirements.txt").keys()


def test_what_is_compiled_finds_its_tools_among_the_pins():
    """`--no-build-isolation` takes them from the environment; nothing else may be fetched to build with."""
    tools = {"torch", "numpy", "scipy", "opt-einsum", "ninja", "setuptools", "wheel"}
    assert tools <= requirements("requirements.txt").keys()
    assert list(requirements("requirements-source.txt")) == ["torchtt"]


PLACES = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "Linux on ARM": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "aarch64",
    },
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_is_required_is_missing_from_the_lock(place, python):
    """Follow what the pins require on each system; a package without a pin would be refused there, having no hash."""
    here = PLACES[place] | {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    pinned = requirements("requirements.txt") | requirements("requirements-source.txt") | requirements(GPU)
    for name, pin in pinned.items():
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system than the one that runs the tests
        if pin.marker and not pin.marker.evaluate(here):
            continue
        for wanted in map(Requirement, lines):
            if wanted.marker is None or wanted.marker.evaluate(here):
                found = pinned.get(canonicalize_name(wanted.name))
                assert found, f"{name} needs {wanted}, which requirements.txt lacks"
                assert found.marker is None or found.marker.evaluate(here), f"{name} needs {wanted} on {place}"
