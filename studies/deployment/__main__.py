"""Run the study: see ``study.py``."""

import sys

import torch

from .study import main

if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
