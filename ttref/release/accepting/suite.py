"""The acceptance suite: what is declared before anything is measured, and the run that holds two models to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...bars import bar
from ...checks import check_real, several, whole
from . import costs
from .costs import Files
from .divergence import Divergence, divergence
from .guarding import Guard, called, guarded
from .hashing import hash_of, state_hash
from .judging import Level, diverged, judged
from .metrics import Metric, Scored, read
from .report import AcceptanceReport
from .slicing import WHOLE, masks_of

__all__ = ["AcceptanceSuite"]

Work = Callable[[nn.Module, Any], Any]


class AcceptanceSuite:
    """What a compressed model must show before it takes the dense one's place: declared first, then measured.

    A model is accepted if **every** metric is shown to have changed for the worse by less than its margin. That a drop
    is "not significant" shows nothing: with few examples no drop is. A test at level alpha must exclude a mean loss of
    the margin or more, with scores of both models on the same examples. So a model that is truly worse than a margin
    is accepted with a chance of at most alpha, however many metrics there are, for all must pass: no correction for
    several tests is needed.

    - Scores 0 and 1: the exact test of flips, McNemar's exact p beside it, and examples lost and won.
    - Other scores: the paired t-test, as exact as the mean of their differences is Gaussian, which rare large losses
      are not. ``worst_example`` of a row says where to look.
    - A relative margin: the same tests, with the uncertainty of the mean that it is a share of.

    These are half of the two one-sided tests (TOST), for a gain is no harm; a metric that passes both is called
    "equivalent". One with ``greater_is_better=None`` must pass both.

    Slices:
        Each metric is tested on each slice in the same way, at its ``slice_margin``. A slice where the loss is not
        shown to be below it ("not shown"), or is shown to be above it ("worse"), fails the suite. A slice with so few
        examples that not even the dense model would be accepted in its own place, or fewer than ``fewest`` where
        scores are not 0 and 1, is "too few": it neither passes nor fails, the report names it, and the verdict rests
        on the others. It fails all the same if it is shown to be worse. All examples together are never let off: if
        they are too few, nothing is accepted.

    Args:
        metrics: One :class:`Metric`, or several.
        data: The examples, a sequence that can be hashed: texts, numbers, tensors, dictionaries and lists of these; of
            a tensor the rows. No search for the compressed model may have seen them, or they flatter it.
        slices: From names to a mask, one boolean for each example, or a function that says of an example whether it
            belongs: ``length_slices(data) | frequency_slices(data)``.
        alpha: Level of each test.
        fewest: Examples that a t-test needs at least.
        limits: Largest ratios, compressed to dense, of ``"latency"``, ``"memory"``, ``"peak"`` and ``"file"`` that are
            accepted; what is not named is measured only. Of the latency a bound at level alpha must be below the limit.
        work: What is timed, a function of model and examples; by default the function of the first metric.
        turns: How often each of the two is timed; with 0, neither latency nor peak is measured.
        seed: Of the random numbers that each function finds.

    Attributes:
        metrics, slices, alpha, fewest, limits, turns, seed: As declared; slices as masks.
        data: The examples.
        data_hash: sha256 of the examples, by value: the same for equal ones, on every machine.
        suite_hash: sha256 of all that is declared: names, margins, slices, limits, settings and ``data_hash``. The
            functions are known by the names of their metrics alone.

    Raises:
        TypeError, ValueError: What is no metric, example, slice or limit; two metrics of one name; settings out of
            range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> data = [{"x": torch.randn(8), "label": k % 2} for k in range(200)]
        >>> def right(model, data):
        ...     logits = model(torch.stack([one["x"] for one in data]))
        ...     return Scored(logits.argmax(-1) == torch.tensor([one["label"] for one in data]), logits)
        >>> suite = AcceptanceSuite(Metric("accuracy", right, margin=0.05), data=data, turns=0)
        >>> dense = nn.Linear(8, 2)
        >>> other, same = nn.Linear(8, 2), nn.Linear(8, 2)
        >>> _ = same.load_state_dict(dense.state_dict())
        >>> suite.run(dense, same).accepted, suite.run(dense, other).accepted
        (True, False)
        >>> suite.run(dense, same).rows[0]["status"]
        'equivalent'
    """

    def __init__(
        self,
        metrics: Metric | Sequence[Metric],
        *,
        data: Any,
        slices: Mapping[str, Any] | None = None,
        alpha: float = 0.05,
        fewest: int = 20,
        limits: Mapping[str, float] | None = None,
        work: Work | None = None,
        turns: int = 7,
        seed: int = 0,
    ) -> None:
        self._metrics = _checked(metrics)
        check_real("alpha", alpha)
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self._level = Level(float(alpha), whole("fewest", fewest, least=2))
        self._turns, self._seed = whole("turns", turns, least=0), whole("seed", seed, least=0)
        self._limits = costs.check_limits(limits, self._turns, alpha)
        if work is not None and not callable(work):
            raise TypeError(f"work must be a function of model and examples, got {type(work).__name__}")
        self._work = self._metrics[0].score if work is None else work
        self._data, examples = data, _examples(data)
        self._data_hash = hash_of(examples)
        self._masks = masks_of(slices, examples)
        self._suite_hash = hash_of(self.declared(), "the suite")

    metrics = property(lambda self: self._metrics, doc="The metrics, in order.")
    slices = property(lambda self: MappingProxyType(self._masks), doc="Masks of the examples by name.")
    limits = property(lambda self: MappingProxyType(self._limits), doc="Largest ratios of costs.")
    alpha = property(lambda self: self._level.alpha, doc="Level of each test.")
    fewest = property(lambda self: self._level.fewest, doc="Examples that a t-test needs.")
    turns = property(lambda self: self._turns, doc="How often each model is timed.")
    seed = property(lambda self: self._seed, doc="Of the random numbers that functions find.")
    data = property(lambda self: self._data, doc="The examples.")
    data_hash = property(lambda self: self._data_hash, doc="sha256 of the examples.")
    suite_hash = property(lambda self: self._suite_hash, doc="sha256 of all that is declared.")

    def declared(self) -> dict[str, Any]:
        """All that is declared in plain lists, numbers and texts; slices by the places of their examples."""
        return {
            "metrics": [metric.declared() for metric in self._metrics],
            "slices": {name: mask.nonzero().flatten().tolist() for name, mask in self._masks.items()},
            "alpha": self.alpha,
            "fewest": self.fewest,
            "limits": dict(self._limits),
            "turns": self._turns,
            "seed": self._seed,
            "examples": len(self._data),
            "data_hash": self._data_hash,
        }

    def run(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        *,
        dense_files: Files | None = None,
        compressed_files: Files | None = None,
        progress: bool = True,
    ) -> AcceptanceReport:
        """Measure both models, and decide.

        Both run in evaluation mode, without gradients, and find the same random numbers. Afterwards, whatever happens,
        their modes and buffers and the random numbers of the caller are as they were.

        Args:
            dense: The model as it was.
            compressed: The one that is to take its place, on the same device.
            dense_files: File, folder or list of these that holds the dense model, for the account of bytes; left out,
                the bytes of the tensors in its state dict count.
            compressed_files: The same of the compressed model.
            progress: Show a bar.

        Returns:
            An :class:`AcceptanceReport`: print it, ``.save(path)`` it, or take ``.accepted``.

        Raises:
            TypeError: What is no model; scores or logits that are no numbers.
            ValueError: NaN or infinite scores, not one for each example; examples that are no longer those that were
                declared; a metric that changed a model; a relative margin of a mean of 0.
            RuntimeError: A function failed with one of the models; its error is the cause.
            FileNotFoundError: No such file.
            ModuleNotFoundError: scipy is not installed; the message holds the install line.

        Cost:
            A hash of both models before and after; each metric once with each model, and ``2 turns + 4`` times the work
            that is timed. The copies of buffers; the logits of one metric.

        Source:
            Schuirmann (1987) for the two one-sided tests; Berger (1982), Multiparameter hypothesis testing and
            acceptance sampling, for tests that must all pass. Flips and divergence beside accuracy: Dutta et al.
            (2024), Accuracy is Not All You Need (arXiv:2407.09141). Scores 0 and 1: as :func:`equivalence_gate`.
        """
        for name, model in (("dense", dense), ("compressed", compressed)):
            if not isinstance(model, nn.Module):
                raise TypeError(f"{name} must be an nn.Module, got {type(model).__name__}")
        self._check_data("before the run")
        models = {"dense": state_hash(dense), "compressed": state_hash(compressed)}
        paths = dense_files, compressed_files
        measured = {"memory": costs.memory(dense, compressed), "file": costs.files(dense, compressed, paths)}
        rows, scores = [], {}
        with guarded(dense, compressed) as guards:
            for metric in bar(self._metrics, progress, "metrics"):
                pair, found = self._scored(metric, guards)
                scores[metric.name] = {"dense": pair[0].tolist(), "compressed": pair[1].tolist()}
                rows += self._rows(metric, *pair, found)
            measured = self._timed(guards) | measured
        self._check_data("during the run")
        for which, model in (("dense", dense), ("compressed", compressed)):
            if state_hash(model) != models[which]:
                raise ValueError(
                    f"a metric changed numbers of the {which} model, which must stay as they are. No copy was kept, so "
                    "load the model again"
                )
        kept = {name: measured[name] for name in costs.COSTS if name in measured}
        decided = costs.decided(kept, self._limits)
        return AcceptanceReport(self.declared(), self._suite_hash, rows, decided, scores, models)

    def _scored(self, metric: Metric, guards: tuple[Guard, Guard]) -> tuple[tuple[Tensor, Tensor], Divergence | None]:
        """Scores of both models, and how far their answers lie apart where the metric gives them."""
        found: list[Scored] = []
        for guard in guards:
            where = f"metric {metric.name!r} of the {guard.which} model"
            given = called(metric.score, guard, self._data, where, self._seed)
            found.append(read(given, where, len(self._data)))
        pair = found[0].scores, found[1].scores
        known = [one.logits for one in found if one.logits is not None]
        if len(known) == 1:
            raise ValueError(f"metric {metric.name!r} gives logits for one of the two models only; give them for both")
        if not known and metric.max_kl is not None:
            raise ValueError(
                f"metric {metric.name!r} has max_kl={metric.max_kl:g} but gives no logits; return "
                "Scored(scores, logits)"
            )
        return pair, divergence(known[0], known[1], f"metric {metric.name!r}") if known else None

    def _rows(
        self, metric: Metric, dense: Tensor, compressed: Tensor, found: Divergence | None
    ) -> list[dict[str, Any]]:
        """The row of all examples, and one for each slice."""
        rows = []
        for name, mask in {WHOLE: torch.ones(len(dense), dtype=torch.bool), **self._masks}.items():
            places = mask.nonzero().flatten()
            part = None if found is None else Divergence(*(side[mask] for side in found))
            rows.append(
                judged(metric, dense[mask], compressed[mask], name, places, self._level)
                | diverged(part, metric.max_kl if name == WHOLE else None, self._level)
            )
        return rows

    def _timed(self, guards: tuple[Guard, Guard]) -> dict[str, dict[str, Any]]:
        """Peak and latency of the work."""
        if not self._turns:
            return {}
        one, two = (
            partial(called, self._work, guard, self._data, f"the work of the {guard.which} model", self._seed)
            for guard in guards
        )
        peak = costs.peaks(one, two, costs.tensors_of(*(guard.model for guard in guards)))
        one, two = (partial(self._work, guard.model, self._data) for guard in guards)
        with torch.no_grad():
            return {"latency": costs.latency(one, two, self._turns, self.alpha), "peak": peak}

    def _check_data(self, when: str) -> None:
        if (now := hash_of(_examples(self._data))) != self._data_hash:
            raise ValueError(
                f"the examples changed {when}: their hash was {self._data_hash[:12]} when the suite was declared and "
                f"is {now[:12]}; declare a suite with those that count"
            )


def _checked(metrics: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    listed = (metrics,) if isinstance(metrics, Metric) or not several(metrics) else tuple(metrics)
    if not listed:
        raise ValueError("a suite needs a metric: AcceptanceSuite([Metric(...)], data=...)")
    for one in listed:
        if not isinstance(one, Metric):
            raise TypeError(f"metrics must be Metric(name, score, margin), got {type(one).__name__}")
    names = [one.name for one in listed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two metrics are called {twice[0]!r}; give each a name of its own")
    return listed


def _examples(data: Any) -> list[Any]:
    """The examples in a list."""
    if isinstance(data, (str, bytes, Mapping)) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"data must be a sequence of examples, got {type(data).__name__}; list(...) makes one of what can be "
            "gone through"
        )
    if len(data) < 2:
        raise ValueError(f"a suite needs 2 examples or more, got {len(data)}")
    return [data[k] for k in range(len(data))]
