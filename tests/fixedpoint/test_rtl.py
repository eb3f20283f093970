"""The circuit against the integer model: every bit, every cycle, every flag; and against the schedule, lane by lane."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("amaranth")
from amaranth.hdl import Module  # noqa: E402
from amaranth.sim import Simulator  # noqa: E402

from ttref.fixedpoint import FixedPointFormat, FormatError, QuantizedTT, rtl, schedule, trace  # noqa: E402
from ttref.fixedpoint.rtl import TTMatvec, simulate  # noqa: E402


def train(
    rows, columns, ranks, *, weights=8, acts=8, growth=2, rounding="RND_CONV", overflow="SAT", signed=True, seed=0
):
    """A train of random integers; stage s writes ``growth`` more integer bits than it reads (one number, or a list)."""
    rng, d = np.random.default_rng(seed), len(rows)
    low, high = -(1 << weights - 1), 1 << weights - 1
    cores = [rng.integers(low, high, (ranks[k], rows[k], columns[k], ranks[k + 1])) for k in range(d)]
    growth = [growth] * d if isinstance(growth, int) else growth
    signs = [signed] * (d + 1) if isinstance(signed, bool) else signed
    points = np.cumsum([1, *growth])
    formats = [FixedPointFormat(acts, int(i), rounding, overflow, sign) for i, sign in zip(points, signs, strict=True)]
    return QuantizedTT(tuple(cores), (FixedPointFormat(weights, 1),) * d, tuple(formats))


def inputs(qtt, count, seed=1):
    into = qtt.stage_formats[0]
    return np.random.default_rng(seed).integers(into.min_int, into.max_int + 1, (count, qtt.in_features))


def agree(qtt, lanes, xq):
    """Simulate, compare everything with the model, and return the flags."""
    dut = TTMatvec(qtt, lanes)
    yq, saturated, cycles = simulate(dut, xq)
    flags = [any(stage.count for stage in qtt.matvec(vector, return_stats=True)[1]) for vector in xq]
    np.testing.assert_array_equal(yq, qtt.matvec(xq))
    np.testing.assert_array_equal(saturated, flags)
    assert cycles == dut.schedule.cycles
    return saturated


ODD = {"rows": (3, 4, 2), "columns": (2, 3, 5), "ranks": (1, 3, 3, 1), "weights": 6, "acts": 9}
SMALL = {"rows": (3, 2, 2), "columns": (2, 3, 2), "ranks": (1, 2, 3, 1), "weights": 5, "acts": 7}


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 11, 16, 64])
def test_odd_sizes_and_any_number_of_lanes(lanes):
    qtt = train(**ODD, growth=(1, 1, 2))
    agree(qtt, lanes, inputs(qtt, 20 if lanes > 2 else 8))


@pytest.mark.parametrize("overflow", ["SAT", "WRAP"])
@pytest.mark.parametrize("rounding", ["TRN", "RND", "RND_CONV"])
@pytest.mark.parametrize("growth", [(1, 2, 3), (2, -9, 12)], ids=["right shifts", "a left shift"])
def test_every_rounding_and_overflow(rounding, overflow, growth):
    qtt = train(**SMALL, growth=growth, rounding=rounding, overflow=overflow)
    agree(qtt, 7, inputs(qtt, 20))


@pytest.mark.parametrize(
    "rows, columns, ranks, lanes",
    [
        ((5,), (3,), (1, 1), 4),
        ((1,), (1,), (1, 1), 4),
        ((7, 1), (1, 1), (1, 3, 1), 4),
        ((16,), (2,), (1, 1), 16),  # more words to write than terms to sum
        ((2, 2, 2, 2), (2, 2, 2, 2), (1, 2, 3, 2, 1), 12),
    ],
)
def test_shapes_at_the_edge(rows, columns, ranks, lanes):
    qtt = train(rows, columns, ranks)
    agree(qtt, lanes, inputs(qtt, 20))


def test_a_tile_waits_while_its_words_are_written():
    """Five words and three terms: the lanes pause, which still beats two tiles of three cycles."""
    qtt = train((2, 1), (2, 3), (1, 5, 1))
    tile = schedule(qtt.stages, 5).tiles[0]
    assert (tile.K, tile.words, tile.length, tile.tiles) == (3, 5, 5, 1)
    agree(qtt, 5, inputs(qtt, 20))


@pytest.mark.parametrize("shift", [-40, 40])
def test_shifts_that_leave_nothing(shift):
    """Forty integer bits more and only the rounding of tiny sums is left; forty fewer and everything overflows."""
    for rounding in ("TRN", "RND", "RND_CONV"):
        qtt = train((3,), (2,), (1, 1), weights=4, acts=5, growth=(shift,), rounding=rounding)
        agree(qtt, 3, inputs(qtt, 10))


def test_flags_are_raised_by_overflow_and_taken_back_by_the_next_start():
    qtt = train(**ODD, growth=(1, 1, 1))
    flags = agree(qtt, 8, inputs(qtt, 20))
    assert flags.any() and not flags.all()
    lowest = qtt.stage_formats[0].min_int
    assert agree(train(**ODD, growth=0), 8, np.full((2, 30), lowest)).all()


def test_the_smallest_numbers_times_the_smallest_fill_the_accumulator():
    low = FixedPointFormat(8, 1)
    cores = (np.full((1, 2, 2, 2), -128), np.full((2, 2, 2, 1), -128))
    qtt = QuantizedTT(cores, (low, low), (low, FixedPointFormat(18, 3), FixedPointFormat(30, 5)))
    agree(qtt, 4, np.full((1, 4), -128))
    assert agree(QuantizedTT(cores, (low, low), (low, low, low)), 4, np.full((1, 4), -128)).all()


def test_unsigned_and_unequal_formats():
    agree_on = train(**SMALL, growth=(1, 2, 2), signed=(False, True, False, True))
    agree(agree_on, 6, inputs(agree_on, 20))
    cores = [np.array([[[[3], [-2]], [[1], [2]]]]), np.array([[[[7]], [[-8]]]])]
    core_formats = (FixedPointFormat(3, 1), FixedPointFormat(4, 2))
    chain = (FixedPointFormat(5, 1), FixedPointFormat(9, 3, "RND", "WRAP"), FixedPointFormat(6, 2, "TRN", "SAT"))
    mixed = QuantizedTT(tuple(cores), core_formats, chain)
    agree(mixed, 3, inputs(mixed, 20))


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_the_layer_of_the_book(lanes):
    qtt = train((4, 4, 4), (4, 4, 4), (1, 4, 4, 1))
    agree(qtt, lanes, inputs(qtt, 20))


@pytest.mark.slow
@pytest.mark.parametrize("lanes, bits", [(4, 8), (8, 8), (16, 8), (8, 16)])
def test_three_hundred_vectors(lanes, bits):
    qtt = train((4, 4, 4), (4, 4, 4), (1, 4, 4, 1), weights=bits, acts=bits)
    agree(qtt, lanes, inputs(qtt, 300))


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 5, 8, 30])
@pytest.mark.parametrize("rounding", ["TRN", "RND", "RND_CONV"])
def test_three_hundred_vectors_of_odd_size(lanes, rounding):
    qtt = train(**ODD, growth=(1, 1, 2), rounding=rounding)
    assert agree(qtt, lanes, inputs(qtt, 300)).any()


@pytest.mark.parametrize("lanes", [1, 5, 8])
def test_the_trace_is_what_the_circuit_does_in_every_cycle(lanes, monkeypatch):
    """Addresses on both ports of the memory, and every lane's running sum, against the trace."""
    parts = {}

    def remember(name):
        original = getattr(rtl, name)
        monkeypatch.setattr(rtl, name, lambda *args: parts.setdefault(name, original(*args)))

    class Watched(rtl.Memory):
        def write_port(self, **options):
            return parts.setdefault("write", super().write_port(**options))

    remember("Feeder")
    remember("Drainer")
    monkeypatch.setattr(rtl, "Memory", Watched)
    qtt = train((3, 2), (2, 3), (1, 3, 1), growth=(1, 2))
    dut, xq = TTMatvec(qtt, lanes), inputs(qtt, 1)[0]
    seen = []

    async def bench(ctx):
        await rtl.load_and_start(ctx, dut, xq)
        feeder, drainer, port = parts["Feeder"], parts["Drainer"], parts["write"]
        bits = len(feeder.address)  # above them is the half of the memory
        while ctx.get(dut.busy):
            seen.append(
                {
                    "read": ctx.get(feeder.address) if ctx.get(feeder.live) else None,
                    "write": ctx.get(port.addr) % (1 << bits) if ctx.get(port.en) else None,
                    "sums": [ctx.get(total) for total in drainer.sums],
                }
            )
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()

    records = list(trace(dut.schedule))
    assert len(seen) == len(records) == dut.schedule.cycles
    assert [s["read"] for s in seen] == [record.read for record in records]
    assert [s["write"] for s in seen] == [record.write for record in records]
    states = [xq]
    for s, stage in enumerate(qtt.stages):
        core = (qtt.cores[stage.core],)
        part = QuantizedTT(
            (core[0].reshape(1, stage.M, stage.K, 1),),
            (qtt.core_formats[stage.core],),
            qtt.stage_formats[s : s + 2],
        )
        z = states[-1].reshape(stage.A, stage.K, stage.B).transpose(0, 2, 1)
        states.append(part.matvec(z).transpose(0, 2, 1).reshape(-1))
    sums = [0] * dut.schedule.used_lanes
    for now, record in enumerate(records[:-2]):
        stage = qtt.stages[record.stage]
        core = qtt.cores[stage.core].reshape(stage.M, stage.K)
        z = states[record.stage].reshape(stage.A, stage.K, stage.B)
        for lane, product in enumerate(record.products):
            if product is not None:
                a, row, b, k = product
                sums[lane] = (0 if k == 0 else sums[lane]) + int(core[row, k] * z[a, k, b])
                assert seen[now + 2]["sums"][lane] == sums[lane]


def test_start_and_load_are_ignored_while_busy():
    qtt = train(**SMALL, growth=(1, 2, 3))
    dut, xq, entries = TTMatvec(qtt, 4), inputs(qtt, 1)[0], []

    async def bench(ctx):
        ctx.set(dut.load_enable, 1)
        for address, entry in enumerate(xq):
            ctx.set(dut.load_address, address)
            ctx.set(dut.load_data, int(entry))
            await ctx.tick()
        ctx.set(dut.start, 1)  # with load_enable: from now on both are to be ignored
        await ctx.tick()
        ctx.set(dut.load_data, 11)
        cycles = 0
        while ctx.get(dut.busy):
            ctx.set(dut.load_address, cycles % len(xq))
            ctx.set(dut.start, int(cycles < dut.schedule.cycles - 1))
            await ctx.tick()
            cycles += 1
        assert cycles == dut.schedule.cycles and ctx.get(dut.done)
        ctx.set(dut.load_enable, 0)
        for address, word in enumerate(dut.schedule.layout(3)):
            ctx.set(dut.read_address, address)
            await ctx.tick().repeat(rtl.READ_LATENCY)
            entries.extend((entry, ctx.get(dut.read_data)[slot]) for slot, entry in enumerate(word) if entry >= 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    np.testing.assert_array_equal([value for _, value in sorted(entries)], qtt.matvec(xq))


def test_a_circuit_that_never_ends_is_stopped():
    class Silent(TTMatvec):
        def elaborate(self, platform):
            m = Module()
            m.d.sync += self.busy.eq(1)
            return m

    qtt = train((2,), (2,), (1, 1))
    with pytest.raises(RuntimeError, match="not done after .* are scheduled"):
        simulate(Silent(qtt, 2), inputs(qtt, 1))


def test_bad_input_says_how_to_mend_it():
    qtt = train((2, 2), (2, 3), (1, 2, 1))
    dut = TTMatvec(qtt, 4)
    with pytest.raises(TypeError, match="builds a QuantizedTT, got list"):
        TTMatvec([], 4)
    with pytest.raises(ValueError, match="lanes must be at least 1, got 0"):
        TTMatvec(qtt, 0)
    with pytest.raises(FormatError, match="stage 0 writes .*RAISE.*SAT or WRAP"):
        raising = FixedPointFormat(8, 1, overflow="RAISE")
        TTMatvec(QuantizedTT(qtt.cores, qtt.core_formats, (raising,) * 3), 4)
    with pytest.raises(ValueError, match=r"batch axes \(5,\)"):
        rows = tuple(np.stack([core] * 5) for core in qtt.cores)
        TTMatvec(QuantizedTT(rows, qtt.core_formats, qtt.stage_formats), 4)
    with pytest.raises(TypeError, match="runs a TTMatvec, got QuantizedTT"):
        simulate(qtt, inputs(qtt, 1))
    with pytest.raises(TypeError, match="xq must be integers"):
        simulate(dut, np.zeros((1, 6)))
    for wrong in (np.zeros(6, dtype=int), np.zeros((2, 5), dtype=int), np.zeros((0, 6), dtype=int)):
        with pytest.raises(ValueError, match=r"the circuit takes \(N, 6\)"):
            simulate(dut, wrong)
    with pytest.raises(ValueError, match="holds -129 to 0, outside of ap_fixed<8"):
        simulate(dut, np.array([[0, 0, 0, 0, 0, -129]]))


def test_without_amaranth_the_message_says_what_to_install():
    code = "import sys; sys.modules['amaranth.hdl'] = None; from ttref.fixedpoint import TTMatvec"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "python -m pip install 'amaranth" in done.stderr


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_an_output_may_be_read_until_the_next_input_is_loaded(cores):
    """As the docstring says: loading may overwrite it, reading it twice may not."""
    qtt = train((2,) * cores, (2,) * cores, (1, *[2] * (cores - 1), 1))
    dut, (first, second) = TTMatvec(qtt, 2), inputs(qtt, 2)
    layout, seen = dut.schedule.layout(cores), []

    async def bench(ctx):
        for vector in (first, second):
            await rtl.load_and_start(ctx, dut, vector)
            await ctx.tick().until(dut.done)
            for _ in range(2):
                result = np.zeros(qtt.out_features, dtype=np.int64)
                for address, entries in enumerate(layout):
                    ctx.set(dut.read_address, address)
                    await ctx.tick().repeat(rtl.READ_LATENCY)
                    for slot, entry in enumerate(entries):
                        if entry >= 0:
                            result[entry] = ctx.get(dut.read_data)[slot]
                seen.append(result)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    np.testing.assert_array_equal(seen, np.repeat(qtt.matvec(np.stack([first, second])), 2, axis=0))
