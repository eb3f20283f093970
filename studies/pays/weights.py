"""Finished weights at equal sizes: train, SVD and noise, and the entropies that might have told the result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from book.workbook import sources
from ttref import gaussian_null, quantize_integer, truncated_svd, ttm_params, ttm_svd, ttm_to_matrix
from ttref.advice.advising import ROWS_OF_POSITIONS
from ttref.advice.check import BLOCK, FORMS, ROWS, Modes, middle_rows, modes_of
from ttref.advice.kinds import POSITIONS
from ttref.advice.weights import weights_of

from ..advise.study import arrays
from ..toy_classifier.data import brief

ERRORS = (0.5, 0.3, 0.2, 0.1, 0.05)
BITS = (8, 6, 5, 4, 3, 2)
SIZES = (4, 16)  # how many times fewer numbers
POSITION_TABLES = {"MiniLM": "embeddings.position_embeddings.weight", "GPT-2": "wpe"}


def models(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of the models that are looked at; no weight of them was quantized before."""
    return {
        "MiniLM": sources.load_encoder().model.state_dict(),
        "ViT": arrays(folder / "vit_cifar10" / "vit_cifar10.npz"),
        "ResNet-20": arrays(folder / "resnet_cifar10" / "resnet20_cifar10.npz"),
        "GPT-2": arrays(folder / "gpt2" / "gpt2_small_part.npz"),
    }


def relative(weight: Tensor, made: Tensor) -> float:
    """The relative error of an approximation."""
    return ((made - weight).norm() / weight.norm()).item()


def rounded(cores: list[Tensor]) -> tuple[Tensor, int]:
    """A matrix from cores in eight bits, one scale for each vector of a bond, and the bytes of all."""
    made, nbytes = [], 0
    for core in cores:
        last = core.shape[-1] == 1
        flat = core.flatten(1) if last else core.flatten(0, -2).mT
        codes = quantize_integer(flat.contiguous(), 8)
        values = codes.approximation if last else codes.approximation.mT
        made.append(values.reshape(core.shape))
        nbytes += codes.nbytes
    return ttm_to_matrix(made), nbytes


def svds(weight: Tensor, nbytes: int) -> list[dict[str, float]]:
    """The largest SVD with factors in eight bits that fits into these bytes, and the next larger one."""
    m, n = weight.shape
    largest = max(1, min(nbytes // (m + n + 4), m, n))
    found = []
    for rank in (largest, min(largest + 1, m, n)):
        made, size = rounded(ttm_svd(weight, (m, 1), (1, n), rank=rank))
        found.append({"rank": rank, "bytes": size, "error": relative(weight, made)})
    return found


def tables(folder: Path, known: dict[str, dict]) -> Iterable[dict]:
    """Tables of positions, at each error: the train in eight bits, and SVD and noise in no more bytes."""
    for name, key in POSITION_TABLES.items():
        weight = models(folder)[name][key].float()
        m, n = weight.shape
        rows, cols = modes_of("rows in blocks", m, n)
        integers = [quantize_integer(weight, bits) for bits in BITS]
        for eps in ERRORS:
            if f"{name}, {eps:g}" in known:
                continue
            cores = ttm_svd(weight, rows, cols, eps=eps)
            ranks = [1, *(core.shape[-1] for core in cores)]
            made, nbytes = rounded(cores)
            null, _ = rounded(ttm_svd(gaussian_null(weight), rows, cols, rank=ranks))
            yield brief(
                {
                    "key": f"{name}, {eps:g}",
                    "table": name,
                    "eps": eps,
                    "bytes": nbytes,
                    "ratio": 4 * weight.numel() / nbytes,
                    "ranks": ranks,
                    "train": relative(weight, made),
                    "svds": svds(weight, nbytes),
                    "noise": relative(gaussian_null(weight), null),
                    "integers": [
                        {"bits": bits, "bytes": codes.nbytes, "error": codes.relative_error(weight)}
                        for bits, codes in zip(BITS, integers, strict=True)
                    ],
                }
            )


def entropy(matrix: Tensor) -> float:
    """Entropy of the normalized squared singular values, in bits."""
    shares = torch.linalg.svdvals(matrix.double()).square()
    shares = shares / shares.sum()
    return -torch.special.xlogy(shares, shares).sum().item() / torch.log(torch.tensor(2.0)).item()


def cuts(weight: Tensor) -> dict[str, Tensor]:
    """The matrices whose entropies say what a cut of the weight costs."""
    m, n = weight.shape
    found = {"rows | columns": weight}
    if m % BLOCK == 0 and m > BLOCK:
        found["blocks | the rest"] = weight.reshape(m // BLOCK, -1)
    if modes := modes_of("TT-matrix, 2 modes", m, n):
        (a, b), (c, d) = modes
        found["first | second modes"] = weight.reshape(a, b, c, d).transpose(1, 2).reshape(a * c, b * d)
    return found


def train_error(weight: Tensor, modes: Modes, numbers: float) -> float | None:
    """Error of the train of one rank that fits into so many numbers; None if none does."""
    fits = [rank for rank in range(1, min(weight.shape) + 1) if ttm_params(*modes, rank) <= numbers]
    return relative(weight, ttm_to_matrix(ttm_svd(weight, *modes, rank=fits[-1]))) if fits else None


def compared(weight: Tensor, size: int) -> dict[str, float | str] | None:
    """Train, SVD and noise at a share of the numbers; None for a weight too small for it."""
    m, n = weight.shape
    numbers = weight.numel() / size
    forms = {form: modes for form in FORMS[1:] if (modes := modes_of(form, m, n))}
    errors = {form: error for form, modes in forms.items() if (error := train_error(weight, modes, numbers))}
    if not errors or numbers < m + n:
        return None
    form = min(errors, key=errors.__getitem__)
    return {
        "form": form,
        "train": errors[form],
        "svd": truncated_svd(weight, rank=int(numbers // (m + n))).relative_error(weight),
        "noise": train_error(gaussian_null(weight), forms[form], numbers),
    }


def objects(folder: Path, known: dict[str, dict]) -> Iterable[dict]:
    """Every matrix of the models: entropies beside noise's, and what train, SVD and noise err at two sizes."""
    for name, state in models(folder).items():
        for one in weights_of(state):
            key = f"{name} {one.name}"
            if one.matrix is None or key in known:
                continue
            first, last = middle_rows(len(one.matrix), ROWS_OF_POSITIONS if one.kind == POSITIONS else ROWS)
            weight = one.matrix[first:last].float().contiguous()
            sizes = {str(size): found for size in SIZES if (found := compared(weight, size))}
            if not sizes:
                continue
            pairs = zip(cuts(weight).items(), cuts(gaussian_null(weight)).values(), strict=True)
            entropies = {cut: [entropy(real), entropy(noise)] for (cut, real), noise in pairs}
            row = {"key": key, "model": name, "part": one.kind, "shape": list(weight.shape)}
            yield brief({**row, "entropy": entropies, "at": sizes})
