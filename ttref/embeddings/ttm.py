"""An embedding table as one TT-matrix: all rows share the cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_input, check_modes, check_rank_or_eps, whole
from ..files import check_finite, check_header
from ..modules import cores_of, listed
from ..precision import computable, full_precision
from ..rows.packed import meet, traced
from ..starts import draw
from ..ttmatrix import TTMatrix
from .tables import LOOK_UP, CompressedTable, table_of

__all__ = ["TTMEmbedding"]


class TTMEmbedding(CompressedTable, TTMatrix):
    """A look-up table like ``nn.Embedding``, stored as the cores of one TT-matrix.

    An id is written in mixed radix, one digit for each row mode; digit k picks a slice of core k, and the row is the
    product of the slices::

        row(id)[j_1 j_2 j_3] = G_1[i_1, j_1] G_2[i_2, j_2] G_3[i_3, j_3]    id = (i_1 i_2 i_3)

    Args:
        row_shape: Row modes ``(m_1, ..., m_d)``, or the number of rows: then three balanced modes are chosen, in the
            order that scores with the fewest operations. If modes multiply to more than ``num_embeddings``, the rest
            is padding that no id reaches.
        col_shape: Column modes ``(n_1, ..., n_d)`` or the width, likewise for ``embedding_dim``.
        rank: Cap on the TT-ranks, one int or d+1 of them.
        num_embeddings, embedding_dim: Sizes of the table; left out, the products of the modes.
        padding_idx: A row whose look-up gives no gradient. The cores are shared, so it cannot be kept at zero and
            changes with the other rows.
        device, dtype: As in ``nn.Embedding``.

    Attributes:
        cores: ``ParameterList`` of d cores ``(r_{k-1}, m_k, n_k, r_k)``.
        row_shape, col_shape, ranks: Modes and ranks.
        params, nbytes, dense_nbytes, ratio, modes: As in :class:`Compressed`.
        order, recompute: For ``logits``, as in :class:`TTLinear`.

    Initialization:
        Gaussian cores, scaled so that the mean square of the entries is 1, as ``nn.Embedding`` starts.

    Source:
        Khrulkov et al. (2019), Tensorized Embedding Layers, arXiv:1901.10787.

    Example:
        >>> table = TTMEmbedding((16, 24, 131), (4, 12, 16), rank=8, num_embeddings=50257)
        >>> table(torch.tensor([[5, 50256]])).shape, table.params
        (torch.Size([1, 2, 768]), 35712)
    """

    _WIDTHS = "num_embeddings", "embedding_dim"
    _KIND = "TTMEmbedding"
    _SETTINGS = {"num_embeddings": (int,), "embedding_dim": (int,), "padding_idx": (int, type(None))}
    dtype, device = TTMatrix.dtype, TTMatrix.device
    _repeats = False  # the ends are shared by all ids; the rest of a row costs no more than finding repeated ids

    def __init__(
        self,
        row_shape: int | Sequence[int],
        col_shape: int | Sequence[int],
        rank: int | Sequence[int],
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        *,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(0, None)
        self._begin((row_shape, col_shape), rank, (num_embeddings, embedding_dim), device=device, dtype=dtype)
        self._pad_at(padding_idx)
        self.reset_parameters()

    @classmethod
    @full_precision
    @torch.no_grad()
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        *,
        row_shape: Sequence[int] | None = None,
        col_shape: Sequence[int] | None = None,
        rank: int | Sequence[int] | None = None,
        eps: float | None = None,
        weight: Tensor | None = None,
    ) -> TTMEmbedding:
        """Compress a trained table by TT-SVD. The table stays as it is and shares no memory with the result.

        Args:
            embedding: ``nn.Embedding``; ``padding_idx`` is kept, ``max_norm``, ``scale_grad_by_freq`` and ``sparse``
                are refused.
            row_shape: Row modes, multiplying to at least the number of rows, the rest padded with zeros. Left out,
                they are chosen as in the constructor, three or as many as ``col_shape`` has; the order of the modes
                also decides which tables a given rank can represent.
            col_shape: Column modes, as many, multiplying to at least the width; likewise.
            rank: Cap on the TT-ranks.
            eps: Error allowed for the whole table, relative to its Frobenius norm, in [0, 1). Give exactly one.
            weight: Weights ``(num_embeddings,)`` of the rows' squared errors, such as the frequencies of tokens: cores
                are fitted by :func:`~ttref.fitting.als.fit_cores`, and eps is relative to the weighted norm. Add one
                to counts, so that a token not seen is not given up.

        Returns:
            The compressed table, in the dtype, on the device and in the training mode of the old one.

        Raises:
            TypeError: No ``nn.Embedding``, or one that computes more than a look-up (an overridden forward, hooks).
                Masks and parametrizations are applied.
            ValueError: Modes that multiply to too little, a table on the meta device, weights of another number than
                rows, below 0 or all 0, and as :func:`ttm_svd`.

        Guarantee:
            As :func:`ttm_svd`. With weights and modes without padding, the weighted error is at most that of TT-SVD of
            the same rank.

        Cost:
            As :func:`ttm_svd`: seconds for 50,000 x 768, and a few copies of the table in float64 meanwhile.

        Example:
            >>> table = nn.Embedding(60, 12)
            >>> TTMEmbedding.from_embedding(table, rank=4).row_shape
            (5, 4, 3)
            >>> shapes = dict(row_shape=(4, 4, 4), col_shape=(2, 2, 3))
            >>> whole = TTMEmbedding.from_embedding(table, **shapes, eps=0)
            >>> torch.allclose(whole(torch.arange(60)), table.weight, atol=1e-5)
            True
        """
        table = table_of(embedding, sparse=False)
        check_rank_or_eps(rank, eps)
        for name, modes in (("row_shape", row_shape), ("col_shape", col_shape)):
            if modes is not None:
                check_modes(name, modes)
        weights = None if weight is None else _weights(weight, len(table))
        cores = cls._decomposed(table, (row_shape, col_shape), rank, eps, of_rows=weights)
        made = cls.from_cores(cores, *table.shape, padding_idx=embedding.padding_idx)
        for core in made.cores:
            core.requires_grad_(table.requires_grad)
        return made.train(embedding.training)

    @classmethod
    def from_cores(
        cls,
        cores: Sequence[Tensor],
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        *,
        padding_idx: int | None = None,
    ) -> TTMEmbedding:
        """A table with copies of the cores ``(r_{k-1}, m_k, n_k, r_k)`` of a TT-matrix; a frozen core stays frozen.

        Raises:
            TypeError, ValueError: Cores that are no TT-matrix, or sizes beyond the products of their modes.

        Example:
            >>> cores = [torch.ones(1, 2, 3, 2), torch.ones(2, 4, 5, 1)]
            >>> TTMEmbedding.from_cores(cores)(torch.tensor(7)).shape
            torch.Size([15])
        """
        made = cls.__new__(cls)
        CompressedTable.__init__(made, 0, None)
        made._adopt(listed(cores), num_embeddings, embedding_dim)
        made._pad_at(padding_idx)
        return made

    @full_precision
    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new cores; see Initialization.

        Raises:
            RuntimeError: A core is computed from other numbers (pruned, parametrized), so there is none to draw.
        """
        draw(self.cores, (math.prod(self.row_shape) * math.prod(self.col_shape)) ** 0.5)

    def extra_repr(self) -> str:
        """Sizes, modes, ranks and the ratio."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"row_shape={self.row_shape}"]
        parts += [f"col_shape={self.col_shape}", f"ranks={self.ranks}"]
        parts += [f"padding_idx={self.padding_idx}"] * (self.padding_idx is not None)
        return ", ".join([*parts, f"ratio={self.ratio:.3g}"])

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> TTMEmbedding:
        check_header(header, cls._SETTINGS | cls._OPTIONS, optional=("order", "recompute"))
        check_finite(tensors)
        if header["padding_idx"] is not None:
            whole("padding_idx", header["padding_idx"], least=0)
        cores = [tensors[f"cores.{k}"] for k in range(len(tensors))]
        return cls.from_cores(cores, **{name: header[name] for name in cls._SETTINGS})._configured(header)

    def _look_up(self, ids: Tensor) -> Callable[[slice, Tensor | None], Tensor]:
        """Contract slices from both ends to the middle; an end with few digits is contracted for all combinations."""
        held = cores_of(self.cores)
        cores, dtype = [computable(core) for core in held], held[0].dtype
        half = _meeting(self.col_shape)
        behind = math.prod(self.row_shape[half:])
        front, front_ids = _front(cores[:half], ids // behind, self._shapes[:half])
        back, back_ids = _back(cores[half:], ids % behind, self._shapes[half:]) if half < len(cores) else (None, None)
        plain = dtype in (torch.float32, torch.float64)

        def rows(part: slice, out: Tensor | None) -> Tensor:
            found = front.index_select(0, front_ids[part])
            if back is None:
                found = found.flatten(1)[:, : self.embedding_dim]
            else:
                found = meet(found, back.index_select(0, back_ids[part]), self.embedding_dim, out if plain else None)
            if self.padding_idx is not None and (torch.is_grad_enabled() or traced()):
                found = torch.where((ids[part] == self.padding_idx).unsqueeze(1), found.detach(), found)
            return found.to(dtype) if out is None else out if found is out else out.copy_(found)

        return rows

    def _logits(self, hidden: Tensor) -> Tensor:
        """A TT-matrix times vectors, in the cheapest order: rows are rebuilt only if that is cheapest."""
        return self._multiplied(cores_of(self.cores), hidden)

    def _adopt(self, cores: Sequence[Tensor], rows: int | None, cols: int | None) -> None:
        super()._adopt(cores, rows, cols)
        self.num_embeddings, self.embedding_dim = self._widths

    def _pad_at(self, padding_idx: int | None) -> None:
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            raise ValueError(f"padding_idx is {padding_idx}, but the table has {self.num_embeddings} rows")
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings


def _weights(weight: Tensor, rows: int) -> Tensor:
    """Weights of rows, one for each, in float64; counts are integers often."""
    if not isinstance(weight, Tensor) or weight.is_complex() or weight.dtype == torch.bool:
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a tensor of numbers ({rows},), got {found}")
    if weight.shape != (rows,):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, but the table has {rows} rows; it takes one for each"
        )
    check_input("weight", weight.double())
    if weight.min() < 0 or not weight.max() > 0:
        raise ValueError("weight must be at least 0 everywhere and above 0 somewhere")
    return weight.detach().double()


def _meeting(widths: Sequence[int]) -> int:
    """Number of leading cores in the front: the cut whose two sides are closest in width."""
    return min(range(1, max(len(widths), 2)), key=lambda k: math.prod(widths[:k]) + math.prod(widths[k:]))


def _front(cores: Sequence[Tensor], ids: Tensor, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Products of the leading cores' slices, ``(some, n_1 ... n_k, r_k)``, and the index into them for each id.

    If there are no more combinations of digits than ids, each combination is contracted once. ``shapes`` are those of
    the cores as numbers, because a tracer would make them tensors.
    """
    if len(cores) == 1:
        return cores[0].squeeze(0), ids
    *before, last = cores
    r, m, n, r_next = shapes[-1]
    slices = last.transpose(0, 1).flatten(2)
    combinations = math.prod([shape[1] for shape in shapes[:-1]])
    if combinations * m <= _enough(ids):
        every, where = _front(before, torch.arange(combinations, device=ids.device), shapes[:-1])
        # The last digit first: then the product comes out in its final order, and nothing is transposed.
        product = torch.matmul(every[where].reshape(1, -1, r), slices)
        width = every.shape[1] * n
        return product.view(m * combinations, width, r_next), ids % m * combinations + ids // m
    front, where = _front(before, ids // m, shapes[:-1])
    product = torch.bmm(front.index_select(0, where), slices.index_select(0, ids % m))
    count = ids.shape[0]
    return product.view(count, front.shape[1] * n, r_next), torch.arange(count, device=ids.device)


def _back(cores: Sequence[Tensor], ids: Tensor, shapes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The same for the trailing cores: ``(some, r_k, n_{k+1} ... n_d)``, and the index for each id."""
    if len(cores) == 1:
        return cores[0].squeeze(3).transpose(0, 1).contiguous(), ids
    first, *behind = cores
    r, m, n, r_next = shapes[0]
    slices = first.transpose(0, 1).reshape(m, r * n, r_next)
    combinations = math.prod([shape[1] for shape in shapes[1:]])
    if m * combinations <= _enough(ids):
        every, where = _back(behind, torch.arange(combinations, device=ids.device), shapes[1:])
        product = torch.matmul(slices.unsqueeze(1), every[where])
        return product.view(m * combinations, r, n * every.shape[2]), ids
    back, where = _back(behind, ids % combinations, shapes[1:])
    product = torch.bmm(slices.index_select(0, ids // combinations), back.index_select(0, where))
    count = ids.shape[0]
    return product.view(count, r, n * back.shape[2]), torch.arange(count, device=ids.device)


def _enough(ids: Tensor) -> int:
    """Most combinations of digits contracted in advance: the number of ids, or a constant while it is symbolic."""
    return LOOK_UP if traced() else len(ids)
