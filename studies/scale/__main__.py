"""Run the study: see ``study.py``."""

import sys

from .study import main

if __name__ == "__main__":
    main(*sys.argv[1:])
