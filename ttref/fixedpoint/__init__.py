"""Tensor trains in fixed point: formats, bit-exact contraction, error bounds, and the hardware that does the same.

NumPy is all that this needs, torch is not; :mod:`~ttref.fixedpoint.rtl` and :mod:`~ttref.fixedpoint.synthesis` need
Amaranth and the synthesis tools, and are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "errors": ("FormatError", "AccumulatorOverflow", "FixedPointOverflow"),
    "formats": ("FixedPointFormat",),
    "arithmetic": ("OverflowStats", "quantize", "dequantize", "requantize", "accumulator_width"),
    "stages": ("Stage", "tt_stages", "contract_float"),
    "gauge": ("right_orthogonal", "fill_ranges"),
    "contract": ("QuantizedTT",),
    "accuracy": ("error_bound", "error_bound_prior", "predicted_sqnr_db", "sqnr_db"),
    "hardware": (
        "ArrayModel",
        "LayerTime",
        "amdahl",
        "buffer_words",
        "mac_ratio",
        "macs",
        "roofline",
        "weight_words",
    ),
    "scheduling": ("Tile", "Schedule", "schedule", "cycles"),
    "timeline": ("Cycle", "trace"),
    "rtl": ("TTMatvec", "simulate"),
    "synthesis": ("synthesize",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ttref.fixedpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
