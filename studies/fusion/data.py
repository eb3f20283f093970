"""Three data sets in three views each: a clinical table, digits cut into bands, and products that were planted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_breast_cancer

from ..toy_classifier.data import Parts, digits, three_parts

SPLIT = (0.25, 0.3)  # validation, of what the test part leaves; test
PLANTED, WIDTH = 1000, 4  # examples, and features of a view


class Task(NamedTuple):
    """Views side by side ``(count, sum(sizes))``, classes, and what is a view."""

    name: str
    views: str
    sizes: tuple[int, ...]
    x: np.ndarray
    y: np.ndarray
    together: bool  # all features have one unit, and are divided by one number

    @property
    def scores(self) -> int:
        """Numbers that a network returns: one for each class, but of two classes for the second alone."""
        classes = int(self.y.max()) + 1
        return 1 if classes == 2 else classes


def clinical() -> Task:
    """scikit-learn's breast cancer table: of ten measures of cell nuclei the mean, its error and the worst."""
    x, y = load_breast_cancer(return_X_y=True)
    return Task("breast cancer", "mean, error, worst of ten measures", (10, 10, 10), x, y, together=False)


def pictures() -> Task:
    """scikit-learn's digits in three bands, of 3, 2 and 3 rows of eight pixels."""
    x, y = digits()
    return Task("digits", "upper, middle, lower rows of pixels", (24, 16, 24), x, y, together=True)


def planted() -> Task:
    """Gaussian features; the class is the sign of a product of three, one from each view: two of them say nothing."""
    x = np.random.default_rng(0).standard_normal((PLANTED, 3 * WIDTH))
    y = (x[:, ::WIDTH].prod(1) > 0).astype(np.int64)
    return Task("planted product", "four Gaussian numbers each", (WIDTH,) * 3, x, y, together=True)


def parts_of(task: Task, seed: int) -> Parts:
    """Training, validation and test in float64, features standardized by the training part."""
    parts = three_parts(task.x, task.y, SPLIT, seed)
    x = parts.train[0].double()
    mean, spread = x.mean(0), x.std(0)
    if task.together:  # a pixel that is nearly always empty must not be blown up
        spread = spread.square().mean().sqrt()
    return Parts(*(((x.double() - mean) / spread, y) for x, y in parts))


def tasks() -> list[Task]:
    """All three."""
    return [clinical(), pictures(), planted()]
