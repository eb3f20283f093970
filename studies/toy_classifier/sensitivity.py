"""Sensitivity of the layers of a deeper digit network to compression, one layer at a time, and agreement of seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import fmean

import numpy as np
from scipy.stats import rankdata, spearmanr

from ttref import TTLinear, swap_layer

from .data import correct, spread, start

LAYERS = ("0", "2", "4")  # 64-64, 64-64, 64-10
MODES = {"0": ((8, 8), (8, 8)), "2": ((8, 8), (8, 8)), "4": ((8, 8), (2, 5))}
SETTINGS = {
    "ratio about 11": {"0": {"rank": 3}, "2": {"rank": 3}, "4": {"rank": 1}},
    "ratio about 5.5": {"0": {"rank": 6}, "2": {"rank": 6}, "4": {"rank": 2}},
    "ratio about 2.8": {"0": {"rank": 12}, "2": {"rank": 12}, "4": {"rank": 4}},
    "eps 0.3": {name: {"eps": 0.3} for name in LAYERS},
    "eps 0.5": {name: {"eps": 0.5} for name in LAYERS},
    "eps 0.7": {name: {"eps": 0.7} for name in LAYERS},
}


def drop(seed: int, name: str, setting: dict) -> tuple[float, float, float]:
    """Validation and test accuracy lost by compressing one layer without training; the layer's ratio."""
    parts, net = start(seed, (64, 64))
    before = [correct(net, part) / len(part[1]) for part in (parts.validation, parts.test)]
    ins, outs = MODES[name]
    layer = TTLinear.from_linear(net.get_submodule(name), in_shape=ins, out_shape=outs, **setting)
    swap_layer(net, name, layer)
    after = [correct(net, part) / len(part[1]) for part in (parts.validation, parts.test)]
    return before[0] - after[0], before[1] - after[1], layer.ratio


def record(seeds: Iterable[int], progress: Iterator) -> dict:
    """Accuracy lost by each layer of 64-64-64-10, and agreement of the seeds on the most sensitive one."""
    seeds, settings = list(seeds), []
    drops: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
    tests: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
    ratios: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
    for seed in seeds:
        for setting, layers in SETTINGS.items():
            found = [drop(seed, name, layers[name]) for name in LAYERS]
            drops[setting].append([lost for lost, _, _ in found])
            tests[setting].append([lost for _, lost, _ in found])
            ratios[setting].append([ratio for _, _, ratio in found])
        progress.update()
    for setting in SETTINGS:
        table = np.array(drops[setting])
        orders = rankdata(table, axis=1)
        first, last = orders.argmin(1), orders.argmax(1)
        agreement = [spearmanr(a, b).statistic for a, b in combinations(orders, 2) if len(set(a)) > 1 < len(set(b))]
        settings.append(
            {
                "setting": setting,
                "layers": [
                    {
                        "layer": name,
                        **spread("ratio", [row[k] for row in ratios[setting]]),
                        **spread("validation_drop", table[:, k]),
                        **spread("test_drop", [row[k] for row in tests[setting]]),
                        "seeds_least_sensitive": int((first == k).sum()),
                        "seeds_most_sensitive": int((last == k).sum()),
                    }
                    for k, name in enumerate(LAYERS)
                ],
                "mean_spearman_between_seeds": fmean(agreement) if agreement else None,
            }
        )
    bases = [start(seed, (64, 64)) for seed in seeds]
    return {
        "seeds": seeds,
        "network": "64-64-64-10",
        "layers": {"0": "64 to 64", "2": "64 to 64", "4": "64 to 10"},
        "dense": spread("validation_accuracy", [correct(n, p.validation) / len(p.validation[1]) for p, n in bases])
        | spread("test_accuracy", [correct(n, p.test) / len(p.test[1]) for p, n in bases]),
        "settings": settings,
    }
