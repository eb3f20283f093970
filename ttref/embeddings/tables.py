"""The base class of compressed tables: checked ids, each id looked up once, exact counts of numbers and bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_input
from ..linears import numbers_of
from ..precision import full_precision, under_autocast
from ..rebuilt import rebuilt
from ..rows.packed import traced

LOOK_UP = 512  # rows rebuilt at once


class CompressedTable(nn.Module):
    """A table like ``nn.Embedding`` that rebuilds only the rows of the given ids.

    Attributes:
        num_embeddings, embedding_dim, padding_idx: As in ``nn.Embedding``: looking up row ``padding_idx`` gives it no
            gradient (scoring with it does, as with a dense matrix).
    """

    _repeats = True  # True if a row costs so much that repeated ids are looked up once

    num_embeddings: int
    dtype: torch.dtype
    device: torch.device

    def __init__(self, embedding_dim: int, padding_idx: int | None) -> None:
        super().__init__()
        self.embedding_dim, self.padding_idx = embedding_dim, padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of ids, ``(*ids)`` to ``(*ids, embedding_dim)``. The whole table is never rebuilt.

        Args:
            ids: int32 or int64, any shape.

        Raises:
            TypeError: ids that are no integers.
            IndexError: A negative id, or one beyond the table. A RuntimeError where the look-up was compiled, traced
                or exported; all three are supported, exporting with any number of ids too.
        """
        flat = self._check_ids(ids)
        if flat.is_meta:  # no numbers to look at
            return flat.new_empty(*ids.shape, self.embedding_dim, dtype=self.dtype)
        if traced():
            return self._rows(flat).reshape(*ids.shape, self.embedding_dim)
        unique, inverse = torch.unique(flat, return_inverse=True) if self._repeats and len(flat) > 1 else (flat, None)
        rows = self._rows(flat) if len(unique) == len(flat) else F.embedding(inverse, self._rows(unique))
        return rows.reshape(*ids.shape, self.embedding_dim)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``(count, embedding_dim)`` for one axis of ids, each rebuilt, repeated or not; otherwise as ``forward``.

        Raises:
            TypeError, IndexError: As :meth:`forward`.
            ValueError: ids with another number of axes than one.
        """
        flat = self._check_ids(ids)
        if ids.ndim != 1:
            raise ValueError(f"ids have shape {tuple(ids.shape)}; rows takes one axis, forward takes any shape")
        return self._rows(flat)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores ``hidden @ table^T`` for every row of the table, which is never rebuilt as a whole.

        Args:
            hidden: ``(*batch, embedding_dim)`` in the dtype of the table, or any under autocast.

        Returns:
            ``(*batch, num_embeddings)``. Differentiable.

        Raises:
            TypeError, ValueError: Another dtype, or another width.
        """
        if hidden.ndim == 0 or hidden.shape[-1] != self.embedding_dim:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)}; its last axis must hold embedding_dim = {self.embedding_dim}"
            )
        autocast = under_autocast(hidden)
        if hidden.dtype != self.dtype and not autocast:
            raise TypeError(f"hidden is {hidden.dtype} but the table is {self.dtype}; convert one of them")
        flat = hidden.reshape(-1, self.embedding_dim).to(self.dtype)
        scores = full_precision(self._logits)(flat)
        scores = scores.reshape(*hidden.shape[:-1], scores.shape[1])
        return scores.to(torch.get_autocast_dtype(hidden.device.type)) if autocast else scores

    def dense(self) -> Tensor:
        """The dense table ``(num_embeddings, embedding_dim)``, a plain tensor. Differentiable."""
        everything = torch.arange(self.num_embeddings, device=self.device)
        return CompressedTable.forward(self, everything) if everything.is_meta else self._rows(everything)

    @torch.no_grad()
    def to_embedding(self) -> nn.Embedding:
        """The dense table as ``nn.Embedding``, in the same dtype and on the same device."""
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        dense = nn.Embedding.from_pretrained(
            self.dense(), freeze=frozen, padding_idx=self.padding_idx, sparse=getattr(self, "sparse", False)
        )
        return dense.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The dense table ``(num_embeddings, embedding_dim)``, rebuilt at every access.

        For models that read this attribute of ``nn.Embedding``, and then pay for the rebuilding. Differentiable;
        writing into it is a RuntimeError, because the table would not change. ``weight.clone()`` is a plain tensor.
        """
        return rebuilt(self.dense(), self, "compress another table with from_embedding")

    @weight.setter
    def weight(self, value: Tensor) -> None:
        raise AttributeError(self._no_weight())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``; ``weight`` is taken."""
        if name == "weight":  # every assignment of an nn.Parameter comes through here
            raise AttributeError(self._no_weight())
        super().register_parameter(name, param)

    def _no_weight(self) -> str:
        return (
            f"the weight of a {type(self).__name__} is rebuilt from its cores and cannot be assigned; compress the new "
            f"table with {type(self).__name__}.from_embedding"
        )

    @property
    def params(self) -> int:
        """Numbers stored: everything in the state, codes and indices included."""
        return sum(tensor.numel() for tensor in self.state_dict().values())

    @property
    def nbytes(self) -> int:
        """Bytes stored: everything in the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense table, in the dtype of its rows."""
        return self.num_embeddings * self.embedding_dim * self.dtype.itemsize

    @property
    def ratio(self) -> float:
        """Numbers in the dense table for each number stored."""
        return self.num_embeddings * self.embedding_dim / self.params

    def _look_up(self, ids: Tensor) -> Callable[[slice, Tensor | None], Tensor]:
        """A function from a slice of checked ids (int64, one axis) to their rows, and into a tensor if given one."""
        raise NotImplementedError

    def _logits(self, hidden: Tensor) -> Tensor:
        """Scores ``(count, num_embeddings)`` of checked vectors ``(count, embedding_dim)``."""
        raise NotImplementedError

    @full_precision  # rows are copied out of a table, so autocast must not round what they are rebuilt from
    def _rows(self, ids: Tensor) -> Tensor:
        rows = self._look_up(ids)
        if traced() or torch.is_grad_enabled() or not len(ids):
            return rows(slice(None), None)
        out = torch.empty(len(ids), self.embedding_dim, dtype=self.dtype, device=ids.device)
        for start in range(0, len(ids), LOOK_UP):  # blocks whose intermediate results stay in the cache
            part = slice(start, start + LOOK_UP)
            rows(part, out[part])
        return out

    def _check_ids(self, ids: Tensor) -> Tensor:
        """``ids`` as one axis of int64, or an error that names the first that is wrong."""
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
            found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ids must be a tensor of int32 or int64, got {found}")
        flat = ids.reshape(-1).long()
        if traced():
            found = (flat >= 0) & (flat < self.num_embeddings)
            torch._assert_async(found.all(), f"an id is out of range: the table has {self.num_embeddings} rows")
            if torch.jit.is_tracing():  # it drops assertions, so the look-up of such an id must fail
                flat = torch.where(found, flat, 2**62)
        elif len(flat) and not flat.is_meta:
            least, most = torch.aminmax(flat)
            if least < 0 or most >= self.num_embeddings:
                wrong = least if least < 0 else most
                raise IndexError(
                    f"id {int(wrong)} is out of range: the table has {self.num_embeddings} rows, "
                    f"0 to {self.num_embeddings - 1}, and negative ids do not count from the end"
                )
        return flat


def table_of(embedding: nn.Embedding, *, sparse: bool) -> Tensor:
    """The weight that a plain ``nn.Embedding`` looks rows up in, as :func:`numbers_of` finds it.

    An error names the option of the table that cannot be kept.
    """
    if not isinstance(embedding, nn.Embedding):
        raise TypeError(f"only an nn.Embedding can be compressed, got {type(embedding).__name__}")
    [weight] = numbers_of(embedding, nn.Embedding, "weight")
    if embedding.max_norm is not None:
        raise ValueError(
            "max_norm rescales rows of the dense weight at every look-up, and a compressed table has no such rows; "
            "rescale the weight once, then set embedding.max_norm = None"
        )
    if embedding.scale_grad_by_freq:
        raise ValueError("scale_grad_by_freq is not supported; set embedding.scale_grad_by_freq = False")
    if embedding.sparse and not sparse:
        raise ValueError(
            "sparse gradients make no sense here: a look-up touches every core; set embedding.sparse = False"
        )
    check_input("embedding.weight", weight)
    return weight
