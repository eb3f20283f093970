"""Tensor trains in fixed point: formats, bit-exact contraction, error bounds, and the hardware that does the same.

Needs NumPy, but no torch. :mod:`~ttref.fixedpoint.rtl` needs Amaranth, so ``TTMatvec`` and ``simulate`` are not in
``__all__``; :mod:`~ttref.fixedpoint.synthesis` needs Yosys and nextpnr. Every name is imported on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .accuracy import error_bound, error_bound_prior, predicted_sqnr_db, sqnr_db
    from .arithmetic import OverflowStats, accumulator_width, dequantize, quantize, requantize
    from .contract import QuantizedTT
    from .errors import AccumulatorOverflow, FixedPointOverflow, FormatError
    from .formats import FixedPointFormat
    from .gauge import fill_ranges, right_orthogonal
    from .hardware import ArrayModel, LayerTime, amdahl, buffer_words, mac_ratio, macs, roofline, weight_words
    from .rtl import TTMatvec as TTMatvec
    from .rtl import simulate as simulate
    from .scheduling import Schedule, Tile, cycles, schedule
    from .stages import Stage, contract_float, tt_stages
    from .synthesis import synthesize
    from .timeline import Cycle, trace

__all__ = [
    "AccumulatorOverflow",
    "ArrayModel",
    "Cycle",
    "FixedPointFormat",
    "FixedPointOverflow",
    "FormatError",
    "LayerTime",
    "OverflowStats",
    "QuantizedTT",
    "Schedule",
    "Stage",
    "Tile",
    "accumulator_width",
    "amdahl",
    "buffer_words",
    "contract_float",
    "cycles",
    "dequantize",
    "error_bound",
    "error_bound_prior",
    "fill_ranges",
    "mac_ratio",
    "macs",
    "predicted_sqnr_db",
    "quantize",
    "requantize",
    "right_orthogonal",
    "roofline",
    "schedule",
    "sqnr_db",
    "synthesize",
    "trace",
    "tt_stages",
    "weight_words",
]

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
if not TYPE_CHECKING:  # with __getattr__ a type checker would accept any name
    __getattr__, __dir__ = lazy_names(__name__, _HOME)
