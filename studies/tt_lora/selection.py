"""Selection bias of reporting the best of many trials, from predictions recorded one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

COUNTS = (1, 2, 4, 8, 16)
GROUPS = 10


def pack(right: Iterable[bool]) -> str:
    """Correctness as hexadecimal digits, the first example in the highest bit; padded with zeros at the end."""
    return np.packbits(np.fromiter(right, bool)).tobytes().hex()


def unpack(digits: str, count: int) -> np.ndarray:
    """The ``count`` booleans packed by ``pack``."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count).astype(bool)


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of correct predictions among ``count`` examples."""
    return (share * (1 - share) / count) ** 0.5


def flattering(right: np.ndarray, sizes: Iterable[int], draws: int) -> Iterator[dict]:
    """Selection bias: the accuracy of the chosen trial on the examples that chose it minus that on the others.

    A draw takes some trials and some examples at random, chooses the trial that is best on these examples, and measures
    it on all the others. The split is drawn anew every time, so neither part is easier on average and the mean
    difference is the effect of choosing. The standard error comes from leaving out a tenth of the examples at a time,
    so it is about other examples, not about other trials.

    Args:
        right: bool (trials, examples), True for a correct prediction.
        sizes: numbers of examples to choose by.
        draws: random draws for each pair of a number of trials and a size.

    Yields:
        For each pair: ``validation`` (mean accuracy of the chosen trial on the examples it was chosen by), ``test`` (on
        the others), ``gap``, ``sd`` of the gap over the draws, and ``standard_error`` of its mean.

    Raises:
        ValueError: a size leaves no example to measure on, with a tenth left out.
    """
    total, examples = right.shape
    groups = np.arange(examples) % GROUPS
    for size in sizes:
        if size >= examples - examples // GROUPS:
            raise ValueError(f"of {examples} examples, {size} to choose by leave too few to look at")
        every = drawn(right, np.ones(examples, bool), size, draws)
        fewer = [drawn(right, groups != group, size, draws) for group in range(GROUPS)]
        for count in sorted({min(count, total) for count in (*COUNTS, total)}):
            validation, test = chosen(*every, count)
            gap = validation - test
            without = [np.subtract(*chosen(*part, count)).mean() for part in fewer]
            yield {
                "trials": count,
                "size": size,
                "validation": float(validation.mean()),
                "test": float(test.mean()),
                "gap": float(gap.mean()),
                "sd": float(gap.std(ddof=1)),
                "standard_error": float(np.var(without) * (GROUPS - 1)) ** 0.5,
            }


def drawn(right: np.ndarray, kept: np.ndarray, size: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """For each draw, accuracies of the trials, in random order, on ``size`` of the kept examples and on the others."""
    total, examples = right.shape
    # The same random keys for every part left out, so that results differ only by the examples.
    generator = np.random.default_rng(0)
    order = generator.random((draws, total)).argsort(1)
    keys = generator.random((draws, examples), np.float32)[:, kept]
    seen = np.zeros(keys.shape, np.float32)
    np.put_along_axis(seen, keys.argpartition(size, 1)[:, :size], 1, 1)
    answers = right.T[kept].astype(np.float32)
    inside = np.take_along_axis(seen @ answers, order, 1) / size
    outside = np.take_along_axis((1 - seen) @ answers, order, 1) / (kept.sum() - size)
    return inside, outside


def chosen(inside: np.ndarray, outside: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each draw, both accuracies of the trial that is best inside among the first ``count``."""
    best = inside[:, :count].argmax(1)[:, None]
    return np.take_along_axis(inside, best, 1)[:, 0], np.take_along_axis(outside, best, 1)[:, 0]
