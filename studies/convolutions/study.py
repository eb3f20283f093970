"""Where trains pay on convolutions: accuracy against bits a weight, everything counted, without training.

All 3 x 3 kernels but the stem of a network are replaced at once; the stem, norms and head stay as they are. Cores are
fitted to the patches that a kernel sees on 512 training pictures and stored as integers; beside them integers, factors
and trains that see the weight alone, rounded in the same way. ``python -m studies.convolutions`` takes about an hour
on one core; ``python -m studies.convolutions narrow`` measures that network anew and keeps the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm

from book.tools import results
from book.workbook import sources
from ttref import gaussian_null
from ttref.fitting import collect_gram, output_error

from ..cifar import scores
from ..toy_classifier.data import brief
from . import figure, healing, methods, speed
from .methods import Kernel, Modes, Stored
from .networks import NETWORKS, pictures

PICTURES, HELD_OUT = 512, 256
DRAWS = (0, 1, 2)
SHARES = (0.5, 0.25)  # of a kernel's numbers, for which modes are searched
TRAINS = [  # share of the numbers, bits of a core's numbers
    *((1 / 1.5, bits) for bits in (8, 4, 3, 2)),
    *((1 / 2, bits) for bits in (8, 4, 3, 2)),
    (1 / 2.6, 3),
    *((1 / 3, bits) for bits in (8, 4, 3, 2)),
    *((1 / 4, bits) for bits in (4, 3)),
    *((1 / 6, bits) for bits in (4,)),
]
GROUP = 72  # of integers; cores take the divisor nearest to 64
Method = Callable[[Kernel], Stored]


def kernels_of(model: nn.Module, folder: Path, draw: int) -> list[Kernel]:
    """All 3 x 3 kernels but the first, each with the Gram matrix of its patches on one draw of training pictures."""
    x = pictures(folder, "train")[0]
    ids = torch.randperm(len(x), generator=torch.Generator().manual_seed(draw))[:PICTURES]
    return with_grams(model, x[ids])


def with_grams(model: nn.Module, x: Tensor) -> list[Kernel]:
    """The kernels with the Gram matrices of their patches on these pictures."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)][1:]
    grams = collect_gram(model, names, x.split(32), progress=False)
    return [
        Kernel(name, w.double().flatten(1), grams[name].matrix, w.shape[2] * w.shape[3])
        for name in names
        for w in [model.get_submodule(name).weight.detach()]
    ]


def arms(modes: dict[str, dict[float, Modes]]) -> Iterable[tuple[str, str, Method]]:
    """Family, setting and method of every arm, the fitted trains first."""
    cache: dict[tuple, list[Tensor]] = {}

    def kept(make: Callable[..., list[Tensor]], kernel: Kernel, *how: object) -> list[Tensor]:
        key = (make.__name__, kernel.name, id(kernel), *map(str, how))
        if key not in cache:
            cache[key] = make(kernel, *how)
        return cache[key]

    def at(kernel: Kernel, share: float) -> Modes:
        return modes[kernel.name][SHARES[0] if share > 0.4 else SHARES[1]]

    for share, bits in TRAINS:

        def train(kernel: Kernel, share: float = share, bits: int = bits) -> Stored:
            chosen = at(kernel, share)
            return methods.rounded(kernel, chosen, kept(methods.fitted, kernel, chosen, share), bits)

        yield "fitted train", f"{1 / share:.3g}x int{bits}", train
    for bits in (4, 3, 2, 1):
        yield "GPTQ-like", f"int{bits}", lambda kernel, bits=bits: methods.gptq(kernel, bits, GROUP)
    for group in (36, 18):
        yield "GPTQ-like", f"int1, groups of {group}", lambda kernel, group=group: methods.gptq(kernel, 1, group)
    for bits in (3, 2):
        yield "GPTQ-like, zero kept", f"int{bits}", lambda kernel, bits=bits: methods.gptq(kernel, bits, GROUP, True)
    yield "GPTQ-like, zero kept", "ternary, packed", lambda kernel: methods.ternary(kernel, GROUP)
    for bits in (8, 4, 3, 2):
        yield "rounding", f"int{bits}", lambda kernel, bits=bits: methods.nearest(kernel, bits, GROUP)
    for share, bits in ((1 / 1.5, 2), (1 / 2, 8), (1 / 2, 4), (1 / 2, 2), (1 / 3, 4), (1 / 4, 4)):

        def factors(kernel: Kernel, share: float = share, bits: int = bits) -> Stored:
            return methods.rounded(kernel, kernel.factors, kept(methods.whitened, kernel, share), bits)

        yield "whitened SVD", f"{1 / share:.3g}x int{bits}", factors
    for share, bits in ((1 / 1.5, 8), (1 / 2, 8), (1 / 2, 4)):

        def svd(kernel: Kernel, share: float = share, bits: int = bits) -> Stored:
            alone = methods.unseen(kernel)
            return methods.rounded(alone, alone.factors, methods.decomposed(alone, alone.factors, share), bits)

        def blind(kernel: Kernel, share: float = share, bits: int = bits) -> Stored:
            alone, chosen = methods.unseen(kernel), at(kernel, share)
            return methods.rounded(alone, chosen, methods.decomposed(alone, chosen, share), bits)

        yield "SVD", f"{1 / share:.3g}x int{bits}", svd
        yield "TT-SVD", f"{1 / share:.3g}x int{bits}", blind


def put(model: nn.Module, stored: dict[str, Tensor]) -> nn.Module:
    """A copy of the model with other kernels."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, matrix in stored.items():
            weight = other.get_submodule(name).weight
            weight.copy_(matrix.reshape(weight.shape))
    return other


@torch.no_grad()
def renormed(model: nn.Module, dense: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose norms are corrected by what the stored kernels changed on these pictures, without a gradient.

    Means move by the difference to the dense network's, variances by the ratio; both are measured on these pictures.
    """
    found, wanted = fresh_norms(model, x), fresh_norms(dense, x)
    other = copy.deepcopy(model)
    for name, layer in other.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += found[name].running_mean - wanted[name].running_mean
            layer.running_var *= found[name].running_var / wanted[name].running_var.clamp(min=1e-12)
    return other


def fresh_norms(model: nn.Module, x: Tensor) -> dict[str, nn.BatchNorm2d]:
    """The norms of a copy with means and variances of these pictures alone."""
    other = copy.deepcopy(model).train()
    norms = {name: layer for name, layer in other.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for layer in norms.values():
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    scores(other, x)
    return norms


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures classified correctly."""
    return (scores(model, x).argmax(1) == y).double().mean().item()


class Bench:
    """One network and one draw of pictures: measures an arm."""

    def __init__(self, model: nn.Module, folder: Path, draw: int) -> None:
        self.model, self.draw = model, draw
        self.kernels = kernels_of(model, folder, draw)
        self.test = pictures(folder, "test")
        self.fresh = {kernel.name: kernel.gram for kernel in with_grams(model, self.test[0][:HELD_OUT])}
        ids = torch.randperm(3044, generator=torch.Generator().manual_seed(draw))[:PICTURES]
        self.calibration = pictures(folder, "train")[0][ids]

    def measure(self, method: Method, *, norms: bool = True) -> dict:
        """Bits a weight, mean output error on fresh pictures, accuracy, and accuracy with the norms corrected."""
        start = perf_counter()
        stored = {kernel.name: method(kernel) for kernel in self.kernels}
        seconds = perf_counter() - start
        nbytes = sum(size for _, size in stored.values())
        weights = sum(kernel.weight.numel() for kernel in self.kernels)
        others = sum(p.numel() for p in self.model.parameters()) - weights
        errors = [output_error(k.weight, stored[k.name][0], self.fresh[k.name]) for k in self.kernels]
        model = put(self.model, {name: matrix for name, (matrix, _) in stored.items()})
        row = {"draw": self.draw, "bits": 8 * nbytes / weights, "model_ratio": 4 * (weights + others)}
        row["model_ratio"] /= nbytes + 4 * others
        row |= {"error": fmean(errors), "accuracy": accuracy(model, *self.test), "seconds": seconds}
        if norms:
            row["accuracy_norms"] = accuracy(renormed(model, self.model, self.calibration), *self.test)
        return row


def null(bench: Bench, method: Method) -> float:
    """Mean output error of an arm on Gaussian kernels with the norms of the rows, on the patches they are fitted to."""
    errors = []
    for k, kernel in enumerate(bench.kernels):
        noise = Kernel(kernel.name, gaussian_null(kernel.weight, seed=k), kernel.gram, kernel.area)
        errors.append(output_error(noise.weight, method(noise)[0], bench.fresh[kernel.name]))
    return fmean(errors)


def together(rows: list[dict]) -> list[dict]:
    """One row for each arm: means over the draws, and the accuracies of each."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        found.setdefault((row["family"], row["setting"]), []).append(row)
    points = []
    for (family, setting), mine in found.items():
        point = {"family": family, "setting": setting, "bits": mine[0]["bits"], "model_ratio": mine[0]["model_ratio"]}
        for key in ("error", "accuracy", "accuracy_norms"):
            values = [row[key] for row in mine if key in row]
            if not values:
                continue
            point |= {
                key: fmean(values),
                f"{key}_each": values,
                f"{key}_std": stdev(values) if len(values) > 1 else 0.0,
            }
        points.append(point)
    return points


AGAIN = {  # on the other draws and on the other network
    *(("fitted train", how) for how in ("1.5x int3", "2x int4", "2x int3", "2.6x int3", "2x int2", "4x int4")),
    *(("GPTQ-like", how) for how in ("int2", "int1")),
    *(("GPTQ-like, zero kept", how) for how in ("int2", "ternary, packed")),
    *(("fitted train", "3x int4"), ("whitened SVD", "2x int4"), ("whitened SVD", "3x int4")),
}
NULLS = {
    *(("fitted train", how) for how in ("2x int3", "4x int4")),
    *(("GPTQ-like", how) for how in ("int2", "int1")),
    ("whitened SVD", "2x int4"),
}


def front(name: str, folder: Path, draws: Iterable[int], every: bool) -> tuple[dict, dict[str, dict[float, Modes]]]:
    """The front of one network, and its modes. ``every``: all arms on draw 0; on the others, and else, some again."""
    model = NETWORKS[name](folder)
    rows, modes, nulls = [], {}, []
    for draw in tqdm(draws, disable=None):
        bench = Bench(model, folder, draw)
        if not modes:
            modes = {kernel.name: methods.searched(kernel, SHARES) for kernel in bench.kernels}
        for family, setting, method in arms(modes):
            if (family, setting) not in AGAIN and (draw or not every):
                continue
            row = {"family": family, "setting": setting} | bench.measure(
                method, norms=draw == 0 and (family, setting) in AGAIN
            )
            rows.append(row)
            if draw == 0 and (family, setting) in NULLS:
                nulls.append({"family": family, "setting": setting, "null": null(bench, method), "error": row["error"]})
    dense = accuracy(model, *pictures(folder, "test"))
    return recorded(name, model, dense, rows, modes, nulls), modes


def recorded(name: str, model: nn.Module, dense: float, rows: list[dict], modes: dict, nulls: list[dict]) -> dict:
    """What is kept of a network."""
    weights = sum(model.get_submodule(layer).weight.numel() for layer in modes)
    return {
        "network": name,
        "dense": dense,
        "kernels": len(modes),
        "weights": weights,
        "other_numbers": sum(p.numel() for p in model.parameters()) - weights,
        "modes": told(modes),
        "points": together(rows),
        "null": nulls,
    }


def told(modes: dict[str, dict[float, Modes]]) -> list[dict]:
    """The chosen modes in words."""
    return [
        {"layer": name, "share": share, "taps_first": m.taps, "rows": list(m.rows), "cols": list(m.cols)}
        for name, found in modes.items()
        for share, m in found.items()
    ]


def main(*names: str) -> None:
    """Run everything and record it, or measure some of the networks anew and keep the rest of the record."""
    folder = sources.data_folder()
    if folder is None:
        return
    torch.set_num_threads(1)
    made = {name: front(name, folder, DRAWS, every=name == "ResNet-20") for name in names or NETWORKS}
    old = results.read("convolutions") if names else {"networks": []}
    networks = {network["network"]: network for network in old["networks"]}
    networks |= {name: network for name, (network, _) in made.items()}
    if "ResNet-20" in made:
        model, modes = NETWORKS["ResNet-20"](folder), made["ResNet-20"][1]
        old["speed"] = [
            row
            for share, at in ((1 / 2, SHARES[0]), (1 / 3, SHARES[1]))
            for row in speed.measured(model, {name: found[at] for name, found in modes.items()}, share)
        ]
        old["healing"] = healing.measured(model, folder, kernels_of(model, folder, 0), modes)
    write([networks[name] for name in NETWORKS if name in networks], old["speed"], old["healing"])


def write(networks: list[dict], times: list[dict], healed: list[dict]) -> None:
    """Record what was measured."""
    print(
        results.write(
            "convolutions",
            brief({"networks": networks, "speed": times, "healing": healed}),
            models=["ResNet-20 (CIFAR-10)", "plain and narrow: seven convolutions taught by ResNet-20 (CIFAR-10)"],
            data=["CIFAR-10: 512 training pictures a draw, the first 761 of the test part"],
            command="python -m studies.convolutions",
        )
    )
    figure.write(results.read("convolutions"))
