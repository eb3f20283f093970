"""The methods of the embedding study: from a token table to an approximation and its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from book.workbook.codes import Made
from book.workbook.store import cache_folder
from ttref import (
    MPSEmbedding,
    TTMEmbedding,
    balanced_modes,
    factorize,
    files,
    gaussian_distortion,
    product_quantize,
    quantize_integer,
    truncated_svd,
    tt_svd,
    tt_to_tensor,
    ttm_params,
)
from ttref.clusters import cluster_rows

Compress = Callable[[Tensor], Made]


@dataclass(frozen=True)
class Method:
    """One method to store a table; ``tt`` is True if any part of it is a tensor train."""

    key: str
    family: str
    setting: str
    tt: bool
    compress: Compress

    def describe(self, table: Tensor, made: Made) -> dict:
        """Bytes and errors."""
        approximation, nbytes = made
        gap = (approximation - table).double()
        return {
            "key": self.key,
            "family": self.family,
            "setting": self.setting,
            "tt": self.tt,
            "nbytes": nbytes,
            "bits_per_weight": 8 * nbytes / table.numel(),
            "ratio": 4 * table.numel() / nbytes,
            "error": (gap.norm() / table.double().norm()).item(),
            "mae": gap.abs().mean().item(),
            "norm_mae": (gap.abs().mean() / table.double().abs().mean()).item(),
        }


def train(table: Tensor, **options) -> Made:
    """One train for each row."""
    made = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(table), **options)
    return made.to_embedding().weight.detach(), made.nbytes


def tt_matrix(table: Tensor, budget: int, weight: Tensor | None = None) -> Made:
    """One TT-matrix of three cores for the whole table, at the largest rank within ``budget`` bytes."""
    rows, columns = (balanced_modes(size)[::-1] for size in table.shape)
    columns = columns[::-1]
    rank = 1
    while 4 * ttm_params(rows, columns, rank + 1) <= budget and ttm_params(rows, columns, rank + 1) > ttm_params(
        rows, columns, rank
    ):
        rank += 1
    made = TTMEmbedding.from_embedding(
        nn.Embedding.from_pretrained(table), row_shape=rows, col_shape=columns, rank=rank, weight=weight
    )
    return made.to_embedding().weight.detach(), made.nbytes


def shared_train(table: Tensor, rank: int, inner: int) -> Made:
    """One train whose first mode is the token: int8 coefficients for each row, and a basis that is a train itself."""
    mean = table.mean(0)
    cores = tt_svd(table - mean, (len(table), *factorize(table.shape[1], 2)), rank=(1, rank, inner, 1))
    first = quantize_integer(cores[0].squeeze(0).mT.contiguous(), 8)
    cores[0] = first.approximation.mT.unsqueeze(0)
    nbytes = first.nbytes + 4 * (mean.numel() + sum(core.numel() for core in cores[1:]))
    return tt_to_tensor(cores).reshape(table.shape) + mean, nbytes


def svd(table: Tensor, budget: int, weight: Tensor | None = None) -> Made:
    """Two factors; of least weighted error if weights are given, whose roots are taken out of the left one again."""
    root = torch.ones(1, 1) if weight is None else weight.sqrt().float().unsqueeze(1)
    made = truncated_svd(table * root, nbytes=budget)
    return made.approximation / root, made.nbytes


def clusters(table: Tensor, centers: int, **options) -> Made:
    """The nearest of a few rows for each row."""
    made = cluster_rows(table, centers, **options)
    return made.approximation, made.nbytes


def axes(table: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean row, variances and principal axes (as columns), largest first; of rows with weights if these are given."""
    rows = table.double()
    mean = rows.mean(0) if weight is None else weight @ rows / weight.sum()
    variances, vectors = torch.linalg.eigh(torch.cov((rows - mean).mT, aweights=weight))
    return mean.float(), variances.flip(0).clamp(min=0), vectors.flip(1).float()


def svd_integers(table: Tensor, budget: int, bits: int = 8, weight: Tensor | None = None) -> Made:
    """Mean row and the first principal coordinates, both factors rounded, with a scale for each component."""
    mean, _, vectors = axes(table, weight)
    each = len(table) * bits / 8 + vectors.shape[0] + 4
    rank = max(int((budget - 4 * len(mean)) // each), 1)
    basis = quantize_integer(vectors[:, :rank].mT.contiguous(), 8)
    # The coordinates are fitted to the rounded axes, so they correct for their rounding.
    left = torch.linalg.lstsq(basis.approximation.mT, (table - mean).mT).solution
    left = quantize_integer(left.contiguous(), bits)
    return left.approximation.mT @ basis.approximation + mean, left.nbytes + basis.nbytes + 4 * len(mean)


def product(table: Tensor, subvectors: int) -> Made:
    """Product quantization, kept in the user's cache folder: k-means takes minutes."""
    folder = cache_folder() / "product_quantization"
    path = folder / f"{files.digest(table)}-{subvectors}.safetensors"

    def restore(tensors: dict[str, Tensor], header: dict) -> Made:
        files.check_header(header, {"nbytes": (int,)})
        kept = tensors["approximation"]
        if (kept.shape, kept.dtype) != (table.shape, table.dtype):
            raise ValueError("it is of another table")
        return kept, header["nbytes"]

    try:
        return files.read(path, "product quantization", restore)
    except FileNotFoundError:
        pass
    except ValueError as error:
        print(f"{error}: it is made anew", flush=True)
    bits = min(8, len(table).bit_length() - 1)  # a small table has rows for fewer centers
    made = product_quantize(table, subvectors=subvectors, bits=bits)
    folder.mkdir(mode=0o700, exist_ok=True)
    files.write(path, "product quantization", {"approximation": made.approximation}, {"nbytes": made.nbytes}, restore)
    return made.approximation, made.nbytes


def product_of_width(table: Tensor, length: int) -> Made:
    """Product quantization with pieces of ``length`` entries."""
    return product(table, table.shape[1] // length)


def adaptive(table: Tensor, order: Tensor, whole: int, rank: int, **options) -> Made:
    """Dense rows for the most frequent tokens, trains of small rank for the others, all int8."""
    caps = torch.full((len(table),), rank)
    caps[order[:whole]] = 1 << 16
    return train(table, row_ranks=caps, center=True, core_bits=8, **options)


def svd_rows(table: Tensor, numbers: int) -> Made:
    """:func:`svd_integers` with ``numbers`` bytes a row."""
    return svd_integers(table, len(table) * numbers)


def floor(table: Tensor, bits_per_weight: float) -> dict[str, float]:
    """Least squared relative error at a rate: white noise, and Gaussian rows with the table's covariance.

    The second gets the mean row without cost.
    """
    width = table.shape[1]
    _, variances, _ = axes(table)
    energy = (table.double().square().sum() / len(table)).item()
    bits = bits_per_weight * width
    white = torch.full((width,), energy / width, dtype=torch.float64)
    return {
        "bits_per_weight": bits_per_weight,
        "white": gaussian_distortion(white, bits) / energy,
        "covariance": gaussian_distortion(variances, bits) / energy,
    }
