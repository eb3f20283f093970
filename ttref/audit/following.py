"""From the verdicts of an audit to layers in a model: the trains and factors that were found, all of them or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..embeddings import TTMEmbedding
from ..layers import TTLinear
from ..linears import conv1d_of, weight_and_bias
from ..surgery.edit import edit
from ..surgery.wrappers import bare_modules
from .naming import matched
from .report import WINNERS, Audit

__all__ = ["follow"]

SEARCH = "ttref.partial"  # what a file of partial_tensorize says of itself
ROUNDING = 1e-5  # of an error in float32 arithmetic
AT_ONCE = 4096  # rows compared together


class Step(NamedTuple):
    """A layer to replace: its weight's or its own name, modes of rows and columns, a rank or an error, one promised."""

    name: str
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    size: dict[str, Any]
    eps: float | None = None


def follow(model: nn.Module, found: Audit | Mapping[str, Any], *, eps: float | None = None) -> dict[str, nn.Module]:
    """Put into a model what an audit of its checkpoint found to pay, or what a search accepted: trains and factors.

    Nothing changes if any of them does not fit. Verdicts of integers are not followed: integers are another format, for
    which others have the kernels. Whether the model bears the error only the model can tell, so measure it afterwards.

    Args:
        model: The model, with the weights that were audited; changed in place.
        found: The audit; or what :meth:`Audit.save`, or ``save`` of the report of :func:`partial_tensorize`, wrote as
            JSON, read again. Of a search its accepted layers are made, if they are plain trains or SVD; what was fitted
            to data needs the data.
        eps: Which error of the audit; left out, the middle one.

    Returns:
        The dense layers that were replaced, by their names in the model; put back, they undo it.

    Raises:
        ValueError: An error that was not asked about; nothing that pays or was accepted; a matrix whose layer is not in
            the model, is neither linear nor a table, or is tied to another; names that fit several parts of the model;
            a layer that errs by more than its audit found, because its weight is another or lies the other way round;
            one that was judged by a part of its rows; a search with another kind of layers; a damaged file.

    Cost:
        One decomposition for each layer, and of an audit its dense matrix again, to measure its error.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_model
        >>> from ttref.audit import audit
        >>> model = nn.Sequential(nn.Embedding(256, 96))
        >>> time = torch.linspace(0, 3, 256).unsqueeze(1)
        >>> _ = model[0].weight.data.copy_(time * (time * torch.linspace(1, 6, 96)).sin())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(model, f"{folder}/model.safetensors")
        ...     dense = follow(model, audit(folder))
        >>> list(dense), type(model[0]).__name__
        (['0'], 'TTMEmbedding')
    """
    held = found.as_dict() if isinstance(found, Audit) else found
    try:
        steps = _searched(held, eps) if held.get("format") == SEARCH else _audited(held, eps)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"this is no audit and no search, or is damaged ({type(error).__name__}: {error})") from None
    modules = bare_modules(model, remove_duplicate=False)
    names = _modules(steps, modules)
    made = {name: _layer(step, modules[name]) for step, name in zip(steps, names, strict=True)}
    with edit(model) as change:
        return change.put(made)


def _audited(held: Mapping[str, Any], eps: float | None) -> list[Step]:
    """What pays at an error of an audit."""
    if held["sampled"]:
        raise ValueError("a sample tells of some layers only, and others would stay as they are; audit all of them")
    errors = list(held["eps"])
    eps = errors[len(errors) // 2] if eps is None else eps
    if eps not in errors:
        raise ValueError(f"eps={eps:g} was not asked about, only {', '.join(f'{one:g}' for one in errors)}")
    k, steps = errors.index(eps), []
    for row in [row for row in held["rows"] if row["verdicts"][k] in WINNERS]:
        if row["verdicts"][k] == "tt":
            steps.append(Step(row["name"], row["row_shape"][k], row["col_shape"][k], {"rank": row["ranks"][k]}, eps))
        else:
            steps.append(Step(row["name"], (), (), {"eps": eps}, eps))
    if not steps:
        raise ValueError(f"neither a train nor factors pay for any matrix at an error of {eps:.0%}")
    return steps


def _searched(held: Mapping[str, Any], eps: float | None) -> list[Step]:
    """What a search accepted."""
    if eps is not None:
        raise ValueError("eps belongs to an audit; a search has one candidate")
    candidate = held["settings"]["candidate"]
    if not candidate.startswith(("TT ", "SVD ")) or candidate.endswith("cores"):
        raise ValueError(f"the search replaced layers by {candidate}, and only plain trains and SVD can be made again")
    steps = [
        Step(row["name"], *zip(*row["modes"], strict=True), {"rank": row["ranks"]})
        for row in held["rows"]
        if row["decision"] == "accepted"
    ]
    if not steps:
        raise ValueError("the search accepted no layer")
    return steps


def _modules(steps: list[Step], modules: Mapping[str, nn.Module]) -> list[str]:
    """The module of each step; the file may lack the name of the whole, or add one, but alike for all names."""
    names = [step.name.removesuffix(".weight") for step in steps]
    found = matched(names, filter(None, modules))
    for name in names:
        if name not in found:
            raise ValueError(f"the model has no layer of the name {name}")
    return [found[name] for name in names]


def _layer(step: Step, layer: nn.Module) -> nn.Module:
    """The compressed layer of a step; without modes, two factors."""
    table = isinstance(layer, nn.Embedding)
    if not (table or isinstance(layer, nn.Linear) or conv1d_of(layer)):
        raise ValueError(f"{step.name} is the weight of a {type(layer).__name__}, neither a linear layer nor a table")
    m, n = layer.weight.shape if table or not conv1d_of(layer) else layer.weight.shape[::-1]
    rows, cols = (step.rows, step.cols) if step.rows else ((m, 1), (1, n))
    if (math.prod(rows), math.prod(cols)) != (m, n):
        raise ValueError(
            f"{step.name} is {m} x {n}, and its train {math.prod(rows)} x {math.prod(cols)}: a part of it?"
        )
    if table:
        made = TTMEmbedding.from_embedding(layer, row_shape=rows, col_shape=cols, **step.size)
    else:
        made = TTLinear.from_linear(layer, out_shape=rows, in_shape=cols, **step.size)
    if step.eps is not None:
        _check_error(step, made, layer.weight if table else weight_and_bias(layer)[0])
    return made


@torch.no_grad()
def _check_error(step: Step, made: nn.Module, weight: Tensor) -> None:
    """Refuse what errs by more than was promised, and than rounding to the dtype of the weight adds to it."""
    lost = total = 0.0
    for one, other in zip(made.dense().split(AT_ONCE), weight.split(AT_ONCE), strict=True):
        lost += (one.double() - other.double()).square().sum().item()
        total += other.double().square().sum().item()
    allowed = math.hypot(step.eps, 4 * torch.finfo(weight.dtype).eps) + ROUNDING
    if not math.sqrt(lost) <= allowed * math.sqrt(total):  # NaN too
        raise ValueError(
            f"{step.name} would err by {math.sqrt(lost / total) if total else math.inf:.3g}, and the audit found "
            f"{step.eps:g} at most: the weight is not the one that was audited, or lies the other way round; audit the "
            "checkpoint of this model again"
        )
