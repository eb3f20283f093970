"""Vectors and ids as they come in: arrays, tensors, lists, tables; flattened and checked."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = 1e18  # of a norm: the square of a larger one would leave the range of float32

LARGEST_ID = 2**63 - 2  # the next one is an int64, too


def to_matrix(x: Any, name: str) -> tuple[Tensor, tuple[int, ...]]:
    """Vectors as float32 ``(count, width)`` and the shape of each, which is ``(width,)`` or ``(views, dim)``.

    Raises:
        TypeError: A sparse matrix, or entries that are no numbers.
        ValueError: Complex numbers, another number of axes, no vectors, no entries, NaN, Inf, a norm too large.
    """
    x = _tensor(x, name)
    if x.is_complex():
        raise ValueError(
            f"Complex data not supported: {name} is {x.dtype}; take .real, or real and imaginary beside it"
        )
    if x.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (documents, width), or (documents, views, dim) for a stack, got {tuple(x.shape)}; "
            f"Reshape your data: {name}[None] makes a single vector a batch of one"
        )
    shape = tuple(x.shape[1:])
    if len(x) == 0 or 0 in shape:
        short = f"{len(x)} sample(s)" if len(x) == 0 else f"{math.prod(shape)} feature(s)"
        raise ValueError(f"{name} has {short} (shape={tuple(x.shape)}) while a minimum of 1 is required.")
    x = x.detach().reshape(len(x), -1).float()
    wrong = ~x.isfinite().all(1)
    if wrong.any():
        raise ValueError(
            f"{name} has NaN or infinite entries (or larger ones than float32 holds) in {int(wrong.sum())} of {len(x)} "
            f"vectors, the first in vector {int(wrong.nonzero()[0])}; drop these vectors or mend what made them"
        )
    if x.abs().max().double() * x.shape[1] ** 0.5 > LARGEST:
        raise ValueError(f"{name} has entries up to {x.abs().max():.3g}, too large for their products; rescale them")
    return x, shape


def to_unit(x: Tensor, name: str) -> Tensor:
    """Vectors divided by their norms, computed in float64; a zero vector has no direction and is refused."""
    exact = x.double()
    norms = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    zero = norms[:, 0] == 0
    if zero.any():
        raise ValueError(
            f"{name} has {int(zero.sum())} zero vectors, the first is vector {int(zero.nonzero()[0])}; the cosine with "
            "a zero vector is undefined: drop them, or use metric='inner_product'"
        )
    return (exact / norms).float()


def to_ids(ids: Any, count: int | None, name: str = "ids") -> Tensor:
    """Ids as int64 ``(count,)``, on the CPU.

    Raises:
        TypeError: Ids that are no integers.
        ValueError: Another number of them, two that are equal, one below 0, or one above 2^63 - 2.
    """
    try:
        # Through a list what is no tensor: arrays of unsigned integers and columns of a table come as plain numbers.
        found = ids.cpu() if isinstance(ids, Tensor) else torch.tensor([_whole(one) for one in ids])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be integers below 2^63, one for each vector, got {reprlib.repr(ids)}") from error
    if not found.numel():
        found = found.long()
    if found.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"{name} must be integers, got {found.dtype}; keep a dict from your keys to integers beside it")
    if found.ndim != 1 or (count is not None and len(found) != count):
        wanted = "" if count is None else f" for {count} vectors"
        raise ValueError(f"{name} has shape {tuple(found.shape)}{wanted}; give one id for each vector")
    found = found.long()
    ordered = found.sort().values
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise ValueError(f"{name} has {int(ordered[1:][twice][0])} twice; every document needs an id of its own")
    if len(found) and ordered[0] < 0:
        raise ValueError(f"{name} has {int(ordered[0])}; ids are integers from 0 on")
    if len(found) and ordered[-1] > LARGEST_ID:
        raise ValueError(f"{name} has {int(ordered[-1])}; ids are integers up to 2^63 - 2")
    return found


def _whole(one: Any) -> int:
    if isinstance(one, bool):
        raise TypeError("a boolean is no id")
    return operator.index(one)


def _tensor(x: Any, name: str) -> Tensor:
    """A tensor of numbers; sparse matrices are refused."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{name} is a sparse tensor, which is not supported; use {name}.to_dense()")
        return x
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise TypeError(f"{name} is a sparse matrix, which is not supported; use {name}.toarray()")
    if isinstance(x, Sequence) and len(x) and isinstance(x[0], Tensor):
        x = torch.stack(list(x))
        return x
    try:
        import numpy as np
    except ModuleNotFoundError:
        return torch.as_tensor(x)
    array = np.asarray(x)
    if array.dtype.kind not in "buif":
        if array.dtype.kind == "c":
            raise ValueError(f"Complex data not supported: {name} is {array.dtype}; take .real of it")
        array = array.astype(np.float64)  # says itself what is no number
    array = np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)
    return torch.as_tensor(array if array.flags.writeable else array.copy())
