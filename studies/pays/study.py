"""Where trains pay: the few numbers that no other record holds.

Tables of positions at equal bytes, the first layer of a digits network in eight bits, and for each matrix of four
models its entropies beside what a train, an SVD and noise err at equal numbers. ``python -m studies.pays`` takes two
minutes on one core.
"""

from __future__ import annotations

from functools import partial

import torch

from book.tools import results
from book.workbook import sources

from ..resumed import add_rows
from . import digits, weights

NEEDED = (
    "gpt2/gpt2_small_part.npz",
    "vit_cifar10/vit_cifar10.npz",
    "resnet_cifar10/resnet20_cifar10.npz",
)


def main() -> None:
    """Measure what is missing."""
    folder = sources.data_folder()
    if folder is None:
        return
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        print(f"pays: left out, the folder of TTREF_DATA has no {missing[0]}")
        return
    torch.set_num_threads(1)
    known = results.read("pays")
    values = {name: known[name] for name in ("tables", "digits", "objects", "seconds") if name in known}

    def keep(values: dict) -> None:
        results.write(
            "pays",
            values,
            command="python -m studies.pays",
            models=["all-MiniLM-L6-v2", "GPT-2 (wpe, attention outputs of six blocks)", "ViT (CIFAR-10)", "ResNet-20"],
            data=["scikit-learn digits"],
        )

    add_rows(values, "tables", "tables", partial(weights.tables, folder), keep)
    add_rows(values, "digits", "digits", digits.rows, keep)
    add_rows(values, "objects", "objects", partial(weights.objects, folder), keep)
