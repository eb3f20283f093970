"""``ttref compress MODEL RELEASE``: an audit or a search followed (:func:`ttref.audit.follow`), and a release saved."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DESCRIPTION = """
Put the trains and factors that an audit found to pay, or that a search of partial_tensorize accepted, into a model that
transformers can run, and save a release: a folder from which it can be loaded, checked against its source, and undone.
"""
EPILOG = """
No acceptance suite is run here, so a reason has to be given, which the release records; with a suite, call
ttref.audit.follow and ttref.release.save_release from Python. Exit codes: 0, saved; 2, the command line is wrong; 3,
the model or the recipe is missing or does not fit, nothing pays, or the release cannot be written; 4, a package is
missing; 130, stopped.
"""


def add(commands: Any) -> None:
    """Give the command line this command."""
    parser = commands.add_parser("compress", help="follow an audit or a search", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("model", metavar="MODEL", help="a folder as Hugging Face has them, with safetensors")
    parser.add_argument("release", metavar="RELEASE", help="a new folder, or an older release, which is replaced")
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        required=True,
        help="what ttref audit --json wrote for this model, or save of a report of partial_tensorize",
    )
    parser.add_argument("--eps", type=float, metavar="E", help="which error of the audit (default: the middle one)")
    parser.add_argument("--override", metavar="WHY", required=True, help="why it is saved though no suite accepted it")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """Compress, save, and print the name of the release."""
    from ..audit import follow
    from ..audit.reading import open_checkpoint
    from ..audit.seen import model_of
    from ..release import save_release

    try:
        recipe = json.loads(Path(chosen.recipe).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{chosen.recipe} is no audit saved as JSON ({error})") from None
    model, tokenizer = model_of(open_checkpoint(chosen.model), dtype="auto")
    dense = follow(model, recipe, eps=chosen.eps)
    sha256 = save_release(
        model,
        chosen.release,
        source=chosen.model,
        override=chosen.override,
        recipe={"file": Path(chosen.recipe).name, "eps": chosen.eps, "layers": list(dense)},
        tokenizer=tokenizer,
    )
    print(f"saved {chosen.release} with {len(dense)} layers compressed; sha256 of its manifest: {sha256}")
    return 0
