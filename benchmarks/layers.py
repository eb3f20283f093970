"""Cases: one linear layer as a TT-matrix, at four batch sizes, beside ``nn.Linear`` and two libraries' TT layers."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from ttref import TTLinear, plan_contraction
from ttref.contraction import multiply
from ttref.plans import ORDERS

from .measure import Case, repeated, run

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")  # torchTT says on import that it runs without its C++ extension
    import tltorch
    import torchtt

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


def measure(limits: dict) -> list[dict]:
    """Every layer at every batch size: all contenders in one run, and what the planner chose among its four orders."""
    cases = [(layer, batch) for layer in LAYERS for batch in BATCHES]
    with torch.no_grad():
        return [measure_one(*layer, batch, limits) for layer, batch in tqdm(cases, desc="layers", disable=None)]


def measure_one(in_shape: tuple[int, ...], out_shape: tuple[int, ...], rank: int, batch: int, limits: dict) -> dict:
    """One layer at one batch size."""
    torch.manual_seed(0)
    ours = TTLinear(in_shape, out_shape, rank)
    dense = ours.to_linear()
    x = torch.randn(batch, ours.in_features)
    calls = {"ttref": lambda: ours(x), "nn.Linear": lambda: dense(x)}
    calls |= {name: lambda call=call: call(x) for name, call in _peers(ours).items()}
    _check(calls)
    threads = limits["threads"] if batch >= 64 else None  # large products are faster on all threads, whoever makes them
    measured = run(_case(ours, batch, calls), limits, ROUNDS, threads)
    return _result(ours, batch, measured, _orders(ours, x))


def mode_orders(in_features: int, out_features: int, rank: int) -> list[dict]:
    """Operations of a layer, as a share of the dense layer's, for every place of the odd output mode and each way."""
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


def _peers(ours: TTLinear) -> dict[str, Callable]:
    """The same layer, with the same numbers in it, in the other libraries."""
    d = len(ours.cores)
    peers = {}
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
        peers[f"tltorch {implementation}"] = layer
    layer = torchtt.nn.LinearLayerTT(list(ours.in_shape), list(ours.out_shape), list(ours.ranks))
    with torch.no_grad():
        for k in range(d):
            layer.cores[k].copy_(ours.cores[k])
        layer.bias.copy_(ours.bias.reshape(ours.out_shape))
    peers["torchTT"] = lambda x: layer(x.reshape(len(x), *ours.in_shape)).reshape(len(x), -1)
    return peers


def _check(calls: dict[str, Callable]) -> None:
    """All contenders compute the same function; a comparison of different things would be worth nothing."""
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
