"""Modules around a compressed table in a model: the output head that shares it, and a look-up that scales its rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .tables import CompressedTable

__all__ = ["ScaledTable", "TiedHead"]


class TiedHead(nn.Module):
    """Scores for every token from a compressed table shared with the look-up: ``table.logits(hidden)``.

    The look-up owns the table: iteration over modules, parameters or the state of a model finds it there, once. A head
    that :func:`replace_embedding` put into a model always scores with the table of the model's look-up, also with the
    copy that PEFT trains for ``modules_to_save``, while that is active.

    Args:
        table: The compressed table, which is also the model's look-up.
        bias: ``(num_embeddings,)``, such as the dense head's, or None.

    Cost:
        As ``table.logits``; the dense table is never rebuilt as a whole.

    Example:
        >>> import torch
        >>> from ttref import MPSEmbedding
        >>> table = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=4)
        >>> TiedHead(table)(torch.randn(2, 5, 48)).shape
        torch.Size([2, 5, 100])
    """

    def __init__(self, table: CompressedTable, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        if not isinstance(table, CompressedTable):
            raise TypeError(f"a TiedHead needs an MPSEmbedding or a TTMEmbedding, got {type(table).__name__}")
        # A child, so that nn.DataParallel gives each replica's head that replica's table; named_modules leaves it out.
        self._modules["table"] = table
        self._place: tuple[nn.Module, str] | None = None  # parent and name of the model's look-up
        self.register_parameter("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(*batch, embedding_dim)`` to ``(*batch, num_embeddings)``."""
        scores = self.table.logits(hidden)
        if self.bias is None:
            return scores
        bias = F.pad(self.bias, (0, self.out_features - len(self.bias)))  # 0 for tokens appended since
        return scores + bias.to(scores.dtype)

    @property
    def table(self) -> CompressedTable:
        """The compressed table, which the look-up owns."""
        own = self._modules["table"]
        if self._place is None or getattr(self, "_is_replica", False):
            return own
        parent, name = self._place
        there = parent._modules.get(name)
        if there is own:
            return own
        self._modules["table"] = own = _table_in(there)
        return own

    def shares(self) -> tuple[nn.Module, ...]:
        """Modules that this one uses without owning them: replacing one of them alone would break the tie."""
        return (self.table,)

    @property
    def weight(self) -> Tensor:
        """The matrix of the scores, ``table.weight``: rebuilt at every access, for models that read it."""
        return self.table.weight

    @property
    def in_features(self) -> int:
        """Width of the vectors."""
        return self.table.embedding_dim

    @property
    def out_features(self) -> int:
        """Number of tokens scored, appended rows included."""
        return self.table.num_embeddings

    def __deepcopy__(self, memo: dict[int, Any]) -> TiedHead:
        """Copied with its model, a head scores with the copy's table; copied alone, with the table of its model."""
        if not memo and self._place is not None:
            memo |= {id(kept): kept for kept in (self._place, self.table)}
        made = memo[id(self)] = type(self).__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def _replicate_for_data_parallel(self) -> TiedHead:
        _ = self.table  # updates the child, which the replicas copy, to the table in use
        return super()._replicate_for_data_parallel()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The head alone: parameters, buffers and modules of the table are found in the look-up."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """None: the look-up moves, trains and converts the table."""
        return iter(())

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The bias, if there is one; the numbers of the table are stored by the look-up."""
        found = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for name in [name for name in found if name.startswith(f"{prefix}table.")]:
            del found[name]
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, tensor in self.table.state_dict().items():  # its current state, so that no key is missing
            state_dict[f"{prefix}table.{name}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)


class ScaledTable(nn.Module):
    """A look-up that multiplies the rows of a table by a factor, as in Gemma and BART; a tied head scores unscaled.

    Args:
        table: The compressed table.
        scale: The factor: a number, or a tensor without axes, which is rounded to the dtype of the rows first.

    Example:
        >>> import torch
        >>> from ttref import MPSEmbedding
        >>> table = MPSEmbedding.from_embedding(nn.Embedding(100, 48), rank=4)
        >>> ids = torch.tensor([1, 2])
        >>> torch.equal(ScaledTable(table, 3.0)(ids), table(ids) * 3)
        True
    """

    def __init__(self, table: CompressedTable, scale: float | Tensor) -> None:
        super().__init__()
        self.table = table
        if isinstance(scale, Tensor):
            self.register_buffer("embed_scale", scale.detach().clone(), persistent=False)
        else:
            self.embed_scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """``(*ids)`` to ``(*ids, embedding_dim)``."""
        rows, scale = self.table(ids), self.embed_scale
        return rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)

    weight = property(attrgetter("table.weight"), doc="``table.weight``, unscaled, rebuilt at every access.")
    num_embeddings = property(attrgetter("table.num_embeddings"), doc="Rows of the table.")
    embedding_dim = property(attrgetter("table.embedding_dim"), doc="Width of a row.")
    padding_idx = property(attrgetter("table.padding_idx"), doc="As the table's.")
    dtype = property(attrgetter("table.dtype"), doc="The dtype of the rows.")

    def extra_repr(self) -> str:
        """The factor, as ``print(model)`` shows it."""
        return f"embed_scale={float(self.embed_scale):.6g}"


def _table_in(look_up: nn.Module | None) -> CompressedTable:
    """The table of a look-up, also of a scaled one or of one that PEFT has copied to train it."""
    if isinstance(look_up, ScaledTable):
        return look_up.table
    if hasattr(look_up, "modules_to_save") and hasattr(look_up, "original_module"):
        copies, active = look_up.modules_to_save, look_up.active_adapters
        used = active[0] if active and not look_up.disable_adapters and active[0] in copies else None
        return _table_in(look_up.original_module if used is None else copies[used])
    if not isinstance(look_up, CompressedTable):
        raise RuntimeError(
            f"the model's look-up is of type {type(look_up).__name__} now, and its head would score with another "
            "table; put table and head in together, with replace_embedding"
        )
    return look_up
