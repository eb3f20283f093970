"""What the workflow and the Makefile run is named by its content, has no rights to spare and comes from one index."""

import re

import yaml

from book.tools.notebooks import ROOT

WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


def test_actions_are_named_by_commit_with_the_tag_beside_it():
    assert WORKFLOWS
    for path in WORKFLOWS:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if "uses:" in line]
        assert lines
        for line in lines:
            assert re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), f"{path.name}: {line}"


def test_the_workflow_may_read_and_keeps_no_credentials():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
        assert checkouts
        assert all(step["with"]["persist-credentials"] is False for step in checkouts)
        assert not any("${{" in step.get("run", "") for step in steps), "a value from outside would be run as a command"
        assert not any("permissions" in job for job in workflow["jobs"].values())


def test_no_index_serves_packages_beside_the_first():
    """With a second index, a package of the same name and a higher version there would be taken."""
    named = [ROOT / name for name in ("Makefile", ".ci/run", "environment.yml")]
    for path in [*named, *WORKFLOWS, *ROOT.glob("requirements*.txt")]:
        text = path.read_text(encoding="utf-8")
        found = re.search(r"extra[-_]index|trusted[-_]host|find-links (?!\$\(WHEELS\))", text, re.IGNORECASE)
        assert not found, f"{path.name}: {found}"
        assert not re.search(r"(curl|wget)\b", text), path.name
    index = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").split("\n") if "--index-url" in line]
    assert len(index) == 1 and "--no-deps" in index[0] and "pip download" in index[0]


def test_torch_is_checked_before_it_is_installed():
    """pip downloads one file without running any of it, then takes it only if its hash is pinned."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.index("pip download") < makefile.index("--no-index --find-links $(WHEELS) -r $(WHEELS)/torch.txt")
    block = re.search(r"(?ms)^torch==.*?[^\\]$", (ROOT / "requirements.txt").read_text(encoding="utf-8"))[0]
    assert block.count("--hash=sha256:") == len(block.split("\n")) - 1 > 9
