"""Run every case, print what came, and write results, tables and figures of the performance page.

``make bench`` runs all parts; ``python -m benchmarks layers`` runs one: trains, layers, tables, adapters, integers or
reshapes.
"""

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from tqdm import tqdm

from . import (
    adapters,
    adapters_figure,
    einsums,
    figure,
    integers,
    layers,
    layers_figure,
    reshapes,
    tables,
    tables_figure,
    trains,
)
from .measure import machine, run, table

PAGES = {
    "trains": figure,
    "layers": layers_figure,
    "tables": tables_figure,
    "adapters": adapters_figure,
    "integers": integers,
    "reshapes": reshapes,
}


def main(parts: list[str]) -> None:
    """Measure, print, write."""
    limits = machine()
    print(f"here: {described(limits)}")
    for part, page in PAGES.items():
        if part in parts and page.RESULTS.exists():
            recorded = json.loads(page.RESULTS.read_text(encoding="utf-8"))
            print(f"{part}, recorded {recorded['date']}: {described(recorded['machine'])}")
    if "trains" in parts:
        results = [run(case, limits) for case in tqdm(trains.cases(), desc="trains", disable=None)]
        print(table(results))
        record(figure, limits, cases=results)
    if "layers" in parts:
        record(layers_figure, limits, cases=layers.measure(limits), mode_orders=layers.mode_orders(4096, 11008, 16))
        print(layers_figure.TABLE.read_text(encoding="utf-8"))
    if "tables" in parts:
        results = [run(case, limits, tables.ROUNDS) | extra for case, extra in tqdm(tables.cases(), desc="tables")]
        print(table(results))
        record(tables_figure, limits, cases=results)
    if "adapters" in parts:
        # All on the same threads: each contender is mostly the same model.
        cases = tqdm(adapters.cases(), desc="adapters")
        results = [run(case, limits, adapters.ROUNDS, limits["threads"]) | extra for case, extra in cases]
        print(table(results))
        record(adapters_figure, limits, cases=results)
    if "integers" in parts:
        results = integers.measure(limits)
        print(table(results))
        record(integers, limits, cases=results)
    if "reshapes" in parts:
        torch.set_num_threads(1)
        alone = machine()
        alone["versions"] |= {name: version(name) for name in ("numpy", "opt_einsum", "cotengra")}
        results = [*reshapes.measure(alone), *einsums.measure(alone)]
        torch.set_num_threads(limits["threads"])
        print(table(results))
        record(reshapes, alone, cases=results)


def described(limits: dict) -> str:
    """A machine in one line: ratios move with the processor, so a reader compares this first."""
    single = f" {limits['flops32_per_s'] / 1e9:.0f} (float32)," if "flops32_per_s" in limits else ""
    return (
        f"{limits['processor']}, {limits['threads']} threads, {limits['flops_per_s'] / 1e9:.0f} Gflop/s "
        f"(float64 GEMM),{single} {limits['bytes_per_s'] / 1e9:.0f} GB/s (copy)"
    )


def record(page, limits: dict, **values) -> None:
    """Store a part's results, then redraw what the page shows of them."""
    values = {
        "command": f"python -m benchmarks {page.PART}",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": 0,
        "machine": limits,
        **values,
    }
    page.RESULTS.parent.mkdir(parents=True, exist_ok=True)
    page.RESULTS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    page.write()


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PAGES)
    if unknown := set(chosen) - set(PAGES):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    main(chosen)
