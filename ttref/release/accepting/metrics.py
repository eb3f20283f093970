"""Metrics with the margins that are declared for them, and what their functions return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...surgery.gates import as_scores

__all__ = ["Metric", "Scored"]


class Scored(NamedTuple):
    """What a metric's function may return in place of scores alone: with them, the answers that they were made from.

    Attributes:
        scores: One score for each example, ``(examples,)``.
        logits: Of each example, ``(examples, classes)``, or for several answers an example ``(examples, ..., classes)``
            or a list of ``(..., classes)``, one for each example: logits or log-probabilities. With them the report has
            the divergence of the two models' distributions, and how many answers changed. They are kept until the
            other model has given its own.
    """

    scores: Any
    logits: Tensor | Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric by name, and by how much it may change for the worse: declared before anything is measured.

    Attributes:
        name: The name in tables; each metric of a suite has its own.
        score: A function from a model and the examples to one score for each example, in their order: a tensor
            ``(examples,)``, or a :class:`Scored`. Accuracy is a score of 0 or 1. It is called in evaluation mode
            without gradients, with the same random numbers for both models.
        margin: The largest loss that is no harm, above 0: what the tests must exclude.
        kind: ``"absolute"``: the margin is in the units of the scores. ``"relative"``: it is a share, below 1, of the
            size of the dense model's mean score.
        greater_is_better: True for accuracy, False for a loss: a change in the better direction is no harm. None where
            a change in either direction is one, as for the length of an answer.
        slice_margin: The margin on slices, which have fewer examples; left out, the same.
        max_kl: Where given, the mean divergence KL(dense || compressed) of the answers must be shown to be below this
            many nats, too; the function must then return logits.

    Raises:
        TypeError, ValueError: A name that is empty, a function that cannot be called, a margin out of range.

    Words:
        ``greater_is_better`` is MLflow's, ``absolute`` and ``relative`` are those of TFMA's change thresholds. These
        compare two numbers; here each margin is tested.

    Example:
        >>> def losses(model, data):
        ...     return (model(data) - data).square().mean(-1)
        >>> loss = Metric("loss", losses, margin=0.02, kind="relative", greater_is_better=False)
        >>> loss.slice_margin                              # two per cent on slices, too
        0.02
    """

    name: str
    score: Callable[[nn.Module, Any], Any]
    margin: float
    kind: str = "absolute"
    greater_is_better: bool | None = True
    slice_margin: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise TypeError(f"a metric needs a name, got {self.name!r}")
        where = f"of metric {self.name!r}"
        if not callable(self.score):
            raise TypeError(f"score {where} must be a function of model and examples, got {type(self.score).__name__}")
        if self.kind not in ("absolute", "relative"):
            raise ValueError(f'kind {where} must be "absolute" or "relative", got {self.kind!r}')
        if self.greater_is_better is not None and not isinstance(self.greater_is_better, bool):
            raise TypeError(f"greater_is_better {where} must be True, False or None, got {self.greater_is_better!r}")
        if self.slice_margin is None:
            object.__setattr__(self, "slice_margin", self.margin)
        for name in ("margin", "slice_margin") if self.max_kl is None else ("margin", "slice_margin", "max_kl"):
            check_number(f"{name} {where}", getattr(self, name), positive=True)
            if self.kind == "relative" and name != "max_kl" and getattr(self, name) >= 1:
                raise ValueError(
                    f"{name} {where} is relative, a share of the dense model's score, and must lie below 1 (0.05 is "
                    f"5 %), got {getattr(self, name)}"
                )
            object.__setattr__(self, name, float(getattr(self, name)))  # which JSON knows

    def declared(self) -> dict[str, Any]:
        """All that is declared, without the function."""
        names = ("name", "margin", "kind", "greater_is_better", "slice_margin", "max_kl")
        return {name: getattr(self, name) for name in names}


def read(found: Any, where: str, examples: int) -> Scored:
    """What a metric's function returned, as float64 scores ``(examples,)`` and logits in a list; checked."""
    scored = found if isinstance(found, Scored) else Scored(found)
    scores = as_scores(scored.scores, where)
    if scores.ndim == 0:
        raise ValueError(f"{where} must give one score for each of the {examples} examples, got a single number")
    if len(scores) != examples:
        raise ValueError(f"{where} gives {len(scores)} scores for {examples} examples; it must give one for each")
    return Scored(scores, None if scored.logits is None else _logits(scored.logits, where, examples))


def _logits(logits: Any, where: str, examples: int) -> list[Tensor]:
    """One tensor ``(..., classes)`` for each example, checked."""
    listed = list(logits) if isinstance(logits, (Tensor, list, tuple)) else None
    if listed is None or not all(isinstance(one, Tensor) for one in listed):
        raise TypeError(f"the logits of {where} must be a tensor, or a list with one for each example")
    if len(listed) != examples:
        raise ValueError(f"{where} gives logits for {len(listed)} of {examples} examples; give them for each")
    for k, one in enumerate(listed):
        if one.ndim == 0 or one.shape[-1] < 2 or not one.numel():
            raise ValueError(
                f"the logits of example {k} of {where} have shape {tuple(one.shape)}; they must be (..., classes), "
                "with two classes or more"
            )
        if not one.is_floating_point():
            raise TypeError(f"the logits of example {k} of {where} are {one.dtype}, not floating-point numbers")
        if bool(one.isnan().any() | one.isposinf().any() | one.isneginf().all(-1).any()):
            raise ValueError(f"the logits of example {k} of {where} are NaN or infinite")
    return [torch.as_tensor(one).detach() for one in listed]
