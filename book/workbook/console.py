"""A progress bar, and a way to silence libraries, so that stored notebook outputs are the same in every run."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import tqdm

from ttref.bars import bar_wanted

# Without ipywidgets, the first import of tqdm.auto in a kernel warns on stderr, with a path of the machine.
# transformers imports it, so it is imported here first, with the warning suppressed.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tqdm.auto


def progress(iterable: Iterable[Any] | None = None, *, total: int | None = None, description: str = "") -> tqdm.tqdm:
    """Make a plain tqdm bar on stderr that follows `ttref.bars.bar_wanted` and vanishes when it is done.

    Args:
        iterable: the items to loop over, or None for a bar that is moved by hand with `.update()`.
        total: number of steps, needed if `iterable` has no length.
        description: text in front of the bar.

    Returns:
        A `tqdm.tqdm`; it appears only if the work takes longer than a second.

    Example:
        >>> sum(progress(range(4), description="adding"))
        6
    """
    # The stream is fixed here, so that the bar survives `quiet` around the work it reports.
    return tqdm.tqdm(
        iterable, total=total, desc=description, leave=False, delay=1.0, file=sys.stderr, disable=not bar_wanted()
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide bars, log lines and warnings that transformers and gguf write to stderr; exceptions pass through.

    Example:
        >>> with quiet():
        ...     _ = print("unseen", file=sys.stderr)
    """
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # gguf draws its bar straight through tqdm, which no switch of transformers reaches.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
