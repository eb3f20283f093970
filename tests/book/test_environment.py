"""The lists of packages agree: pyproject.toml, the three requirements files, environment.yml, Colab."""

import importlib.metadata
import re
import tomllib

import pytest
import rattler
import yaml
from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from book.tools import notebooks

ROOT = notebooks.ROOT
CONDA_NAMES = {"python", "pip", "git", "make"}
ON_DEMAND = "requirements-fpga.txt"  # what only `make fpga` installs


def requirements(name: str) -> dict[str, Requirement]:
    lines = (re.sub(r"\s*#.*", "", line) for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line]
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
    for line in (line for block in blocks for line in block):
        try:
            Requirement(line)
        except InvalidRequirement as error:
            found.append(f"pip line {line!r}: {error}")
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


def test_a_fault_in_a_pip_line_is_seen():
    broken = environment()
    broken["dependencies"][-1]["pip"][0] = "torch=2.13.0"
    assert faults(broken)


def test_environment_yml_asks_for_what_pyproject_asks_for():
    lines = [Requirement(line) for line in environment()["dependencies"][-1]["pip"]]
    later = requirements(ON_DEMAND).keys() - requirements("requirements.txt").keys()
    wanted = {name: requirement for name, requirement in project().items() if name not in later}
    assert {canonicalize_name(r.name): r for r in lines} == wanted
    assert len(lines) == len(wanted) < len(project())


def test_the_pins_satisfy_pyproject():
    pins = requirements("requirements.txt") | requirements(ON_DEMAND)
    for name, wanted in project().items():
        assert name in pins, f"requirements.txt does not pin {name}"
        (pin,) = pins[name].specifier
        assert wanted.specifier.contains(pin.version), f"{pins[name]} does not satisfy {wanted}"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-models.txt"])
def test_every_line_is_an_exact_pin_and_is_what_is_installed(name):
    for package, requirement in requirements(name).items():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        if (requirement.marker or Marker("python_version > '3'")).evaluate():
            installed = importlib.metadata.version(package).split("+")[0]
            assert installed == pin.version, f"{package} {installed} is installed; make brings {pin.version}"


def test_the_tools_for_circuits_are_pinned_and_change_nothing_that_is_installed():
    always, on_demand = requirements("requirements.txt"), requirements(ON_DEMAND)
    for name, requirement in on_demand.items():
        assert [pin.operator for pin in requirement.specifier] == ["=="]
        assert always.get(name, requirement) == requirement, f"the files pin two versions of {name}"


def test_torch_and_jupyter_book_are_spelled_as_they_must_be():
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert any(line.split("  #")[0] == "torch==2.13.0" for line in pins)
    assert any(line.split("  #")[0] == "jupyter-book==1.0.4.post1" for line in pins)


def test_nothing_that_is_installed_is_missing_from_the_lock():
    """Follow what the pins require; each package reached is pinned, so that a second install is the same."""
    pins = requirements("requirements.txt")
    for name, pin in pins.items():
        if pin.marker and not pin.marker.evaluate():
            continue
        for line in importlib.metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in pins, f"{name} needs {wanted}, which requirements.txt lacks"
