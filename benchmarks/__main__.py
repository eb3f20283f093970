"""Measure the parts of the performance page, record them, write their tables and figures.

``make bench`` runs all parts; ``python -m benchmarks layers`` runs one. A part is a module with ``measure``, which
returns the record, and ``write``, which writes the tables and figures of a record.
"""

import sys

from book.tools import results

from . import adapters, audits, fits, integers, layers, memory, page, reshapes, summary, tables, trains
from .measure import machine

PARTS = {
    "trains": trains,
    "layers": layers,
    "memory": memory,
    "tables": tables,
    "adapters": adapters,
    "fits": fits,
    "audits": audits,
    "integers": integers,
    "reshapes": reshapes,
}


def main(names: list[str]) -> None:
    """Measure, record, write, print."""
    limits = machine()
    print(f"here: {described(limits)}")
    for name in names:
        if record := results.read(PARTS[name].RESULT):
            print(f"{name}, recorded {record['date']}: {described(record['machine'])}")
    for name in names:
        part = PARTS[name]
        results.write(
            part.RESULT,
            {"machine": limits} | part.measure(limits),
            command=f"python -m benchmarks {name}",
            models=part.MODELS,
            packages=part.PACKAGES,
        )
        part.write(results.read(part.RESULT))
        print(page.table(part.RESULT).read_text(encoding="utf-8"))
    records = {part.RESULT: results.read(part.RESULT) for part in PARTS.values()}
    if all(records.values()):
        summary.write(records)


def described(limits: dict) -> str:
    """A machine in one line, because ratios depend on the processor."""
    single = f" {limits['flops32_per_s'] / 1e9:.0f} (float32)," if "flops32_per_s" in limits else ""
    threads = page.counted(limits["threads"], "thread")
    return (
        f"{limits['processor']}, {threads}, {limits['flops_per_s'] / 1e9:.0f} Gflop/s (float64 GEMM),{single} "
        f"{limits['bytes_per_s'] / 1e9:.0f} GB/s (copy)"
    )


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    main(chosen)
