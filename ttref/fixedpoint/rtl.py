"""A matrix in tensor-train form times a vector, in hardware: lanes that multiply and add, written in Amaranth.

One activation word and one weight word are read in every cycle. Besides selections, there is never more than one
memory, one multiplier or one adder between two registers::

    address -> activation memory -> register -> pick a slot --+
                                                              x -> + -> queue
    address -> weight memory ----> register -> pick a slot --+    accumulators

    queue -> round -> shift -> saturate -> write              ``word`` rounding units

The activation memory has two halves; a stage reads one and writes the other. :mod:`ttref.fixedpoint.scheduling` states
which numbers are in a word and which lane multiplies which.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
    from amaranth.lib import data, wiring
    from amaranth.lib.memory import Memory
    from amaranth.lib.wiring import In, Out
    from amaranth.sim import Simulator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the hardware data path needs Amaranth; install it with: python -m pip install 'amaranth>=0.5.10,<0.6'"
    ) from error

from . import arithmetic as fp
from .contract import QuantizedTT
from .errors import FormatError
from .rtl_parts import Drainer, Feeder, Rounder, by_stage, delayed
from .scheduling import schedule

__all__ = ["TTMatvec", "simulate"]

# Cycles from an address on ``read_address`` to its word on ``read_data``.
READ_LATENCY = 2


class TTMatvec(wiring.Component):
    """The hardware for one integer train: its output equals :meth:`QuantizedTT.matvec` to the last bit.

    Ports, all synchronous to ``clk``:

    - ``load_enable``, ``load_address``, ``load_data``: Write entry ``load_address`` of the input. Ignored while busy.
    - ``start``: Begin, if not busy. Clears ``done`` and ``saturated``.
    - ``busy``: High for exactly ``schedule.cycles`` cycles from the one after ``start``.
    - ``done``: High once the output is complete, until the next start.
    - ``saturated``: High if any number of any stage left its format since the last start, saturated or wrapped.
    - ``read_address``, ``read_data``: Two cycles later, word ``read_address`` of the output, with the entries
      ``schedule.layout(number of stages)[read_address]``. Not while busy. Input and output share the memory: read the
      output before the next input is loaded, and load an input before every start.

    Args:
        qtt: One integer train, no batch axes.
        lanes: Multiply-accumulate units, at least 1.

    Attributes:
        qtt: The train.
        schedule: The :class:`~ttref.fixedpoint.scheduling.Schedule` of its lanes.

    Raises:
        TypeError: ``qtt`` is no :class:`QuantizedTT`, or ``lanes`` no integer.
        ValueError: Batch axes, or lanes below 1.
        FormatError: A stage whose overflow mode is RAISE: hardware has no exceptions.

    Example:
        >>> from amaranth.back import rtlil
        >>> from ttref.fixedpoint import QuantizedTT, TTMatvec
        >>> rng = np.random.default_rng(0)
        >>> cores = [rng.normal(size=s) for s in [(1, 2, 3, 2), (2, 2, 2, 1)]]
        >>> qtt = QuantizedTT.from_float(cores, weight_width=8, act_width=8, x_max=1.0)
        >>> dut = TTMatvec(qtt, lanes=4)
        >>> dut.schedule.cycles, dut.schedule.used_lanes, dut.schedule.word
        (32, 4, 2)
        >>> netlist = rtlil.convert(dut)             # for any synthesis tool
    """

    # Amaranth warns about a component that is never elaborated, when it is garbage-collected: in a later cell of a
    # notebook, where nobody expects it. A circuit that is only inspected, or refused below, is no mistake.
    _MustUse__silence = True

    def __init__(self, qtt: QuantizedTT, lanes: int):
        if not isinstance(qtt, QuantizedTT):
            raise TypeError(f"TTMatvec builds a QuantizedTT, got {type(qtt).__name__}")
        if qtt.cores[0].ndim != 4:
            raise ValueError(
                f"TTMatvec builds one train, but these cores have batch axes {qtt.cores[0].shape[:-4]}; "
                "make a QuantizedTT of one entry of the batch"
            )
        for stage, fmt in enumerate(qtt.stage_formats[1:]):
            if fmt.overflow == "RAISE":
                raise FormatError(
                    f"stage {stage} writes {fmt}, and hardware cannot raise an exception; "
                    "take SAT or WRAP and watch the flag ``saturated``"
                )
        self.qtt, self.schedule = qtt, schedule(qtt.stages, lanes)
        # An unsigned number needs one more bit as a signed factor.
        self.act_bits = max(fmt.width + (not fmt.signed) for fmt in qtt.stage_formats)
        self.weight_bits = max(fmt.width + (not fmt.signed) for fmt in qtt.core_formats)
        entry = qtt.stage_formats[0]
        super().__init__(
            {
                "load_enable": In(1),
                "load_address": In(range(qtt.in_features)),
                "load_data": In(signed(entry.width) if entry.signed else unsigned(entry.width)),
                "start": In(1),
                "busy": Out(1),
                "done": Out(1),
                "saturated": Out(1),
                "read_address": In(range(self.schedule.words[-1])),
                "read_data": Out(data.ArrayLayout(signed(self.act_bits), self.schedule.word)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        """The circuit: control, memories, lanes, rounding units."""
        tiles, qtt, m = self.schedule.tiles, self.qtt, Module()
        stage, last_stage = Signal(range(max(2, len(tiles)))), len(tiles) - 1
        acc_bits = [
            fp.accumulator_width(qtt.core_formats[tile.core], qtt.stage_formats[s], tile.K)
            for s, tile in enumerate(tiles)
        ]
        m.submodules.feeder = feeder = Feeder(self.schedule)
        m.submodules.drainer = drainer = Drainer(self.schedule, max(acc_bits))
        m.d.comb += [feeder.stage.eq(stage), drainer.stage.eq(stage)]

        # Start, and the change of stages. A stage is over when its last word is on the write port.
        write = delayed(m, drainer.live, 3)
        column_end, row_end, stage_end = (
            delayed(m, flag, 3) for flag in (drainer.column_end, drainer.row_end, drainer.stage_end)
        )
        begin, over = Signal(), Signal()
        m.d.comb += [begin.eq(self.start & ~self.busy), over.eq(write & column_end & row_end & stage_end)]
        m.d.comb += [feeder.go.eq(begin | (over & (stage != last_stage))), feeder.restart.eq(begin)]
        with m.If(begin):
            m.d.sync += [stage.eq(0), self.busy.eq(1), self.done.eq(0), self.saturated.eq(0)]
        with m.Elif(over):
            m.d.sync += [stage.eq(stage + 1), self.busy.eq(stage != last_stage), self.done.eq(stage == last_stage)]

        # Write addresses: through a word column word by word, then the next column, then the next a.
        write_address = Signal.like(feeder.address, name="write_address")
        column_start = Signal.like(feeder.address, name="write_column_start")
        with m.If(begin | over):
            m.d.sync += [write_address.eq(0), column_start.eq(0)]
        with m.Elif(write & column_end):
            after = Mux(row_end, write_address, column_start) + 1
            m.d.sync += [write_address.eq(after), column_start.eq(after)]
        with m.Elif(write):
            m.d.sync += write_address.eq(write_address + by_stage(stage, [tile.reads for tile in tiles]))

        results = Signal(self.read_data.shape())
        act_word = self._activations(m, stage, feeder.address, write, write_address, results)
        weight_word = self._weights(m, feeder.weight)

        live, first = delayed(m, feeder.live, 4), delayed(m, feeder.first, 4)
        for lane in range(self.schedule.used_lanes):
            a = Signal(signed(self.act_bits), name=f"act_{lane}")
            w = Signal(signed(self.weight_bits), name=f"weight_{lane}")
            product = Signal(signed(self.act_bits + self.weight_bits), name=f"product_{lane}")
            total = Signal(signed(max(acc_bits)), name=f"total_{lane}")
            m.d.sync += a.eq(by_stage(stage, picked(act_word, [lane % tile.columns for tile in tiles])))
            m.d.sync += w.eq(by_stage(stage, picked(weight_word, [lane // tile.columns for tile in tiles])))
            m.d.sync += product.eq(a * w)
            with m.If(live):
                m.d.sync += total.eq(Mux(first, 0, total) + product)
            m.d.comb += drainer.sums[lane].eq(total)
        m.d.comb += drainer.load.eq(delayed(m, feeder.last, 5))
        ends = [delayed(m, flag, 5) for flag in (feeder.column_end, feeder.row_end, feeder.stage_end)]
        m.d.comb += drainer.flags.eq(Cat(ends))

        shifts = [
            qtt.core_formats[tile.core].frac_bits + qtt.stage_formats[s].frac_bits - qtt.stage_formats[s + 1].frac_bits
            for s, tile in enumerate(tiles)
        ]
        overflow = Signal(self.schedule.word)
        for slot in range(self.schedule.word):
            m.submodules[f"rounder_{slot}"] = unit = Rounder(acc_bits, shifts, qtt.stage_formats[1:], self.act_bits)
            m.d.comb += [unit.stage.eq(stage), unit.sum.eq(drainer.slots[slot])]
            m.d.comb += [overflow[slot].eq(unit.overflow), results[slot].eq(unit.value)]
        with m.If(delayed(m, drainer.live, 2) & overflow.any()):
            m.d.sync += self.saturated.eq(1)
        return m

    def _activations(
        self, m: Module, stage: Signal, address: Signal, write: Signal, write_address: Signal, results: data.View
    ) -> data.View:
        """The activation memory, for the running stage or, when idle, for the user; returns the word read."""
        bits, odd = len(address), len(self.schedule.tiles) % 2
        depth = (1 << bits) + max(self.schedule.words[1::2])
        m.submodules.activations = memory = Memory(shape=self.read_data.shape(), depth=depth, init=[])
        reader, writer = memory.read_port(), memory.write_port()
        with m.If(self.busy):
            m.d.comb += [reader.addr.eq(Cat(address, stage[:1])), writer.addr.eq(Cat(write_address, ~stage[:1]))]
            m.d.comb += [writer.en.eq(write), writer.data.eq(results)]
        with m.Else():
            output = Const(odd << bits, bits + 1)
            m.d.comb += [reader.addr.eq(output | self.read_address), writer.addr.eq(self.load_address)]
            m.d.comb += writer.en.eq(self.load_enable)
            m.d.comb += writer.data[0].eq(self.load_data)
        m.d.sync += self.read_data.eq(reader.data)
        return self.read_data

    def _weights(self, m: Module, address: Signal) -> data.View:
        """The weight memory; returns the word read."""
        rows = []
        for s, tile in enumerate(self.schedule.tiles):
            core = self.qtt.cores[tile.core].reshape(tile.r0 * tile.m, tile.K)
            rows += [[0 if at is None else int(core[at]) for at in slots] for slots in self.schedule.weights(s)]
        layout = data.ArrayLayout(signed(self.weight_bits), self.schedule.weight_slots)
        m.submodules.weights = memory = Memory(shape=layout, depth=len(rows), init=rows)
        reader, word = memory.read_port(), Signal(layout)
        m.d.comb += reader.addr.eq(address)
        m.d.sync += word.eq(reader.data)
        return word


def picked(word: data.View, slots: list[int]) -> list[Value]:
    """The slot of each stage, the same object for equal slots, so that :func:`by_stage` sees it; zero for no slot."""
    choice = {slot: word[slot] if slot < word.shape().length else Const(0) for slot in slots}
    return [choice[slot] for slot in slots]


def simulate(dut: TTMatvec, xq: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Run the circuit in Amaranth's simulator: load, start, wait, read, one vector after the other.

    Args:
        dut: The circuit.
        xq: Integers of the input format, shape ``(N, in_features)``.

    Returns:
        ``(yq, saturated, cycles)``: int64 ``(N, out_features)``; bool ``(N,)``; cycles from start to done.

    Raises:
        TypeError: ``dut`` is no :class:`TTMatvec`, or ``xq`` not integer.
        ValueError: A wrong shape.
        FormatError: An integer outside of the input format.
        RuntimeError: The circuit is not done after twice the scheduled cycles.

    Cost:
        About 10,000 cycles a second at four lanes, fewer with more.

    Example:
        >>> from ttref.fixedpoint import QuantizedTT, TTMatvec, quantize, simulate
        >>> rng = np.random.default_rng(0)
        >>> cores = [rng.normal(size=s) for s in [(1, 2, 3, 2), (2, 2, 2, 1)]]
        >>> qtt = QuantizedTT.from_float(cores, weight_width=8, act_width=8, x_max=1.0)
        >>> xq, _ = quantize(rng.uniform(-1, 1, size=(5, 6)), qtt.stage_formats[0])
        >>> yq, saturated, cycles = simulate(TTMatvec(qtt, lanes=4), xq)
        >>> bool((yq == qtt.matvec(xq)).all()), bool(saturated.any()), cycles
        (True, False, 32)
    """
    if not isinstance(dut, TTMatvec):
        raise TypeError(f"simulate runs a TTMatvec, got {type(dut).__name__}")
    qtt, scheduled, xq = dut.qtt, dut.schedule.cycles, fp.integers("xq", xq)
    if xq.ndim != 2 or xq.shape[1] != qtt.in_features or not len(xq):
        raise ValueError(f"xq has shape {xq.shape}, but the circuit takes (N, {qtt.in_features}) with N at least 1")
    fp.check_range("xq", xq, qtt.stage_formats[0])
    layout = dut.schedule.layout(len(dut.schedule.tiles))
    yq, saturated = np.zeros((len(xq), qtt.out_features), dtype=np.int64), np.zeros(len(xq), dtype=bool)
    taken = set()

    async def bench(ctx: Any) -> None:
        for row, vector in enumerate(xq):
            await load_and_start(ctx, dut, vector)
            cycles = 0
            while not ctx.get(dut.done):
                await ctx.tick()
                cycles += 1
                if cycles > 2 * scheduled:
                    raise RuntimeError(f"the circuit is not done after {cycles} cycles; {scheduled} are scheduled")
            taken.add(cycles)
            saturated[row] = ctx.get(dut.saturated)
            for address in range(len(layout) + READ_LATENCY):
                ctx.set(dut.read_address, min(address, len(layout) - 1))
                await ctx.tick()
                if address >= READ_LATENCY - 1 and address - READ_LATENCY + 1 < len(layout):
                    word = ctx.get(dut.read_data)
                    for slot, entry in enumerate(layout[address - READ_LATENCY + 1]):
                        if entry >= 0:
                            yq[row, entry] = word[slot]

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return yq, saturated, max(taken)


async def load_and_start(ctx: Any, dut: TTMatvec, vector: np.ndarray) -> None:
    """In a testbench: write one input, then give the start pulse; the first busy cycle follows."""
    ctx.set(dut.load_enable, 1)
    for address, entry in enumerate(vector):
        ctx.set(dut.load_address, address)
        ctx.set(dut.load_data, int(entry))
        await ctx.tick()
    ctx.set(dut.load_enable, 0)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
