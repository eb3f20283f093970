"""``ttref verify RELEASE --source MODEL``: :func:`ttref.release.verify` on the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """
Check a release against the dense model that it says it comes from: its signature if a key is given, hashes of its
files, every train derived again from its dense weight, every other tensor compared bit for bit.
"""
EPILOG = """
Exit codes: 0, everything is proved: derived again from the source, or equal to it; 1, something differs; 2, the command
line is wrong; 3, there is no release, source or key, or it cannot be read; 4, a package is missing; 5, nothing is
wrong, but only its hash vouches for some of it (the words say for what), which --allow-by-hash accepts; 130, stopped.
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
    parser.add_argument(
        "--public-key", metavar="FILE", help="all files must be signed with the private key of this one, in PEM"
    )
    parser.add_argument(
        "--allow-by-hash",
        action="store_true",
        help="exit with 0 also where layers were fitted or trained, or tensors changed, so that nothing derives them",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Verify and print; 1 if something is wrong, 5 if something is not proved and that was not allowed."""
    from ..release import verify

    report = verify(chosen.release, chosen.source, sha256=chosen.sha256, public_key=chosen.public_key)
    print(json.dumps(report.as_dict(), indent=1) if chosen.json else report)
    if not report.ok:
        return 1
    return 0 if report.proved or chosen.allow_by_hash else 5
