"""The methods that a tensor train must beat: truncated SVD, integer and product quantization; and a Gaussian null.

Each baseline compresses one matrix and returns a :class:`Baseline`: the stored tensors, the dense approximation, which
can be put back into a model, and exact counts of all that is stored: factors, codes packed bit by bit, scales,
codebooks. Factors have the dtype of the matrix: a float16 factor takes two bytes, a float32 factor four.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .approximation import Baseline
from .checks import check_codes, check_matrix, whole
from .codes import to_codes
from .fitting.gram import Gram, as_gram
from .precision import computable, full_precision
from .truncation import truncate

__all__ = ["gaussian_null", "product_quantize", "quantize_integer", "truncated_svd"]


@full_precision
@torch.no_grad()
def truncated_svd(
    w: Tensor,
    *,
    rank: int | None = None,
    params: int | None = None,
    nbytes: int | None = None,
    gram: Gram | Tensor | None = None,
) -> Baseline:
    """Best approximation of a given rank, stored as two factors ``(m, r)`` and ``(r, n)``.

    Args:
        w: Matrix ``(m, n)``.
        rank: The rank r; more than min(m, n) is clipped to that.
        params: Budget of numbers: the largest rank with ``r (m + n) <= params``.
        nbytes: Budget of bytes: the same with factors in the dtype of ``w``.
        gram: Gram matrix G of the inputs of a layer with weight ``w``: a :class:`~ttref.fitting.gram.Gram`, or a
            tensor ``(n, n)``. The error is then that of the layer's outputs (whitened SVD).

    Returns:
        A :class:`Baseline` with ``r (m + n)`` numbers. Above ``r = m n / (m + n)`` that is more than the matrix.

    Guarantee:
        No matrix of rank r is closer in the Frobenius norm or, with a Gram matrix G, in ``tr((w - w') G (w - w')^T)``.
        Directions that no input had are zero in ``w'``.

    Raises:
        TypeError: ``w`` is not a real floating-point tensor, or a budget is not an integer.
        ValueError: Not exactly one of rank, params, nbytes; a budget too small for rank 1; ``w`` is not a matrix, is
            empty, or holds NaN or Inf; a Gram matrix of another width, or one that is not positive semidefinite.

    Cost:
        O(m n min(m, n)). The singular vectors of the shorter side come from its Gram matrix in float64, exact to
        float32; a float64 matrix takes a true SVD. A 50,000 x 576 float32 table takes a few seconds. A Gram matrix
        adds O(n^3 + m n^2).

    Source:
        Eckart and Young (1936), The approximation of one matrix by another of lower rank: the squared error is the sum
        of the squared singular values left out. With a Gram matrix: Wang et al. (2024), SVD-LLM, arXiv:2403.07378.

    Example:
        >>> w = torch.outer(torch.arange(1.0, 7), torch.ones(4))     # rank 1
        >>> baseline = truncated_svd(w, params=10)
        >>> baseline.name, baseline.params, baseline.nbytes, baseline.relative_error(w) < 1e-6
        ('SVD rank 1', 10, 40, True)
    """
    check_matrix("w", w)
    m, n = w.shape
    given = {"rank": rank, "params": params, "nbytes": nbytes}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"give exactly one of rank, params and nbytes, got {' and '.join(chosen) or 'none'}")
    budget = whole(chosen[0], given[chosen[0]], least=1)
    unit = {"rank": 1, "params": m + n, "nbytes": (m + n) * w.element_size()}[chosen[0]]
    if budget < unit:
        raise ValueError(
            f"{chosen[0]}={budget} is too small: rank 1 of a {m} x {n} matrix in {w.dtype} already takes {unit}"
        )
    r = min(budget // unit, m, n)
    if gram is not None:
        return _whitened_svd(w, as_gram(gram, n).to(w.device), r)
    # The short side goes first: its Gram matrix is the small one.
    short = w.double() if m <= n else w.double().mT
    factors = [factor.to(w.dtype) for factor in truncate(short, r, None, precise=w.dtype == torch.float64)]
    left, right = factors if m <= n else (factors[1].mT, factors[0].mT)
    return _factored(f"SVD rank {r}", left, right, w.dtype)


def _whitened_svd(w: Tensor, gram: Tensor, r: int) -> Baseline:
    """The SVD of ``w S`` with ``S S^T = G``, and S taken out of the right factor again."""
    values, vectors = torch.linalg.eigh(gram)
    # Directions below rounding of the largest were not seen: nothing says what they should be.
    seen = values > len(gram) * torch.finfo(torch.float64).eps * values[-1]
    root, vectors = values[seen].sqrt(), vectors[:, seen]
    left, s, right = torch.linalg.svd((w.double() @ vectors) * root, full_matrices=False)
    size = s[:r].sqrt()
    right = (right[:r] * size.unsqueeze(1) / root) @ vectors.mT
    missing = (0, 0, 0, r - len(right))  # of fewer directions than r
    left, right = F.pad((left[:, :r] * size).mT, missing).mT, F.pad(right, missing)
    return _factored(f"whitened SVD rank {r}", left.to(w.dtype).contiguous(), right.to(w.dtype), w.dtype)


def _factored(name: str, left: Tensor, right: Tensor, dtype: torch.dtype) -> Baseline:
    """Two factors as a baseline, if they and their product stay in the range of the dtype."""
    made = Baseline(name, {"left": left, "right": right}, dtype)
    if not (left.isfinite().all() and right.isfinite().all() and made.approximation.isfinite().all()):
        raise ValueError(f"a factor leaves the range of {dtype}; convert w with .float() or .double()")
    return made


@full_precision
@torch.no_grad()
def quantize_integer(w: Tensor, bits: int, *, group: int | None = None, best: bool = False) -> Baseline:
    """Round to signed integers of ``bits`` bits, with one scale for each row or each group of consecutive entries.

    The grid is symmetric: ``w ≈ scale * code`` with codes from ``-(2^(bits-1) - 1)`` to ``2^(bits-1) - 1``. By default
    the scale carries the largest entry to the largest code. A scale takes two bytes: bfloat16, which has the range of
    float32, rounded up so that no entry is clipped.

    Args:
        w: Matrix ``(m, n)``.
        bits: Width of a code, 2 to 8; 2 bits give the codes -1, 0 and 1.
        group: Entries of a row that share a scale, a divisor of n; left out, the whole row.
        best: Try 33 scales for each row or group and keep the one with the least squared error, which clips the largest
            entries where that pays: at four bits and fewer it is the stronger baseline, for the same bytes.

    Returns:
        A :class:`Baseline` of ``ceil(m n bits / 8)`` bytes of codes and two bytes for each scale.

    Raises:
        TypeError: ``w`` is not a real floating-point tensor, or bits or group is not an integer.
        ValueError: bits outside 2 to 8; a group that does not divide n; entries beyond the range of bfloat16; ``w`` is
            not a matrix, is empty, or holds NaN or Inf.

    Cost:
        O(m n) time, 33 times that with ``best``; some working copies in float32 (float64 for float64).

    Source:
        Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, equation 1 with zero-point 0; here no statistics are learned, so it is rounding to nearest.

    Example:
        >>> # the grid is -1.5, -1, ..., 1.5
        >>> baseline = quantize_integer(torch.tensor([[0.3, -1.5, 0.9, 0.0]]), 3)
        >>> baseline.name, baseline.nbytes, baseline.approximation
        ('int3 per row', 4, tensor([[ 0.5000, -1.5000,  1.0000,  0.0000]]))
    """
    check_matrix("w", w)
    m, n = w.shape
    bits, size = check_codes(bits, group, n, least=2)
    codes, scales = to_codes(computable(w).reshape(m, n // size, size), bits, best=best)
    name = f"int{bits} per {'row' if group is None else f'group of {size}'}{', best scale' if best else ''}"
    return Baseline(name, {"codes": codes, "scales": scales.squeeze(2)}, w.dtype, bits)


@full_precision
@torch.no_grad()
def product_quantize(w: Tensor, *, subvectors: int, bits: int = 8, seed: int = 0) -> Baseline:
    """Cut each row into ``subvectors`` pieces and replace each piece by the nearest of ``2^bits`` k-means centers.

    Each of the ``subvectors`` positions has one codebook, learned from all rows by scikit-learn's k-means (random
    start, at most 25 iterations, as in the common libraries for vector search).

    Args:
        w: Matrix ``(m, n)``.
        subvectors: Pieces for each row, a divisor of n.
        bits: Width of a code, 1 to 8; ``2^bits`` may not exceed m.
        seed: Seed of the random start.

    Returns:
        A :class:`Baseline` of ``ceil(m subvectors bits / 8)`` bytes of codes and ``2^bits n`` codebook entries in the
        dtype of ``w``. The codebooks do not grow with m: this is a method for tall tables.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        TypeError: ``w`` is not a real floating-point tensor, or a setting is not an integer.
        ValueError: subvectors that do not divide n; bits outside 1 to 8; more centers than rows; ``w`` is not a
            matrix, is empty, or holds NaN or Inf.

    Cost:
        O(m n 2^bits) for each of at most 25 iterations: with 50,000 rows and 8 bits about a second for each piece.

    Source:
        Jégou, Douze and Schmid (2011), Product Quantization for Nearest Neighbor Search, section II.B.

    Example:
        >>> w = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [2.0, 3.0]])
        >>> baseline = product_quantize(w, subvectors=2, bits=1)     # two values in each column
        >>> baseline.nbytes, baseline.relative_error(w)
        (17, 0.0)
    """
    check_matrix("w", w)
    m, n = w.shape
    subvectors = whole("subvectors", subvectors, least=1)
    bits = whole("bits", bits, least=1)
    seed = whole("seed", seed, least=0)
    if n % subvectors:
        raise ValueError(f"{subvectors} subvectors do not divide the {n} entries of a row; choose a divisor of {n}")
    if bits > 8:
        raise ValueError(f"bits must lie between 1 and 8, got {bits}")
    if 2**bits > m:
        raise ValueError(f"{2**bits} centers ({bits} bits) need at least as many rows, got {m}; lower bits")
    try:
        from sklearn.cluster import KMeans
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "product quantization needs scikit-learn; install it with: python -m pip install scikit-learn"
        ) from error
    codes = torch.empty(m, subvectors, dtype=torch.uint8)
    books = torch.zeros(subvectors, 2**bits, n // subvectors, dtype=w.dtype)
    for k, piece in enumerate(computable(w).cpu().chunk(subvectors, dim=1)):
        # With no more distinct pieces than centers, the pieces are the codebook; k-means would leave centers unused.
        rows = piece.contiguous().numpy()
        distinct, place = piece.unique(dim=0, return_inverse=True)
        if len(distinct) <= 2**bits:
            books[k, : len(distinct)], codes[:, k] = distinct, place
            continue
        kmeans = KMeans(2**bits, init="random", n_init=1, max_iter=25, random_state=seed).fit(rows)
        books[k], codes[:, k] = torch.from_numpy(kmeans.cluster_centers_), torch.from_numpy(kmeans.labels_)
    stored = {"codes": codes.to(w.device), "codebooks": books.to(w.device)}
    return Baseline(f"PQ {subvectors} x {bits} bit", stored, w.dtype, bits)


@full_precision
@torch.no_grad()
def gaussian_null(w: Tensor, *, seed: int = 0) -> Tensor:
    """Gaussian noise with the row norms of ``w``: a matrix without structure, as the null of a compression method.

    A method that compresses ``w`` no better than this noise has found no structure beyond the norms of the rows.

    Args:
        w: Matrix ``(m, n)``.
        seed: Seed of the noise; it is drawn on the CPU, so every device gives the same numbers.

    Returns:
        Matrix ``(m, n)`` in the dtype and on the device of ``w``: independent normal entries, each row scaled to the
        norm of the same row of ``w``. A zero row stays zero.

    Raises:
        TypeError: ``w`` is not a real floating-point tensor.
        ValueError: ``w`` is not a matrix, is empty, holds NaN or Inf, or its noise leaves the range of its dtype.

    Cost:
        O(m n).

    Source:
        The rows are uniform on spheres: Muller (1959), A note on a method for generating points uniformly on
        n-dimensional spheres.

    Example:
        >>> null = gaussian_null(torch.full((3, 100), 2.0))
        >>> [round(x, 4) for x in null.norm(dim=1).tolist()]
        [20.0, 20.0, 20.0]
    """
    check_matrix("w", w)
    values = computable(w)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    noise = torch.randn(w.shape, generator=generator, dtype=values.dtype).to(w.device)
    # In float64 the squares of large float32 entries do not overflow.
    wanted, drawn = (torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64) for x in (values, noise))
    null = (noise * (wanted / drawn)).to(w.dtype)
    if not null.isfinite().all():
        raise ValueError(f"noise with these row norms leaves the range of {w.dtype}; convert w with .float()")
    return null
