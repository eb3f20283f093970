"""What arithmetic settles: shares of embeddings, what a claimed saving needs, and which way eps and spectra point."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ttref import TTLinear, gaussian_null, truncated_svd, ttm_svd

from .. import cifar
from .tasks import MINILM_LINEARS, MINILM_TABLES, VIT_LINEARS, minilm

BERT = {"vocabulary": 30522, "positions": 512, "types": 2, "width": 768, "wide": 3072, "layers": 12}
VIT = {"patch": 16 * 16 * 3, "positions": 197, "width": 768, "wide": 3072, "layers": 12, "classes": 1000}
EPS = (0.1, 0.3, 0.5, 0.7)


def blocks(width: int, wide: int, layers: int) -> tuple[int, int]:
    """Numbers in the blocks of a transformer: the weights of its linear layers, and everything."""
    weights = layers * (4 * width * width + 2 * width * wide)
    return weights, weights + layers * (4 * width + wide + width + 4 * width)


def bert_base() -> dict:
    """BERT-base by its shapes: embeddings as a share of the whole and of the blocks, and what 4.4x asks of the rest."""
    width = BERT["width"]
    table = BERT["vocabulary"] * width
    embeddings = table + (BERT["positions"] + BERT["types"]) * width + 2 * width
    linears, inside = blocks(width, BERT["wide"], BERT["layers"])
    pooler = width * width + width
    total = embeddings + inside + pooler
    budget = 25e6  # the claim: 110 M to 25 M
    rest = total - linears - table
    return {
        "params": total,
        "embeddings": embeddings,
        "share_of_model": embeddings / total,
        "share_of_blocks": embeddings / inside,
        "saving_of_26_percent_of_model_is_of_embeddings": 0.26 * total / embeddings,
        "saving_of_26_percent_of_blocks_is_of_embeddings": 0.26 * inside / embeddings,
        "largest_ratio_by_embeddings_alone": total / (total - embeddings),
        "linears_ratio_for_25_million_with_free_table": linears / (budget - rest),
        "linears_ratio_for_25_million_with_dense_table": (
            linears / (budget - rest - table) if budget > rest + table else None
        ),
        "largest_ratio_with_dense_embeddings": total / embeddings,
    }


def vit_base() -> dict:
    """ViT-B/16 by its shapes: patches, positions and class vector as a share of the whole."""
    width = VIT["width"]
    embeddings = (VIT["patch"] + 1) * width + VIT["positions"] * width + width
    inside = blocks(width, VIT["wide"], VIT["layers"])[1]
    total = embeddings + inside + 2 * width + (width + 1) * VIT["classes"]
    return {"params": total, "embeddings": embeddings, "share_of_model": embeddings / total}


def here(folder: Path) -> list[dict]:
    """The same shares of the two models that are measured."""
    found = []
    encoder, vit = minilm().model, cifar.VIT.read(folder)
    for name, model, embeddings in (
        ("all-MiniLM-L6-v2", encoder, encoder.embeddings),
        ("ViT (CIFAR-10)", vit, vit.patches),
    ):
        total = sum(p.numel() for p in model.parameters())
        part = sum(p.numel() for p in embeddings.parameters())
        found.append({"model": name, "params": total, "embeddings": part, "share_of_model": part / total})
        found[-1]["share_of_blocks"] = part / (total - part)
    return found


def two_factors(values: Tensor, shape: tuple[int, int], eps: float) -> float:
    """How many times fewer numbers the smallest truncated SVD with this error has, from the singular values."""
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / values.norm()
    rank = max(int((tails > eps).sum()), 1)
    return shape[0] * shape[1] / (rank * sum(shape))


def three_modes(w: Tensor, eps: float) -> float:
    """The same for a TT-matrix of three balanced modes."""
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(w)
    return TTLinear.from_linear(layer, eps=eps).ratio


def ratios_at_eps(folder: Path) -> list[dict]:
    """Whole sets of linear layers at each eps, and Gaussian noise of the same row norms."""
    found = []
    sets = {
        "all-MiniLM-L6-v2": (minilm().model, MINILM_LINEARS),
        "ViT (CIFAR-10)": (
            cifar.VIT.read(folder),
            tuple(f"blocks.{k}.{name}" for k in range(6) for name in VIT_LINEARS),
        ),
    }
    for name, (model, names) in sets.items():
        weights = [model.get_submodule(layer).weight.detach() for layer in names]
        kinds = {"trained": weights, "noise": [gaussian_null(w) for w in weights[:6]]}
        values = {kind: [torch.linalg.svdvals(w.double()) for w in made] for kind, made in kinds.items()}
        for eps in EPS:
            row = {"model": name, "eps": eps}
            for kind, made in kinds.items():
                dense = sum(w.numel() for w in made)
                pairs = zip(made, values[kind], strict=True)
                row[f"svd_{kind}"] = dense / sum(w.numel() / two_factors(v, tuple(w.shape), eps) for w, v in pairs)
                row[f"tt_{kind}"] = dense / sum(w.numel() / three_modes(w, eps) for w in made)
            found.append(row)
            print(row, flush=True)
    return found


def spectra() -> list[dict]:
    """Two matrices of one size, singular values that fall fast and slowly: numbers kept at each eps."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(96, 96, generator=draw, dtype=torch.float64))[0] for _ in range(2))
    found = []
    for name, values in (("rapid", 0.7 ** torch.arange(96)), ("flat", torch.ones(96))):
        w = (left * values) @ right
        error = truncated_svd(w, params=96 * 96 // 4).relative_error(w)
        row = {"decay": name, "svd_error_at_4x": error}
        row |= {
            f"tt_ratio_{eps}": w.numel() / sum(c.numel() for c in ttm_svd(w, (8, 12), (8, 12), eps=eps)) for eps in EPS
        }
        found.append(row)
    return found


def arithmetic(folder: Path) -> dict:
    """The section ``arithmetic``."""
    table = minilm().model.get_submodule(MINILM_TABLES[0]).weight
    values = {"bert_base": bert_base(), "vit_base": vit_base(), "here": here(folder), "spectra": spectra()}
    spectrum = torch.linalg.eigvalsh(table.detach().double().mT @ table.detach().double()).flip(0).clamp(min=0).sqrt()
    values["token_table_svd"] = [{"eps": eps, "ratio": two_factors(spectrum, tuple(table.shape), eps)} for eps in EPS]
    return values | {"ratios_at_eps": ratios_at_eps(folder)}
