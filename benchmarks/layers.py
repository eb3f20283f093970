"""Cases: one linear layer as a TT-matrix, at four batch sizes, beside ``nn.Linear`` and two libraries' TT layers."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from book.workbook import figures
from ttref import TTLinear, plan_contraction
from ttref.contraction import multiply
from ttref.plans import ORDERS

from . import page
from .measure import Case, repeated, run
from .page import short

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")  # torchTT says on import that it runs without its C++ extension
    import tltorch
    import torchtt

RESULT, MODELS = "layers", ["Gaussian layers"]
DRAWN = 1, 512  # vectors at once, in the figure
PACKAGES = ("torch", "tensorly-torch", "torchTT")
BATCHES = (1, 16, 64, 512)
LAYERS = (
    ((8, 8, 12), (12, 16, 16), 8),
    ((16, 16, 16), (16, 16, 43), 8),
    ((16, 16, 16), (43, 16, 16), 8),
    ((16, 16, 16), (16, 16, 43), 16),
    ((16, 16, 16), (43, 16, 16), 16),
    ((64, 64), (86, 128), 32),
)
ROUNDS = 5
SIGNS = {"left-to-right": "→", "right-to-left": "←", "two-gemm": "two-gemm", "dense": "dense"}
PEERS = ("tltorch factorized", "tltorch reconstructed", "torchTT")


def measure(limits: dict) -> dict:
    """Every layer at every batch size: all contenders in one run, and what the planner chose among its four orders."""
    cases = [(layer, batch) for layer in LAYERS for batch in BATCHES]
    with torch.no_grad():
        found = [measure_one(*layer, batch, limits) for layer, batch in tqdm(cases, desc="layers", disable=None)]
    return {"cases": found, "mode_orders": mode_orders(4096, 11008, 16)}


def measure_one(in_shape: tuple[int, ...], out_shape: tuple[int, ...], rank: int, batch: int, limits: dict) -> dict:
    """One layer at one batch size."""
    torch.manual_seed(0)
    ours = TTLinear(in_shape, out_shape, rank)
    dense = ours.to_linear()
    x = torch.randn(batch, ours.in_features)
    calls = {"ttref": lambda: ours(x), "nn.Linear": lambda: dense(x)}
    calls |= {name: lambda call=call: call(x) for name, call in peers(ours).items()}
    _check(calls)
    threads = limits["threads"] if batch >= 64 else None  # large products are faster on all threads, in every library
    measured = run(_case(ours, batch, calls), limits, ROUNDS, threads)
    return _result(ours, batch, measured, _orders(ours, x))


def mode_orders(in_features: int, out_features: int, rank: int) -> list[dict]:
    """Operations as a share of the dense layer's, for each position of the odd output mode and each order."""
    auto = TTLinear(in_features, out_features, rank, device="meta")
    rows = []
    for place in range(3):
        rest = sorted(auto.out_shape)
        odd = rest.pop()
        out_shape = (*rest[:place], odd, *rest[place:])
        cores = list(TTLinear(auto.in_shape, out_shape, rank, device="meta").cores)
        row = {"in_shape": auto.in_shape, "out_shape": out_shape, "chosen": out_shape == auto.out_shape}
        for order in ORDERS[:2]:
            row[order] = plan_contraction(cores, 1, order).macs / (in_features * out_features)
        rows.append(row)
    return rows


def peers(ours: TTLinear) -> dict[str, nn.Module]:
    """The same layer, with the same numbers in it, in the other libraries."""
    d = len(ours.cores)
    found = {}
    for implementation in ("factorized", "reconstructed"):
        layer = tltorch.FactorizedLinear(
            ours.in_shape,
            ours.out_shape,
            factorization="blocktt",
            rank=list(ours.ranks),
            implementation=implementation,
        )
        with torch.no_grad():
            for theirs, core in zip(layer.weight.factors, ours.cores, strict=True):
                theirs.copy_(core)
            layer.bias.copy_(ours.bias)
        found[f"tltorch {implementation}"] = layer
    layer = torchtt.nn.LinearLayerTT(list(ours.in_shape), list(ours.out_shape), list(ours.ranks))
    with torch.no_grad():
        for k in range(d):
            layer.cores[k].copy_(ours.cores[k])
        layer.bias.copy_(ours.bias.reshape(ours.out_shape))
    found["torchTT"] = Flat(layer, ours.in_shape)
    return found


class Flat(nn.Module):
    """torchTT's layer for vectors; by itself it has one axis for each mode in input and output."""

    def __init__(self, layer: nn.Module, in_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.in_shape = layer, in_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_features)`` to ``(batch, out_features)``."""
        return self.layer(x.reshape(len(x), *self.in_shape)).reshape(len(x), -1)


def _check(calls: dict[str, Callable]) -> None:
    """Check that all contenders compute the same function."""
    expected = calls["nn.Linear"]()
    for name, call in calls.items():
        gap = torch.linalg.vector_norm(call() - expected) / torch.linalg.vector_norm(expected)
        if gap > 1e-4:
            raise AssertionError(f"{name} differs from the dense layer by {gap:.1e}")


def _case(layer: TTLinear, batch: int, calls: dict[str, Callable]) -> Case:
    """The floor: the fewest multiply-adds of all orders, and input, answer and cores moved once."""
    contenders = [repeated(name, call) for name, call in calls.items()]
    macs = min(plan_contraction(list(layer.cores), batch, order).macs for order in ORDERS)
    return Case("", "call", contenders, 2 * macs, least_bytes(layer, batch), "flops32_per_s")


def least_bytes(layer: nn.Module, batch: int) -> int:
    """Float32 bytes that any implementation must move: input, answer and parameters."""
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    return 4 * (batch * (layer.in_features + layer.out_features) + parameters)


def _orders(layer: TTLinear, x: torch.Tensor) -> dict[str, float]:
    """Milliseconds of each contraction order on all threads: three rounds in turn, medians."""
    cores = list(layer.cores)
    plans = [plan_contraction(cores, len(x), order) for order in ORDERS]
    calls = [repeated(plan.order, lambda plan=plan: multiply(cores, x, plan, layer.bias)) for plan in plans]
    times: dict[str, list[float]] = {order: [] for order in ORDERS}
    for _ in range(3):
        for contender in calls:
            start = time.perf_counter()
            contender.call()
            times[contender.name].append(1e3 * (time.perf_counter() - start) / contender.items)
    return {order: statistics.median(taken) for order, taken in times.items()}


def _result(layer: TTLinear, batch: int, measured: dict, orders: dict[str, float]) -> dict:
    plan = layer.plan(batch)
    return {
        "in_shape": layer.in_shape,
        "out_shape": layer.out_shape,
        "rank": max(layer.ranks),
        "batch": batch,
        "parameters": sum(core.numel() for core in layer.cores),
        "order": plan.order,
        "macs": plan.macs,
        "dense_macs": batch * layer.in_features * layer.out_features,
        "bytes": least_bytes(layer, batch),
        "dense_bytes": 4
        * (batch * (layer.in_features + layer.out_features) + layer.out_features * (layer.in_features + 1)),
        "floor_us": measured["floor_us"],
        "rows": measured["rows"],
        "orders_ms": orders,
    }


def times(case: dict) -> dict[str, float]:
    """Median microseconds of each contender."""
    return {row["name"]: row["median_us"] for row in case["rows"]}


def ratios(case: dict) -> dict[str, float]:
    """Each contender's time divided by ttref's, within a round."""
    return {row["name"]: row["ratio"] for row in case["rows"]}


def draw(results: dict) -> Figure:
    """Achieved speed against arithmetic intensity, for one vector and for many, under the machine's two roofs."""
    figures.use_house_style()
    limits = results["machine"]
    peak, bandwidth = limits["flops32_per_s"] / 1e9, limits["bytes_per_s"] / 1e9
    figure, ax = plt.subplots(figsize=(6.2, 5.2))
    x = np.geomspace(0.3, 2e4, 200)
    ax.plot(x, np.minimum(peak, bandwidth * x), color="0.35", marker="", linewidth=1.4)
    ax.annotate("limit: arithmetic", (x[-1], peak), xytext=(0, 5), textcoords="offset points", ha="right")
    ax.annotate("limit: memory", (1, bandwidth), xytext=(12, -4), textcoords="offset points")
    for name, macs, moved, color, marker in (
        ("nn.Linear", "dense_macs", "dense_bytes", figures.OKABE_ITO[1], "s"),
        ("ttref", "macs", "bytes", figures.OKABE_ITO[0], "o"),
    ):
        for batch in DRAWN:
            cases = [case for case in results["cases"] if case["batch"] == batch]
            ax.scatter(
                [2 * case[macs] / case[moved] for case in cases],
                [2 * case[macs] / times(case)[name] / 1e3 for case in cases],
                s=90,
                marker=marker,
                facecolor=color if batch > 1 else "none",
                edgecolor=color,
                zorder=3,
                linewidth=1.6,
                label=f"{'TT-matrix' if name == 'ttref' else 'dense'}, {page.counted(batch, 'vector')}",
            )
    ax.legend(loc="lower right")
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte that must move",
        ylabel="billion operations a second",
        xlim=(0.3, 2e4),
        ylim=(2, 2 * peak),
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:,g}")
    return figure


def markdown(results: dict) -> str:
    """The tables of the performance page: times, mode orders, and the planner's choices beside the fastest orders."""
    machine = results["machine"]
    speeds = (
        f"{machine['flops32_per_s'] / 1e9:.0f} Gflop/s (float32 GEMM), {machine['bytes_per_s'] / 1e9:.0f} GB/s "
        "(copy from and to memory; what fits the cache moves faster)"
    )
    lines = [
        f"{page.measured(results, speeds)} Times are medians of five rounds. Columns two to five say how many times "
        "as long as `ttref` the other layers took, as the median of the ratios within a round (dense: `nn.Linear`; "
        "tltorch f. and r.: its implementations factorized and reconstructed). Work: multiply-adds as a share of the "
        "dense layer's. Order: "
        "→ left to right, ← right to left.",
    ]
    for key, cases in groupby(results["cases"], key=lambda c: (c["in_shape"], c["out_shape"], c["rank"])):
        cases = list(cases)
        ins, outs, rank = key
        lines += [
            "",
            f"**{np.prod(ins)} to {np.prod(outs):,}**, {tuple(ins)} to {tuple(outs)}, rank {rank}: "
            f"{cases[0]['parameters']:,} numbers in the cores, {np.prod(ins) * np.prod(outs):,} in the dense weight",
            "",
            "| batch | dense | tltorch f. | tltorch r. | torchTT | ttref | floor | work | order |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | :---: |",
        ]
        for case in cases:
            ratio = ratios(case)
            others = " | ".join(f"{short(ratio[name])}×" for name in ("nn.Linear", *PEERS))
            lines.append(
                f"| {case['batch']} | {others} | {page.duration(times(case)['ttref'])} "
                f"| {page.duration(case['floor_us'])} | {case['macs'] / case['dense_macs']:.2f} "
                f"| {SIGNS[case['order']]} |"
            )
    lines += [
        "",
        "**The place of the odd mode**: operations of 4096 to 11,008 at rank 16, as a share of the dense layer's",
        "",
        "| output modes | left to right | right to left | |",
        "| --- | ---: | ---: | --- |",
    ]
    for row in results["mode_orders"]:
        lines.append(
            f"| {tuple(row['out_shape'])} | {row['left-to-right']:.2f} | {row['right-to-left']:.2f} "
            f"| {'chosen by TTLinear' if row['chosen'] else ''} |"
        )
    regrets = regret(results)
    lines += [
        "",
        f"**The planner's choice.** In {sum(r <= 1.1 for r in regrets)} of {len(regrets)} cases the order chosen is "
        "the fastest of the four or within 10 % of it; in the (geometric) mean it takes "
        f"{np.exp(np.log(regrets).mean()):.2f} times as long as the fastest, at worst {max(regrets):.2f} times.",
    ]
    return page.folded(results, "\n".join(lines))


def regret(results: dict) -> list[float]:
    """Time of the chosen order divided by that of the fastest, for each case."""
    return [case["orders_ms"][case["order"]] / min(case["orders_ms"].values()) for case in results["cases"]]


def write(record: dict) -> None:
    """Redraw the figure and the tables of the performance page."""
    page.write(RESULT, markdown(record), draw(record))
