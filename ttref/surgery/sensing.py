"""How much a model loses when one layer is replaced: measured, or predicted without running it for each layer."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..bars import bar
from ..checks import several
from ..fitting.errors import output_error
from ..linears import conv1d_of
from ..precision import full_precision
from .buffers import kept_buffers, put_buffers_back
from .candidates import Candidate, integer, svd, tensor_train
from .edit import edit, to_the_end
from .finding import Layer, cost_of, find_layers, matrix_of
from .sensed import COLUMNS, Sensitivity

__all__ = ["sensitivity"]

Result = TypeVar("Result")


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Any] | None,
    *,
    layers: str | Iterable[str] | None = None,
    candidates: Sequence[Candidate] | None = None,
    grams: Mapping[str, Any] | None = None,
    method: str | Sequence[str] = "exact",
    loss: Callable[[nn.Module], Tensor] | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Replace one layer at a time by each candidate, and tell what that costs the model.

    Three measures, which can be asked for together; the layers are then decomposed once:

    - ``"exact"``: the metric of the model with the layer replaced, one evaluation each.
    - ``"gradient"``: ``|<dL/dW, W' - W>|``, the first-order change of a loss; one backward pass for all.
    - ``"output"``: the relative error of the layer's outputs, from the Gram matrix of its inputs; no evaluation.

    Whatever happens, a metric that is NaN, an exception or an interrupt, the model is afterwards what it was, to the
    bit. Only one replacement exists at a time.

    Args:
        model: The model, in evaluation mode.
        evaluate: From the model to its metric, higher is better: a number, or one score for each example, whose mean
            counts. None where "exact" is not asked for.
        layers: Names of the layers, as in :func:`find_layers`; all by default.
        candidates: Ways to replace a layer, from ``ttref.surgery.candidates``; by default trains and SVD at 4x, int8
            and int4.
        grams: Gram matrices by the layers' whole names, as ``collect_gram`` makes them; for a table, the frequencies
            of its rows. "output" and candidates that are fitted need them; layers without one are left out there.
        method: One of the three, or several.
        loss: From the model to a scalar tensor with a gradient, for "gradient".
        progress: Show a bar.

    Returns:
        A :class:`Sensitivity`: print it, or take its ``.rows``.

    Raises:
        TypeError: A metric or a loss that is no number or tensor, a candidate that is none.
        ValueError: A metric that is NaN or infinite, with the layer that made it so; no layer to replace; an unknown
            method, or one without what it needs; no candidate that fits any layer.

    Warns:
        UserWarning: The model is in training mode, in which dropout makes the metric noisy.

    Cost:
        For each layer and candidate, one decomposition and, with "exact", one evaluation. Beyond the model, one
        replacement and the working memory of its decomposition; "gradient" also holds a gradient for each layer.

    Source:
        The first-order term is that of pruning, Molchanov et al. (2019), Importance Estimation for Neural Network
        Pruning, equation 5.

    Example:
        >>> from ttref.surgery import candidates
        >>> model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), torch.eye(16)
        >>> with torch.no_grad():
        ...     y = model(x)
        >>> table = sensitivity(
        ...     model,
        ...     lambda model: -(model(x) - y).square().mean().item(),
        ...     candidates=[candidates.integer(2), candidates.integer(8)],
        ... )
        >>> table.layers, table.evaluations["exact"]
        (['0', '2'], 5)
    """
    methods = _methods(method, evaluate, grams, loss)
    candidates = _checked(candidates)
    found = find_layers(model, layers)
    if any(part.training for part in model.modules()):
        warnings.warn(
            "the model is in training mode, in which dropout makes the metric noisy; call model.eval() first",
            stacklevel=2,
        )
    seconds = dict.fromkeys(("decomposition", "evaluation", "prediction"), 0.0)
    evaluations: dict[str, int] = {}
    metric, gradients = None, {}
    if "exact" in methods:
        with _timing(seconds, "evaluation"):
            metric = metric_of(tried(model, {}, evaluate), "the model as it is")
        evaluations["exact"] = 1
    if "gradient" in methods:
        with _timing(seconds, "prediction"):
            gradients = tried(model, {}, lambda model: _gradients(found, loss, model))
        evaluations["gradient"] = 1
    if "output" in methods:
        evaluations["output"] = 0
    rows = []
    skipped = [{"layer": name, "candidate": None, "reason": reason} for name, reason in found.skipped.items()]
    for layer, candidate in bar([(layer, one) for layer in found for one in candidates], progress, "sensitivity"):
        gram = None if grams is None else grams.get(layer.name)
        before = seconds["decomposition"]
        with _timing(seconds, "decomposition"):
            reason = candidate.why_not(layer.module, gram)
            made = None if reason else candidate.make(layer.module, gram)
        if made is None:
            skipped.append({"layer": layer.name, "candidate": candidate.name, "reason": reason})
            continue
        dense = {f"dense_{name}": getattr(layer, name) for name in ("params", "nbytes", "macs")}
        row = {"layer": layer.name, "kind": layer.kind, "shape": list(layer.shape), "candidate": candidate.name}
        row |= {**cost_of(made)._asdict(), **dense, "metric": None, **dict.fromkeys(COLUMNS.values())}
        row["seconds"] = seconds["decomposition"] - before
        if "exact" in methods:
            with _timing(seconds, "evaluation"):
                value = tried(model, {layer.name: made}, evaluate)
            row["metric"] = metric_of(value, f"{layer.name} replaced by {candidate.name}")
            row["drop"] = metric - row["metric"]
            evaluations["exact"] += 1
        with _timing(seconds, "prediction"):
            row |= _predicted(layer, made, gradients.get(layer.name), gram, methods)
        rows.append(row)
        del made  # before the next one is made
    if not rows:
        reasons = "; ".join(dict.fromkeys(f"{one['candidate'] or one['layer']}: {one['reason']}" for one in skipped))
        raise ValueError(f"no candidate fits any layer: {reasons}")
    return Sensitivity(metric, methods, rows, skipped, evaluations, seconds)


class _Done(Exception):
    """Ends an edit so that it takes everything back."""


def tried(model: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[nn.Module], Result]) -> Result:
    """What ``run(model)`` gives with these layers put in. Afterwards the model is as it was, whatever happened.

    Buffers count: statistics that a model in training mode collects meanwhile are put back.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> tried(model, {"0": nn.Identity()}, lambda model: model(torch.ones(2)).tolist())
        [1.0, 1.0]
        >>> model[0]
        Linear(in_features=2, out_features=2, bias=True)
    """
    modules = list(model.modules())
    buffers = kept_buffers(modules if any(part.training for part in modules) else ())
    change = edit(model)
    try:
        with suppress(_Done), change:
            if layers:
                change.put(layers)
            result = run(model)
            raise _Done
    finally:  # once more, because an interrupt may come when the block ends and the edit does not know yet
        try:
            change.withdraw()
        finally:
            to_the_end(lambda: put_buffers_back(buffers))
    return result


def metric_of(value: Any, where: str) -> float:
    """A metric as a float, the mean of several scores; an error says with what replaced it was no finite number."""
    try:
        if value is None or isinstance(value, (str, bool)):
            raise TypeError
        scores = torch.as_tensor(value.detach() if isinstance(value, Tensor) else value, dtype=torch.float64)
        if scores.ndim > 1 or not scores.numel():
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"evaluate must return a number, or one score for each example, got {got} of {where}") from None
    metric = scores.mean().item()
    if not math.isfinite(metric):
        raise ValueError(f"the metric is {metric} with {where}; the model is as it was before")
    return metric


def _methods(method: str | Sequence[str], evaluate: Any, grams: Any, loss: Any) -> tuple[str, ...]:
    methods = (method,) if isinstance(method, str) else tuple(method)
    if not methods or set(methods) - set(COLUMNS):
        raise ValueError(f"method must be one or several of {', '.join(COLUMNS)}, got {method!r}")
    needs = {"exact": ("evaluate", evaluate), "gradient": ("loss", loss), "output": ("grams", grams)}
    for one in methods:
        name, value = needs[one]
        if value is None:
            raise ValueError(f"method {one!r} needs {name}")
        if one != "output" and not callable(value):
            raise TypeError(f"{name} must be a function of the model, got {type(value).__name__}")
    if grams is not None and not isinstance(grams, Mapping):
        raise TypeError(f"grams must map names of layers to Gram matrices, got {type(grams).__name__}")
    return tuple(one for one in COLUMNS if one in methods)


def _checked(candidates: Sequence[Candidate] | None) -> list[Candidate]:
    if candidates is None:
        return [tensor_train(ratio=4), svd(ratio=4), integer(8), integer(4)]
    candidates = list(candidates) if several(candidates) else [candidates]
    if not candidates:
        raise ValueError("candidates is empty; give one or more, such as candidates.svd(ratio=4)")
    for one in candidates:
        if not isinstance(one, Candidate):
            raise TypeError(f"candidates must be made by ttref.surgery.candidates, got {type(one).__name__}")
    names = [one.name for one in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two candidates are called {twice[0]!r}; rows could not be told apart")
    return candidates


@contextmanager
def _timing(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Add what it takes to these seconds."""
    begin = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - begin


def _gradients(layers: Sequence[Layer], loss: Callable[[nn.Module], Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The gradient of the loss for each layer's matrix ``(out, in)``; no ``.grad`` is touched."""
    weights = [layer.module.weight.requires_grad_() for layer in layers]
    with torch.enable_grad():
        value = loss(model)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"loss must return a tensor of one number with a gradient, got {got}")
        if not value.isfinite():
            raise ValueError(f"the loss of the model as it is is {value.item()}")
        found = torch.autograd.grad(value.reshape(()), weights, allow_unused=True)
    return {
        layer.name: grad.mT if conv1d_of(layer.module) else grad.flatten(1)
        for layer, grad in zip(layers, found, strict=True)
        if grad is not None
    }


@full_precision
@torch.no_grad()
def _predicted(
    layer: Layer, made: nn.Module, gradient: Tensor | None, gram: Any, methods: Sequence[str]
) -> dict[str, float]:
    """The cheap measures of a replacement, those that are known."""
    found: dict[str, float] = {}
    if gradient is None and (gram is None or "output" not in methods):
        return found
    before, after = matrix_of(layer.module), matrix_of(made)
    if gradient is not None:
        found["gradient"] = (gradient.double() * (after.double() - before.double())).sum().abs().item()
    if "output" in methods and gram is not None:
        sides = (before.mT, after.mT) if isinstance(layer.module, nn.Embedding) else (before, after)
        found["output"] = output_error(*sides, gram)
    return found
