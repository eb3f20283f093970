"""Advice for a whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import several
from ..precision import full_precision
from ..threads import CHUNK_BYTES, map_chunks
from .check import ROWS, Check, does_a_train_pay
from .code import lines
from .kinds import KINDS, POSITIONS
from .report import Advice
from .weights import Weight, weights_of

__all__ = ["advise"]

ROWS_OF_POSITIONS = 4 * ROWS  # the one table where a train is likely to pay: looked at as a whole
RATIOS = ("train", "svd", "noise", "integers")


@full_precision
@torch.no_grad()
def advise(model: nn.Module | Mapping[str, Tensor], *, eps: Sequence[float] = (0.2, 0.1)) -> Advice:
    """Say for each kind of weight of a finished model whether a tensor train, SVD or integers make it smaller.

    Weights are grouped by what they are for: tables of tokens and of positions, attention, feed-forward, convolution,
    head, others. A model tells by its modules and names, a state dict by names alone: those of BERT, GPT-2 (whose
    weights are stored in x out), LLaMA, T5, ViT and their relatives, of torch, torchvision and timm. Each matrix with
    8 rows and columns or more goes through :func:`does_a_train_pay`.

    The answer is about finished weights, and about the error of a weight. A network that is trained in train form is
    another question, and which error a model bears only the model can tell: type the lines, and measure it.

    Args:
        model: The model, or its state dict. It is only read.
        eps: Relative errors to compare at, the looser one first.

    Returns:
        An :class:`Advice`: print it, let a notebook show it, ``.save(path)`` it, or take its ``.rows``.

    Raises:
        TypeError: Neither a model nor a state dict.
        ValueError: No weights; NaN or Inf in one; a weight on the meta device; an error outside (0, 1).

    What is looked at:
        512 consecutive rows from the middle of each matrix, 2,048 of a position table. A convolution ``(O, I, h, w)``
        is the matrix O x I h w; experts that are stacked are one tall matrix. Tied weights are one. Integers are named
        as such and not compared; layers that are compressed already are named too.

    Cost:
        As :func:`does_a_train_pay` for each matrix and error: for MiniLM (39 matrices, mostly 384 wide) some ten
        seconds on two cores.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.ModuleDict({"pos_emb": nn.Embedding(64, 32), "fc1": nn.Linear(32, 128)})
        >>> with torch.no_grad():
        ...     ramp = torch.linspace(0, 1, 64).unsqueeze(1) * torch.ones(32)
        ...     _ = model["pos_emb"].weight.copy_(ramp)
        >>> advice = advise(model)
        >>> [(row["part"], row["verdict"]) for row in advice.rows][:2]
        [('position table', ['train', 'train']), ('feed-forward', ['integers', 'integers'])]
        >>> print(advice.code("feed-forward"))
        name = "fc1.weight"
        weight = model.get_parameter(name).detach()
        # ttref.gptq.gptq_quantize rounds better, if you have inputs of the layer
        weight.copy_(ttref.quantize_integer(weight, 3).dense())
    """
    errors = tuple(eps) if several(eps) else (eps,)
    if not errors:
        raise ValueError("eps is empty; give one relative error or more, such as (0.2, 0.1)")
    found = weights_of(model)
    checked = _checked([weight for weight in found if weight.matrix is not None], errors)
    groups = {kind: [weight for weight in found if weight.kind == kind] for kind in KINDS}
    rows = [_row(kind, group, checked, isinstance(model, nn.Module)) for kind, group in groups.items() if group]
    total = sum(row["numbers"] for row in rows)
    for row in rows:
        row["share"] = row["numbers"] / max(total, 1)
    checks = [
        {"name": weight.name, "part": weight.kind, "shape": list(weight.matrix.shape), **check._asdict()}
        for weight in found
        for check in checked.get(weight.name, ())
    ]
    left = [
        sum(weight.numbers / (checked[weight.name][k].smaller if weight.name in checked else 1) for weight in found)
        for k in range(len(errors))
    ]
    return Advice(errors, rows, checks, tuple(total / max(numbers, 1) for numbers in left))


def _checked(matrices: list[Weight], errors: tuple[float, ...]) -> dict[str, list[Check]]:
    """Each matrix at each error; matrices are shared out among torch's threads, because each alone is too small."""
    checked: dict[str, list[Check]] = {}

    def work(part: slice) -> None:
        for weight in matrices[part]:
            rows = ROWS_OF_POSITIONS if weight.kind == POSITIONS else ROWS
            checked[weight.name] = [does_a_train_pay(weight.matrix, error, rows=rows) for error in errors]

    device = matrices[0].matrix.device if matrices else torch.device("cpu")
    map_chunks(work, len(matrices), CHUNK_BYTES, device)
    return checked


def _row(kind: str, group: list[Weight], checked: dict[str, list[Check]], of_module: bool) -> dict[str, Any]:
    """What there is to say of the weights of one kind."""
    matrices = [weight for weight in group if weight.matrix is not None]
    columns = list(zip(*(checked[weight.name] for weight in matrices), strict=True))  # the checks at each error
    most = [Counter(check.verdict for check in column).most_common(1)[0] for column in columns]
    return {
        "part": kind,
        "verdict": [verdict for verdict, _ in most],
        "agreed": [count for _, count in most],
        "share": 0.0,
        "numbers": sum(weight.numbers for weight in group),
        "matrices": len(matrices),
        **{key: [median(getattr(check, key) for check in column) for column in columns] for key in RATIOS},
        "names": [weight.name for weight in group],
        "code": [_code(kind, matrices, column, of_module) for column in columns],
    }


def _code(kind: str, matrices: list[Weight], column: tuple[Check, ...], of_module: bool) -> str:
    """The lines to type at one error: one block for each verdict of its matrices."""
    blocks = []
    for verdict in sorted({check.verdict for check in column} - {"none"}):
        won = [(weight, check) for weight, check in zip(matrices, column, strict=True) if check.verdict == verdict]
        which = f', "{verdict}", {column[0].eps:g}' if len(won) < len(column) else ""
        names = f'advice.names("{kind}"{which})'
        several_integers = verdict == "integers" and len(won) > 1
        if not several_integers and len(won) < len(column):
            blocks.append(f"# {len(won)} of {len(column)}" + (f": {names}" if len(won) > 1 else ""))
        elif not several_integers and len(won) > 1:
            blocks.append(f"# the first of {names}")
        bits = [check.bits for _, check in won]
        if several_integers and min(bits) < max(bits):
            blocks.append(f"# {max(bits)} bits: what the worst of them needs; {min(bits)} do for the best")
        check = won[0][1]._replace(bits=max(bits))  # one loop rounds them all
        blocks.append(lines(won[0][0], check, of_module=of_module, loop=names if several_integers else ""))
    return "\n".join(blocks)
