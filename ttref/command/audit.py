"""``ttref audit CHECKPOINT``: :func:`ttref.audit.audit` on the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

DESCRIPTION = """
Say for each matrix of a checkpoint whether a tensor train (tt), SVD (svd) or integers (quantize) make it smaller, or
nothing does (leave). Tensors are read one at a time. Each is compared with noise that has the norms of its rows.
"""
EPILOG = """
Examples: ttref audit model.safetensors; ttref audit FOLDER --html audit.html; ttref audit FOLDER --only "*attention*"
--eps 0.2; ttref audit FOLDER --sample. Exit codes: 0, audited; 2, the command line is wrong; 3, the checkpoint is
missing, truncated, damaged or foreign, or a result cannot be written; 4, a package is missing; 130, stopped.
"""


def add(commands: Any) -> None:
    """Give the command line this command."""
    parser = commands.add_parser("audit", help="does a tensor train pay?", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a safetensors or GGUF file, a list of shards (*.safetensors.index.json), or a folder with one of these",
    )
    parser.add_argument(
        "--eps",
        type=_errors,
        default="0.1,0.3,0.5",
        metavar="E,E",
        help="relative errors to compare at, between 0 and 1; the middle one gives the verdict (default: %(default)s)",
    )
    parser.add_argument("--only", metavar="PATTERN", help='names to look at, as a shell has them: "*attention*"')
    parser.add_argument(
        "--sample",
        action="store_true",
        help="look at every sixth layer of a kind and at the middle rows of tables; the error of the total is told",
    )
    parser.add_argument(
        "--data",
        metavar="FILE.txt",
        help="texts, one a line, for a model that transformers can run: compare by the error of its outputs too",
    )
    parser.add_argument(
        "--state-dict",
        action="store_true",
        help="read a file of torch.save too, with weights_only=True; a pickle is never opened otherwise",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything to this file; - writes it to stdout instead")
    parser.add_argument("--html", metavar="FILE", help="write one page that needs nothing else")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Audit, print, and write what was asked for."""
    from ..audit import audit

    found = audit(
        chosen.checkpoint,
        eps=chosen.eps,
        only=chosen.only,
        sample=chosen.sample,
        data=chosen.data,
        state_dict=chosen.state_dict,
    )
    if chosen.json == "-":
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print(found)
        if chosen.json:
            found.save(chosen.json)
    if chosen.html:
        found.page(chosen.html)
    return 0


def _errors(words: str) -> tuple[float, ...]:
    """Errors between 0 and 1, with commas between them."""
    try:
        errors = tuple(float(word) for word in words.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} are no numbers with commas between them") from None
    if not all(0 < error < 1 for error in errors):
        raise argparse.ArgumentTypeError(f"{words!r}: a relative error lies between 0 and 1")
    return errors
