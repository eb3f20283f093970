"""Base module of TT layers and tables: a matrix as the cores of a TT-matrix, with padding, counts, plan and files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_matrix_train, paired_modes, several, whole
from .contraction import multiply
from .costs import Plan
from .files import read, write
from .fitting.als import fit_cores
from .fitting.gram import Gram, as_gram
from .matrices import ttm_svd, ttm_to_matrix
from .modes import NOMINAL_RANK, choose_modes
from .modules import Cores, cores_of, owned
from .plans import ORDERS, plan_for
from .shapes import tt_ranks


class TTMatrix(nn.Module):
    """A matrix stored as cores ``(r_{k-1}, m_k, n_k, r_k)``, rows and columns padded where the modes multiply to more.

    The base class of :class:`TTLinear` and :class:`TTMEmbedding`, not made by itself.

    Attributes:
        cores: ``ParameterList`` of d cores.
        row_shape, col_shape, ranks, modes: Row modes, column modes, TT-ranks; pairs ``(m_k, n_k)``.
        params, nbytes, dense_nbytes, ratio: Numbers and bytes of the cores, bytes of the dense matrix in that dtype,
            and its numbers for each number in the cores.
        order: "auto", or the order that vectors must be multiplied in (see :func:`plan_contraction`).
        recompute: If True, training computes intermediate results twice, one chunk of vectors or block of rows at a
            time, instead of keeping them for backward: less memory, more time, as ``plan`` tells. Without effect while
            a compiler traces.
    """

    order = "auto"
    recompute = False
    _SHAPES: ClassVar[tuple[str, str]] = ("row_shape", "col_shape")  # names of the modes in messages
    _WIDTHS: ClassVar[tuple[str, str]]
    _KIND: ClassVar[str]  # the kind in files, also for subclasses
    _SETTINGS: ClassVar[dict[str, tuple[type, ...]]]  # arguments of from_cores in a file's header, with their types
    _OPTIONS: ClassVar[dict[str, tuple[type, ...]]] = {"order": (str,), "recompute": (bool,), "trainable": (bool,)}

    def plan(self, batch: int) -> Plan:
        """The order and costs of multiplying ``batch`` vectors; ``print`` shows them beside the dense matrix's."""
        device = cores_of(self.cores)[0].device.type
        return plan_for(self._shapes, batch, device, self.order, self.recompute)._replace(widths=self._widths)

    def dense(self) -> Tensor:
        """The dense matrix, rebuilt without its padding. Differentiable."""
        return ttm_to_matrix(cores_of(self.cores))[: self._widths[0], : self._widths[1]]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; :meth:`load` and ``ttref.load`` read it.

        Raises:
            FileNotFoundError, OSError: No such folder, a full disk, missing rights.
            ModuleNotFoundError: safetensors is not installed; the message holds the install line.
            ValueError: NaN or infinity among the numbers, or none at all (meta device).
        """
        write(path, self._KIND, *self._content(), self._restore)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote, in training mode; all cores are trainable, unless every core was frozen.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A damaged file, or one of something else; the message names it.
        """
        return read(path, cls._KIND, cls._restore)

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """Row and column mode of each core."""
        return tuple(zip(self.row_shape, self.col_shape, strict=True))

    @property
    def params(self) -> int:
        """Numbers in the cores."""
        return sum(math.prod(shape) for shape in self._shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the cores."""
        return self.params * self.dtype.itemsize

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense matrix in the dtype of the cores."""
        return math.prod(self._widths) * self.dtype.itemsize

    @property
    def ratio(self) -> float:
        """Numbers in the dense matrix for each number in the cores."""
        return math.prod(self._widths) / self.params

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the cores."""
        return cores_of(self.cores)[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the cores."""
        return cores_of(self.cores)[0].device

    def _begin(
        self,
        shapes: Sequence[int | Sequence[int]],
        rank: int | Sequence[int],
        widths: Sequence[int | None] = (None, None),
        **options: Any,
    ) -> None:
        """Allocate cores; modes of rows and columns are chosen where a width is given instead."""
        widths = [
            whole(name, shape, least=1) if width is None and not several(shape) else width
            for name, shape, width in zip(self._SHAPES, shapes, widths, strict=True)
        ]
        cols, rows = choose_modes(*shapes[::-1], rank, self._SHAPES[::-1])
        ranks = tt_ranks(paired_modes(rows, cols), rank)
        sizes = zip(ranks[:-1], rows, cols, ranks[1:], strict=True)
        self._adopt([torch.empty(*size, **options) for size in sizes], *widths)

    def _adopt(self, cores: Sequence[Tensor], rows: int | None, cols: int | None) -> None:
        """Store copies of these cores; widths left out are the products of the modes."""
        *shapes, self.ranks = check_matrix_train(cores)
        widths = []
        for name, width, modes in zip(self._WIDTHS, (rows, cols), shapes, strict=True):
            width = math.prod(modes) if width is None else whole(name, width, least=1)
            if width > math.prod(modes):
                raise ValueError(f"{name} is {width}, but the modes {modes} multiply to {math.prod(modes)} only")
            widths.append(width)
        self.row_shape, self.col_shape = shapes
        self._widths = tuple(widths)
        self._padding = tuple(math.prod(modes) - width for modes, width in zip(shapes, widths, strict=True))
        self._shapes = tuple(tuple(core.shape) for core in cores)
        self.cores = Cores(map(owned, cores))

    @classmethod
    def _decomposed(
        cls,
        dense: Tensor,
        shapes: Sequence[Sequence[int] | None],
        rank: int | Sequence[int] | None,
        eps: float | None,
        *,
        gram: Gram | Tensor | None = None,
        of_rows: Tensor | None = None,
    ) -> list[Tensor]:
        """TT-SVD of a matrix, padded with zeros where the modes multiply to more; modes left out are chosen.

        With a Gram matrix of its columns, or weights of its rows, cores are fitted in that norm instead.
        """
        given = [size if modes is None else modes for size, modes in zip(dense.shape, shapes, strict=True)]
        shapes = choose_modes(*given[::-1], NOMINAL_RANK if rank is None else rank, cls._SHAPES[::-1])[::-1]
        padding = []
        for name, modes, size in zip(cls._SHAPES, shapes, dense.shape, strict=True):
            if math.prod(modes) < size:
                raise ValueError(f"{name} {modes} multiplies to {math.prod(modes)}, less than {size}")
            padding = [0, math.prod(modes) - size, *padding]
        padded = F.pad(dense, padding)
        if of_rows is not None:
            weights = _with_padding(of_rows, padding[3])
            cores = fit_cores(padded.mT, weights, *shapes[::-1], rank=rank, eps=eps)
            return [core.transpose(1, 2).contiguous() for core in cores]
        if gram is not None:
            as_gram(gram, dense.shape[1])
            return fit_cores(padded, _with_padding(gram, padding[1]), *shapes, rank=rank, eps=eps)
        return ttm_svd(padded, *shapes, rank=rank, eps=eps)

    def _multiplied(self, cores: Sequence[Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Vectors ``(batch, columns)`` times the transposed matrix: ``(batch, rows)``, padding cut off."""
        rows, cols = self._padding
        if cols:
            x = F.pad(x, (0, cols))
        if rows and bias is not None:
            bias = F.pad(bias, (0, rows))
        plan = plan_for(self._shapes, x.shape[0], x.device.type, self.order, self.recompute)
        y = multiply(cores, x, plan, bias)
        return y[:, : self._widths[0]] if rows else y

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings for a file."""
        tensors = {f"cores.{k}": core.detach() for k, core in enumerate(cores_of(self.cores))}
        header = {name: getattr(self, name) for name in (*self._SETTINGS, "order", "recompute")}
        return tensors, header | {"trainable": any(core.requires_grad for core in self.cores)}

    def _configured(self, header: dict[str, Any]) -> Self:
        """This module with the options of a file's header; files of tables before version 3 have no order."""
        order = header.get("order", "auto")
        if order not in ("auto", *ORDERS):
            raise ValueError(f"its order is {order!r}")
        self.order, self.recompute = order, header.get("recompute", False)
        self.cores.requires_grad_(header["trainable"])
        return self

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Self:
        """The module of a file's tensors and settings."""
        raise NotImplementedError


def _with_padding(gram: Gram | Tensor, extra: int) -> Gram | Tensor:
    """A Gram matrix, or weights, of padding too: so little that it costs nothing, and enough to keep it near zero."""
    if not extra:
        return gram
    if isinstance(gram, Gram):
        return Gram(_with_padding(gram.matrix, extra), gram.tokens)
    if gram.ndim == 1:
        return F.pad(gram, (0, extra), value=1e-6 * gram.mean().item())
    made = F.pad(gram.double(), (0, extra, 0, extra))
    made.diagonal()[-extra:] = 1e-6 * gram.diagonal().mean()
    return made
