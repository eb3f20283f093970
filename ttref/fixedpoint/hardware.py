"""Cost of a train on hardware: multiplications, memory traffic, and which of the two is the bottleneck.

A dense layer uses each of its weights once for each vector. A train uses each weight of a stage ``A B`` times, once for
every position of the stage. So its compression ratio and its ratio of multiplications differ by that reuse::

    numbers stored      sum over stages of M K
    multiplications     sum over stages of M K A B     per vector; dense: inputs * outputs, both

Only counts are computed here. The stages come from :func:`~ttref.fixedpoint.stages.tt_stages`, and a dense layer is a
train of one core, ``tt_stages([(1, outputs, inputs, 1)])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import check_number, whole
from .stages import Stage, check_chain

__all__ = ["ArrayModel", "LayerTime", "amdahl", "buffer_words", "mac_ratio", "macs", "roofline", "weight_words"]


def macs(stages: Sequence[Stage]) -> int:
    """Multiplications, each with its addition (MACs), that one vector takes.

    Args:
        stages: The products of one contraction, in the order of execution.

    Returns:
        The sum of ``A M K B``.

    Raises:
        TypeError, ValueError: ``stages`` is not a list of stages that chain.

    Cost:
        O(d).

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> macs(tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)])), 64 * 64
        (6144, 4096)
    """
    return sum(stage.macs for stage in check_chain(stages))


def weight_words(stages: Sequence[Stage]) -> int:
    """Size of the weight memory in numbers: the entries of all cores, the sum of ``M K``.

    Args:
        stages: The products of one contraction, in the order of execution.

    Returns:
        The number of weights.

    Raises:
        TypeError, ValueError: As :func:`macs`.

    Cost:
        O(d).

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> weight_words(tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]))
        384
    """
    return sum(stage.M * stage.K for stage in check_chain(stages))


def buffer_words(stages: Sequence[Stage]) -> int:
    """Size of the activation memory in numbers: the largest input and output of a stage together.

    A stage reads one array while it writes the next. Two memories that take turns (ping-pong) need room for both.

    Args:
        stages: The products of one contraction, in the order of execution.

    Returns:
        The largest sum of the input of a stage, ``A K B``, and its output, ``A M B``.

    Raises:
        TypeError, ValueError: As :func:`macs`.

    Cost:
        O(d).

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> # 256 read, 256 written
        >>> buffer_words(tt_stages([(1, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 1)]))
        512
    """
    return max(stage.A * (stage.K + stage.M) * stage.B for stage in check_chain(stages))


def mac_ratio(stages: Sequence[Stage]) -> float:
    """How many times fewer multiplications the train takes than the dense layer of its size; below 1 it takes more.

    It is the speedup where arithmetic is the bottleneck: long prompts, large batches.

    Args:
        stages: The products of one contraction, in the order of execution.

    Returns:
        ``inputs * outputs / macs(stages)``, whatever the number of vectors.

    Raises:
        TypeError, ValueError: As :func:`macs`.

    Cost:
        O(d).

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> # 4096 -> 11008
        >>> round(mac_ratio(tt_stages([(1, 43, 16, 8), (8, 16, 16, 8), (8, 16, 16, 1)])), 2)
        7.36
        >>> # modes reordered
        >>> round(mac_ratio(tt_stages([(1, 16, 16, 8), (8, 16, 16, 8), (8, 43, 16, 1)])), 2)
        3.2
    """
    first, last = check_chain(stages)[0], stages[-1]
    return first.A * first.K * last.M * last.B / macs(stages)


def roofline(macs_per_byte: float, *, macs_per_s: float, bytes_per_s: float) -> float:
    """The most multiplications per second that a machine can do for work of a given intensity.

    Args:
        macs_per_byte: Multiplications for each byte that comes from memory.
        macs_per_s: The machine's peak.
        bytes_per_s: Its memory bandwidth.

    Returns:
        The smaller of the peak and ``macs_per_byte * bytes_per_s``.

    Raises:
        TypeError, ValueError: An argument that is not a finite number above 0.

    Source:
        Williams, Waterman and Patterson (2009), Roofline: an insightful visual performance model.

    Example:
        >>> [roofline(work, macs_per_s=8e9, bytes_per_s=4e9) for work in (0.5, 10)]
        [2000000000.0, 8000000000.0]
    """
    for name, value in (("macs_per_byte", macs_per_byte), ("macs_per_s", macs_per_s), ("bytes_per_s", bytes_per_s)):
        check_number(name, value, positive=True)
    return float(min(macs_per_s, macs_per_byte * bytes_per_s))


def amdahl(local: float, fraction: float) -> float:
    """The overall speedup when only a part gets faster.

    Args:
        local: How many times faster the part becomes; ``math.inf`` for a part that vanishes.
        fraction: The part's share of the time before, 0 to 1.

    Returns:
        ``1 / (1 - fraction + fraction / local)``.

    Raises:
        ValueError: ``local`` not above zero, or ``fraction`` outside of 0 to 1.

    Source:
        Amdahl (1967), Validity of the single processor approach to achieving large scale computing capabilities.

    Example:
        >>> amdahl(4, 0.5), amdahl(float("inf"), 0.5)
        (1.6, 2.0)
    """
    if not local > 0:
        raise ValueError(f"local must be above 0, got {local}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is a share of the time before, 0 to 1; got {fraction}")
    if fraction == 1:
        return float(local)
    return 1 / (1 - fraction + fraction / local)


@dataclass(frozen=True)
class LayerTime:
    """Time of a layer and its bottleneck: ``seconds`` is the larger of ``compute`` and ``traffic``.

    ``binds`` names the bottleneck: "compute", "traffic", or "both" where they are equal.

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> array = ArrayModel(macs_per_cycle=16, clock_hz=1e6, bytes_per_s=1e6)
        >>> array.layer_time(tt_stages([(1, 8, 8, 1)]), batch=1, weight_bytes=64)
        LayerTime(seconds=6.4e-05, compute=4e-06, traffic=6.4e-05, binds='traffic')
    """

    seconds: float
    compute: float
    traffic: float
    binds: str


@dataclass(frozen=True)
class ArrayModel:
    """An array of multipliers and a memory: the least time of a layer, with perfect overlap of the two.

    Activations stay on the chip and control costs nothing, so a real machine is slower, never faster.

    Args:
        macs_per_cycle: Multipliers, each busy once per cycle.
        clock_hz: Cycles per second.
        bytes_per_s: Bandwidth of the memory that the weights come from.
        tile: ``(Tin, Tout)``, the shape in which the multipliers are wired: a product's K is padded up to a multiple
            of Tin, its M to a multiple of Tout. None for no padding.

    Raises:
        TypeError: ``macs_per_cycle`` or an entry of ``tile`` is not an integer, or a rate not a number.
        ValueError: An argument that is not above 0, or a tile that is not a pair.

    Example:
        >>> from ttref.fixedpoint import tt_stages
        >>> array = ArrayModel(macs_per_cycle=4096, clock_hz=140e6, bytes_per_s=286.72e9)
        >>> dense = tt_stages([(1, 4096, 4096, 1)])
        >>> # one vector, weights of four bits
        >>> one = array.layer_time(dense, 1, weight_bytes=4096 * 4096 / 2)
        >>> round(one.seconds * 1e6, 2), one.binds
        (29.26, 'both')
        >>> array.layer_time(dense, 8, weight_bytes=4096 * 4096 / 2).binds
        'compute'
    """

    macs_per_cycle: int
    clock_hz: float
    bytes_per_s: float
    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        whole("macs_per_cycle", self.macs_per_cycle, least=1)
        check_number("clock_hz", self.clock_hz, positive=True)
        check_number("bytes_per_s", self.bytes_per_s, positive=True)
        if self.tile is not None:
            if not isinstance(self.tile, tuple) or len(self.tile) != 2:
                raise ValueError(f"tile is a pair (Tin, Tout) or None, got {self.tile!r}")
            for name, size in zip(("Tin", "Tout"), self.tile, strict=True):
                whole(name, size, least=1)

    @property
    def macs_per_s(self) -> float:
        """The peak: ``macs_per_cycle * clock_hz``."""
        return self.macs_per_cycle * self.clock_hz

    def padded_macs(self, stages: Sequence[Stage]) -> int:
        """Multiplications of the array for one vector, including those with padding.

        Example:
            >>> from ttref.fixedpoint import tt_stages
            >>> array = ArrayModel(16, 1e8, 1e9, tile=(4, 4))
            >>> array.padded_macs(tt_stages([(1, 6, 5, 1)])), macs(tt_stages([(1, 6, 5, 1)]))
            (64, 30)
        """
        t_in, t_out = self.tile or (1, 1)
        return sum(s.A * s.B * _up(s.K, t_in) * _up(s.M, t_out) for s in check_chain(stages))

    def layer_time(self, stages: Sequence[Stage], batch: int, weight_bytes: float) -> LayerTime:
        """Time of a layer: the larger of its arithmetic and of reading its weights once for the batch.

        Args:
            stages: The layer's products; for a dense layer ``tt_stages([(1, outputs, inputs, 1)])``.
            batch: Vectors for which the weights are read once: tokens of a prompt, sequences of a batch.
            weight_bytes: Bytes of weights read from memory; 0 if they stay on the chip.

        Returns:
            A :class:`LayerTime`, in seconds.

        Raises:
            TypeError, ValueError: ``batch`` is not an integer of at least 1, ``weight_bytes`` not a number of at least
                0, or ``stages`` as for :func:`macs`.

        Cost:
            O(d).
        """
        batch = whole("batch", batch, least=1)
        check_number("weight_bytes", weight_bytes)
        compute = batch * self.padded_macs(stages) / self.macs_per_s
        traffic = weight_bytes / self.bytes_per_s
        binds = "compute" if compute > traffic else "traffic"
        return LayerTime(max(compute, traffic), compute, traffic, "both" if math.isclose(compute, traffic) else binds)


def _up(size: int, multiple: int) -> int:
    """``size`` rounded up to a multiple."""
    return -(-size // multiple) * multiple
