"""Costs of a guarantee against overflow and of cutting bits, in dB, on a trained transformer's linear layers."""

from __future__ import annotations

from pathlib import Path
from statistics import quantiles

import numpy as np

from ttref import ttm_svd
from ttref.fixedpoint import QuantizedTT, sqnr_db
from ttref.fixedpoint.stages import contract_float

from ..cifar import pixels
from .networks import ViT

MODES = {128: (4, 4, 8), 256: (4, 8, 8), 384: (6, 8, 8)}
RANKS, BITS = (4, 16), (8, 12)
PICTURES, VECTORS = 40, 400


def costs(folder: Path) -> list[dict]:
    """For each layer, rank and width of activations: SQNR lost by a guarantee, and by cutting instead of rounding.

    The layers are trains by TT-SVD; their inputs are activations of pictures not used in training the network.
    """
    network, (x, _) = ViT(folder), pixels(folder, "test")
    found = []
    for name, given in network.activations(x[:PICTURES]).items():
        weight = network.state[name].double()
        inputs = given[:: len(given) // VECTORS][:VECTORS].double().numpy()
        for rank in RANKS:
            cores = ttm_svd(weight, MODES[weight.shape[0]], MODES[weight.shape[1]], rank=rank)
            found += [row | {"layer": name, "rank": rank} for row in lost([core.numpy() for core in cores], inputs)]
    return found


def lost(cores: list[np.ndarray], x: np.ndarray) -> list[dict]:
    """The costs for one train: a guarantee for all inputs up to the largest of these; cutting with 12-bit weights."""
    real, found = contract_float(cores, x), []
    for bits in BITS:

        def measured(weight_width: int, bits: int = bits, **how: object) -> float:
            q = QuantizedTT.from_float(cores, weight_width=weight_width, act_width=bits, **how)
            return sqnr_db(real, q.matvec_float(x))

        guarantee = measured(bits, calibration=x) - measured(bits, x_max=float(np.abs(x).max()))
        cutting = measured(12, calibration=x) - measured(12, calibration=x, rounding="TRN")
        found.append({"bits": bits, "guarantee_db": guarantee, "cutting_db": cutting})
    return found


def spreads(rows: list[dict]) -> dict:
    """Least, quartiles and largest of both costs."""
    found = {
        "layers": len({row["layer"] for row in rows}),
        "trains": len({(row["layer"], row["rank"]) for row in rows}),
    }
    for cost in ("guarantee_db", "cutting_db"):
        values = [row[cost] for row in rows]
        found[cost] = [min(values), *quantiles(values, n=4), max(values)]
    return found
