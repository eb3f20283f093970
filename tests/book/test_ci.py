"""What the workflow and the Makefile run is named by its content, has no rights to spare and comes from one index."""

import copy
import os
import re
import runpy
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from book.tools.notebooks import ROOT

WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNIT = (ROOT / ".ci/unit").read_text(encoding="utf-8")
# Left out of .ci/unit: libraries that compute with trains (pinned exactly), the book, whose outputs belong to the pins,
# and tools for circuits, which are large. A few of their packages are named one by one.
NOT_IN_UNIT = {"peers", "book", "fpga"}
MORE = set(re.search(r"^more=\(([\w ]+)\)", UNIT, re.MULTILINE)[1].split())


def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def steps_of(job: dict) -> list[dict]:
    return job.get("steps", [])


def faults(found: dict) -> list[str]:
    """What a workflow may do that it need not, and what could go on for hours."""
    wrong = []
    if found.get("permissions") != {"contents": "read"}:
        wrong.append("the workflow's rights")
    triggers = found[True]  # YAML reads the key `on` as true
    if triggers.keys() - {"push", "pull_request", "schedule", "workflow_dispatch"}:
        wrong.append("a trigger that runs others' code with rights")
    if found.get("concurrency", {}).get("cancel-in-progress") != "${{ github.event_name == 'pull_request' }}":
        wrong.append("a run of main may be canceled, or none of a pull request is")
    for name, job in found["jobs"].items():
        steps = steps_of(job)
        uses = [step["uses"].partition("@")[0] for step in steps if "uses" in step]
        if not 0 < job.get("timeout-minutes", 0) <= 60:
            wrong.append(f"{name}: no time limit")
        if "permissions" in job:
            if job["permissions"] != {"pages": "write", "id-token": "write"}:
                wrong.append(f"{name}: rights")
            if uses != ["actions/deploy-pages"] or len(steps) != 1:
                wrong.append(f"{name}: a job that may write runs more than the deployment")
            if "github.ref == 'refs/heads/main'" not in job.get("if", ""):
                wrong.append(f"{name}: not of main alone")
            if job.get("needs") != "two-commands":
                wrong.append(f"{name}: publishes what was not tested")
        for step in steps:
            if "${{" in step.get("run", ""):
                wrong.append(f"{name}: a value from outside would be run as a command")
            if step.get("uses", "").startswith("actions/checkout@"):
                if step.get("with", {}).get("persist-credentials") is not False:
                    wrong.append(f"{name}: keeps credentials")
            if "secrets." in str(step):
                wrong.append(f"{name}: a secret")
    return wrong


def test_the_workflow_has_no_right_to_spare():
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]
    assert faults(workflow()) == []


PLANTED = {
    "the workflow's rights": lambda w: w.pop("permissions"),
    "a trigger": lambda w: w[True].update(pull_request_target=None),
    "may be canceled": lambda w: w["concurrency"].update({"cancel-in-progress": True}),
    "unit: no time limit": lambda w: w["jobs"]["unit"].pop("timeout-minutes"),
    "unit: rights": lambda w: w["jobs"]["unit"].update(permissions={"contents": "write"}),
    "pages: a job that may write": lambda w: w["jobs"]["pages"]["steps"].append({"run": "make book"}),
    "pages: not of main": lambda w: w["jobs"]["pages"].update({"if": "vars.PAGES == 'on'"}),
    "pages: publishes": lambda w: w["jobs"]["pages"].pop("needs"),
    "unit: a value from outside": lambda w: w["jobs"]["unit"]["steps"][2].update(run=".ci/unit ${{ matrix.versions }}"),
    "two-commands: keeps": lambda w: w["jobs"]["two-commands"]["steps"][0].pop("with"),
    "unit: a secret": lambda w: w["jobs"]["unit"]["steps"][2]["env"].update(KEY="${{ secrets.KEY }}"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(fault):
    broken = copy.deepcopy(workflow())
    PLANTED[fault](broken)
    assert any(fault in found for found in faults(broken)), faults(broken)


NAMED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def test_actions_are_named_by_commit_with_the_tag_beside_it():
    lines = [line.strip(" -") for path in WORKFLOWS for line in path.read_text(encoding="utf-8").split("\n")]
    used = [line for line in lines if line.startswith("uses:")]
    assert len(used) == sum(line.count("uses:") for line in lines) >= 7
    assert all(NAMED.fullmatch(line) for line in used), used
    assert len({line.partition("@")[0] for line in used}) == len(set(used)), "one action in two versions"


@pytest.mark.parametrize(
    "line", ["uses: actions/checkout@v4", f"uses: a/b@{'0' * 40}", f"uses: a/b@{'0' * 39} # v1.0.0"]
)
def test_an_action_that_is_not_named_so_is_seen(line):
    assert not NAMED.fullmatch(line)


def test_every_system_is_tested_with_the_oldest_and_the_newest():
    """The floor of Python is the package's own; the newest is the last one that conda may take."""
    matrix = workflow()["jobs"]["unit"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    python = {entry["versions"]: entry["python"] for entry in matrix["include"]}
    assert list(python) == matrix["versions"] == ["lowest", "newest"]
    assert PROJECT["requires-python"] == f">={python['lowest']}"
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    allowed = SpecifierSet(environment["dependencies"][0].removeprefix("python "))
    major, minor = python["newest"].split(".")
    assert allowed.contains(python["newest"]) and not allowed.contains(f"{major}.{int(minor) + 1}")


def unit(*arguments: str) -> subprocess.CompletedProcess:
    """Run .ci/unit."""
    return subprocess.run(
        ["bash", ROOT / ".ci/unit", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("name", ["run", "unit"])
def test_the_scripts_can_be_run(name):
    assert os.access(ROOT / ".ci" / name, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / name], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["oldest"], ["--constraint=/elsewhere"]], ids=str)
def test_the_tests_of_versions_ask_which_versions(arguments):
    done = unit(*arguments)
    assert done.returncode == 2 and "say which versions" in done.stderr


def test_the_tests_of_versions_leave_no_room_out():
    """Every folder of tests that has one of ttref's rooms for its subject, and every extra but those with a reason."""
    named = set(re.search(r"tests/\{([\w,]+)\}", UNIT)[1].split(","))
    folders = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert named == folders - {"benchmarks", "book", "peers", "studies", "workbook"}
    extras = set(re.search(r'"\.\[([\w,]+)\]"', UNIT)[1].split(","))
    assert extras == PROJECT["optional-dependencies"].keys() - NOT_IN_UNIT


def test_what_kills_processes_is_left_out_where_that_cannot_be():
    """Files of tests that kill by a signal which Windows lacks are listed in conftest.py, or ask for more."""
    listed = set(runpy.run_path(str(ROOT / "tests/conftest.py"))["KILLING"])
    assert all((ROOT / "tests" / name).is_file() for name in listed)
    kills = re.compile(r"signal\.SIGKILL|\bdying\b|\bdie (?:before|within|after|last|always)")
    guard = re.compile(r'\bin_child\(|"resource"|^del os\.sched_getaffinity, signal\.SIGKILL', re.MULTILINE)
    for folder in re.search(r"tests/\{([\w,]+)\}", UNIT)[1].split(","):
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            text = path.read_text(encoding="utf-8")
            if kills.search(text) and not guard.search(text):
                assert f"{folder}/{path.name}" in listed, f"{path.name} kills, and nothing says so"


def floors() -> dict[str, str]:
    """For each package that pyproject.toml asks for, the oldest version it allows."""
    extras = PROJECT["optional-dependencies"]
    asked = PROJECT["dependencies"] + [line for name in extras if name not in NOT_IN_UNIT for line in extras[name]]
    asked += [line for name in NOT_IN_UNIT for line in extras[name] if Requirement(line).name in MORE]
    found = {}
    for requirement in map(Requirement, asked):
        (floor,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
        found[canonicalize_name(requirement.name)] = floor
    return found


def constraints(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(found) == len(lines), "a package is named twice"
    return found


def test_the_oldest_versions_are_the_floors_of_pyproject():
    assert constraints((ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")) == floors()


def test_no_index_serves_packages_beside_the_first():
    """With a second index, a package of the same name and a higher version there would be taken."""
    named = [ROOT / name for name in ("Makefile", ".ci/run", ".ci/unit", "environment.yml", "constraints-lowest.txt")]
    named += [ROOT / ".binder/environment.yml", ROOT / ".binder/postBuild", ROOT / ".devcontainer/devcontainer.json"]
    for path in [*named, *WORKFLOWS, *ROOT.glob("requirements*.txt")]:
        text = path.read_text(encoding="utf-8")
        found = re.search(r"extra[-_]index|trusted[-_]host|find-links (?!\$\(WHEELS\))", text, re.IGNORECASE)
        assert not found, f"{path.name}: {found}"
        assert not re.search(r"(curl|wget)\b|https?://", text), path.name
    index = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").split("\n") if "--index-url" in line]
    assert len(index) == 1 and "--no-deps" in index[0] and "pip download" in index[0]
    index = [line for line in UNIT.split("\n") if "--index-url" in line]
    assert len(index) == 1 and index[0].endswith('--no-deps --index-url "$TORCH_INDEX" torch')


def test_torch_is_checked_before_it_is_installed():
    """pip downloads one file without running any of it, then takes it only if its hash is pinned."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.index("pip download") < makefile.index("--no-index --find-links $(WHEELS) -r $(WHEELS)/torch.txt")
    block = re.search(r"(?ms)^torch==.*?[^\\]$", (ROOT / "requirements.txt").read_text(encoding="utf-8"))[0]
    assert block.count("--hash=sha256:") == len(block.split("\n")) - 1 > 9
