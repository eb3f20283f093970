"""Measurements of tables without a model: distance to the bounds, position tables, growth by appended rows."""

from __future__ import annotations

import copy
import time
from functools import partial

import torch
from torch import Tensor, nn

from ttref import (
    MPSEmbedding,
    TTMEmbedding,
    balanced_modes,
    entanglement_entropy,
    factorize,
    gaussian_null,
    quantize_integer,
    truncated_svd,
    tt_svd,
    tt_to_tensor,
)

from .methods import Method, floor, train

RATES = (0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10)  # bits a weight
ROW_RANKS = (1, 2, 4, 8)  # of a train for each row
TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
APPENDED = (1, 10, 100, 500)
MPS_RANK, TTM_RANK = 4, 64


def bounds(table: Tensor) -> dict:
    """The two bounds, and the errors of trains on Gaussian noise with the same row norms."""
    null, points = gaussian_null(table), []
    for rank, bits in ((1, 32), (2, 32), (4, 32), (8, 32), (4, 8)):
        key, family = (f"mps-{rank}", "MPS") if bits == 32 else (f"mps-int8-{rank}", "MPS, int8 cores")
        method = Method(key, family, f"rank {rank}", True, partial(train, rank=rank, core_bits=bits))
        points.append(method.describe(null, method.compress(null)))
        print(f"noise, {key}: {points[-1]['bits_per_weight']:.3f} bits, error {points[-1]['error']:.4f}", flush=True)
    mean = table.double().mean(0)
    return {
        "rows": len(table),
        "width": table.shape[1],
        "mean_energy": (len(table) * mean.square().sum() / table.double().square().sum()).item(),
        "bounds": [floor(table, rate) for rate in RATES],
        "null": points,
    }


def mixed(rows: Tensor, seed: int = 0) -> Tensor:
    """Gaussian rows with the mean and the covariance of these rows: random mixtures of all of them."""
    mean, generator = rows.mean(0), torch.Generator().manual_seed(seed)
    return torch.randn(len(rows), len(rows), generator=generator) @ (rows - mean) / len(rows) ** 0.5 + mean


def row_trains(table: Tensor) -> dict:
    """A train for each row, of the table and of two kinds of noise; SVD and four bits in the bytes of rank 4."""
    found = {
        "shape": list(table.shape),
        "mean_energy": (len(table) ** 0.5 * table.mean(0).norm() / table.norm()).item() ** 2,
    }
    for kind, rows in (("real", table), ("covariance", mixed(table)), ("white", gaussian_null(table))):
        found[kind] = []
        for rank in ROW_RANKS:
            made, nbytes = train(rows, rank=rank)
            error = (torch.linalg.vector_norm(made - rows) / torch.linalg.vector_norm(rows)).item()
            found[kind].append({"rank": rank, "ratio": 4 * rows.numel() / nbytes, "error": error})
    (four,) = (point for point in found["real"] if point["rank"] == 4)
    nbytes = round(4 * table.numel() / four["ratio"])
    for made in (truncated_svd(table, nbytes=nbytes), quantize_integer(table, 4)):
        found[made.name.split()[0]] = {
            "name": made.name,
            "ratio": 4 * table.numel() / made.nbytes,
            "error": made.relative_error(table),
        }
    return found


def position_modes(table: Tensor) -> dict[str, tuple[int, ...]]:
    """Positions in two modes, in modes of at most 4, and with the width split into modes of at most 4 as well."""
    places, width = table.shape
    fours = factorize(places, max_mode=4)
    return {
        "two": (64, places // 64, width),
        "fours": (*fours, width),
        "split": (*fours, *factorize(width, max_mode=4)),
    }


def sizes_at(table: Tensor, eps: float) -> dict[str, float]:
    """Compression ratio of trains and of truncated SVD with a relative error of at most ``eps``."""
    found = {"eps": eps}
    for name, modes in position_modes(table).items():
        cores = tt_svd(table, modes, eps=eps)
        gap = torch.linalg.vector_norm(tt_to_tensor(cores).reshape(table.shape) - table)
        found[f"{name}_ratio"] = table.numel() / sum(core.numel() for core in cores)
        found[f"{name}_error"] = (gap / torch.linalg.vector_norm(table)).item()
        found[f"{name}_ranks"] = [core.shape[-1] for core in cores[:-1]]
    values = torch.linalg.svdvals(table.double())
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / torch.linalg.vector_norm(values)
    rank = max(int((tails > eps).sum()), 1)
    return found | {"svd_ratio": table.numel() / (rank * sum(table.shape)), "svd_rank": rank}


def columns(table: Tensor) -> list[dict]:
    """A train over the positions for each column: a sine or a cosine of the position has rank 2 exactly."""
    found = []
    for rank in (1, 2, 4):
        made, nbytes = train(table.mT.contiguous(), rank=rank)
        error = (torch.linalg.vector_norm(made - table.mT) / torch.linalg.vector_norm(table)).item()
        found.append({"rank": rank, "ratio": 4 * table.numel() / nbytes, "error": error})
    return found


def position_table(table: Tensor) -> dict:
    """Sizes and entropy for every bond, of a table and of noise with the same row norms."""
    modes, null = position_modes(table), gaussian_null(table)
    found = {"shape": list(table.shape), "modes": {name: list(sizes) for name, sizes in modes.items()}}
    for name, weights in (("real", table), ("null", null)):
        found[name] = [sizes_at(weights, eps) for eps in TOLERANCES]
        found[f"{name}_columns"] = columns(weights)
        found[f"{name}_entropy_bits"] = {
            split: [entanglement_entropy(weights.reshape(sizes), bond).item() for bond in range(1, len(sizes))]
            for split, sizes in modes.items()
        }
    return found


def growth(table: Tensor) -> dict:
    """Appending the last rows of a table to the trains of the others, against a TT-matrix decomposed again."""
    most = max(APPENDED)
    base, new = table[:-most], table[-most:]
    rows, columns = balanced_modes(len(table))[::-1], balanced_modes(table.shape[1])
    shapes = {"row_shape": rows, "col_shape": columns, "rank": TTM_RANK}

    def shared(weights: Tensor) -> TTMEmbedding:
        return TTMEmbedding.from_embedding(nn.Embedding.from_pretrained(weights), **shapes)

    before, found = shared(base).to_embedding().weight, []
    trains = MPSEmbedding.from_embedding(nn.Embedding.from_pretrained(base), rank=MPS_RANK)
    old = trains.to_embedding().weight
    for count in APPENDED:
        grown = copy.deepcopy(trains)
        start = time.perf_counter()
        grown.append(new[:count])
        seconds = time.perf_counter() - start
        same = torch.equal(grown.to_embedding().weight[: len(base)], old)
        start = time.perf_counter()
        again = shared(table[: len(base) + count])
        matrix_seconds = time.perf_counter() - start
        gap = again.to_embedding().weight[: len(base)] - before
        found.append(
            {
                "appended": count,
                "mps_seconds": seconds,
                "mps_old_rows_identical": same,
                "ttm_seconds": matrix_seconds,
                "ttm_old_rows_change": (gap.norm() / before.norm()).item(),
                "ttm_rows_changed": (gap.abs().amax(1) > 0).double().mean().item(),
            }
        )
        print(f"append {count}: {seconds:.4f} s, old rows the same: {same}; again {matrix_seconds:.1f} s", flush=True)
    return {
        "base_rows": len(base),
        "mps_rank": MPS_RANK,
        "ttm_row_shape": list(rows),
        "ttm_col_shape": list(columns),
        "ttm_rank": TTM_RANK,
        "rows": found,
    }
