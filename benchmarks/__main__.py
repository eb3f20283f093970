"""Run every case, print what came, and write results, tables and figures of the performance page.

``make bench`` runs all parts; ``python -m benchmarks layers`` (or ``trains``, ``tables``, ``adapters``) runs one.
"""

import json
import sys
from datetime import UTC, datetime

from tqdm import tqdm

from . import adapters, adapters_figure, figure, layers, layers_figure, tables, tables_figure, trains
from .measure import machine, run, table


def main(parts: list[str]) -> None:
    """Measure, print, write."""
    limits = machine()
    print(
        f"{limits['processor']}, {limits['threads']} threads, {limits['flops_per_s'] / 1e9:.0f} Gflop/s "
        f"(float64 GEMM), {limits['flops32_per_s'] / 1e9:.0f} (float32), {limits['bytes_per_s'] / 1e9:.0f} GB/s (copy)"
    )
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
    parts = ["trains", "layers", "tables", "adapters"]
    chosen = sys.argv[1:] or parts
    if unknown := set(chosen) - set(parts):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    main(chosen)
