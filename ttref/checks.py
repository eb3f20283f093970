"""Argument checks, made before anything is computed: numbers, modes, ranks, tensors, trains.

Every message names the argument, states what it must be and what it is, and how to mend it where that is not obvious.
A wrong type or dtype is a TypeError, a wrong value or size a ValueError, an index out of range an IndexError. torch is
imported only by the checks of tensors: :mod:`ttref.shapes` and :mod:`ttref.fixedpoint` do without it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def whole(name: str, value: int, *, least: int | None = None) -> int:
    """``value`` as an int of at least ``least``; 0-d integer arrays and tensors are accepted, booleans are not."""
    try:
        if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")) or getattr(value, "ndim", 0):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_real(name: str, value: float) -> None:
    """A real number, not a boolean; NaN and infinity are left to the caller, who knows the interval."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """A finite real number of at least 0, or above 0 if ``positive``."""
    check_real(name, value)
    if not 0 <= value < math.inf or (positive and value == 0):
        raise ValueError(f"{name} must be a finite number {'above 0' if positive else 'of at least 0'}, got {value}")


def several(value: object) -> bool:
    """True for a sequence of numbers; a 0-d array or tensor is one number though it is Iterable, a string is none."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0


def check_modes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple of ints of at least 1; arrays and tensors of one axis are accepted."""
    if not several(shape):
        raise TypeError(f"{name} must be a sequence of modes such as (2, 2, 3), got {shape!r}")
    shape = tuple(shape)
    if not shape:
        raise ValueError(f"{name} is empty; a tensor train needs at least one mode")
    return tuple(whole(f"{name}[{k}]", n, least=1) for k, n in enumerate(shape))


def paired_modes(row_shape: Sequence[int], col_shape: Sequence[int]) -> tuple[int, ...]:
    """Modes ``m_k * n_k`` of a TT-matrix read as a vector train; the two shapes must have equally many modes."""
    rows, cols = check_modes("row_shape", row_shape), check_modes("col_shape", col_shape)
    if len(rows) != len(cols):
        raise ValueError(
            f"row_shape {rows} has {len(rows)} modes and col_shape {cols} has {len(cols)}; they need equally many"
        )
    return tuple(m * n for m, n in zip(rows, cols, strict=True))


def check_rank_or_eps(rank: int | Sequence[int] | None, eps: float | None) -> None:
    """Exactly one of the two is given, and eps is in [0, 1)."""
    if rank is None and eps is None:
        raise ValueError(
            "give exactly one of rank and eps, got neither: rank=8 caps the ranks, eps=0.1 allows ten per cent of error"
        )
    if rank is not None and eps is not None:
        raise ValueError(
            "give exactly one of rank and eps, got both: a cap on the rank would void the guarantee of eps; "
            "where both are wanted, round twice, first by eps and then by rank"
        )
    if eps is not None:
        check_real("eps", eps)
        if not 0 <= eps < 1:
            raise ValueError(f"eps is the relative Frobenius error allowed and must lie in [0, 1), got {eps}")


def check_float(name: str, x: Tensor) -> None:
    """A real floating-point tensor; its entries are not read."""
    import torch

    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; torch.as_tensor converts an array")
    if x.is_complex():
        raise TypeError(f"{name} is {x.dtype}: complex tensors are not supported; decompose .real and .imag apart")
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{name} is {x.dtype}, but a floating-point dtype is needed; {name}.float() converts it")


def check_input(name: str, x: Tensor) -> None:
    """A real floating-point tensor with at least one entry and without NaN or Inf, as every decomposition needs."""
    check_float(name, x)
    if x.numel() == 0:
        raise ValueError(f"{name} has no entries: its shape is {tuple(x.shape)}, and every axis must be at least 1")
    # One NaN or Inf makes the sum non-finite, and a sum costs a twentieth of testing every entry. Finite entries can
    # overflow the sum too, so only then is every entry tested.
    if not x.sum().isfinite() and not x.isfinite().all():
        bad = (~x.isfinite()).nonzero()
        raise ValueError(
            f"{name} has {len(bad)} entries that are NaN or Inf, the first at index {tuple(bad[0].tolist())}; "
            "a decomposition would spread them over every core, so clean or drop them first"
        )


def check_matrix(name: str, w: Tensor) -> None:
    """:func:`check_input`, and two axes."""
    check_float(name, w)
    if w.ndim != 2:
        raise ValueError(f"{name} must be a matrix (m, n), got shape {tuple(w.shape)}; reshape it first")
    check_input(name, w)


def check_batch_dims(x: Tensor, batch_dims: int) -> int:
    """``batch_dims`` as an int that leaves at least one axis of ``x`` as a mode."""
    batch_dims = whole("batch_dims", batch_dims, least=0)
    if batch_dims >= max(x.ndim, 1):
        raise ValueError(f"batch_dims is {batch_dims}, but x has {x.ndim} axes and at least one must be a mode")
    return batch_dims


def check_bond(bond: int, d: int) -> None:
    """The index of a bond of a train of d cores, 1 to d-1."""
    bond = whole("bond", bond)
    if d < 2:
        raise IndexError(f"{d} modes have no bond between them; give the tensor at least two")
    if not 1 <= bond < d:
        raise IndexError(f"bond must lie between 1 and {d - 1}, got {bond}; bond k has k of the {d} modes on its left")


def check_listed(cores: Sequence[Tensor], name: str = "cores") -> None:
    """Cores in a list, a tuple, or a ParameterList as layers have them."""
    if isinstance(cores, (list, tuple)):
        return
    from torch import nn

    if not isinstance(cores, nn.ParameterList):
        raise TypeError(f"{name} must be a list of cores, got {type(cores).__name__}")


def check_train(
    cores: Sequence[Tensor], name: str = "cores"
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Batch axes, ranks and modes of a train; an error names the first core that does not fit."""
    check_listed(cores, name)
    if not len(cores):
        raise ValueError(f"{name} is empty; a train has at least one core")
    for k, core in enumerate(cores):
        check_float(f"{name}[{k}]", core)
        if core.ndim < 3:
            raise ValueError(f"{name}[{k}] has shape {tuple(core.shape)}; a core is (*batch, r_left, n, r_right)")
        if core.numel() == 0:
            raise ValueError(f"{name}[{k}] has no entries: its shape is {tuple(core.shape)}, a core has no axis of 0")
        if core.shape[:-3] != cores[0].shape[:-3]:
            raise ValueError(
                f"{name}[{k}] has batch axes {tuple(core.shape[:-3])}, {name}[0] has {tuple(cores[0].shape[:-3])}; "
                "expand the cores to equal ones"
            )
        if core.dtype != cores[0].dtype:
            raise TypeError(f"{name}[{k}] is {core.dtype}, {name}[0] is {cores[0].dtype}; convert them to one dtype")
        if k and core.shape[-3] != cores[k - 1].shape[-1]:
            raise ValueError(
                f"{name}[{k - 1}] ends with rank {cores[k - 1].shape[-1]} but {name}[{k}] begins with rank "
                f"{core.shape[-3]}: bond {k} does not chain; the two must be equal"
            )
    if cores[0].shape[-3] != 1 or cores[-1].shape[-1] != 1:
        ends = f"{cores[0].shape[-3]} on the left and {cores[-1].shape[-1]} on the right"
        raise ValueError(f"the end ranks of {name} must be 1, got {ends}")
    ranks = (1, *(core.shape[-1] for core in cores))
    return tuple(cores[0].shape[:-3]), ranks, tuple(core.shape[-2] for core in cores)


def check_matrix_train(cores: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Row modes, column modes and ranks of a TT-matrix; an error names the first core that does not fit."""
    check_listed(cores)
    for k, core in enumerate(cores):
        check_float(f"cores[{k}]", core)
        if core.ndim != 4:
            raise ValueError(
                f"cores[{k}] has shape {tuple(core.shape)}; a TT-matrix core is (r_left, m, n, r_right), four axes"
            )
    _, ranks, _ = check_train([core.flatten(1, 2) for core in cores])
    return tuple(core.shape[1] for core in cores), tuple(core.shape[2] for core in cores), ranks


def check_pair(a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
    """Two trains of one dtype, with equal modes and with batch axes that broadcast."""
    batch_a, _, modes_a = check_train(a, "a")
    batch_b, _, modes_b = check_train(b, "b")
    if len(modes_a) != len(modes_b):
        raise ValueError(f"a has {len(modes_a)} cores and b has {len(modes_b)}; trains to combine need equal modes")
    for k, (n, m) in enumerate(zip(modes_a, modes_b, strict=True)):
        if n != m:
            raise ValueError(f"core {k} of a has mode {n} but core {k} of b has mode {m}; the modes must be equal")
    if a[0].dtype != b[0].dtype:
        raise TypeError(f"a is {a[0].dtype} and b is {b[0].dtype}; convert one of them")
    if any(1 not in ends and ends[0] != ends[1] for ends in zip(batch_a[::-1], batch_b[::-1], strict=False)):
        raise ValueError(f"the batch axes {batch_a} of a and {batch_b} of b do not broadcast; make them equal or 1")


def check_caps(row_ranks: Sequence[int] | Tensor, count: int) -> list[int]:
    """``row_ranks`` as a list of ``count`` ints of at least 1; an error names the first that is wrong."""
    if not several(row_ranks):
        raise TypeError(f"row_ranks must be {count} caps, one for each row, got {row_ranks!r}; rank takes one for all")
    caps = row_ranks.tolist() if hasattr(row_ranks, "tolist") else list(row_ranks)
    if len(caps) != count:
        raise ValueError(f"row_ranks has {len(caps)} caps, but there are {count} rows")
    return [whole(f"row_ranks[{k}]", cap, least=1) for k, cap in enumerate(caps)]


def check_codes(bits: int, group: int | None, n: int, *, least: int) -> tuple[int, int]:
    """The width of codes, ``least`` to 8, and how many of a row's n entries share a scale: all, or a divisor of n."""
    bits = whole("bits", bits, least=least)
    if bits > 8:
        raise ValueError(f"bits must lie between {least} and 8, got {bits}")
    size = n if group is None else whole("group", group, least=1)
    if n % size:
        raise ValueError(f"group {size} does not divide the {n} entries of a row; choose a divisor of {n}")
    return bits, size
