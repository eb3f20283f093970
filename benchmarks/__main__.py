"""Run every case, print one table, write ``book/results/speed.json`` and the figure that the book shows."""

import json
from datetime import UTC, datetime

from tqdm import tqdm

from . import figure, trains
from .measure import machine, run, table


def main() -> None:
    """Measure, print, write."""
    limits = machine()
    results = [run(case, limits) for case in tqdm(trains.cases(), desc="bench", disable=None)]
    print(
        f"{limits['processor']}, {limits['threads']} threads, "
        f"{limits['flops_per_s'] / 1e9:.0f} Gflop/s (float64 GEMM), {limits['bytes_per_s'] / 1e9:.0f} GB/s (copy)"
    )
    print(table(results))
    record = {
        "command": "make bench",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": 0,
        "machine": limits,
        "cases": results,
    }
    figure.RESULTS.parent.mkdir(parents=True, exist_ok=True)
    figure.RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    figure.write()


if __name__ == "__main__":
    main()
