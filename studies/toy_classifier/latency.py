"""Time of a forward pass, dense and as a tensor train, for the toy's small layer and for the wide one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ttref import TTLinear

from .mnist import MODES, WIDTHS
from .training import weights

BATCHES = (1, 64, 512)


def record() -> dict:
    """Median microseconds of a forward pass, contenders in turn, on one thread."""
    torch.manual_seed(0)
    ins, outs = MODES
    small = [("nn.Linear", nn.Linear(64, 64)), ("TTLinear rank 3", TTLinear((8, 8), (8, 8), 3))]
    large = [("nn.Linear", nn.Linear(*WIDTHS))]
    large += [(f"TTLinear rank {rank}", TTLinear(ins, outs, rank)) for rank in (1, 4, 16)]
    rows = []
    for shape, contenders in (("64 to 64", small), ("784 to 512", large)):
        for batch in BATCHES:
            x = torch.randn(batch, contenders[0][1].in_features)
            medians = in_turn([layer for _, layer in contenders], x)
            for (name, layer), median in zip(contenders, medians, strict=True):
                tt = isinstance(layer, TTLinear)
                rows.append(
                    {
                        "shape": shape,
                        "batch": batch,
                        "layer": name,
                        "params": weights(layer),
                        "order": layer.plan(batch).order if tt else "dense",
                        "macs": layer.plan(batch).macs if tt else batch * layer.in_features * layer.out_features,
                        "median_us": median,
                        "times_dense": median / medians[0],
                    }
                )
    return {"threads": torch.get_num_threads(), "rows": rows}


@torch.inference_mode()
def in_turn(layers: list[Callable[[Tensor], Tensor]], x: Tensor, rounds: int = 31, calls: int = 20) -> list[float]:
    """Microseconds of a call of each layer: the median over rounds in which every layer runs once."""
    seconds: list[list[float]] = [[] for _ in layers]
    for _ in range(rounds):
        for layer, times in zip(layers, seconds, strict=True):
            begin = time.perf_counter()
            for _ in range(calls):
                layer(x)
            times.append((time.perf_counter() - begin) / calls)
    return [1e6 * statistics.median(times) for times in seconds]
