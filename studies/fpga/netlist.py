"""Simulation of the circuit after synthesis, cell by cell: the placer's input, run in Python.

A netlist of Yosys holds look-up tables, carry cells, flip-flops, multipliers and memories of Lattice's ECP5 family, and
the nets between them. Here it becomes one Python function that computes a clock cycle. Comparing it with the integer
model tests the synthesis too, not only the circuit before it. The functions of the cells follow the simulation models
and memory maps of Yosys (``share/lattice``). An undefined value is zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from ttref.fixedpoint import TTMatvec


class Netlist:
    """A netlist that can be clocked.

    Args:
        path: A netlist that Yosys wrote with ``-json`` for ECP5, flattened, its module called ``top``.
    """

    def __init__(self, path: str | Path):
        top = json.loads(Path(path).read_text(encoding="utf-8"))["modules"]["top"]
        cells = [Cell(cell) for cell in top["cells"].values() if cell["type"] != "$scopeinfo"]
        registers, blocks, tables = (
            [cell for cell in cells if cell.kind == kind] for kind in ("TRELLIS_FF", "DP16KD", "TRELLIS_DPR16X4")
        )
        logic = [cell for cell in cells if cell.kind not in ("TRELLIS_FF", "DP16KD")]
        ports = {name: (port["direction"], [_net(bit) for bit in port["bits"]]) for name, port in top["ports"].items()}
        self._inputs = {name: 0 for name, (direction, _) in ports.items() if direction == "input"}
        # Bits of flip-flops, words of block memories with the outputs of their read ports, words of small memories.
        self._state = [int(cell.parameters["REGSET"] == "SET") for cell in registers]
        self._blocks = [(_contents(cell), [0, 0]) for cell in blocks]
        self._tables = [[0] * 16 for _ in tables]

        lines = ["def step(inputs, state, blocks, tables):"]
        for name in self._inputs:
            lines += [f"{net} = inputs[{name!r}] >> {i} & 1" for i, net in enumerate(ports[name][1])]
        lines += [f"{cell.pin('Q')} = state[{i}]" for i, cell in enumerate(registers)]
        for i, cell in enumerate(blocks):
            for side, name in enumerate(("DOA", "DOB")):
                lines += [f"{cell.pin(f'{name}{bit}')} = blocks[{i}][1][{side}] >> {bit} & 1" for bit in range(18)]
        for cell in _in_order(logic):
            if cell.kind == "TRELLIS_DPR16X4":
                lines.append(f"word = tables[{tables.index(cell)}][{cell.bus('RAD', 4)}]")
                lines += [f"{cell.pin(f'DO{bit}')} = word >> {bit} & 1" for bit in range(4)]
            else:
                lines += LOGIC[cell.kind](cell)
        shown = (f"{name!r}: {_number(nets)}" for name, (direction, nets) in ports.items() if direction == "output")
        lines += [f"outputs = {{{', '.join(shown)}}}", "after = state[:]"]
        lines += [f"after[{i}] = {_register(cell, i)}" for i, cell in enumerate(registers)]
        for i, cell in enumerate(blocks):
            lines += [f"words, shown = blocks[{i}]", *_block(cell)]
        for i, cell in enumerate(tables):
            lines.append(f"if {cell.pin('WRE')}: tables[{i}][{cell.bus('WAD', 4)}] = {cell.bus('DI', 4)}")
        lines.append("return outputs, after")
        found: dict[str, Callable] = {}
        exec("\n ".join(lines), found)
        self._step = found["step"]

    def tick(self, **inputs: int) -> dict[str, int]:
        """One clock edge; returns the outputs before it. Inputs keep their values until they are set again."""
        self._inputs |= inputs
        outputs, self._state = self._step(self._inputs, self._state, self._blocks, self._tables)
        return outputs


class Cell:
    """A cell of the netlist, with the variable names of its nets."""

    def __init__(self, cell: dict[str, Any]):
        self.kind, self.parameters = cell["type"], cell["parameters"]
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        for name, bits in cell["connections"].items():
            side = self.outputs if cell["port_directions"][name] == "output" else self.inputs
            side |= {(name if len(bits) == 1 else f"{name}{i}"): _net(bit) for i, bit in enumerate(bits)}
        if self.kind not in (*LOGIC, "TRELLIS_FF", "DP16KD", "TRELLIS_DPR16X4"):
            raise ValueError(f"no model of the cell {self.kind}")

    def pin(self, name: str) -> str:
        """The net at a pin; an open input is 0, an open output goes nowhere."""
        return self.outputs.get(name, "_") if name in self.outputs else self.inputs.get(name, "0")

    def bus(self, name: str, width: int) -> str:
        """The pins ``name0`` to ``name<width - 1>`` as one number."""
        return _number(self.pin(f"{name}{i}") for i in range(width))

    def number(self, name: str) -> int:
        """A parameter that Yosys wrote in binary digits."""
        return int(self.parameters[name].replace("x", "0"), 2)


def run(path: str | Path, dut: TTMatvec, xq: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """As :func:`ttref.fixedpoint.simulate`, on the netlist of ``dut``."""
    netlist, qtt, schedule = Netlist(path), dut.qtt, dut.schedule
    layout, bits = schedule.layout(len(schedule.tiles)), dut.act_bits
    yq, saturated, cycles = np.zeros((len(xq), qtt.out_features), dtype=np.int64), np.zeros(len(xq), dtype=bool), 0
    for row, vector in enumerate(xq):
        for address, entry in enumerate(vector):
            data = int(entry) & ((1 << qtt.stage_formats[0].width) - 1)
            netlist.tick(load_enable=1, load_address=address, load_data=data)
        netlist.tick(load_enable=0, start=1)
        outputs, cycles = netlist.tick(start=0), 0
        while not outputs["done"]:
            outputs, cycles = netlist.tick(), cycles + 1
            if cycles > 2 * schedule.cycles:
                raise RuntimeError(f"the netlist is not done after {cycles} cycles; {schedule.cycles} are scheduled")
        saturated[row] = outputs["saturated"]
        for address, word in enumerate(layout):
            for _ in range(3):
                outputs = netlist.tick(read_address=address)
            for slot, entry in enumerate(word):
                if entry >= 0:
                    value = (outputs["read_data"] >> (bits * slot)) & ((1 << bits) - 1)
                    yq[row, entry] = value - ((value >> (bits - 1)) << bits)
    return yq, saturated, cycles


def _net(bit: int | str) -> str:
    return f"n{bit}" if isinstance(bit, int) else "1" if bit == "1" else "0"


def _number(nets: Iterable[str]) -> str:
    return f"({' | '.join(f'{net} << {i}' for i, net in enumerate(nets))})"


def _in_order(cells: list[Cell]) -> list[Cell]:
    """Every cell after those that drive its inputs; the write port of a small memory waits for the clock."""
    driver = {net: i for i, cell in enumerate(cells) for net in cell.outputs.values()}
    before = {
        i: [driver[net] for name, net in cell.inputs.items() if net in driver and not name.startswith(("W", "DI"))]
        for i, cell in enumerate(cells)
    }
    return [cells[i] for i in TopologicalSorter(before).static_order()]


def _lut4(cell: Cell) -> list[str]:
    return [f"{cell.pin('Z')} = {cell.number('INIT')} >> {_number(map(cell.pin, 'ABCD'))} & 1"]


def _mux(output: str, choice: str, one: str, zero: str) -> Callable[[Cell], list[str]]:
    return lambda cell: [f"{cell.pin(output)} = {cell.pin(one)} if {cell.pin(choice)} else {cell.pin(zero)}"]


def _carry(cell: Cell) -> list[str]:
    """Two bits of an adder: each a look-up table, whose lower quarter is the carry if it is not propagated."""
    lines, carry = [], cell.pin("CIN")
    for half in "01":
        if cell.parameters[f"INJECT1_{half}"] != "NO":
            raise ValueError("a carry cell with an injected one is not modeled")
        table, pins = cell.number(f"INIT{half}"), [cell.pin(f"{name}{half}") for name in "ABCD"]
        lines.append(f"propagate = {table} >> {_number(pins)} & 1")
        lines.append(f"{cell.pin(f'S{half}')} = propagate ^ {carry}")
        lines.append(f"carry = {carry} if propagate else {table & 15} >> {_number(pins[:2])} & 1")
        carry = "carry"
    return [*lines, f"{cell.pin('COUT')} = carry"]


def _multiplier(cell: Cell) -> list[str]:
    factors = [
        f"({cell.bus(side, 18)} - ({cell.pin(f'{side}17')} * {cell.pin(f'SIGNED{side}')} << 18))" for side in "AB"
    ]
    return [f"product = {' * '.join(factors)}"] + [f"{cell.pin(f'P{bit}')} = product >> {bit} & 1" for bit in range(36)]


LOGIC = {
    "LUT4": _lut4,
    "CCU2C": _carry,
    "PFUMX": _mux("Z", "C0", "ALUT", "BLUT"),
    "L6MUX21": _mux("Z", "SD", "D1", "D0"),
    "MULT18X18D": _multiplier,
    "TRELLIS_DPR16X4": None,
}


def _register(cell: Cell, i: int) -> str:
    """The next bit of a flip-flop: reset, else data if enabled."""
    always = cell.parameters["CEMUX"].strip()
    enable = {"1": "1", "0": "0", "INV": f"not {cell.pin('CE')}"}.get(always, cell.pin("CE"))
    reset = f"not {cell.pin('LSR')}" if cell.parameters["LSRMUX"] == "INV" else cell.pin("LSR")
    value = int(cell.parameters["REGSET"] == "SET")
    return f"{value} if {reset} else {cell.pin('DI')} if {enable} else state[{i}]"


def _contents(cell: Cell) -> list[int]:
    """The initial 1024 words of 18 bits of a block memory; each parameter holds sixteen, 20 bits apart."""
    slices = [cell.number(f"INITVAL_{i:02X}") for i in range(64)]
    return [(part >> (20 * word)) & 0x3FFFF for part in slices for word in range(16)]


def _block(cell: Cell) -> list[str]:
    """One clock edge of a block memory: both ports read the old words, then port A writes."""
    if cell.pin("WEB") != "0":
        raise ValueError("a block memory that is written through port B is not modeled")
    lines = []
    for side, letter in enumerate("AB"):
        wide = cell.number(f"DATA_WIDTH_{letter}")
        lines += _address(cell, f"AD{letter}", wide)
        if wide < 36:
            lines.append(f"if {cell.pin(f'CE{letter}')}: shown[{side}] = words[at] >> shift")
        elif letter == "B":
            lines.append(f"if {cell.pin('CEB')}: shown[:] = words[2 * at : 2 * at + 2]")
    wide = cell.number("DATA_WIDTH_A")
    lines += _address(cell, "ADA", wide)
    lines.append(f"data = {cell.bus('DIA', 18)} | {cell.bus('DIB', 18)} << 18")
    # A wide port takes its lowest address bits as enables of its bytes, of nine bits each.
    parts = [(cell.pin(f"ADA{i}"), 9 * i, 511) for i in range(wide // 9)] if wide > 9 else [("1", 0, (1 << wide) - 1)]
    for enable, first, mask in parts:
        word = f"words[{wide // 18} * at + {first // 18}]" if wide > 9 else "words[at]"
        place = first % 18 if wide > 9 else "shift"
        lines.append(f"if {cell.pin('CEA')} and {cell.pin('WEA')} and {enable}:")
        lines.append(f" {word} = {word} & ~({mask} << {place}) | (data >> {first} & {mask}) << {place}")
    return lines


def _address(cell: Cell, name: str, wide: int) -> list[str]:
    """The address ``at``, and for words below 18 bits the first bit in its word; those below nine share a byte."""
    lines = [f"at = {_number(cell.pin(f'{name}{i}') for i in range({1: 0, 2: 1, 4: 2, 9: 3, 18: 4, 36: 5}[wide], 14))}"]
    if wide < 9:
        lines.append(f"at, shift = at // {16 // wide}, at // {8 // wide} % 2 * 9 + at % {8 // wide} * {wide}")
    elif wide == 9:
        lines.append("at, shift = at // 2, at % 2 * 9")
    else:
        lines.append("shift = 0")
    return lines
