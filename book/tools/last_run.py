"""A plugin of pytest that writes down what a run took. `make test` turns it on; the page "The last test run" shows it.

For each notebook, for each folder of tests and for the doctests: seconds, peak memory, and how the tests ended; beside
them the processor and the versions. The record lies in `_build/`, never among the files of the repository.
"""

import json
import os
import platform
import subprocess
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

FORMAT = 1
PACKAGES = ("torch", "numpy", "transformers", "scikit-learn", "scipy", "safetensors", "pytest")
PEAK = "peak_bytes"


def pytest_addoption(parser):
    parser.addoption("--last-run", metavar="FILE", help="write seconds, peak memory and results of this run into FILE")


def pytest_configure(config):
    if config.getoption("--last-run"):
        config.pluginmanager.register(Meter())
        if not hasattr(config, "workerinput"):  # a worker of pytest-xdist sends its reports to the one that writes
            config.pluginmanager.register(Recorder(config))


class Meter:
    """Adds to each test's report the peak of the memory of the process that ran its file."""

    def __init__(self) -> None:
        self.file, self.fresh = None, False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """Run the test, then read the peak."""
        if item.path != self.file:
            self.file, self.fresh = item.path, forgotten()
        try:
            return (yield)
        finally:
            if hasattr(item.parent, "kernel"):  # nbval runs a notebook in a process of its own
                process = getattr(getattr(item.parent.kernel, "km", None), "provisioner", None)
                found = peak(process.pid) if process else None
            else:
                found = peak() if self.fresh else None
            if found:
                item.user_properties.append((PEAK, found))


def peak(process: int | str = "self") -> int | None:
    """The most bytes that a process has held in memory at once; None where the system does not tell."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forgotten() -> bool:
    """Let this process's peak begin anew at what it holds now; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


class Recorder:
    """Adds up the reports of all processes, and writes the record when the run ends."""

    def __init__(self, config) -> None:
        self.path = config.rootpath / config.getoption("--last-run")
        self.root = config.rootpath
        self.workers = getattr(config.option, "numprocesses", None) or 1
        self.start = time.perf_counter()
        self.parts: dict[str, Counter] = {}
        self.ends: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        """Count one phase of a test: its preparation, its call or what follows."""
        part = self.parts.setdefault(part_of(report.nodeid), Counter())
        part["seconds"] += report.duration
        part["peak"] = max(part["peak"], *(value for key, value in report.user_properties if key == PEAK), 0)
        # A test passes by its call alone; it fails, or is skipped, by any of its phases.
        if report.failed or report.when == "call" or report.skipped and self.ends.get(report.nodeid) != "failed":
            self.ends[report.nodeid] = report.outcome

    def pytest_sessionfinish(self):
        """Write the record in one step; a run of no tests leaves the one before."""
        if self.ends:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.record(), indent=1) + "\n"
            part = self.path.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, self.path)

    def record(self) -> dict:
        """The record as it is written."""
        from book.tools.results import processor  # imports torch, which conftest.py may have to prepare first

        for test, end in self.ends.items():
            self.parts[part_of(test)][end] += 1
        return {
            "format": FORMAT,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit(self.root),
            "seconds": round(time.perf_counter() - self.start, 1),
            "workers": self.workers,
            "processor": processor(),
            "cores": cores(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": {"python": platform.python_version()} | versions(),
            "parts": [
                {
                    "name": name,
                    "seconds": round(part["seconds"], 1),
                    "peak_mib": round(part["peak"] / 2**20) or None,
                    **{end: part[end] for end in ("passed", "failed", "skipped")},
                }
                for name, part in sorted(self.parts.items())
            ],
        }


def part_of(test: str) -> str:
    """What a test is counted under: its notebook, its folder of tests, or the package whose example it is."""
    path = Path(test.partition("::")[0])
    if path.suffix == ".ipynb":
        return path.as_posix()
    depth = 1 if path.parts[0] == "ttref" else 2
    return "/".join(path.parts[:-1][:depth])


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit(root: Path) -> str:
    """The commit that was tested, shortened; empty where git does not say."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def versions() -> dict[str, str]:
    """The versions of the packages that outputs depend on most."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def read(path: Path) -> dict | None:
    """The record of the last run; None where there is none that this version can read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("format") == FORMAT:
            return found
    return None
