"""Vectors and tensors as tensor trains (matrix product states): decompose, rebuild, read entries.

A train is a plain list of cores, core k of shape ``(*batch, r_{k-1}, n_k, r_k)``, end ranks 1::

    o--o--o--o        x[i_1, ..., i_d] = G_1[i_1] G_2[i_2] ... G_d[i_d],
    |  |  |  |        each G_k[i_k] a r_{k-1} x r_k matrix

Batch axes come first in every core: a batch of trains is one list, not a list of lists. Reshaping is row-major and the
first mode is the most significant. Decompositions run without gradients; contractions (:func:`tt_to_tensor`,
:func:`tt_entry`) are differentiable.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from .checks import check_batch_dims, check_input, check_modes, check_rank_or_eps, check_train
from .powers import peak
from .precision import computable, full_precision
from .shapes import tt_ranks
from .threads import map_chunks
from .truncation import bond_tolerance, truncate

__all__ = ["tt_svd", "tt_to_tensor", "tt_entry"]


@full_precision
@torch.no_grad()
def tt_svd(
    x: Tensor,
    shape: Sequence[int] | None = None,
    *,
    rank: int | Sequence[int] | None = None,
    eps: float | None = None,
    batch_dims: int = 0,
) -> list[Tensor]:
    """Decompose a tensor, or every tensor of a batch, into a tensor train.

    Sweeps from the left: at bond k the tensor is read as a matrix of ``r_{k-1} n_k`` rows, its leading left singular
    vectors become core k, and the projection on them is carried on. Because every core but one keeps orthonormal
    columns, what the bonds discard adds up in squares, and the error is known.

    Args:
        x: Real tensor ``(*batch, ...)``; the axes after ``batch_dims`` are the modes, unless ``shape`` is given.
        shape: Modes to reshape each tensor to, row-major; their product must be the number of its entries.
        rank: Cap on the TT-ranks, one int or d+1 of them with ones at both ends; clipped to what the shape allows.
        eps: Relative Frobenius error allowed, in [0, 1), for **each** tensor of the batch separately.
        batch_dims: How many leading axes count tensors instead of modes.

    Returns:
        d cores ``(*batch, r_{k-1}, n_k, r_k)`` in the dtype and on the device of ``x``. With ``eps`` the cores of a
        batch share the largest rank at each bond and smaller trains are padded with zeros. With ``rank``, bonds that
        need no truncation are not computed: their cores are slices of the identity, on the left of the one core that
        carries the norm (left-orthogonal) and on its right (right-orthogonal).

    Raises:
        TypeError: ``x`` is not a real floating-point tensor, or an argument has the wrong type.
        ValueError: NaN or Inf, no entries, a shape whose product differs, both or neither of rank and eps, a rank
            below 1 or of the wrong length, eps outside [0, 1), a norm beyond the range of the dtype.

    Guarantee:
        With ``eps``, ``||x - tt||_F <= (eps + 10 d u) ||x||_F`` for each tensor, u the machine epsilon of its dtype.
        With ``rank``, the error is at most ``sqrt(d - 1)`` times that of the best train of these ranks.

    Cost:
        O(n r^2) multiply-adds for each bond over n = the entries left at that bond, and an eigenproblem of size
        ``r_{k-1} n_k``; float16, bfloat16 and float32 are computed in float64 (see ``truncation``), in chunks over
        all of torch's CPU threads, with a few times 16 MB of working memory for each thread.

    Source:
        Oseledets (2011), Tensor-Train Decomposition, algorithm 1 and theorem 2.2.

    Example:
        >>> t = torch.arange(16, dtype=torch.float64)
        >>> # an exponential has rank 1 at every bond
        >>> cores = tt_svd(2.0 ** -t, (2, 2, 2, 2), eps=1e-10)
        >>> [tuple(core.shape) for core in cores]
        [(1, 2, 1), (1, 2, 1), (1, 2, 1), (1, 2, 1)]
        >>> rows = torch.randn(100, 2, 2, 2, 2)
        >>> [tuple(core.shape) for core in tt_svd(rows, rank=2, batch_dims=1)]
        [(100, 1, 2, 2), (100, 2, 2, 2), (100, 2, 2, 2), (100, 2, 2, 1)]
    """
    if rank is None and eps is None and isinstance(shape, Integral):
        raise ValueError(f"{shape} stands where the shape is expected; to cap the ranks, write rank={shape}")
    check_rank_or_eps(rank, eps)
    check_input("x", x)
    batch, modes = _split_axes(x, shape, batch_dims)
    d, count, entries = len(modes), math.prod(batch), math.prod(modes)
    flat = x.reshape(count, entries)
    ranks = None if rank is None else tt_ranks(modes, rank)
    tolerance = None if eps is None else bond_tolerance(eps, d - 1, x.dtype)
    sizes = ranks or (1,) * (d + 1)  # with eps the cores grow to the largest ranks of the chunks
    train = [x.new_zeros(count, sizes[k], n, sizes[k + 1]) for k, n in enumerate(modes)]
    lock = threading.Lock()

    def work(chunk: slice) -> None:
        part = flat[chunk].double()
        if precise := x.dtype == torch.float64:  # squares of float64 extremes would overflow or vanish
            scale = peak(part, (1,))
            part = part / scale
        cores, center = _sweep(part, modes, ranks, tolerance, precise=precise)
        if precise:
            cores[center] = cores[center] * scale[:, :, None, None]
        for k, core in enumerate(cores):
            _, left, n, right = core.shape
            with lock:
                _, r, _, s = train[k].shape
                if left > r or right > s:
                    grown = x.new_zeros(count, max(left, r), n, max(right, s))
                    grown[:, :r, :, :s] = train[k]
                    train[k] = grown
                train[k][chunk, :left, :, :right] = core

    map_chunks(work, count, entries * 8, x.device)
    if not all(core.sum().isfinite() or core.isfinite().all() for core in train):
        raise ValueError(
            f"a core would have to carry the norm of x, beyond the range of {x.dtype}; "
            "convert x with .float() or .double()"
        )
    return [core.reshape(*batch, *core.shape[1:]) for core in train]


@full_precision
def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """Contract a train, or a batch of trains, to the dense tensor ``(*batch, n_1, ..., n_d)``.

    The left and the right half are contracted first, so that the one large product comes last. Differentiable.

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.

    Returns:
        Tensor of shape ``(*batch, n_1, ..., n_d)``, dtype of the cores. Products of neighboring cores must be in its
        range too; beyond it they become Inf or zero, as in any product of torch.

    Raises:
        TypeError: A core is no real floating-point tensor.
        ValueError: Cores that do not chain, differing batch axes, end ranks other than 1.

    Cost:
        O(N r) multiply-adds for a tensor of N entries, and lower-order terms.

    Source:
        Oseledets (2011), equation 1.2.

    Example:
        >>> ramp = torch.arange(8.0)
        >>> cores = tt_svd(ramp, (2, 2, 2), eps=1e-6)
        >>> torch.allclose(tt_to_tensor(cores).reshape(-1), ramp, atol=1e-5)
        True
    """
    batch, _, modes = check_train(cores)
    flat = [computable(core).reshape(-1, *core.shape[-3:]) for core in cores]
    half = middle(modes)
    left, right = flat[0], flat[-1]
    count = left.shape[0]
    left = left.reshape(count, -1, left.shape[-1])
    for core in flat[1:half]:
        left = (left @ core.reshape(count, core.shape[1], -1)).reshape(count, -1, core.shape[-1])
    if half < len(cores):
        right = right.reshape(count, right.shape[1], -1)
        for core in reversed(flat[half:-1]):
            right = (core.reshape(count, -1, core.shape[-1]) @ right).reshape(count, core.shape[1], -1)
        left = left @ right
    return left.reshape(*batch, *modes).to(cores[0].dtype)


@full_precision
def tt_entry(cores: Sequence[Tensor], index: Sequence[int] | Tensor) -> Tensor:
    """Read single entries of a train without building the tensor.

    Args:
        cores: d cores ``(*batch, r_{k-1}, n_k, r_k)``.
        index: d integers, or an integer tensor ``(*many, d)`` of such rows. Negative numbers count from the end.

    Returns:
        Tensor of shape ``(*batch, *many)``; a 0-d tensor for one entry of one train. Products of the leading cores
        must be in the range of the dtype too, as for :func:`tt_to_tensor`.

    Raises:
        TypeError: ``index`` does not hold integers.
        IndexError: A wrong number of integers, or one outside its mode.
        ValueError: As :func:`tt_to_tensor`.

    Cost:
        O(d r^2) multiply-adds for each entry.

    Example:
        >>> cores = tt_svd(torch.arange(8.0), (2, 2, 2), eps=1e-6)
        >>> round(tt_entry(cores, (1, 0, 1)).item(), 4)           # entry 5 = binary 101
        5.0
    """
    batch, _, modes = check_train(cores)
    where = torch.as_tensor(index, device=cores[0].device)
    if where.dtype.is_floating_point or where.dtype.is_complex or where.dtype == torch.bool:
        raise TypeError(f"index must hold integers, got {where.dtype}")
    if where.ndim == 0 or where.shape[-1] != len(modes):
        raise IndexError(f"index has shape {tuple(where.shape)}; its last axis must hold {len(modes)} mode indices")
    sizes = torch.tensor(modes, device=where.device)
    outside = ((where < -sizes) | (where >= sizes)).any(-1)
    if outside.any():
        raise IndexError(f"index {where[outside][0].tolist()} lies outside the modes {modes}")
    digits = (where % sizes).reshape(-1, len(modes))
    row = None
    for k, core in enumerate(cores):
        picked = computable(core).index_select(-2, digits[:, k]).movedim(-2, -3)  # (*batch, many, r, r')
        row = picked if row is None else row @ picked
    return row.reshape(batch + where.shape[:-1]).to(cores[0].dtype)


def _sweep(
    rest: Tensor, modes: Sequence[int], ranks: Sequence[int] | None, tolerance: float | None, *, precise: bool
) -> tuple[list[Tensor], int]:
    """TT-SVD of float64 rows ``(b, N)``; the cores and the position of the orthogonality center."""
    b, d = rest.shape[0], len(modes)
    allowed = None if tolerance is None else tolerance * torch.linalg.vector_norm(rest, dim=1)
    center = d - 1 if ranks is None else _last_truncation(modes, ranks)
    cores, left = [], 1
    for k in range(center):
        rest = rest.reshape(b, left * modes[k], -1)
        if ranks is not None and ranks[k + 1] == left * modes[k]:  # nothing to truncate: the identity is the basis
            u = torch.eye(left * modes[k], dtype=rest.dtype, device=rest.device).expand(b, -1, -1)
        else:
            u, rest = truncate(rest, None if ranks is None else ranks[k + 1], allowed, precise=precise)
        cores.append(u.reshape(b, left, modes[k], -1))
        left = u.shape[-1]
    cores.append(rest.reshape(b, left, modes[center], -1))
    for k in range(center + 1, d):
        eye = torch.eye(math.prod(modes[k:]), dtype=rest.dtype, device=rest.device)
        cores.append(eye.reshape(1, eye.shape[0], modes[k], -1).expand(b, -1, -1, -1))
    return cores, center


def _last_truncation(modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Position of the first core with only full-rank bonds on its right (rank = product of the modes on its right)."""
    k = len(modes) - 1
    while k > 0 and ranks[k] == math.prod(modes[k:]):
        k -= 1
    return k


def _split_axes(x: Tensor, shape: Sequence[int] | None, batch_dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Batch axes and modes, from ``x`` and the arguments of :func:`tt_svd`."""
    batch_dims = check_batch_dims(x, batch_dims)
    batch, modes = tuple(x.shape[:batch_dims]), tuple(x.shape[batch_dims:])
    if shape is not None:
        entries = math.prod(modes)
        modes = check_modes("shape", shape)
        if math.prod(modes) != entries:
            raise ValueError(
                f"shape {modes} has product {math.prod(modes)}, but each tensor has {entries} entries; "
                "pad the tensor or choose other modes (ttref.factorize proposes some)"
            )
    if not modes:
        raise ValueError("x is a single number; give it at least one mode")
    return batch, modes


def middle(modes: Sequence[int]) -> int:
    """Number of cores in the left half, for the cut that minimizes the sum of the sizes of both halves."""
    total = math.prod(modes)
    return min(range(1, len(modes) + 1), key=lambda k: (math.prod(modes[:k]) + total / math.prod(modes[:k]), k))
