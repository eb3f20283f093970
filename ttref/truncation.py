"""Truncated singular value decompositions of many small matrices at once: what every truncation in ``ttref`` uses.

**Accuracy rule.** Singular values read off a Gram matrix lose half the digits of the arithmetic. So the Gram matrix is
only ever formed in float64 from data of at most float32: half of 16 digits still covers all of float32. Data that is
float64 itself takes the precise route, a true SVD. Either way the result is as good as an SVD in the data's own
precision, and both routes are tested against that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real

import torch
from torch import Tensor

CHUNK_BYTES = 16 << 20  # float64 working set of one CPU chunk: smaller ones spend their time handing over the GIL
CHUNK_BYTES_CUDA = 256 << 20  # a GPU wants large batches instead

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_input(name: str, x: Tensor) -> None:
    """Refuse what no decomposition can start from: wrong type, complex or integer dtype, no entries, NaN or Inf."""
    check_float(name, x)
    if x.numel() == 0:
        raise ValueError(f"{name} has no entries: its shape is {tuple(x.shape)}")
    # One NaN or Inf anywhere makes the sum non-finite, at a twentieth of the cost of looking at every entry. Finite
    # entries can overflow the sum too, so only then is each entry looked at.
    if not x.sum().isfinite() and not x.isfinite().all():
        bad = (~x.isfinite()).nonzero()
        raise ValueError(
            f"{name} has {len(bad)} entries that are NaN or Inf, the first at index {tuple(bad[0].tolist())}; "
            "a decomposition would spread them over every core, so clean or drop them first"
        )


def check_float(name: str, x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; torch.as_tensor converts an array")
    if x.is_complex():
        raise TypeError(f"{name} is {x.dtype}: complex tensors are not supported; decompose .real and .imag apart")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} is {x.dtype}, but a floating-point dtype is needed; {name}.float() converts it")


def check_rank_or_eps(rank: int | Sequence[int] | None, eps: float | None) -> None:
    """Exactly one of the two, and eps in [0, 1)."""
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
        if isinstance(eps, bool) or not isinstance(eps, Real):
            raise TypeError(f"eps must be a number in [0, 1), got {eps!r} of type {type(eps).__name__}")
        if not 0 <= eps < 1:
            raise ValueError(f"eps is the relative Frobenius error allowed and must lie in [0, 1), got {eps}")


def bond_tolerance(eps: float, bonds: int, dtype: torch.dtype) -> float:
    """What each of ``bonds`` truncations may discard, relative to the norm, for a total of ``eps``.

    The discarded parts are orthogonal to each other, so their squares add: each bond gets 1 / sqrt(bonds). Half of the
    rounding allowance of 10 d machine epsilons is spent here, so that a rank which only rounding noise fills is found
    at eps = 0; the other half is for the rounding of the cores. Half-precision data gets float32's allowance: its own
    machine epsilon is so large that ten of them would drown eps.
    """
    noise = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return (eps + 5 * (bonds + 1) * noise) / max(bonds, 1) ** 0.5


def check_range(what: str, narrow: Tensor, wide: Tensor) -> None:
    """Refuse ``narrow`` where the cast from ``wide`` made Inf, or nothing but zeros along the last axis."""
    lost = (narrow == 0).all(-1) & (wide != 0).any(-1)
    if not narrow.isfinite().all() or lost.any():
        raise ValueError(f"{what} beyond the range of {narrow.dtype}; convert the input with .float() or .double()")


def left_subspace(matrix: Tensor, *, precise: bool, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors and all singular values of a float64 batch ``(*batch, m, n)``.

    Returns:
        ``u`` of shape ``(*batch, m, min(k, most))`` with orthonormal columns, and ``s`` of shape ``(*batch, k)``,
        descending, with k = min(m, n). ``precise=False`` squares the matrix: see the accuracy rule of this module.

    Cost:
        O(m n k) multiply-adds and one k x k (fast: at most 2n x 2n) eigenproblem for each matrix.
    """
    m, n = matrix.shape[-2:]
    keep = min(m, n) if most is None else min(m, n, most)
    basis = None
    if m > 2 * n:  # a tall matrix has the singular values of its small triangular factor
        basis, matrix = torch.linalg.qr(matrix)
        m = n
    if precise:
        if n > 2 * m:  # a wide one too; its right singular vectors are not needed
            matrix = torch.linalg.qr(matrix.mT, mode="r").R.mT
        u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
        u = u[..., :keep]
    else:
        gram = matrix @ matrix.mT
        energies, u = _eigh_2x2(gram) if m == 2 else torch.linalg.eigh(gram)
        s = energies.flip(-1)[..., : min(m, n)].clamp(min=0).sqrt()
        u = u[..., -keep:].flip(-1)  # eigh sorts upwards
    return (u if basis is None else basis @ u), s


def singular_values(matrix: Tensor, *, precise: bool) -> Tensor:
    """All singular values of a float64 batch ``(*batch, m, n)`` with m <= n, descending, without any vectors.

    Cost:
        O(m^2 n) multiply-adds for each matrix.
    """
    if precise:
        return torch.linalg.svdvals(matrix)
    return torch.linalg.eigvalsh(matrix @ matrix.mT).flip(-1).clamp(min=0).sqrt()


def _eigh_2x2(gram: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` in closed form: rank-one trains of binary modes meet nothing but 2 x 2 matrices."""
    a, b, c = gram[..., 0, 0], gram[..., 0, 1], gram[..., 1, 1]
    mean, half = (a + c) / 2, (a - c) / 2
    radius = torch.hypot(half, b)
    # Of the two formulas for the leading eigenvector, take the one that adds numbers of equal sign.
    x = torch.where(half >= 0, radius + half, b)
    y = torch.where(half >= 0, b, radius - half)
    length = torch.hypot(x, y)
    x = torch.where(length > 0, x / length, 1.0)  # a multiple of the identity: any basis will do
    y = torch.where(length > 0, y / length, 0.0)
    vectors = torch.stack((torch.stack((-y, x), -1), torch.stack((x, y), -1)), -2)
    return torch.stack((mean - radius, mean + radius), -1), vectors


def fix_signs(u: Tensor) -> Tensor:
    """Turn every column, in place, so that a weighted sum of its entries is positive; returns ``u``.

    The weights 1 / (i + sqrt 2) are positive, fall slowly and are irrational. Balanced columns such as (1, -1) or
    (1, -2), which a plain sum or a largest entry would leave to rounding, get a clear sign, and so printed cores agree
    between machines.
    """
    weights = 1 / (torch.arange(u.shape[-2], dtype=u.dtype, device=u.device) + 2**0.5)
    return u.mul_(torch.copysign(torch.ones_like(weights[0]), weights @ u).unsqueeze(-2))


def ranks_within(s: Tensor, allowed: Tensor) -> Tensor:
    """Smallest rank of each matrix whose discarded singular values have norm at most ``allowed``; at least 1."""
    tails = s.square().flip(-1).cumsum(-1).flip(-1)  # tails[r] is the energy lost by keeping r values
    return (tails > allowed.square().unsqueeze(-1)).sum(-1).clamp(min=1)


def truncate(matrix: Tensor, cap: int | None, allowed: Tensor | None, *, precise: bool) -> tuple[Tensor, Tensor]:
    """Orthonormal columns ``u`` for the kept subspace, and ``u^T matrix``; by rank cap or by discarded norm."""
    u, s = left_subspace(matrix, precise=precise, most=cap)
    if cap is None:
        kept = ranks_within(s, allowed)
        u = u[..., : int(kept.max())]
        own = torch.arange(u.shape[-1], device=u.device) < kept.unsqueeze(-1)
        u = u * own.unsqueeze(-2)  # each tensor keeps only the columns it needs; the rest is padding
    u = fix_signs(u)
    return u, u.mT @ matrix


def peak(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Largest magnitude along ``axes``, or 1 where all is zero: what to divide by before squares leave the range."""
    largest = x.abs().amax(axes, keepdim=True)
    return torch.where(largest == 0, 1.0, largest)


def exponents(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Along ``axes``, the whole number e (int64) for which the largest magnitude lies in ``[2^(e-1), 2^e)``."""
    return torch.frexp(peak(x, axes)).exponent.long()


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2^exponent`` for float64 ``x`` of magnitude about 1: rounded only where the result leaves float64's range.

    In two halves, for ``2^exponent`` leaves the range long before the result does. Each half is put together from its
    bits: no library's power is trusted to be exact.
    """
    exponent = exponent.clamp(-2044, 2044)
    half = exponent >> 1
    for part in (half, exponent - half):
        x = x * ((part + 1023) << 52).view(torch.float64)
    return x


@torch.no_grad()
def map_chunks(work: Callable[[slice], None], count: int, bytes_each: int, device: torch.device) -> None:
    """Call ``work`` on slices that cover ``range(count)``, on CPU from as many threads as torch may use.

    Batched LAPACK calls in torch run on one core, so the batch is cut into chunks of ``CHUNK_BYTES`` and the chunks
    are shared out, with torch held to one thread in each worker. Raises what ``work`` raises. torch keeps one thread
    number for the process: a thread of the caller's that starts meanwhile begins with one torch thread.
    """
    budget = CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES_CUDA
    step = max(1, budget // max(bytes_each, 1))
    chunks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    threads = torch.get_num_threads()
    if device.type != "cpu" or len(chunks) == 1 or threads == 1:
        for chunk in chunks:
            work(chunk)
        return

    inference = torch.is_inference_mode_enabled()

    def guarded(chunk: slice) -> None:
        # Both modes belong to a thread, so each worker must set them again.
        with torch.inference_mode(inference), torch.no_grad():
            work(chunk)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _consume(pool.map(guarded, chunks))
    finally:
        torch.set_num_threads(threads)  # the workers' setting is also what new threads would start with


def _consume(results: Iterator[None]) -> None:
    for _ in results:
        pass
