"""Gram matrices of a layer's inputs: what a fit needs to know of the data, in ``d x d`` numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_float, check_input, check_matrix, whole
from ..files import check_header, read, write
from ..precision import full_precision

__all__ = ["Gram", "Grams", "as_gram"]

CHUNK_BYTES = 32 << 20  # of the float64 copy of a layer's inputs; more would not be faster


@dataclass(frozen=True, eq=False)
class Gram:
    """The Gram matrix ``sum x x^T`` of a layer's inputs, over all tokens.

    It is all that the squared error of a layer's outputs depends on: ``tr((W - W') G (W - W')^T)``.

    Args:
        matrix: float64 ``(d, d)``, symmetric and positive semidefinite; d is the width of the inputs.
        tokens: The number of inputs summed, at least 1.

    Raises:
        TypeError: A matrix that is not float64, tokens that are no integer.
        ValueError: A matrix that is not square or not symmetric, or has NaN, Inf or a negative eigenvalue beyond
            rounding; tokens below 1.

    Cost:
        One Cholesky factorization, O(d^3), for the check. Two Gram matrices of one layer add up: ``a + b``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])
        >>> gram = Gram.from_inputs(x[:2]) + Gram.from_inputs(x[2:])
        >>> gram.tokens, gram.width, gram.matrix.tolist()
        (3, 2, [[10.0, 14.0], [14.0, 21.0]])
    """

    matrix: Tensor
    tokens: int

    def __post_init__(self) -> None:
        as_gram(self.matrix, None, name="matrix")
        if self.matrix.dtype != torch.float64:
            raise TypeError(f"matrix is {self.matrix.dtype}, but a Gram matrix is summed in float64; use .double()")
        object.__setattr__(self, "tokens", whole("tokens", self.tokens, least=1))

    @property
    def width(self) -> int:
        """Width d of the inputs."""
        return len(self.matrix)

    @classmethod
    @torch.no_grad()
    def from_inputs(cls, x: Tensor) -> Gram:
        """The Gram matrix of inputs ``(*tokens, d)``, summed in float64 whatever their dtype, on their device.

        Raises:
            TypeError: Inputs that are no real floating-point tensor.
            ValueError: No tokens, or NaN or Inf among the inputs.

        Cost:
            O(tokens d^2), and 32 MB beside the inputs.

        Example:
            >>> Gram.from_inputs(torch.ones(2, 5, 3)).matrix[0]
            tensor([10., 10., 10.], dtype=torch.float64)
        """
        check_float("x", x)
        if x.ndim == 0:
            raise ValueError("x must have shape (*tokens, d), got a single number")
        check_input("x", x)
        x = x.detach().reshape(-1, x.shape[-1])
        return cls(summed(x), len(x))

    def __add__(self, other: Gram) -> Gram:
        if not isinstance(other, Gram):
            return NotImplemented
        if self.width != other.width:
            raise ValueError(f"Gram matrices of widths {self.width} and {other.width}: of two different layers?")
        return Gram(self.matrix + other.matrix.to(self.matrix.device), self.tokens + other.tokens)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; errors as :meth:`TTLinear.save`."""
        write(path, "Gram", {"matrix": self.matrix.detach()}, {"tokens": self.tokens}, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> Gram:
        """Read a file of :meth:`save`; errors as :meth:`TTLinear.load`."""
        return read(path, "Gram", cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Gram:
        check_header(header, {"tokens": (int,)})
        if tensors.keys() != {"matrix"}:
            raise ValueError(f"it holds {', '.join(tensors)}, not matrix")
        return cls(tensors["matrix"], header["tokens"])


class Grams(Mapping[str, Gram]):
    """Gram matrices by the names of their layers, as :func:`~ttref.fitting.collecting.collect_gram` makes them.

    Layers that were given the same inputs hold the same :class:`Gram`, which is stored once. Two collections of the
    same layers, from two shards of the data, add up: ``a + b``.

    Args:
        grams: From names of layers to their Gram matrices.

    Raises:
        TypeError: A value that is no :class:`Gram`.
        ValueError: No layer at all; in a sum, layers that only one of the two has, or other widths.

    Example:
        >>> seen = Gram.from_inputs(torch.eye(2))
        >>> both = Grams({"query": seen, "key": seen}) + Grams({"key": seen, "query": seen})
        >>> list(both), both["key"].tokens, both["key"] is both["query"]
        (['query', 'key'], 4, True)
    """

    def __init__(self, grams: Mapping[str, Gram]) -> None:
        self._held = dict(grams)
        if not self._held:
            raise ValueError("grams is empty; name at least one layer")
        for name, gram in self._held.items():
            if not isinstance(gram, Gram):
                raise TypeError(f"grams[{name!r}] must be a Gram, got {type(gram).__name__}")

    def __getitem__(self, name: str) -> Gram:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        widths = ", ".join(f"{name}: {gram.width} x {gram.width}" for name, gram in self.items())
        return f"Grams({widths})"

    def __add__(self, other: Grams) -> Grams:
        if not isinstance(other, Grams):
            return NotImplemented
        if self.keys() != other.keys():
            alone = ", ".join(sorted(self.keys() ^ other.keys()))
            raise ValueError(f"only one of the two has {alone}; add Gram matrices of the same layers")
        sums: dict[tuple[int, int], Gram] = {}
        merged = {}
        for name, gram in self.items():
            pair = id(gram), id(other[name])
            if pair not in sums:
                try:
                    sums[pair] = gram + other[name]
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
            merged[name] = sums[pair]
        return Grams(merged)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; errors as :meth:`TTLinear.save`."""
        each = list({id(gram): gram for gram in self.values()}.values())
        place = {id(gram): k for k, gram in enumerate(each)}
        header = {
            "layers": {name: place[id(gram)] for name, gram in self.items()},
            "tokens": [gram.tokens for gram in each],
        }
        write(path, "Grams", {str(k): gram.matrix.detach() for k, gram in enumerate(each)}, header, self._restore)

    @classmethod
    def load(cls, path: str | Path) -> Grams:
        """Read a file of :meth:`save`; errors as :meth:`TTLinear.load`."""
        return read(path, "Grams", cls._restore)

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> Grams:
        check_header(header, {"layers": (dict,), "tokens": (list,)})
        if tensors.keys() != {str(k) for k in range(len(header["tokens"]))}:
            raise ValueError(f"it holds {len(tensors)} matrices and {len(header['tokens'])} counts of tokens")
        each = [Gram(tensors[str(k)], tokens) for k, tokens in enumerate(header["tokens"])]
        return cls({name: each[whole("place", place, least=0)] for name, place in header["layers"].items()})


@full_precision
@torch.no_grad()
def as_gram(gram: Gram | Tensor, width: int | None, *, name: str = "gram") -> Tensor:
    """A Gram matrix as a symmetric float64 tensor ``(width, width)``, on its own device; checked.

    Args:
        gram: A :class:`Gram`, or a matrix ``(width, width)`` of floating-point numbers.
        width: The width that the layer's inputs must have; None takes any.
        name: The name of the argument, for messages.

    Raises:
        TypeError: Neither a :class:`Gram` nor a real floating-point tensor.
        ValueError: A matrix of another width (that of another layer?), not square, not symmetric, with NaN or Inf, or
            with a negative eigenvalue beyond rounding.

    Cost:
        One Cholesky factorization, O(width^3), for a plain tensor.

    Example:
        >>> as_gram(torch.eye(2), 2).dtype
        torch.float64
        >>> as_gram(torch.eye(2), 3)
        Traceback (most recent call last):
            ...
        ValueError: gram is 2 x 2, but the layer's inputs have width 3; is it the Gram matrix of another layer?
    """
    matrix = gram.matrix if isinstance(gram, Gram) else gram
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a Gram or a tensor (width, width), got {type(gram).__name__}")
    check_matrix(name, matrix)
    rows, columns = matrix.shape
    if rows != columns:
        raise ValueError(
            f"{name} has shape {tuple(matrix.shape)} and is not square; Gram.from_inputs makes it from inputs"
        )
    if width is not None and rows != width:
        raise ValueError(
            f"{name} is {rows} x {rows}, but the layer's inputs have width {width}; "
            "is it the Gram matrix of another layer?"
        )
    exact = matrix.detach().double()
    if isinstance(gram, Gram):  # checked when it was made
        return exact
    # Rounding of sums of at most float32: a matrix in float64 may have been converted.
    slack = 1e-6 * exact.abs().max().item()
    if (exact - exact.mT).abs().max() > slack:
        raise ValueError(f"{name} is not symmetric; a Gram matrix is the sum of x x^T over the inputs x")
    exact = (exact + exact.mT) / 2
    shifted = exact.clone()
    # Of eigenvalues it grows with the largest one, which is the whole trace where the inputs have a common mean.
    shifted.diagonal().add_(max(slack, torch.finfo(torch.float32).eps * exact.trace().item()))
    if slack and torch.linalg.cholesky_ex(shifted).info:
        least = torch.linalg.eigvalsh(exact)[0].item()
        raise ValueError(
            f"{name} has the negative eigenvalue {least:.3g}, but a Gram matrix has none; "
            "it is the sum of x x^T over the inputs x"
        )
    return exact


def summed(x: Tensor) -> Tensor:
    """``x^T x`` in float64 for ``x (tokens, d)``, one piece of the tokens at a time."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for piece in x.split(max(1, CHUNK_BYTES // (8 * x.shape[1]))):
        wide = piece.double()
        total.addmm_(wide.mT, wide)
    return (total + total.mT) / 2
