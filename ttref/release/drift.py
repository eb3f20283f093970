"""Is the compressed model still as good as the dense one? Both run on a sample of what comes in, and are compared."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import nn

from ..checks import check_real, whole
from .accepting.guarding import called, guarded
from .accepting.judging import Sides, p_of_worse, sides
from .accepting.metrics import Metric, read

__all__ = ["Look", "Shadow"]

_MANY = 1000  # examples; with more the smallest p is the same


class Look(NamedTuple):
    """What one look at the scores found.

    Attributes:
        examples: How many examples were compared: the window, or all so far.
        dense, compressed: Their mean scores.
        harm: How much the mean is worse, in units of the score; of a metric without a better direction, the change.
        allowed: The margin in these units.
        p: The chance of so much harm, or more, where the true mean harm is the margin. None while examples are too few
            to be tested.
        alarm: True if p is below the level of a look.
    """

    examples: int
    dense: float
    compressed: float
    harm: float
    allowed: float
    p: float | None
    alarm: bool


class Shadow:
    """The dense model in the shadow of the compressed one: an alarm when more than the margin is shown to be lost.

    The acceptance suite asks before a release whether a loss of the margin can be excluded. Afterwards what comes in
    may change. A shadow scores a sample of it with both models, and looks at the paired scores again and again: at
    each look it tests the hypothesis that the mean loss is the margin or less, by the test that
    :class:`AcceptanceSuite` calls a slice "worse" by. No alarm does not show that all is well; for that, run the suite
    on the new examples.

    Looking often:
        A test at level alpha that is made 200 times gives a false alarm nearly for certain where the margin is just
        lost. Here each look has the level ``alpha / looks``. So the chance of **any** false alarm in all these looks is
        at most alpha, by the union bound, however the looks overlap, and whenever the watch is ended. That is exact
        for scores 0 and 1 of examples drawn independently, and for others as far as a mean of their differences is
        Gaussian. When all looks are spent, a new shadow begins a new watch, with an alpha of its own.

    Args:
        dense: The model as it was.
        compressed: The one that is in use, on the same device.
        metric: A :class:`Metric` with its margin, as declared for the suite; slices and ``max_kl`` are not watched.
        alpha: Chance of a false alarm over all looks.
        looks: Over how many looks alpha is spent.
        window: How many of the latest examples a look compares; left out, all so far. In all so far, what has gone well
            for long hides a sudden loss; in a small window, a loss that is only just above the margin is not seen.
        fewest: Fewer examples are not tested, and such a look is not counted. More are needed for scores that are
            rarely far off, whose means are not Gaussian.
        seed: Of the random numbers that the metric finds.

    Attributes:
        alarm: True since the first look with an alarm.
        history: The looks, each a :class:`Look`, with those that had too few examples.
        level: Level of each look.
        left: Looks that are left.

    Raises:
        TypeError, ValueError: What is no model or metric; settings out of range.

    Source:
        Bonferroni's inequality over looks; spending alpha over looks is Lan and DeMets (1983), Discrete sequential
        boundaries for clinical trials. The test: Schuirmann (1987), and for flips as :func:`equivalence_gate`.

    Example:
        >>> from ttref.release.accepting import Metric
        >>> _ = torch.manual_seed(0)
        >>> dense, worse = nn.Linear(8, 2), nn.Linear(8, 2)
        >>> agrees = Metric("agrees", lambda model, x: model(x).argmax(-1) == dense(x).argmax(-1), margin=0.1)
        >>> shadow = Shadow(dense, worse, agrees, looks=50)
        >>> for _ in range(3):
        ...     look = shadow.observe(torch.randn(40, 8))
        >>> shadow.alarm, look.examples, look.harm > 0.1
        (True, 120, True)
    """

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        metric: Metric,
        *,
        alpha: float = 0.05,
        looks: int = 200,
        window: int | None = None,
        fewest: int = 20,
        seed: int = 0,
    ) -> None:
        for name, model in (("dense", dense), ("compressed", compressed)):
            if not isinstance(model, nn.Module):
                raise TypeError(f"{name} must be an nn.Module, got {type(model).__name__}")
        if not isinstance(metric, Metric):
            raise TypeError(f"metric must be a Metric(name, score, margin), got {type(metric).__name__}")
        check_real("alpha", alpha)
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self._models, self._metric, self._seed = (dense, compressed), metric, whole("seed", seed, least=0)
        self._fewest = whole("fewest", fewest, least=2)
        if window is not None and whole("window", window) < self._fewest:
            raise ValueError(f"a window of {window} examples never holds the {self._fewest} that a test needs")
        self.left, self.alarm = whole("looks", looks, least=1), False
        self.level = float(alpha) / looks
        self.history: list[Look] = []
        self._least: float | None = None  # p of flips if all is lost
        self._scores: tuple[deque[float], deque[float]] = deque(maxlen=window), deque(maxlen=window)

    @property
    def _each(self) -> float:
        """Level of a test: half a look's where a change in either direction is harm, and two tests are made."""
        return self.level / (2 if self._metric.greater_is_better is None else 1)

    def observe(self, examples: Any) -> Look:
        """Score examples with both models, add the scores to those so far, and look.

        Both run in evaluation mode, without gradients, and find the same random numbers; afterwards their modes and
        buffers are as they were. An error adds no scores and takes no look.

        Args:
            examples: What the metric's function takes, with a length; drawn from what comes in by chance, not by what
                the models made of it.

        Raises:
            TypeError, ValueError: Scores that are no finite numbers, or not one for each example; no examples; a metric
                that changed a model; all looks are spent, or they are so many that no flips could give an alarm.
            RuntimeError: The metric failed with one of the models; its error is the cause.
            ModuleNotFoundError: scipy is not installed; the message holds the install line.

        Cost:
            The metric once with each model, and the test over the window.
        """
        if not self.left:
            raise ValueError(
                "all looks are taken, and with them alpha is spent; make a new Shadow for the time that comes"
            )
        if not hasattr(examples, "__len__"):
            raise TypeError(f"examples must have a length, got {type(examples).__name__}; list(...) makes one of them")
        if not len(examples):
            raise ValueError("there are no examples to observe")
        found = []
        with guarded(*self._models) as guards:
            for guard in guards:
                where = f"metric {self._metric.name!r} of the {guard.which} model"
                given = called(self._metric.score, guard, examples, where, self._seed)
                found.append(read(given, where, len(examples)).scores.tolist())
        window = self._scores[0].maxlen
        kept = [deque([*before, *now], maxlen=window) for before, now in zip(self._scores, found, strict=True)]
        look = self._looked(*(torch.tensor(list(scores), dtype=torch.float64) for scores in kept))
        self._scores = kept[0], kept[1]
        self.history.append(look)
        self.left -= look.p is not None
        self.alarm = self.alarm or look.alarm
        return look

    def _looked(self, dense: torch.Tensor, compressed: torch.Tensor) -> Look:
        """Compare scores."""
        metric = self._metric
        scores = sides(metric, dense, compressed, metric.margin)
        means = dense.mean().item(), compressed.mean().item()
        harm = means[1] - means[0] if metric.greater_is_better is None else scores.lost().mean().item()
        allowed = metric.margin * (abs(means[0]) if scores.relative else 1)
        if len(dense) < self._fewest:
            return Look(len(dense), *means, harm, allowed, None, False)
        if scores.exact:
            self._check_level(scores)
        both = (scores, scores.turned()) if metric.greater_is_better is None else (scores,)
        p = min(p_of_worse(one) for one in both)
        return Look(len(dense), *means, harm, allowed, p, p < self._each)

    def _check_level(self, scores: Sides) -> None:
        """Refuse a level that the exact test never reaches, for it adds a little to every p."""
        if self._least is None:
            self._least = p_of_worse(_lost(scores))
        if self._least >= self._each:
            raise ValueError(
                f"each look has the level {self._each:.1e}, and the test of flips gives no p below {self._least:.1e}, "
                "whatever is lost: take fewer looks, or a larger alpha"
            )


def _lost(scores: Sides) -> Sides:
    """The same with many examples that are all lost."""
    every, none = torch.ones(_MANY, dtype=torch.float64), torch.zeros(_MANY, dtype=torch.float64)
    return scores._replace(better=every, worse=none, dense=every if scores.better is scores.dense else none)
