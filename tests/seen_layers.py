"""A matrix small enough to measure the cases of fits on, and what it sees."""

import torch
from strategies import gaussian

from benchmarks import fits
from ttref.fitting import Gram


def small():
    """One matrix of 24 x 16."""
    seen = [Gram.from_inputs(gaussian((200, 16), seed) * torch.logspace(0, -1, 16)) for seed in (1, 2)]
    return [fits.Seen(gaussian((24, 16), 3, torch.float32), *seen, (2, 120))]
