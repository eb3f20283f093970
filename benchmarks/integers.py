"""Cases: an integer train times 1,000 vectors, exact to the last bit, beside integer libraries and the dense layer."""

from __future__ import annotations

import math

import numpy as np
from apytypes import APyFixedArray, OverflowMode, QuantizationMode

from ttref.fixedpoint import FixedPointFormat, QuantizedTT, macs, quantize, requantize
from ttref.fixedpoint.stages import columns, product

from . import page
from .measure import Case, Contender, repeated, run
from .page import markdown

RESULT, MODELS = "integers", ["Gaussian layers"]
PACKAGES = ("torch", "numpy", "apytypes")
MODES, RANK, VECTORS = (8, 8, 8), 16, 1000
ROUNDS = 5


def measure(limits: dict) -> dict:
    """A layer of 512 x 512 in 8 and in 16 bits."""
    return {"cases": [run(case(width), limits, ROUNDS) for width in (8, 16)]}


def case(width: int) -> Case:
    """The case of one width, for cores and activations."""
    rng = np.random.default_rng(0)
    ranks = (1, *[RANK] * (len(MODES) - 1), 1)
    cores = [
        rng.standard_normal((ranks[k], n, n, ranks[k + 1])) / math.sqrt(n * ranks[k + 1]) for k, n in enumerate(MODES)
    ]
    x = rng.standard_normal((VECTORS, math.prod(MODES)))
    qtt = QuantizedTT.from_float(cores, weight_width=width, act_width=width, calibration=x)
    xq, _ = quantize(x, qtt.stage_formats[0])
    wanted = qtt.matvec(xq)
    for name, call in (("int64", in_int64), ("apytypes", in_apytypes)):
        if not np.array_equal(call(qtt, xq), wanted):
            raise AssertionError(f"{name} gives other integers")
    dense = rng.integers(-127, 128, (512, 512)).astype(np.float32 if width == 8 else np.float64)
    vectors = np.ascontiguousarray(xq.T.astype(dense.dtype))
    return Case(
        f"512 x 512, rank {RANK}, {width} bits, {VECTORS:,} vectors",
        "call",
        [
            repeated("QuantizedTT.matvec", lambda: qtt.matvec(xq)),
            Contender("the same in int64", lambda: in_int64(qtt, xq), 1),
            Contender("apytypes", lambda: in_apytypes(qtt, xq), 1),
            repeated("dense layer, products alone", lambda: dense @ vectors),
        ],
        2 * VECTORS * macs(qtt.stages),
        8 * 2 * xq.size,
        "flops32_per_s" if width == 8 else "flops_per_s",
    )


def in_int64(qtt: QuantizedTT, xq: np.ndarray) -> np.ndarray:
    """The stages with NumPy's own integer products."""
    state = columns(xq, ())
    for s, stage in enumerate(qtt.stages):
        point = qtt.core_formats[stage.core].frac_bits + qtt.stage_formats[s].frac_bits
        state, _ = requantize(product(qtt.cores[stage.core], state, stage, np.int64), point, qtt.stage_formats[s + 1])
    return state[0].T


def in_apytypes(qtt: QuantizedTT, xq: np.ndarray) -> np.ndarray:
    """The stages in apytypes: matrix products at full width, then one cast."""
    state = xq.T
    for s, stage in enumerate(qtt.stages):
        weight, before, after = qtt.core_formats[stage.core], qtt.stage_formats[s], qtt.stage_formats[s + 1]
        matrix = fixed(qtt.cores[stage.core].reshape(stage.M, stage.K), weight)
        words = state.reshape(stage.A, stage.K, -1)
        outs = [
            (matrix @ fixed(word, before)).cast(
                after.int_bits, after.frac_bits, QuantizationMode.RND_CONV, OverflowMode.SAT
            )
            for word in words
        ]
        state = np.stack([signed(np.asarray(out.to_bits(numpy=True)), after.width) for out in outs])
    return state.reshape(-1, xq.shape[0]).T


def fixed(integers: np.ndarray, fmt: FixedPointFormat) -> APyFixedArray:
    """Stored integers as an array of apytypes, bit for bit."""
    # apytypes refuses read-only arrays, and a model's cores are read-only.
    given = integers if integers.flags.writeable else integers.copy()
    return APyFixedArray(np.ascontiguousarray(given), int_bits=fmt.int_bits, frac_bits=fmt.frac_bits)


def signed(bits: np.ndarray, width: int) -> np.ndarray:
    """Bit patterns as two's complement."""
    bits = bits.astype(np.int64)
    return bits - ((bits >> (width - 1)) << width)


def write(record: dict) -> None:
    """Rewrite the tables of the performance page."""
    page.write(RESULT, markdown(record))
