"""The parts of the data path: the address counters, the queue of finished sums, and a rounding unit. Amaranth."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .formats import FixedPointFormat
from .scheduling import Schedule

__all__ = ["Feeder", "Drainer", "Rounder", "by_stage", "delayed"]


def by_stage(stage: Value, values: Sequence[Value | int]) -> Value:
    """The value of the running stage; no multiplexer where the values of all stages are equal."""
    if all(value is values[0] or (isinstance(value, int) and value == values[0]) for value in values):
        return Value.cast(values[0])
    return Array([Value.cast(value) for value in values])[stage]


def delayed(m: Module, signal: Signal, cycles: int) -> Signal:
    """``signal``, delayed by ``cycles`` registers."""
    name = signal.name
    for cycle in range(cycles):
        later = Signal.like(signal, name=f"{name}_{cycle + 1}")
        m.d.sync += later.eq(signal)
        signal = later
    return signal


class Feeder(wiring.Component):
    """Counts through one stage: tiles of one word column, then the next column, then the next a.

    ``go`` starts a stage. From the next cycle on, ``address`` and ``weight`` are the words to read, one of each per
    cycle, and ``live`` is high while they are to be multiplied. ``first`` and ``last`` mark the first and the last term
    of the sums of a tile; ``column_end``, ``row_end`` and ``stage_end`` say that the tile is the last of its word
    column, the column the last of its a, and a the last of the stage. ``restart`` with ``go`` sets the weight address
    to 0.
    """

    def __init__(self, schedule: Schedule):
        self.tiles = schedule.tiles
        self.address_bits = max(max(schedule.words) - 1, 1).bit_length()
        self.weight_bits = schedule.weight_depth.bit_length()
        flags = ("live", "first", "last", "column_end", "row_end", "stage_end")
        super().__init__(
            {"stage": In(range(len(schedule.tiles))), "go": In(1), "restart": In(1)}
            | {"address": Out(self.address_bits), "weight": Out(self.weight_bits)}
            | {name: Out(1) for name in flags}
        )

    def elaborate(self, _platform: object) -> Module:
        """Four nested counters, and the two addresses that follow them without a multiplication."""
        m = Module()

        def ends(counter: Value, count: list[int]) -> Value:
            return counter == by_stage(self.stage, [n - 1 for n in count])

        def counter(name: str, count: list[int]) -> Signal:
            return Signal(range(max(count)), name=name)

        lengths, terms = [t.length for t in self.tiles], [t.K for t in self.tiles]
        tiles, reads, outer = [t.tiles for t in self.tiles], [t.reads for t in self.tiles], [t.A for t in self.tiles]
        k, tile = counter("k", lengths), counter("tile", tiles)
        column, a = counter("column", reads), counter("a", outer)
        column_start = Signal(self.address_bits)
        stage_weights = Signal(self.weight_bits)
        running = Signal()
        tile_end = Signal()
        m.d.comb += [
            tile_end.eq(ends(k, lengths)),
            self.column_end.eq(ends(tile, tiles)),
            self.row_end.eq(ends(column, reads)),
            self.stage_end.eq(ends(a, outer)),
            self.first.eq(k == 0),
            self.last.eq(running & ends(k, terms)),
            self.live.eq(running if lengths == terms else running & (k < by_stage(self.stage, terms))),
        ]
        with m.If(self.go):
            m.d.sync += [running.eq(1), k.eq(0), tile.eq(0), column.eq(0), a.eq(0), self.address.eq(0)]
            m.d.sync += [column_start.eq(0), stage_weights.eq(Mux(self.restart, 0, self.weight))]
            with m.If(self.restart):
                m.d.sync += self.weight.eq(0)
        with m.Elif(running & tile_end):
            m.d.sync += [k.eq(0), tile.eq(tile + 1), self.weight.eq(self.weight + 1), self.address.eq(column_start)]
            with m.If(self.column_end):
                after = Mux(self.row_end, self.address, column_start) + 1
                m.d.sync += [tile.eq(0), column.eq(column + 1), self.address.eq(after), column_start.eq(after)]
                with m.If(self.row_end):
                    m.d.sync += [column.eq(0), a.eq(a + 1)]
                with m.If(self.row_end & self.stage_end):
                    m.d.sync += running.eq(0)  # the weights of the next stage are the next in memory
                with m.Else():
                    m.d.sync += self.weight.eq(stage_weights)
        with m.Elif(running):
            m.d.sync += k.eq(k + 1)
            # A tile whose words take longer to write than its sums to accumulate waits at its last word.
            with m.If(1 if lengths == terms else k < by_stage(self.stage, [n - 1 for n in terms])):
                m.d.sync += self.weight.eq(self.weight + 1)
                m.d.sync += self.address.eq(self.address + by_stage(self.stage, reads))
        return m


class Drainer(wiring.Component):
    """Stores the sums of a tile and puts them out, one word a cycle, in the order in which they are written.

    ``load`` stores ``sums``; from the next cycle on ``slots`` is a word in every cycle in which ``live`` is high.
    ``column_end`` marks the last word of a word column, ``row_end`` and ``stage_end`` are those of its tile.
    """

    def __init__(self, schedule: Schedule, accumulator_bits: int):
        self.tiles, self.lanes, self.bits = schedule.tiles, schedule.used_lanes, accumulator_bits
        super().__init__(
            {
                "stage": In(range(len(schedule.tiles))),
                "load": In(1),
                "flags": In(3),
                "sums": In(signed(accumulator_bits)).array(self.lanes),
                "live": Out(1),
                "column_end": Out(1),
                "row_end": Out(1),
                "stage_end": Out(1),
                "slots": Out(signed(accumulator_bits)).array(schedule.word),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """A shift register of all sums, and a counter of the words left in it."""
        m = Module()
        queue = [Signal(signed(self.bits), name=f"queue_{lane}") for lane in range(self.lanes)]
        left = Signal(range(max(tile.words for tile in self.tiles) + 1))
        tile_ends_column = Signal()
        written = [tile.written for tile in self.tiles]
        for lane, held in enumerate(queue):
            ahead = [queue[lane + n] if lane + n < self.lanes else Const(0, signed(self.bits)) for n in written]
            choice = {n: value for n, value in zip(written, ahead, strict=True)}
            m.d.sync += held.eq(Mux(self.load, self.sums[lane], by_stage(self.stage, [choice[n] for n in written])))
        with m.If(self.load):
            words, last = [t.words for t in self.tiles], [t.last for t in self.tiles]
            count = Mux(self.flags[0], by_stage(self.stage, last), by_stage(self.stage, words))
            m.d.sync += [left.eq(count), Cat(tile_ends_column, self.row_end, self.stage_end).eq(self.flags)]
        with m.Elif(self.live):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [self.live.eq(left != 0), self.column_end.eq((left == 1) & tile_ends_column)]
        m.d.comb += [slot.eq(value) for slot, value in zip(self.slots, queue, strict=False)]
        return m


class Rounder(wiring.Component):
    """Rounds one sum into the format of the stage: add half, shift, saturate or wrap.

    ``value`` follows the sum by three cycles. ``overflow`` is one cycle earlier, so that it can be collected by the
    time the word is written.
    """

    def __init__(self, widths: Sequence[int], shifts: Sequence[int], formats: Sequence[FixedPointFormat], bits: int):
        # Larger shifts change nothing: to the right no bits are left, to the left every number overflows.
        self.shifts = [
            max(min(shift, width), -fmt.width) for width, shift, fmt in zip(widths, shifts, formats, strict=True)
        ]
        self.widths, self.formats = widths, formats
        super().__init__(
            {
                "stage": In(range(len(formats))),
                "sum": In(signed(max(widths))),
                "overflow": Out(1),
                "value": Out(signed(bits)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """Three registers: rounded, shifted, fitted."""
        m = Module()
        halves, ties = [], []
        for shift, fmt in zip(self.shifts, self.formats, strict=True):
            to_even = fmt.rounding == "RND_CONV" and shift > 0
            halves.append(0 if shift <= 0 or fmt.rounding == "TRN" else (1 << (shift - 1)) - to_even)
            # Half to even: an odd result gets the whole half, an even one just less.
            ties.append(self.sum[min(shift, len(self.sum) - 1)] if to_even else Const(0))
        grown = [max(width, half.bit_length() + 1) + 1 for width, half in zip(self.widths, halves, strict=True)]
        rounded = Signal(signed(max(grown)))
        m.d.sync += rounded.eq(self.sum + by_stage(self.stage, halves) + by_stage(self.stage, ties))

        bits = [
            max(width - shift, fmt.width + 1)
            for width, shift, fmt in zip(grown, self.shifts, self.formats, strict=True)
        ]
        shifted = Signal(signed(max(bits)))
        choices = {shift: (rounded << -shift) if shift < 0 else rounded >> shift for shift in self.shifts}
        m.d.sync += shifted.eq(by_stage(self.stage, [choices[shift] for shift in self.shifts]))

        fitted = {fmt: self._fit(shifted, fmt) for fmt in self.formats}
        m.d.comb += self.overflow.eq(by_stage(self.stage, [fitted[fmt][0] for fmt in self.formats]))
        m.d.sync += self.value.eq(by_stage(self.stage, [fitted[fmt][1] for fmt in self.formats]))
        return m

    @staticmethod
    def _fit(value: Signal, fmt: FixedPointFormat) -> tuple[Value, Value]:
        """Whether ``value`` overflows the format, and the number that is stored."""
        low = value[: fmt.width].as_signed() if fmt.signed else value[: fmt.width]
        above = value[fmt.width - fmt.signed :]
        overflow = above.any() & ~above.all() if fmt.signed else above.any()
        if fmt.overflow == "WRAP":
            return overflow, low
        limit = Mux(value[-1], Const(fmt.min_int, signed(fmt.width + 1)), Const(fmt.max_int, signed(fmt.width + 1)))
        return overflow, Mux(overflow, limit, low)
