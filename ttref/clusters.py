"""Clustering whole rows of a table: tokens share the few rows of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from .approximation import Baseline
from .checks import check_input, check_matrix, whole
from .codes import to_codes
from .precision import computable, full_precision

__all__ = ["cluster_rows"]


@full_precision
@torch.no_grad()
def cluster_rows(
    w: Tensor, centers: int, *, weight: Tensor | None = None, bits: int | None = None, seed: int = 0
) -> Baseline:
    """Replace each row by the nearest of ``centers`` k-means centers: the whole-row baseline for tables.

    The centers are learned by scikit-learn's k-means (random start, at most 25 iterations, as
    :func:`product_quantize`). Model2Vec reduces a vocabulary so, to directions; it keeps a length for each token.

    Args:
        w: Matrix ``(m, n)``, such as a token table.
        centers: Rows of the codebook, at most m and at most 65,536.
        weight: Non-negative weights ``(m,)`` of the rows' squared errors, such as token frequencies.
        bits: 8 stores the codebook in integers with one bfloat16 scale for each center; left out, it has the dtype of
            ``w``.
        seed: Seed of the random start.

    Returns:
        A :class:`Baseline` of ``ceil(log2(centers))`` bits for each row (one at least), and ``centers n`` entries of
        the codebook.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        TypeError: ``w`` or ``weight`` is not a real floating-point tensor, or a setting is not an integer.
        ValueError: More centers than rows or than 65,536; bits other than 8; weights of another number than rows, below
            0 or all 0; ``w`` is not a matrix, is empty, or holds NaN or Inf.

    Cost:
        O(m n centers) for each of at most 25 iterations: 30,000 x 384 with 2,000 centers takes a minute or two.

    Source:
        Tulkens and van Dongen (2024), Model2Vec: its vocabulary quantization.

    Example:
        >>> w = torch.tensor([[1.0, 2.0], [5.0, 6.0], [1.0, 2.0]])
        >>> made = cluster_rows(w, 2)
        >>> made.name, made.nbytes, made.relative_error(w)
        ('2 centers of rows', 17, 0.0)
    """
    check_matrix("w", w)
    m, n = w.shape
    centers, seed = whole("centers", centers, least=1), whole("seed", seed, least=0)
    if bits is not None and whole("bits", bits) != 8:
        raise ValueError(f"bits must be 8, or left out for a codebook in the dtype of w, got {bits}")
    if centers > min(m, 1 << 16):
        raise ValueError(f"{centers} centers are more than the {m} rows, or than 65536; lower centers")
    if weight is not None:
        check_input("weight", weight)
        if weight.shape != (m,):
            raise ValueError(f"weight has shape {tuple(weight.shape)}, but w has {m} rows; it takes one for each")
        if weight.min() < 0 or not weight.max() > 0:
            raise ValueError("weight must be at least 0 everywhere and above 0 somewhere")
    try:
        from sklearn.cluster import KMeans
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "clustering rows needs scikit-learn; install it with: python -m pip install scikit-learn"
        ) from error
    rows = computable(w).cpu().contiguous()
    book, place = rows.unique(dim=0, return_inverse=True)
    if len(book) > centers:  # k-means would leave centers unused otherwise
        kmeans = KMeans(centers, init="random", n_init=1, max_iter=25, random_state=seed)
        kmeans.fit(rows.numpy(), sample_weight=None if weight is None else weight.double().cpu().numpy())
        book, place = torch.from_numpy(kmeans.cluster_centers_), torch.from_numpy(kmeans.labels_)
    books = torch.zeros(centers, n, dtype=rows.dtype)
    books[: len(book)] = book
    width = max(1, (centers - 1).bit_length())
    stored = {"codes": place.to(torch.uint8 if width <= 8 else torch.int32).unsqueeze(1)}
    if bits is None:
        stored["codebooks"] = books.to(w.dtype).unsqueeze(0)
    else:
        codes, scales = to_codes(books, bits)
        stored |= {"codebooks": codes.unsqueeze(0), "scales": scales.mT}
    stored = {name: tensor.to(w.device) for name, tensor in stored.items()}
    return Baseline(f"{centers} centers of rows{', int8' if bits else ''}", stored, w.dtype, width)
