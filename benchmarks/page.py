"""The shared code of the parts of the performance page: paths, folded tables, and how times and ratios are written."""

from __future__ import annotations

import re
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
    threads = counted(machine["threads"], "thread")
    return (
        f"Measured {record['date']} by `{record['command']}` on {machine['processor']}, {threads}, {speeds}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. {OTHERS}"
    )


def counted(number: int, thing: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def markdown(record: dict) -> str:
    """The page's text for a part that has only times."""
    return folded(record, measured(record) + "\n" + times(record["cases"]))


def folded(record: dict, text: str) -> str:
    """All tables of a part, to be unfolded by the reader."""
    tables = len(re.findall(r"^\| -", text, re.MULTILINE))
    title = f"Show {counted(tables, 'table')}, measured {record['date']}"
    return f":::{{dropdown}} {title}\n{text.rstrip()}\n:::\n"


def times(cases: list[dict]) -> str:
    """A table for each case: the ratio to ttref within a round, then medians, spreads, threads."""
    lines = []
    for case in cases:
        floor = f"; floor {duration(case['floor_us'])}" if case["floor_us"] else ""
        lines += [
            "",
            f"**{readable(case['case'])}**, per {case['unit']}{floor}",
            "",
            "| library | time / ttref's | median | fastest to slowest round | threads |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in case["rows"]:
            lines.append(f"| {row['name']} | {short(row['ratio'])}× | {' | '.join(spread(row))} | {row['threads']} |")
    return "\n".join(lines) + "\n"


def spread(row: dict) -> tuple[str, str]:
    """Median and range, formatted for the tables."""
    return duration(row["median_us"]), f"{duration(row['low_us'])} to {duration(row['high_us'])}"


def duration(microseconds: float) -> str:
    """A time of three significant digits in the unit that suits it: 22.7 µs, 538 ms, 1.4 s."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{short(microseconds / size)} {unit}"
    return f"{short(microseconds)} µs"


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.12g}"


def readable(case: str) -> str:
    """A recorded title as the page prints it: "1 vector", "2¹⁰", "768 to 3,072", "512 × 512"."""
    case = re.sub(r"\b1 (vector|id|row)s\b", r"1 \1", case).replace("2^10", "2¹⁰").replace(" -> ", " to ")
    return re.sub(r"(?<=[\d)]) x (?=[\d(])", " × ", case)
