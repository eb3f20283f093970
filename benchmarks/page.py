"""The shared code of the parts of the performance page: paths, first line, and tables of times."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from book.tools.results import RESULTS
from book.workbook import figures
from ttref.atomic import replace

OTHERS = "Times are this processor's, and ratios move with it too."


def table(result: str) -> Path:
    """Path of the tables of a result, which the page includes."""
    return RESULTS / f"{result}.md"


def picture(result: str) -> Path:
    """Path of the figure of a result, which the page includes."""
    return RESULTS.parent / "_static" / f"{result}.png"


def write(result: str, text: str, figure: Figure | None = None) -> None:
    """Replace tables and figure of a result on the performance page."""
    replace(table(result), [text.encode()])
    if figure is not None:
        figures.save_png(figure, picture(result))


def measured(record: dict, speeds: str | None = None) -> str:
    """Date, command, machine and versions of a measurement; ``speeds`` are the machine's limits in words."""
    machine = record["machine"]
    speeds = speeds or (
        f"{machine['flops_per_s'] / 1e9:.0f} Gflop/s (float64 GEMM), {machine['bytes_per_s'] / 1e9:.0f} GB/s (copy)"
    )
    versions = record.get("versions") or machine["versions"]  # older results keep them with the machine
    return (
        f"Measured {record['date']} by `{record['command']}` on {machine['processor']}, {machine['threads']} threads, "
        f"{speeds}; {', '.join(f'{name} {version}' for name, version in versions.items())}. {OTHERS}"
    )


def markdown(record: dict) -> str:
    """The page's text for a part that has only times."""
    return measured(record) + "\n" + times(record["cases"])


def times(cases: list[dict]) -> str:
    """A table for each case: medians, spreads, threads, and the ratio to ttref within a round."""
    lines = []
    for case in cases:
        lines += [
            "",
            f"**{case['case']}**, per {case['unit']}; floor {short(case['floor_us'])} µs",
            "",
            "| library | µs | fastest and slowest round | threads | times ttref's |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for k, row in enumerate(case["rows"]):
            ratio = "" if k == 0 else short(row["ratio"])
            lines.append(f"| {row['name']} | {' | '.join(spread(row))} | {row['threads']} | {ratio} |")
    return "\n".join(lines) + "\n"


def spread(row: dict) -> tuple[str, str]:
    """Median and range, formatted for the tables."""
    return short(row["median_us"]), f"{short(row['low_us'])}, {short(row['high_us'])}"


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.6g}"
