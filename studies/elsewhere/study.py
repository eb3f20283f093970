"""The chapters' findings tested on other data of the same kind, which no chapter used.

Digits: dense and train on 5,000 other MNIST pictures. Integers: two trained networks for CIFAR-10, rounded and not
trained again. Reviews: the arms of the TT-LoRA study on two more draws from SST-2. Errors: trains and truncated SVD at
equal numbers, on linear layers and on 3 x 3 convolutions. Fixed point: the costs of a guarantee against overflow and
of cutting, on 24 layers with the activations of real pictures. ``python -m studies.elsewhere`` takes about a quarter
of an hour on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from book.tools import results
from book.workbook import sources
from ttref import factorize, truncated_svd, tt_svd, ttm_svd

from ..cifar import pixels
from ..toy_classifier import mnist
from ..toy_classifier.data import brief, three_parts
from ..toy_classifier.training import DENSE, SCRATCH, SHUFFLED, Arm
from ..tt_lora.glue import SEEDS as GLUE_SEEDS
from ..tt_lora.glue import arms, measured, point
from ..tt_lora.tasks import GLUE, load_glue
from .fixed import costs, spreads
from .networks import ResNet20, ViT, rounded

DIGIT_SEEDS = range(8)
RATE = 3e-3  # the toy study's tuning chose it for all of these arms
DIGIT_ARMS = [
    Arm(DENSE, None, SCRATCH),
    *(Arm(mnist.TT, rank, SCRATCH) for rank in (1, 4)),
    *(Arm(mnist.TT + SHUFFLED, rank, SCRATCH) for rank in (1, 4)),
]
DRAWS = (1, 2)  # draw 0 is the chapter's
SHARE = 0.25  # of the numbers of a matrix, for the errors


def digits(folder: Path, progress: Iterator) -> dict:
    """The wide layer of the toy chapter on the first 5,000 pictures of MNIST's test part."""
    held = np.load(folder / "mnist" / "mnist_t10k_0_5000.npz")
    x, y = held["x"].reshape(len(held["x"]), -1) / 255, held["y"].astype(np.int64)
    counts: dict[Arm, list[list[int]]] = {arm: [] for arm in DIGIT_ARMS}
    for seed in DIGIT_SEEDS:
        parts = three_parts(x, y, (1000, 1000), seed)
        for arm, found in counts.items():
            found.append(mnist.after_training(arm, RATE, seed, parts)[1])
            progress.update()
    rows = [
        {"family": arm.family, "rank": arm.size, "lr": RATE} | mnist.told(found, counts[DIGIT_ARMS[0]])
        for arm, found in counts.items()
    ]
    return {"seeds": list(DIGIT_SEEDS), "test_total": 1000, "rows": rows}


def integers(folder: Path) -> list[dict]:
    """Two trained networks with every matrix and convolution rounded, one scale for each output: right of 761."""
    x, y = pixels(folder, "test")
    found = []
    for network in (ResNet20(folder), ViT(folder)):
        right = {None: network.correct(x, y)}
        for bits in (8, 4, 3):
            right[bits] = rounded(network, bits).correct(x, y)
        row = {"network": network.trained.name, "total": len(y), "layers": len(network.weights()), "right": right[None]}
        found.append(row | {f"right_int{bits}": right[bits] for bits in (8, 4, 3)})
    return found


def reviews(folder: Path, lr: dict[str, float], progress: Iterator) -> list[dict]:
    """SST-2 again, on texts not used in the chapter: the same arms, sizes, seeds and learning rates."""
    found = []
    for draw in DRAWS:
        task = load_glue("sst2", folder, draw=draw)
        points = []
        for arm in arms("sst2", lr):
            runs = []
            for seed in GLUE_SEEDS:
                runs.append(measured(arm, task, seed))
                progress.update()
            points.append(point(arm, runs, GLUE["sst2"].test))
        found.append({"draw": draw, "points": [{k: v for k, v in p.items() if k != "runs"} for p in points]})
    return found


def errors(folder: Path) -> list[dict]:
    """Relative Frobenius errors of the best train tried and of truncated SVD, both within a quarter of the numbers."""
    found = []
    for network in (ResNet20(folder), ViT(folder)):
        for name, w in network.weights().items():
            if min(w.shape[:2]) < 16:  # the first convolution and the heads: nothing to cut
                continue
            budget = int(SHARE * w.numel())
            plain, *others = (truncated_svd(flat, params=budget).relative_error(flat) for flat in matrices(w))
            tries = convolutions(w) if w.ndim == 4 else linears(w)
            train = min(at_most(budget, decompose, w) for decompose in tries)
            row = {"network": network.trained.name, "layer": name, "kind": "convolution" if w.ndim == 4 else "linear"}
            row |= {"shape": list(w.shape), "train_error": train}
            found.append(row | {"svd_plain_error": plain, "svd_error": min(plain, *others) if others else plain})
    return found


def matrices(w: Tensor) -> list[Tensor]:
    """Matrices for an SVD: the weight; of a convolution outputs, inputs, or outputs and height against the rest."""
    if w.ndim == 2:
        return [w]
    return [w.flatten(1), w.transpose(0, 1).flatten(1), w.transpose(1, 2).flatten(2).flatten(0, 1)]


Decomposition = Callable[..., list[Tensor]]  # called with eps


def convolutions(w: Tensor) -> list[Decomposition]:
    """Outputs, inputs and the nine taps as three modes, each once in the middle; and height and width as two modes."""
    taps = w.flatten(2)  # (out, in, 9)
    tries = [taps.permute(axes) for axes in ((0, 2, 1), (2, 0, 1), (0, 1, 2))]
    tries += [w.permute(axes) for axes in ((0, 2, 3, 1), (0, 3, 2, 1))]
    return [partial(tt_svd, x.contiguous()) for x in tries]


def linears(w: Tensor) -> list[Decomposition]:
    """TT-matrices of two and three modes, and one train with all row modes before all column modes."""
    m, n = w.shape
    tries = []
    for order in (2, 3):
        rows, cols = factorize(m, order), factorize(n, order)
        tries += [partial(ttm_svd, w, rows, cols), partial(tt_svd, w, (*rows, *cols))]
    return tries


def at_most(budget: int, decompose: Decomposition, w: Tensor) -> float:
    """Error of the train at the smallest eps, to a thousandth, at which it stays within the budget."""
    low, high = 0.0, 0.999
    while high - low > 1e-3:
        middle = (low + high) / 2
        if sum(core.numel() for core in decompose(eps=middle)) <= budget:
            high = middle
        else:
            low = middle
    return error(decompose(eps=high), w)


def error(cores: list[Tensor], w: Tensor) -> float:
    """Relative error of a fresh decomposition: all cores but the last are orthogonal, so its norm gives the error."""
    kept = torch.linalg.vector_norm(cores[-1].double()) / torch.linalg.vector_norm(w.double())
    return (1 - min(kept.item(), 1.0) ** 2) ** 0.5


def summary(rows: list[dict]) -> list[dict]:
    """For each kind of layer, the number whose train has a smaller error than the SVD, and the mean difference."""
    found = []
    for kind in ("linear", "convolution"):
        mine = [row for row in rows if row["kind"] == kind]
        row = {"kind": kind, "layers": len(mine)}
        for svd in ("svd_plain", "svd"):
            gaps = [each["train_error"] - each[f"{svd}_error"] for each in mine]
            row[f"better_than_{svd}"] = sum(gap < 0 for gap in gaps)
            row |= {f"{svd}_mean_gap": fmean(gaps), f"{svd}_gaps": [min(gaps), max(gaps)]}
        found.append(row)
    return found


def main() -> None:
    """Run everything and record it."""
    folder = sources.data_folder()
    if folder is None:
        return
    torch.set_num_threads(1)
    lr = sources.recorded("tt_lora")["rates"]["chosen"]
    with tqdm(disable=None) as progress:
        rows, layers = errors(folder), costs(folder)
        values = {
            "fixed": layers,
            "fixed_spread": spreads(layers),
            "integers": integers(folder),
            "errors": rows,
            "errors_summary": summary(rows),
            "digits": digits(folder, progress),
            "reviews": reviews(folder, lr, progress),
        }
    print(
        results.write(
            "elsewhere",
            brief(values),
            models=["784-512-10", "ResNet-20 (CIFAR-10)", "ViT (CIFAR-10)", "all-MiniLM-L6-v2"],
            data=["MNIST test part, first 5,000", "CIFAR-10 test part, first 761", "SST-2 training part"],
            command="python -m studies.elsewhere",
        )
    )
