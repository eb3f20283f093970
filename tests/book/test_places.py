"""The files for a container and for Binder agree with the pins and with the Makefile. Nothing is built from them."""

import json
import os
import re
import subprocess
import tomllib

import pytest
import rattler
import yaml

from book.tools.notebooks import ROOT

# The keys used here, of those that the development container specification knows.
KNOWN = {
    "name": str,
    "image": str,
    "hostRequirements": dict,
    "containerEnv": dict,
    "onCreateCommand": str,
    "postCreateCommand": str,
    "customizations": dict,
}
FLOOR = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
PINS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def container() -> dict:
    return json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


def faults(found: dict) -> list[str]:
    """What is wrong with a container's file."""
    wrong = [
        f"{key}: not of the specification" for key in found if not isinstance(found[key], KNOWN.get(key, type(None)))
    ]
    if not re.fullmatch(r"python:\d\.\d+-\w+", found.get("image", "")):
        wrong.append("image: not one of Python's own")
    elif f">={re.search(r'[0-9.]+', found['image'])[0]}" != FLOOR:
        wrong.append(f"image: not Python {FLOOR}")
    target = re.fullmatch(r"make (\S+)", found.get("postCreateCommand", ""))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if not target or f"\nREADY := {target[1]}\n" not in makefile:
        wrong.append("postCreateCommand: does not install")
    interpreter = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    if interpreter.removeprefix("${containerWorkspaceFolder}/") not in re.findall(r"PYTHON := (\S+)", makefile):
        wrong.append("the editor's interpreter is not make's")
    if found.get("containerEnv") != {"TORCH_INDEX": "${localEnv:TORCH_INDEX}"}:
        wrong.append("TORCH_INDEX does not reach make")
    for need in ("memory", "storage"):
        if not re.fullmatch(r"\d+gb", found["hostRequirements"].get(need, "")):
            wrong.append(f"hostRequirements: {need}")
    return wrong


def test_the_container_is_sound():
    assert faults(container()) == []


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("image", "python:3.9-bookworm", "not Python"),
        ("image", "elsewhere.example/python:3.11-bookworm", "not one of Python's own"),
        ("postCreateCommand", "make vnev", "does not install"),
        ("postCreatCommand", "make", "not of the specification"),
        ("containerEnv", {}, "TORCH_INDEX"),
        ("hostRequirements", {"cpus": 2, "memory": "8 GB"}, "memory"),
    ],
)
def test_a_fault_of_the_container_is_seen(key, value, told):
    assert any(told in fault for fault in faults(container() | {key: value}))


def binder() -> dict:
    return yaml.safe_load((ROOT / ".binder/environment.yml").read_text(encoding="utf-8"))


def test_binder_makes_an_environment_with_the_pinned_torch():
    found = binder()
    assert found.keys() == {"name", "channels", "dependencies"} and found["channels"] == ["conda-forge"]
    specs = {spec.name.normalized: spec for spec in map(rattler.MatchSpec, found["dependencies"])}
    assert specs.keys() == {"python", "pip", "pytorch-cpu"}
    torch = re.search(r"^torch==(\S+)", PINS, re.MULTILINE)[1]
    assert str(specs["pytorch-cpu"].version) == f"{torch}.*", "pip would fetch torch again, in its GPU build"
    assert f">={str(specs['python'].version).removesuffix('.*')}" == FLOOR
    ours = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert next(line for line in found["dependencies"] if "pip" in line) in ours


def test_binder_installs_the_pins_and_compiles_nothing():
    path = ROOT / ".binder/postBuild"
    assert os.access(path, os.X_OK) and subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert re.findall(r"-r (\S+)", text) == ["requirements.txt", "requirements-models.txt"]
    assert all((ROOT / name).is_file() for name in re.findall(r"-r (\S+)", text))
