"""A matrix in tensor-train form times vectors, in integers, bit for bit as a hardware data path computes it.

Between two stages (:mod:`ttref.fixedpoint.stages`) every array has one format. A sum is exact, in an accumulator that
cannot overflow, and is rounded once, when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import several, whole
from . import arithmetic as fp
from .account import IntegerCores
from .arithmetic import OverflowStats
from .errors import AccumulatorOverflow, FixedPointOverflow, FormatError
from .formats import FixedPointFormat
from .gauge import fill_ranges, right_orthogonal
from .ranges import calibrated_formats, carrier, guaranteed_formats
from .stages import Stage, columns, product, real_cores, tt_stages

__all__ = ["QuantizedTT"]

# A block of columns should stay in the processor's cache from the product to the rounding.
BLOCK = 1 << 18
WEIGHT_MODES = {"rounding": "RND_CONV", "overflow": "SAT"}


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTT(IntegerCores):
    """A tensor-train matrix in integers: cores, their formats, and a format for every array between two stages.

    A stage sums exactly, in an accumulator that cannot overflow, and rounds once, into the format of its result. So the
    result is the same to the last bit in this class and in the lanes of :class:`~ttref.fixedpoint.rtl.TTMatvec`.

    Args:
        cores: Integer cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``, first core first. Batch axes make many trains of one
            shape: the rows of an embedding table, each a train with ``n_k = 1``.
        core_formats: One for each core, first core first.
        stage_formats: ``d + 1`` formats in the order of execution: of the input, then of the result of each stage. The
            last is the output's.

    Attributes:
        params, nbytes, storage_bits: Integers in the cores; the bytes and bits that they take, each core packed bit to
            bit.
        dense_nbytes, ratio: Bytes of all entries of the dense matrix in the format of the widest core; entries for each
            integer stored.
        ranks, modes: TT-ranks, and ``(m_k, n_k)`` of each core.

    Raises:
        TypeError: Cores that are not integers.
        ValueError: Shapes that do not chain to a train, or batch axes that differ.
        FormatError: Too many or too few formats, or an entry of a core outside of its format.
        AccumulatorOverflow: Formats that allow a sum of 2^62 or more.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cores = [rng.normal(size=s) for s in [(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]]
        >>> x = rng.normal(size=(100, 64))
        >>> q = QuantizedTT.from_float(cores, weight_width=8, act_width=8, calibration=x)
        >>> q
        QuantizedTT(64 -> 64, ranks (1, 4, 4, 1), weights 8 bits, activations 8 bits, 3072 bits)
        >>> q.matvec_float(x).shape
        (100, 64)
    """

    cores: tuple[np.ndarray, ...]
    core_formats: tuple[FixedPointFormat, ...]
    stage_formats: tuple[FixedPointFormat, ...]

    def __post_init__(self) -> None:
        cores = tuple(fp.integers(f"core {k}", core) for k, core in enumerate(self.cores))
        stages = tt_stages(cores)
        for core in cores:
            core.setflags(write=False)
        object.__setattr__(self, "cores", cores)
        object.__setattr__(self, "core_formats", tuple(self.core_formats))
        object.__setattr__(self, "stage_formats", tuple(self.stage_formats))
        if (len(self.core_formats), len(self.stage_formats)) != (len(cores), len(cores) + 1):
            raise FormatError(
                f"{len(cores)} cores need {len(cores)} core formats and {len(cores) + 1} stage formats, "
                f"got {len(self.core_formats)} and {len(self.stage_formats)}"
            )
        for fmt in (*self.core_formats, *self.stage_formats):
            fp.check_format(fmt)
        for k, (core, fmt) in enumerate(zip(cores, self.core_formats, strict=True)):
            fp.check_range(f"core {k}", core, fmt)
        for s, stage in enumerate(stages):
            bits = fp.accumulator_width(self.core_formats[stage.core], self.stage_formats[s], stage.K)
            if bits > 62:
                raise AccumulatorOverflow(
                    f"stage {s} (core {stage.core}) needs an accumulator of {bits} bits, and 62 is the limit: "
                    f"{self.core_formats[stage.core]} times {self.stage_formats[s]}, {stage.K} terms"
                )

    @classmethod
    def from_float(
        cls,
        cores: Sequence[np.ndarray],
        *,
        weight_width: int | Sequence[int],
        act_width: int | Sequence[int],
        calibration: np.ndarray | None = None,
        x_max: float | None = None,
        rounding: str = "RND_CONV",
        overflow: str = "SAT",
        gauge: str = "canonical",
    ) -> QuantizedTT:
        """Round a train of real cores, with the finest binary points that the ranges allow.

        Args:
            cores: Real cores ``(*batch, r_{k-1}, m_k, n_k, r_k)``.
            weight_width: Bits of the cores, one number or one for each core. Each core has its own binary point;
                weights are rounded to the nearest, once.
            act_width: Bits of input, intermediate arrays and output: one number, or ``d + 1`` in the order of
                execution.
            calibration: A sample of inputs ``(N, n_1 ... n_d)``; for cores with batch axes whatever broadcasts against
                ``(*batch, n_1 ... n_d)``. The binary points then fit the integers that this sample reaches in each
                stage: the sample itself never overflows, other inputs may.
            x_max: A bound on the magnitude of every input. The binary points then fit all that such inputs could
                reach: none ever overflows. Costs bits of resolution, and the dense matrix in memory while it runs.
                Exactly one of ``calibration`` and ``x_max``.
            rounding: Of activations: ``"TRN"``, ``"RND"``, ``"RND_CONV"``.
            overflow: Of activations: ``"SAT"``, ``"WRAP"``, ``"RAISE"``.
            gauge: ``"canonical"`` brings the cores into right-orthogonal form first and scales them to fill their
                widths, ``"as given"`` leaves them.

        Returns:
            The integer train. Gauge and bounds are sums in float64, whose last digit differs between processors: a
            weight half-way between two integers may be rounded to the other one elsewhere. To reproduce every bit,
            store the integer train, not the real cores.

        Raises:
            TypeError: Cores or a sample that are not real, widths that are not integers, or an ``x_max`` that is not a
                number.
            AccumulatorOverflow: Formats that allow a sum of 2^62 or more.
            FormatError: A width outside of 1 to 32, or numbers too small or too large for any binary point.
            ValueError: Both or neither of ``calibration`` and ``x_max``, NaN in them or in the cores, a wrong shape, or
                an unknown gauge.

        Example:
            >>> cores = [np.full((1, 2, 2, 1), 0.3), np.full((1, 2, 2, 1), 0.7)]
            >>> q = QuantizedTT.from_float(cores, weight_width=8, act_width=10, x_max=1.0)
            >>> [str(fmt) for fmt in q.stage_formats][-1], q.core_formats[0].frac_bits
            ('ap_fixed<10,1,AP_RND_CONV,AP_SAT>', 9)
        """
        if (calibration is None) == (x_max is None):
            raise ValueError("give exactly one of calibration (a sample of inputs) and x_max (a bound on every input)")
        if gauge not in ("canonical", "as given"):
            raise ValueError(f"gauge is 'canonical' or 'as given', got {gauge!r}")
        floats = real_cores(cores)
        core_widths = _widths("weight_width", weight_width, len(floats))
        if gauge == "canonical":
            floats = fill_ranges(right_orthogonal(floats), core_widths)
        core_formats = [
            FixedPointFormat.for_range(float(np.abs(core).max()), width, **WEIGHT_MODES)
            for core, width in zip(floats, core_widths, strict=True)
        ]
        integer_cores = [fp.quantize(core, fmt)[0] for core, fmt in zip(floats, core_formats, strict=True)]
        widths, modes = _widths("act_width", act_width, len(floats) + 1), {"rounding": rounding, "overflow": overflow}
        if x_max is None:
            formats = calibrated_formats(integer_cores, core_formats, widths, calibration, modes)
        else:
            formats = guaranteed_formats(integer_cores, core_formats, widths, x_max, modes)
        return cls(tuple(integer_cores), tuple(core_formats), tuple(formats))

    def __reduce__(self) -> tuple:
        # Through the constructor, so that the cores of a copy are read-only too.
        return QuantizedTT, (self.cores, self.core_formats, self.stage_formats)

    @property
    def stages(self) -> list[Stage]:
        """The products, in the order of execution: see :func:`tt_stages`."""
        return tt_stages(self.cores)

    def matvec(self, xq: np.ndarray, return_stats: bool = False) -> Any:
        """The product with integer vectors, bit for bit as hardware computes it.

        Every sum is exact. Where the formats prove that no sum exceeds 2^24 or 2^53, it is computed by float32 or
        float64 matrix products, which are exact there and several times faster; otherwise NumPy adds in int64.

        Args:
            xq: Integers of ``stage_formats[0]``, shape ``(..., in_features)``. For cores with batch axes: whatever
                broadcasts against ``(*batch, in_features)``.
            return_stats: Also return the overflows of each stage.

        Returns:
            Integers of ``stage_formats[-1]``, int64 ``(..., out_features)``; with ``return_stats`` a pair of them and
            a list of one :class:`OverflowStats` for each stage.

        Raises:
            TypeError: ``xq`` is not integer.
            ValueError: A wrong last axis, or vectors that do not broadcast against the cores' batch axes.
            FormatError: An integer outside of the input format.
            FixedPointOverflow: A ``RAISE`` format overflows; the message names the stage, the core and the entry.

        Cost:
            O(MACs of the stages) for each vector, and as many roundings as the stages have outputs.

        Example:
            >>> int4 = FixedPointFormat(4, 4)
            >>> core = np.array([[[[3]], [[-2]]]])
            >>> q = QuantizedTT((core,), (FixedPointFormat(4, 1),), (int4, int4))
            >>> # 15/8, -10/8, -9/8 and 6/8, rounded down to integers
            >>> q.matvec(np.array([[5], [-3]]))
            array([[ 1, -2],
                   [-2,  0]])
        """
        xq = fp.integers("xq", xq)
        if xq.ndim == 0 or xq.shape[-1] != self.in_features:
            raise ValueError(f"xq has shape {xq.shape}, but the train takes (..., {self.in_features})")
        fp.check_range("xq", xq, self.stage_formats[0])
        batch = self.cores[0].shape[:-4]
        state = columns(xq, batch)
        blocks = [self._run(state[rows, :, some], rows) for rows, some in self._blocks(state)]
        outs, stats = zip(*blocks, strict=True)
        if batch:
            result = np.concatenate(outs).reshape(*batch, -1)
        else:
            result = np.ascontiguousarray(np.concatenate(outs, axis=-1)[0].T).reshape(*xq.shape[:-1], self.out_features)
        return (result, [_merged(s) for s in zip(*stats, strict=True)]) if return_stats else result

    def matvec_float(self, x: Any) -> np.ndarray:
        """Round real vectors into the input format, multiply in integers, and read the result as real numbers.

        Args:
            x: Real numbers ``(..., in_features)``.

        Returns:
            float64 ``(..., out_features)``.

        Raises:
            As :func:`quantize` and :meth:`matvec`.

        Example:
            >>> half = FixedPointFormat(8, 1, rounding="RND_CONV", overflow="SAT")
            >>> # multiply by 64/128
            >>> q = QuantizedTT((np.array([[[[64]]]]),), (half,), (half, half))
            >>> q.matvec_float([[0.5], [0.25]])
            array([[0.25 ],
                   [0.125]])
        """
        xq, _ = fp.quantize(x, self.stage_formats[0])
        return fp.dequantize(self.matvec(xq), self.stage_formats[-1])

    def __repr__(self) -> str:
        batch = self.cores[0].shape[:-4]
        many = f"{math.prod(batch)} trains, " if batch else ""
        weights = _spread([fmt.width for fmt in self.core_formats])
        acts = _spread([fmt.width for fmt in self.stage_formats])
        return (
            f"QuantizedTT({many}{self.in_features} -> {self.out_features}, ranks {self.ranks}, weights {weights} bits, "
            f"activations {acts} bits, {self.storage_bits} bits)"
        )

    def _blocks(self, state: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Slices of trains and of vectors that cut the state into blocks; at least one, even of no vectors."""
        trains, _, vectors = state.shape
        count = max(trains, vectors, 1)
        largest = max(stage.A * stage.B * max(stage.M, stage.K) for stage in self.stages)
        # An overflow error names the index of the entry, which is right only if everything is one block.
        raises = any(fmt.overflow == "RAISE" for fmt in self.stage_formats)
        step = count if raises else max(1, BLOCK // largest)
        for start in range(0, count, step):
            block = slice(start, start + step)
            yield (block, slice(None)) if trains > 1 else (slice(None), block)

    def _run(self, state: np.ndarray, rows: slice) -> tuple[np.ndarray, list[OverflowStats]]:
        """All stages on one block, of the trains ``rows``; the integers of the output, and one count for each stage."""
        stats = []
        for s, stage in enumerate(self.stages):
            weight, before, after = self.core_formats[stage.core], self.stage_formats[s], self.stage_formats[s + 1]
            point = weight.frac_bits + before.frac_bits
            number = carrier(weight, before, stage.K, after)
            core = self.cores[stage.core]
            sums = product(core.reshape(-1, *core.shape[-4:])[rows] if core.ndim > 4 else core, state, stage, number)
            try:
                if number is np.int64:
                    state, stat = fp.requantize(sums, point, after)
                else:
                    sums *= 2.0 ** (after.frac_bits - point)
                    state, stat = fp.fit_float(fp.round_float(sums, after.rounding), after)
            except FixedPointOverflow as error:
                raise FixedPointOverflow(
                    f"stage {s} (core {stage.core}), entries indexed by train, position, vector: {error}"
                ) from None
            stats.append(stat)
        return state.astype(np.int64), stats


def _merged(stats: Sequence[OverflowStats]) -> OverflowStats:
    return OverflowStats(sum(s.count for s in stats), sum(s.total for s in stats), max(s.worst for s in stats))


def _widths(name: str, widths: int | Sequence[int], count: int) -> list[int]:
    widths = widths if several(widths) else [widths] * count
    if len(widths) != count:
        raise ValueError(f"{name} needs one number or {count} of them, got {len(widths)}")
    return [whole(name, width, least=1) for width in widths]


def _spread(widths: Sequence[int]) -> str:
    return str(widths[0]) if len(set(widths)) == 1 else f"{min(widths)} to {max(widths)}"
