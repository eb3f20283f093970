"""The command line, ``python -m ttref`` or ``ttref``: one module for each command, which calls one function of ttref.

Exit codes: 0, it was done; 1, what was asked about is not so (``verify`` found a difference); 2, the command line is
wrong; 3, a file is missing, truncated, damaged or foreign, takes more memory than there is, or cannot be written; 4, a
package is missing; 5, nothing is wrong, but not everything is proved (``verify``, unless ``--allow-by-hash``); 130,
stopped by Ctrl-C. Whatever goes wrong is told in one line on stderr; results go to stdout.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..printed import printable

COMMANDS = ("audit", "compress", "verify", "rollback")
EPILOG = __doc__.partition("Exit codes: ")[2].replace("``", "")  # a terminal shows no type


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: Words of the command line; left out, those that this process was started with.

    Example:
        >>> main(["audit", "no/such/folder"])
        3
    """
    parser = parser_of()
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except ModuleNotFoundError as error:
        return _told(error, 4)
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        return _told(error, 3)
    except MemoryError as error:
        return _told(f"it takes more memory than there is {error}", 3)
    except KeyboardInterrupt:
        return _told("stopped", 130)


def parser_of() -> argparse.ArgumentParser:
    """The parser with all commands; a command's module has ``add``, which gives it arguments and ``run``."""
    parser = argparse.ArgumentParser(
        prog="ttref", description="Tensor trains for compressing neural networks.", epilog=f"Exit codes: {EPILOG}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f".{name}", __package__).add(commands)
    return parser


def _told(error: Exception | str, code: int) -> int:
    print(f"ttref: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return code
