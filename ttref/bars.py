"""A progress bar for what takes long, where somebody may be watching; without tqdm, none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def bar_wanted() -> bool:
    """True if a person may be watching: on a terminal and in a notebook.

    False in a file or a pipe, under ``TQDM_DISABLE``, and in tests, so that nbval compares a stderr without bars.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, TQDM_DISABLE="1"):
        ...     bar_wanted()
        False
    """
    # pytest sets PYTEST_VERSION for the whole session, and the kernels that nbval starts inherit it.
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or "PYTEST_VERSION" in os.environ:
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def bar(items: Iterable[Item], wanted: bool, description: str) -> Iterable[Item]:
    """The items, with a tqdm bar on stderr that appears after a second and vanishes at the end.

    Example:
        >>> list(bar(range(3), True, "counting"))
        [0, 1, 2]
    """
    if not (wanted and bar_wanted()):
        return items
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the core needs torch alone
        return items
    return tqdm(items, desc=description, leave=False, delay=1.0, file=sys.stderr)
