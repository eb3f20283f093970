"""``ttref verify RELEASE --source MODEL``: :func:`ttref.release.verify` on the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """
Check a release against the dense model that it says it comes from: hashes of its files, every train derived again from
its dense weight, every other tensor compared bit for bit.
"""
EPILOG = """
Exit codes: 0, nothing is wrong (the words say what was derived again, and what only its hash vouches for); 1, something
differs; 2, the command line is wrong; 3, there is no release or no source, or it cannot be read; 4, a package is
missing; 130, stopped.
"""


def add(commands: Any) -> None:
    """Give the command line this command."""
    parser = commands.add_parser("verify", help="is a release what it says?", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("release", metavar="RELEASE", help="the folder of the release")
    parser.add_argument(
        "--source",
        metavar="MODEL",
        required=True,
        help="the dense model: a safetensors file, a list of shards, or a folder with one of these",
    )
    parser.add_argument("--sha256", metavar="HEX", help="of the manifest, as it was noted when the release was saved")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Verify and print; 1 if something is wrong."""
    from ..release import verify

    report = verify(chosen.release, chosen.source, sha256=chosen.sha256)
    print(json.dumps(report.as_dict(), indent=1) if chosen.json else report)
    return 0 if report.ok else 1
