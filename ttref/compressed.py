"""What everything compressed answers: one account of a matrix that is stored as something smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Compressed"]


@runtime_checkable
class Compressed(Protocol):
    """A dense matrix that is stored as fewer numbers: a layer, table, adapter, baseline or train of integers.

    The numbers that stand for the matrix are counted, and nothing else: not the bias of a layer, nor the frozen weight
    beside an adapter. ``isinstance(x, Compressed)`` asks whether all of this is there. What multiplies vectors without
    being rebuilt has ``plan(batch)`` besides.

    Attributes:
        params: How many numbers are stored, codes, scales and indices included.
        nbytes: How many bytes they take; codes of less than a byte are counted bit to bit.
        dense_nbytes: How many bytes the dense matrix takes, in the dtype that it is computed in. For integers those of
            the widest core.
        ratio: Numbers of the dense matrix for each number stored. In bytes it is ``dense_nbytes / nbytes``.
        ranks: TT-ranks, with ones at both ends. Where rows have trains of their own, the largest of any row, bond by
            bond. Empty for codes without factors.
        modes: A pair ``(m_k, n_k)`` of row and column mode for each core. A row of a table is a train of pairs
            ``(n_k, 1)``, truncated SVD one of two cores, ``((m, 1), (1, n))``. Empty for codes without factors.

    Example:
        >>> import torch, ttref
        >>> table = ttref.TTMEmbedding((4, 6), (4, 8), rank=2)
        >>> isinstance(table, Compressed), table.ranks, table.dense_nbytes
        (True, (1, 2, 1), 3072)
    """

    @property
    def params(self) -> int:
        """Numbers stored."""

    @property
    def nbytes(self) -> int:
        """Bytes stored."""

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense matrix."""

    @property
    def ratio(self) -> float:
        """Numbers of the dense matrix for each number stored."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT-ranks, ones at both ends."""

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """Row and column mode of each core."""

    def dense(self) -> Any:
        """The dense matrix: a plain tensor, differentiable where the numbers are trainable; an array of integers."""

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all, which ``ttref.load`` reads."""
