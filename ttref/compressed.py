"""The protocol of compressed matrices: one account of numbers, bytes, ranks and modes for layers, tables and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Compressed"]


@runtime_checkable
class Compressed(Protocol):
    """A dense matrix stored as fewer numbers: the protocol of layers, tables, adapters, baselines and integer trains.

    Only the numbers that represent the matrix are counted: neither the bias of a layer nor the frozen weight beside an
    adapter. ``isinstance(x, Compressed)`` is True if all members are there. Classes that multiply vectors without
    rebuilding the matrix also have ``plan(batch)``.

    Attributes:
        params: Numbers stored, codes, scales and indices included.
        nbytes: Bytes of these numbers; codes of less than a byte are counted bit by bit.
        dense_nbytes: Bytes of the dense matrix, in the dtype that it is computed in. For integers those of the widest
            core.
        ratio: Numbers of the dense matrix for each number stored. In bytes it is ``dense_nbytes / nbytes``.
        ranks: TT-ranks, with ones at both ends. Where each row is a train, the largest of any row, bond by bond. Empty
            for codes without factors.
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
