"""What a search over the layers of a model does in all orders: replace, measure, put back, and remember."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .candidates import Candidate
from .edit import swap_layer
from .finding import Layer, Layers, cost_of
from .gates import Verdict, as_scores
from .resuming import Record, norm_of

Metric = Callable[[nn.Module], Any]


class Search:
    """A model in whose layers replacements are put and taken out again, and what it measured."""

    def __init__(
        self,
        model: nn.Module,
        evaluate: Metric,
        candidate: Candidate,
        grams: Mapping[str, Any],
        found: Layers,
        record: Record,
    ) -> None:
        self.model, self.evaluate, self.candidate, self.grams = model, evaluate, candidate, grams
        self.layers = {layer.name: layer for layer in found}
        self.skipped, self.record = found.skipped, record
        self.dense = list(model.parameters())
        self.rows: dict[str, dict[str, Any]] = {}
        self.made: dict[str, nn.Module] = {}  # replacements in the model, and those that wait
        self.inside: set[str] = set()
        self.examples: int | None = None
        self.looked = False  # at the mode that an evaluation leaves

    def row(self, name: str) -> dict[str, Any]:
        """The row of a layer; its replacement is made, unless the file knows what it is like."""
        layer = self.layers[name]
        norm = norm_of(layer.module.weight)
        facts = self.record.known(name, norm)
        if facts is None:
            facts = self._facts(layer, norm, *self._replacement(layer))
            self.record.layers[name] = facts
        empty = dict.fromkeys(("alone", "put_back", "metric", "drop", "harmful", "beneficial", "p"))
        first = {"name": name, "kind": layer.kind, "shape": None, "modes": None, "ranks": None}
        size = {"params_before": layer.params, "params_after": None, "nbytes_before": layer.nbytes}
        self.rows[name] = {**first, **size, **facts, **empty, "decision": None}
        if facts["skipped"] is not None:
            self.rows[name]["decision"] = f"skipped: {facts['skipped']}"
            self.made.pop(name, None)
        return self.rows[name]

    def _replacement(self, layer: Layer) -> tuple[nn.Module | None, float]:
        """The candidate's replacement, kept, or None; and the seconds that it took."""
        start = time.perf_counter()
        made = self.candidate.make(layer.module, self.grams.get(layer.name))
        if made is not None:
            self.made[layer.name] = made
        return made, round(time.perf_counter() - start, 4)

    def _facts(self, layer: Layer, norm: float, made: nn.Module | None, seconds: float) -> dict[str, Any]:
        """What the file says of a layer and its replacement."""
        facts = {"name": layer.name, "shape": list(layer.shape), "norm": norm, "modes": [], "ranks": []}
        facts |= {"params_after": None, "nbytes_after": None, "skipped": None, "seconds": seconds}
        if made is None:
            return facts | {"skipped": self.candidate.why_not(layer.module, self.grams.get(layer.name))}
        cost = cost_of(made)
        facts |= {
            "modes": [list(pair) for pair in getattr(made, "modes", ())],
            "ranks": list(getattr(made, "ranks", ())),
        }
        facts |= {"params_after": cost.params, "nbytes_after": cost.nbytes}
        return facts | {"skipped": "the replacement would be no smaller" if cost.nbytes >= layer.nbytes else None}

    def put(self, names: Iterable[str]) -> None:
        """Let just these layers be replaced."""
        wanted = set(names)
        back = {name: layer.module for name, layer in self.layers.items() if name in self.inside - wanted}
        new = [name for name in self.layers if name in wanted - self.inside]
        for name in new:
            if name not in self.made:  # known from the file only
                self._make_again(name)
        for name, layer in (back | {name: self.made[name] for name in new}).items():
            swap_layer(self.model, name, layer)  # not the edit around it, which would keep what was rejected
        self.inside = wanted

    def _make_again(self, name: str) -> None:
        """Make the replacement that the file describes; ValueError if it is another one."""
        known, layer = self.record.layers[name], self.layers[name]
        facts = self._facts(layer, known["norm"], *self._replacement(layer))
        if any(facts[key] != known[key] for key in facts.keys() - {"seconds"}):
            raise ValueError(
                f"the replacement of {name} is another one than in {self.record.path}: ranks {facts['ranks']}, "
                f"there {known['ranks']}; the candidate or its Gram matrices changed, so give a new path"
            )

    def drop(self, name: str) -> None:
        """Let a layer be as it was, and forget its replacement."""
        self.put(self.inside - {name})
        self.made.pop(name, None)

    def metric(self, tried: str, names: Iterable[str], evaluate: Metric | None = None) -> Tensor:
        """The metric with just these layers replaced: from the file, or measured and written to it."""
        scores = self.record.next(tried)
        if scores is None:
            self.put(names)
            start = time.perf_counter()
            scores = as_scores((evaluate or self.evaluate)(self.model), "the metric that evaluate returns")
            seconds = time.perf_counter() - start
            if evaluate is None and self.examples is not None and scores.numel() != self.examples:
                raise ValueError(
                    f"evaluate returned {scores.numel()} scores, and {self.examples} at the start; it must score the "
                    "same examples every time"
                )
            self.record.add(tried, scores, seconds)
            self._look()
        if evaluate is None:
            self.examples = scores.numel()
        return scores

    def _look(self) -> None:
        """Warn, once, of what depends on the mode, if an evaluation leaves the model in training mode."""
        noisy = {type(part).__name__ for part in self.model.modules() if part.training and _depends_on_mode(part)}
        if noisy and not self.looked:
            warnings.warn(
                f"the model is evaluated in training mode: its {' and '.join(sorted(noisy))} "
                f"{'makes' if len(noisy) == 1 else 'make'} the metric noisy, and the search follows the noise; call "
                "model.eval() before",
                stacklevel=4,
            )
        self.looked = True

    def decide(self, name: str, verdict: Verdict, decision: str) -> None:
        """Write a verdict into the row of a layer."""
        known = verdict._asdict()
        self.rows[name] |= {key: known[key] for key in ("drop", "p", "harmful", "beneficial")}
        self.rows[name] |= {"metric": verdict.after, "decision": decision}

    def listed(self) -> list[dict[str, Any]]:
        """All rows, those of layers that cannot be replaced at the end."""
        seconds: dict[str, float] = {}
        for entry in self.record.metrics:
            name = entry["tried"].partition(" ")[2]
            seconds[name] = seconds.get(name, 0.0) + entry["seconds"]
        rows = []
        for name, row in self.rows.items():
            rows.append({key: value for key, value in row.items() if key not in ("norm", "skipped")})
            rows[-1]["seconds"] = round(row["seconds"] + seconds.get(name, 0.0), 4)
        empty = dict.fromkeys(rows[0]) | {"modes": [], "ranks": [], "seconds": 0.0}
        return rows + [empty | {"name": name, "decision": f"skipped: {why}"} for name, why in self.skipped.items()]


def _depends_on_mode(part: nn.Module) -> bool:
    """True for batch norm and for dropout, that within attention and recurrent layers too."""
    if isinstance(part, _NormBase):
        return True
    share = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0)
    return isinstance(share, (int, float)) and share > 0
