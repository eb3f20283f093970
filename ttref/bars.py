"""A progress bar for what takes long, where somebody may be watching; without tqdm, none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def bar(items: Iterable[Item], wanted: bool, description: str) -> Iterable[Item]:
    """The items, with a tqdm bar on stderr that appears after a second and vanishes at the end.

    There is a bar on a terminal and in a notebook; none in a file or a pipe, under ``TQDM_DISABLE``, or in tests.

    Example:
        >>> list(bar(range(3), True, "counting"))
        [0, 1, 2]
    """
    quiet = os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or "PYTEST_VERSION" in os.environ
    if not wanted or quiet or not ("ipykernel" in sys.modules or sys.stderr.isatty()):
        return items
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the core needs torch alone
        return items
    return tqdm(items, desc=description, leave=False, delay=1.0, file=sys.stderr)
