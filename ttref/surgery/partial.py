"""Partial tensorization: replace the layers of a model that bear it, and keep the others, as a metric decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from torch import Tensor, nn

from ..bars import bar
from . import candidates
from .buffers import kept_buffers, put_buffers_back
from .candidates import Candidate
from .edit import edit, to_the_end
from .finding import TABLE, Layers, find_layers, kind_of_layer
from .gates import Verdict, as_scores, binary, check_gate, drop_gate, equivalence_gate
from .layer_report import Report
from .paired import fewest_examples
from .resuming import Record
from .searching import Metric, Search
from .wrappers import Names

__all__ = ["partial_tensorize"]

EPS = 0.5


def partial_tensorize(
    model: nn.Module,
    evaluate: Metric,
    *,
    layers: str | Iterable[str] | None = None,
    candidate: Candidate | None = None,
    eps: float = EPS,
    max_drop: float = 0.05,
    drop_type: Literal["absolute", "relative"] = "absolute",
    order: Literal["forward", "restore"] = "forward",
    gate: Literal["drop", "equivalence"] = "drop",
    reference: Literal["start", "last"] = "start",
    alpha: float = 0.05,
    ranking: Metric | Mapping[str, float] | None = None,
    grams: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Replace one layer after another by a smaller one, and keep those replacements that the metric bears.

    ``order="forward"`` replaces the tables first, then the other layers by depth; a layer that fails the gate is put
    back at once. ``order="restore"`` replaces all layers, and puts them back, the most harmful first, until the gate
    accepts the model. Nothing is trained.

    The gate sees the same examples in every evaluation, so the search fits them: let validation examples decide, and
    report the result on others, once.

    Args:
        model: The model, changed in place: all layers that were accepted, or none if anything is raised.
        evaluate: From the model to its metric, higher is better: a number, or one score for each example, always of the
            same examples in the same order. It must not change the model.
        layers: Names of the layers to try, as :func:`find_layers` takes them; all if left out.
        candidate: How a layer is replaced, from ``ttref.surgery.candidates``. Left out: by TT-SVD at ``eps``.
        eps: Relative error of each weight, of the candidate that is left out.
        max_drop: How far the metric may fall, in its units, or as a share of the reference.
        drop_type: ``"absolute"`` or ``"relative"``.
        order: ``"forward"`` or ``"restore"``.
        gate: ``"drop"`` (:func:`drop_gate`) accepts where the mean metric fell by no more than that.
            ``"equivalence"`` (:func:`equivalence_gate`) accepts only where a paired test shows it, and needs scores.
        reference: What a drop is measured against: the metric at the ``"start"``, or after the ``"last"`` layer that
            was accepted. Then ``max_drop`` bounds each step and not their sum. Order "restore" knows the start only.
        alpha: Level of the equivalence gate, for each decision.
        ranking: Of order "restore": what ranks the layers. A metric like ``evaluate`` on fewer examples; or the drop
            that is expected of each layer, by name, which saves an evaluation for each. Left out: ``evaluate``.
        grams: Gram matrices of the layers' inputs by name, from :func:`collect_gram`, for candidates that fit outputs.
        resume: A JSON file, written after every evaluation. If it is there, the search goes on from it, and ends as it
            would have without the interruption.
        progress: A progress bar, where somebody may be watching.

    Returns:
        A :class:`Report`: print it, let a notebook show it, take its ``.layers``, ``.save(path)`` it, ``.undo()`` it.

    Raises:
        TypeError: A metric that is no number; a candidate that is none; a layer asked for by name that cannot be
            replaced (quantized, with hooks, of another kind).
        ValueError: A metric that is NaN; another number of scores than at the start; a single number, or too few
            examples to accept anything, for the equivalence gate; thresholds out of range; no layer that can be
            replaced; a layer asked for that is tied or used twice; a Gram matrix of another layer or width; a file
            that is damaged, foreign, or of a search with other settings or another model.
        ModuleNotFoundError: The equivalence gate without scipy.

    Warns:
        UserWarning: The model is evaluated in training mode: dropout makes the metric noisy, and batch norm makes it
            depend on the batches. Once, and only where a module has one of them: call ``model.eval()`` before. It is
            not switched off, because the metric may want it. Its modes and buffers are afterwards what they were.

    Layers that are skipped:
        Those whose replacement would not be smaller, and those that :func:`find_layers` leaves out. The report names
        them with the reason. A table tied to its head is one: untie them, or use :func:`replace_embedding` before.

    Memory:
        The old layers are kept for the undoing: they are the model as it was. Beside it there are the replacements,
        and the dense copies of one layer at a time.

    Cost:
        Forward: one evaluation for each layer, and one. Restore: two, and one for each layer to rank them and for each
        that is put back. Decompositions as the candidate's.

    Source:
        Forward: Partial Tensorized Transformers (arXiv:2310.20077), with eps = 0.5 and five points of accuracy.
        Restore: NNCF's ``quantize_with_accuracy_control``.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(1) * torch.linspace(0.5, 2, 32)
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.outer(torch.linspace(-1, 1, 64), torch.linspace(1, 2, 32)))
        ...     _, target = model(x), model(x)
        >>> def evaluate(model):
        ...     with torch.no_grad():
        ...         return -(model(x) - target).square().mean()
        >>> report = partial_tensorize(model, evaluate, max_drop=1e-3, eps=0.05)
        >>> report.names(), type(model[0]).__name__
        (['0'], 'TTLinear')
        >>> report.undo()
        >>> type(model[0]).__name__
        'Linear'
    """
    check_gate(gate, max_drop, drop_type, alpha)
    max_drop, alpha = float(max_drop), float(alpha)  # which JSON knows
    candidate = _candidate(candidate, eps)
    for name, value, known in (("order", order, ("forward", "restore")), ("reference", reference, ("start", "last"))):
        if value not in known:
            raise ValueError(f'{name} must be "{known[0]}" or "{known[1]}", got {value!r}')
    if order == "restore" and reference == "last":
        raise ValueError('order="restore" compares with the start only: nothing is accepted before the end')
    if order == "forward" and ranking is not None:
        raise ValueError('ranking is what order="restore" puts layers back by; order="forward" goes by depth')
    found = find_layers(model, layers)
    if candidate.needs_gram and not grams:
        raise ValueError(
            f"the candidate {candidate.name} needs Gram matrices: grams=collect_gram(model, names, batches)"
        )
    grams = _grams_of(model, found, grams)
    settings = {"candidate": candidate.name, "order": order, "gate": gate, "max_drop": max_drop, "drop_type": drop_type}
    settings |= {"reference": reference, "alpha": alpha, "ranking": _name_of(ranking)}
    settings |= {"layers": [[layer.name, list(layer.shape)] for layer in found]}
    if isinstance(ranking, Mapping) and (missing := [layer.name for layer in found if layer.name not in ranking]):
        raise ValueError(f"ranking has no drop for {', '.join(missing[:3])}; it needs one for each layer that is tried")
    record = Record(settings, resume)

    def judge(before: Tensor, after: Tensor) -> Verdict:
        if gate == "drop":
            return drop_gate(before, after, max_drop=max_drop, drop_type=drop_type)
        return equivalence_gate(before, after, max_drop=max_drop, drop_type=drop_type, alpha=alpha)

    modes = {part: part.training for part in model.modules()}
    buffers = kept_buffers(part for part, training in modes.items() if training)
    change = edit(model)
    try:
        with change:
            search = Search(model, evaluate, candidate, grams, found, record)
            start = search.metric("start", ())
            _check_start(start, judge(start, start), gate, alpha)
            if order == "forward":
                last = _forward(search, judge, start, reference == "last", progress)
            else:
                last = _restore(search, judge, start, ranking, progress)
            search.put([row["name"] for row in search.rows.values() if row["decision"] == "accepted"])
            before = sum(x.numel() for x in search.dense), sum(x.numel() * x.element_size() for x in search.dense)
            if resume is not None:
                record.write(resume)
            for part, training in modes.items():
                part.training = training
            for name in search.inside:
                search.made[name].train(modes[search.layers[name].module])
            put_buffers_back(buffers)
            return Report(model, search.listed(), judge(start, last), before, record, change)
    except BaseException:  # an interrupt may come as the block ends, when the edit does not know of it
        try:
            change.withdraw()
        finally:
            to_the_end(lambda: put_buffers_back(buffers))
        raise


def _forward(
    search: Search, judge: Callable[[Tensor, Tensor], Verdict], start: Tensor, to_last: bool, progress: bool
) -> Tensor:
    """Try one layer after another; the metric of the model at the end."""
    accepted, last = [], start
    for name in bar(search.layers, progress, "layers"):
        if search.row(name)["decision"] is not None:
            continue
        scores = search.metric(f"with {name}", [*accepted, name])
        verdict = judge(last if to_last else start, scores)
        search.decide(name, verdict, "accepted" if verdict.accepted else f"rejected: {verdict.why}")
        if verdict.accepted:
            accepted, last = [*accepted, name], scores
        else:
            search.drop(name)
    return last


def _restore(
    search: Search,
    judge: Callable[[Tensor, Tensor], Verdict],
    start: Tensor,
    ranking: Metric | Mapping[str, float] | None,
    progress: bool,
) -> Tensor:
    """Replace all layers, put the most harmful back one by one; the metric of the model at the end."""
    left = [name for name in bar(search.layers, progress, "replacing") if search.row(name)["decision"] is None]
    if not left:
        return start
    scores = search.metric("all", left)
    verdict = judge(start, scores)
    if not verdict.accepted:
        harm = _harm(search, left, start, ranking, progress)
        for count, name in enumerate(
            bar(sorted(left, key=harm.__getitem__, reverse=True), progress, "putting back"), 1
        ):
            left.remove(name)
            if left:
                scores = search.metric(f"without {name}", left)
                verdict = judge(start, scores)
            else:
                scores, verdict = start, judge(start, start)
            search.decide(name, verdict, "rejected: put back")
            search.rows[name]["put_back"] = count
            if verdict.accepted:
                break
        for name, drop in harm.items():
            search.rows[name]["alone"] = drop
    for name in left:
        search.decide(name, verdict, "accepted")
    return scores


def _harm(
    search: Search, names: list[str], start: Tensor, ranking: Metric | Mapping[str, float] | None, progress: bool
) -> dict[str, float]:
    """The drop with each layer alone replaced, measured or expected."""
    if isinstance(ranking, Mapping):
        return {name: float(as_scores(ranking[name], f"ranking[{name!r}]")) for name in names}
    before = start if ranking is None else search.metric("ranking", (), ranking)
    alone = {name: search.metric(f"alone {name}", [name], ranking) for name in bar(names, progress, "ranking")}
    return {name: (before.mean() - scores.mean()).item() for name, scores in alone.items()}


def _candidate(candidate: Candidate | None, eps: float) -> Candidate:
    """The candidate, by default TT-SVD."""
    if candidate is None:
        return candidates.tensor_train(eps=eps)
    if not isinstance(candidate, Candidate):
        raise TypeError(
            f"candidate must be one of ttref.surgery.candidates, such as tensor_train(eps=0.5), got {candidate!r}"
        )
    if eps != EPS:
        raise ValueError(f"eps={eps} is for the candidate that is left out; the {candidate.name} has a size of its own")
    return candidate


def _grams_of(model: nn.Module, found: Layers, grams: Mapping[str, Any] | None) -> dict[str, Any]:
    """The Gram matrices by whole names; ValueError for one that cannot be of its layer."""
    if grams is None:
        return {}
    if not isinstance(grams, Mapping):
        raise TypeError(f"grams must map names of layers to Gram matrices, got {type(grams).__name__}")
    known = Names(model)
    whole = {known.match(name, one=True)[0]: gram for name, gram in grams.items()}
    for layer in found:
        size = getattr(whole.get(layer.name), "matrix", whole.get(layer.name))
        wanted = layer.shape[kind_of_layer(layer.module) != TABLE]
        if not isinstance(size, (Tensor, NoneType)):
            raise TypeError(f"the Gram matrix of {layer.name} is a {type(size).__name__}; collect_gram makes it")
        if size is not None and size.shape[-1] != wanted:
            raise ValueError(
                f"the Gram matrix of {layer.name} is {size.shape[-1]} wide, but the layer has {wanted} inputs: is it "
                "the Gram matrix of another layer?"
            )
    return whole


def _name_of(ranking: Metric | Mapping[str, float] | None) -> Any:
    """A ranking as the settings of a file have it."""
    if isinstance(ranking, Mapping):
        return {name: float(drop) for name, drop in ranking.items()}
    return None if ranking is None else "a metric"


def _check_start(start: Tensor, verdict: Verdict, gate: str, alpha: float) -> None:
    """Refuse so few examples that the equivalence gate could accept nothing, before anything is tried."""
    if gate == "equivalence" and binary(start) and len(start) < (least := fewest_examples(verdict.allowed, alpha)):
        raise ValueError(
            f"with {len(start)} examples the equivalence gate can accept nothing at a margin of {verdict.allowed:.3g}: "
            f"it needs {least} or more; evaluate on more, or widen max_drop"
        )
