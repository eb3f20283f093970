"""Compressed matrices of the classical methods: factors, or codes with scales or codebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .codes import pack_bits, packed_size, unpack_bits
from .files import check_finite, check_header, read, write
from .precision import computable, full_precision

__all__ = ["Baseline"]

KIND = "Baseline"
FLOATS = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True, eq=False)
class Baseline:
    """A compressed matrix: the stored tensors, their numbers and bytes, and the matrix that they represent.

    Attributes:
        name: Method and setting, for tables: ``"SVD rank 57"``, ``"int4 per row"``.
        stored: The stored tensors: factors ``left`` and ``right``; or ``codes`` with ``scales`` (one per row or group)
            or ``codebooks`` ``(pieces, centers, width of a piece)``, which may be integers with ``scales``
            ``(pieces, centers)``.
        dtype: The dtype of the matrix.
        bits: Width of a code; None for factors.
        odd: A code c with a scale stands for the odd number 2c + 1, so that all ``2^bits`` levels lie around zero and
            none is unused. Of one bit they are the signs.
        approximation: The matrix that the stored tensors represent, same shape and dtype as the original.
        params, nbytes: Numbers stored, codes included; bytes stored, with codes packed bit by bit.
        dense_nbytes, ratio: Bytes of the matrix, and its numbers for each number stored.
        ranks, modes: ``(1, r, 1)`` and ``((m, 1), (1, n))`` for factors, else empty.

    Example:
        >>> from ttref import quantize_integer
        >>> w = torch.tensor([[127.0, -3.0, 20.0], [0.0, 254.0, 6.0]])
        >>> baseline = quantize_integer(w, 8)
        >>> baseline.name, baseline.params, baseline.nbytes, baseline.relative_error(w)
        ('int8 per row', 8, 10, 0.0)
    """

    name: str
    stored: Mapping[str, Tensor]
    dtype: torch.dtype
    bits: int | None = None
    odd: bool = False

    @cached_property
    @full_precision
    @torch.no_grad()
    def approximation(self) -> Tensor:
        """The matrix that the stored tensors represent, computed once."""
        held = {name: computable(tensor) for name, tensor in self.stored.items()}
        if "left" in held:
            left, right = held["left"], held["right"]
            # The short side goes first, as when the factors were made.
            product = left @ right if len(left) <= right.shape[1] else (right.mT @ left.mT).mT
            return product.to(self.dtype).contiguous()
        codes = self.stored["codes"]
        if "codebooks" in held:
            books = self.stored["codebooks"]
            if "scales" in held:  # entries of the codebook are integers themselves
                books = (books.to(held["scales"].dtype) * held["scales"].unsqueeze(2)).to(self.dtype)
            pieces = [book[codes[:, k].long()] for k, book in enumerate(books)]
            return torch.cat(pieces, dim=1)
        # A scale that was rounded up may carry the largest code just beyond the dtype of the matrix.
        limit, wide = torch.finfo(self.dtype).max, torch.promote_types(self.dtype, torch.float32)
        if self.odd:
            codes = 2 * codes.short() + 1  # beyond eight bits
        rows = codes.to(wide) * held["scales"].to(wide).unsqueeze(2)
        return rows.flatten(1).clamp(-limit, limit).to(self.dtype)

    def dense(self) -> Tensor:
        """The approximation."""
        return self.approximation

    @property
    def params(self) -> int:
        """Numbers stored, codes included."""
        return sum(tensor.numel() for tensor in self.stored.values())

    @property
    def nbytes(self) -> int:
        """Bytes stored, codes packed bit by bit."""
        return sum(
            packed_size(tensor.numel(), self.bits) if name == "codes" else tensor.numel() * tensor.element_size()
            for name, tensor in self.stored.items()
        )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.approximation.numel() * self.approximation.element_size()

    @property
    def ratio(self) -> float:
        """Numbers of the matrix for each number stored."""
        return self.approximation.numel() / self.params

    @property
    def ranks(self) -> tuple[int, ...]:
        """``(1, r, 1)`` for factors."""
        return (1, self.stored["left"].shape[1], 1) if "left" in self.stored else ()

    @property
    def modes(self) -> tuple[tuple[int, int], ...]:
        """``((m, 1), (1, n))`` for factors."""
        return ((len(self.stored["left"]), 1), (1, self.stored["right"].shape[1])) if "left" in self.stored else ()

    def save(self, path: str | Path) -> None:
        """Write the stored tensors to one safetensors file, whole or not at all; errors as :meth:`TTLinear.save`."""
        tensors = {name: tensor.detach() for name, tensor in self.stored.items()}
        header = {"name": self.name, "dtype": str(self.dtype)[6:], "bits": self.bits, "odd": self.odd, "shape": None}
        if "codes" in tensors:
            header["shape"] = list(tensors["codes"].shape)
            tensors["codes"] = pack_bits(tensors["codes"], self.bits)
        write(path, KIND, tensors, header, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> Baseline:
        """Read a file of :meth:`save`; errors as :meth:`TTLinear.load`."""
        return read(path, KIND, cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Baseline:
        types = {"name": (str,), "dtype": (str,), "bits": (int, type(None)), "shape": (list, type(None))}
        check_header(header, types | {"odd": (bool,)}, optional=["odd"])
        check_finite(tensors)
        dtype, bits, shape = FLOATS[header["dtype"]], header["bits"], header["shape"]
        found = {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items() if name != "codes"}
        odd = header.get("odd", bits == 1 and "codebooks" not in tensors)  # what older files meant
        if odd and (bits is None or "codebooks" in tensors):
            raise ValueError("its header says odd, which only codes with scales of rows can be")
        if (bits is None) != ("codes" not in tensors):
            raise ValueError(f"its header has {bits} bits, and it holds {', '.join(tensors)}")
        if bits is None:
            (m, r), n = tensors["left"].shape, tensors["right"].shape[1]
            wanted = {"left": (dtype, m, r), "right": (dtype, r, n)}
        else:
            # Sizes in the header are checked against the tensors before any memory is taken for them.
            books = tensors.get("codebooks")
            axes, most = (3, 8) if books is None else (2, 16)
            sizes = [type(size) for size in shape or ()]
            if not 1 <= bits <= most or sizes != [int] * axes or min(shape) < 1:
                raise ValueError(f"its header has codes of {bits} bits and shape {shape}")
            tensors["codes"] = unpack_bits(tensors["codes"], bits, math.prod(shape), signed=books is None)
            kind = torch.int8 if books is None else torch.uint8 if bits <= 8 else torch.int32
            tensors["codes"] = tensors["codes"].reshape(shape).to(kind)
            if books is None:
                wanted = {"scales": (torch.bfloat16, *shape[:2])}
            else:
                centers = books.shape[1]
                if tensors["codes"].max() >= centers:
                    raise ValueError(f"it has {centers} centers, and the code {int(tensors['codes'].max())}")
                wanted = {"codebooks": (dtype, shape[1], centers, books.shape[2])}
                if "scales" in tensors:
                    wanted = {
                        "codebooks": (torch.int8, *wanted["codebooks"][1:]),
                        "scales": (torch.bfloat16, shape[1], centers),
                    }
        if found != wanted:
            raise ValueError(f"it holds {found}, not {wanted}")
        return cls(header["name"], tensors, dtype, bits, odd)

    @full_precision
    def relative_error(self, w: Tensor) -> float:
        """Relative Frobenius error ``‖w - approximation‖ / ‖w‖``, summed in float64; 0 where both are zero.

        Raises:
            ValueError: ``w`` has another shape than the approximation.
        """
        if w.shape != self.approximation.shape:
            raise ValueError(
                f"w has shape {tuple(w.shape)}, but this baseline approximates a matrix of shape "
                f"{tuple(self.approximation.shape)}"
            )
        scale = computable(w).abs().max().item() or 1.0  # squares of float64 extremes leave the range
        difference = computable(w) - computable(self.approximation)
        error = torch.linalg.vector_norm(difference / scale, dtype=torch.float64).item()
        norm = torch.linalg.vector_norm(computable(w) / scale, dtype=torch.float64).item()
        return error / norm if norm else (0.0 if error == 0 else float("inf"))
