"""``ttref rollback RELEASE FOLDER``: :func:`ttref.release.rollback` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """
Undo a release: write the dense model that it was made of to a new folder, every weight bit for bit.
"""
EPILOG = """
Exit codes: 0, written; 2, the command line is wrong; 3, the release is missing, or not what was written or signed, the
folder is not empty, or the source is needed or differs; 4, a package is missing; 130, stopped.
"""


def add(commands: Any) -> None:
    """Give the command line this command."""
    parser = commands.add_parser("rollback", help="the dense model again", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("release", metavar="RELEASE", help="the folder of the release")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder for the dense model")
    parser.add_argument(
        "--source",
        metavar="MODEL",
        help="the dense model, for a release that does not hold the replaced tensors itself",
    )
    parser.add_argument("--sha256", metavar="HEX", help="of the manifest, as it was noted when the release was saved")
    parser.add_argument(
        "--public-key", metavar="FILE", help="all files must be signed with the private key of this one, in PEM"
    )
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Write the dense model."""
    from ..release import rollback

    asked = {"source": chosen.source, "sha256": chosen.sha256, "public_key": chosen.public_key}
    print(f"wrote {rollback(chosen.release, Path(chosen.folder), **asked)}")
    return 0
