"""From the verdicts of an audit to layers in a model: the trains and factors that were found, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..embeddings import TTMEmbedding
from ..layers import TTLinear
from ..linears import conv1d_of
from ..surgery.edit import edit
from ..surgery.wrappers import bare_modules
from .report import WINNERS, Audit

__all__ = ["follow"]


def follow(model: nn.Module, found: Audit | Mapping[str, Any], *, eps: float | None = None) -> dict[str, nn.Module]:
    """Put into a model what an audit of its checkpoint found to pay: trains and factors, by the modes and ranks told.

    Nothing changes if any of them does not fit. Verdicts of integers are not followed: integers are another format, for
    which others have the kernels. Whether the model bears the error only the model can tell, so measure it afterwards.

    Args:
        model: The model, with the weights that were audited; changed in place.
        found: The audit, or what :meth:`Audit.save` wrote, read again.
        eps: Which of its errors; left out, the middle one.

    Returns:
        The dense layers that were replaced, by their names in the model; put back, they undo it.

    Raises:
        ValueError: An error that was not asked about; nothing that pays; a matrix whose layer is not in the model, is
            neither linear nor a table, or is tied to another; one that was judged by a part of its rows.

    Cost:
        One decomposition for each layer.

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
        errors, rows = list(held["eps"]), list(held["rows"])
        eps = errors[len(errors) // 2] if eps is None else eps
        if eps not in errors:
            raise ValueError(f"eps={eps:g} was not asked about, only {', '.join(f'{one:g}' for one in errors)}")
        k = errors.index(eps)
        winners = [row for row in rows if row["verdicts"][k] in WINNERS]
        if not winners:
            raise ValueError(f"neither a train nor factors pay for any matrix at an error of {eps:.0%}")
        modules = bare_modules(model, remove_duplicate=False)
        made = {}
        for row in winners:
            name = _module(row["name"], modules)
            made[name] = _layer(row, k, eps, modules[name])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"this is no audit, or is damaged ({type(error).__name__}: {error})") from None
    with edit(model) as change:
        return change.put(made)


def _module(weight: str, modules: Mapping[str, nn.Module]) -> str:
    """The module whose weight has this name in the file, which may lack or add the name of the whole."""
    name = weight.removesuffix(".weight")
    fits = [one for one in modules if one and (one == name or one.endswith(f".{name}") or name.endswith(f".{one}"))]
    if name in fits:
        return name
    if len(fits) != 1:
        raise ValueError(f"the model has no layer of the name {name}" if not fits else f"several layers end in {name}")
    return fits[0]


def _layer(row: Mapping[str, Any], k: int, eps: float, layer: nn.Module) -> nn.Module:
    """The compressed layer of a row."""
    begin, end = row["rows"]
    table = isinstance(layer, nn.Embedding)
    if not (table or isinstance(layer, nn.Linear) or conv1d_of(layer)):
        raise ValueError(f"{row['name']} is the weight of a {type(layer).__name__}, neither a linear layer nor a table")
    m, n = layer.weight.shape if table or not conv1d_of(layer) else layer.weight.shape[::-1]
    if (begin, end) != (0, m):
        raise ValueError(
            f"{row['name']} was judged by its rows {begin} to {end} of {m}: its modes are not those of all"
        )
    if row["verdicts"][k] == "tt":
        rows, cols, size = row["row_shape"][k], row["col_shape"][k], {"rank": row["ranks"][k]}
    else:
        rows, cols, size = (m, 1), (1, n), {"eps": eps}
    if table:
        return TTMEmbedding.from_embedding(layer, row_shape=rows, col_shape=cols, **size)
    return TTLinear.from_linear(layer, out_shape=rows, in_shape=cols, **size)
