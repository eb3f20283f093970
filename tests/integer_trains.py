"""What the tests of integer trains share: trains made of drawn or real cores."""

import numpy as np
from exact import chain, gaussian_cores

from ttref.fixedpoint import QuantizedTT


def sample_train(overflow="SAT", **more):
    shapes = chain((3, 4, 2), (2, 3, 5), 3)
    cores = gaussian_cores(shapes, np.random.default_rng(3))
    x = np.random.default_rng(4).normal(size=(33, 30))
    return QuantizedTT.from_float(cores, weight_width=6, act_width=7, calibration=x / 2, overflow=overflow, **more), x


REAL = [np.full((1, 2, 2, 2), 0.3), np.full((2, 2, 2, 1), 0.7)]


def made(**options):
    return QuantizedTT.from_float(REAL, **{"weight_width": 8, "act_width": 8, **options})
