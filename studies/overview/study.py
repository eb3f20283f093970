"""The two results of the introduction: a case where tensor trains lose, and one where they win.

Token table (SmolLM2, from its wheel): loss rise against bytes for per-token trains, truncated SVD and integers.
Position table (GPT-2, from TTREF_DATA): numbers stored against relative error for a tensor train and for SVD, each
beside Gaussian noise of the same shape.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from book.tools import results
from book.workbook import sources
from ttref import MPSEmbedding, gaussian_null, quantize_integer, truncated_svd, tt_svd, tt_to_tensor

from . import figure

POSITION_MODES = (64, 16, 768)  # 1,024 positions in blocks of 16, then the width
TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
MPS_RANKS = (1, 2, 4, 8)


def position_table(folder: Path) -> Tensor:
    """GPT-2's learned position table, float32 (1024, 768)."""
    with np.load(folder / "gpt2" / "gpt2_small_part.npz") as arrays:
        return torch.from_numpy(arrays["wpe"]).float()


def stored_at(table: Tensor, eps: float) -> dict[str, float]:
    """Compression ratio of a tensor train and of truncated SVD that keep the relative error at ``eps`` or below."""
    cores = tt_svd(table, POSITION_MODES, eps=eps)
    gap = torch.linalg.vector_norm(tt_to_tensor(cores).reshape(table.shape) - table)
    error = (gap / torch.linalg.vector_norm(table)).item()
    values = torch.linalg.svdvals(table.double())
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / torch.linalg.vector_norm(values)
    rank = max(int((tails > eps).sum()), 1)
    return {
        "eps": eps,
        "tt_ratio": table.numel() / sum(core.numel() for core in cores),
        "tt_error": error,
        "svd_ratio": table.numel() / (rank * sum(table.shape)),
    }


def integers(table: Tensor, bits: int) -> dict[str, float]:
    """Compression ratio in bytes and relative error of rounding with one scale per row."""
    rounded = quantize_integer(table, bits)
    error = rounded.relative_error(table)
    print(f"int{bits}: {4 * table.numel() / rounded.nbytes:.2f}x at error {error:.4f}", flush=True)
    return {"bits": bits, "ratio": 4 * table.numel() / rounded.nbytes, "error": error}


def token_table() -> list[dict]:
    """Loss rise of SmolLM2 with a compressed table, in the look-up alone and in the tied head too; 1,024 tokens."""
    lm = sources.load_language_model()
    look_up, head = lm.model.get_input_embeddings(), lm.model.get_output_embeddings()
    dense = look_up.weight  # the head's weight too: the two are tied
    table = dense.detach()
    windows = sources.token_windows(lm.tokenizer, length=512, count=2)
    before = sources.language_model_loss(lm.model, windows)
    methods = []
    for rank in MPS_RANKS:
        trains = MPSEmbedding.from_embedding(look_up, rank=rank)
        methods.append(("train per token", trains.to_embedding().weight.detach(), trains.nbytes))
        if trains.nbytes < 4 * table.numel():
            svd = truncated_svd(table, nbytes=trains.nbytes)
            methods.append(("SVD", svd.approximation, svd.nbytes))
    for bits in (8, 4, 3):
        rounded = quantize_integer(table, bits)
        methods.append(("integers", rounded.approximation, rounded.nbytes))
    rows = []
    for family, approximation, nbytes in methods:
        look_up.weight = torch.nn.Parameter(approximation, requires_grad=False)
        rise = sources.language_model_loss(lm.model, windows) - before
        head.weight = look_up.weight
        tied_rise = sources.language_model_loss(lm.model, windows) - before
        look_up.weight = head.weight = dense
        ratio = 4 * table.numel() / nbytes
        rows.append({"family": family, "ratio": ratio, "loss_rise_nats": rise, "loss_rise_tied_nats": tied_rise})
        print(f"{family:16} {ratio:6.2f}x  {rise:+.4f} nats, tied {tied_rise:+.4f}", flush=True)
    return rows


def main() -> None:
    """Run both halves and record them."""
    folder = sources.data_folder()
    if folder is None:
        return
    if not (folder / "gpt2" / "gpt2_small_part.npz").is_file():
        print("overview: left out, the folder of TTREF_DATA has no gpt2/gpt2_small_part.npz")
        return
    table = position_table(folder)
    null = gaussian_null(table)
    values = {
        "position_table": [stored_at(table, eps) for eps in TOLERANCES],
        "position_null": [stored_at(null, eps) for eps in TOLERANCES],
        "position_integers": [integers(table, bits) for bits in (8, 4)],
        "token_table": token_table(),
    }
    for real, noise in zip(values["position_table"], values["position_null"], strict=True):
        print(
            f"eps {real['eps']}: train {real['tt_ratio']:.1f}x, SVD {real['svd_ratio']:.1f}x; "
            f"noise {noise['tt_ratio']:.1f}x, {noise['svd_ratio']:.1f}x"
        )
    print(
        results.write(
            "overview",
            values,
            models=["SmolLM2-135M-Instruct", "GPT-2 (wpe)"],
            data=["scikit-learn descriptions, 2 windows of 512 tokens", "gpt2/gpt2_small_part.npz"],
            command="python -m studies.overview",
        )
    )
    figure.write(results.read("overview"))
