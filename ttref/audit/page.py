"""One HTML page of an audit that needs nothing else: two plots as SVG, a table that can be sorted, light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .words import number

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d1d1f; --pale: #57606a; --line: #d0d7de; --row: #f6f8fa;
  --tt: #0b5cad; --svd: #7a3e9d; --quantize: #57606a; --leave: #8a4b08; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --ink: #e6e6e6; --pale: #a5adb8; --line: #3a4048;
  --row: #1f2329; --tt: #6cb2ff; --svd: #d19bf0; --quantize: #a5adb8; --leave: #f0b060; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--ground);
  color: var(--ink); }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, figcaption { max-width: 48rem; overflow-wrap: anywhere; } figure { margin: 1rem 0; }
figcaption, caption { color: var(--pale); }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.box { overflow-x: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; } caption { text-align: left; padding: .5rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
.left { text-align: left; } .name { white-space: normal; overflow-wrap: anywhere; min-width: 13rem; text-align: left;
  font-weight: normal; } .why { white-space: normal; min-width: 18rem; text-align: left; }
tbody tr:nth-child(even) { background: var(--row); }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--tt); }
th[aria-sort=ascending] button::after { content: " \\25B2" / ""; }
th[aria-sort=descending] button::after { content: " \\25BC" / ""; }
.tt { color: var(--tt); font-weight: 700; } .svd { color: var(--svd); font-weight: 700; }
.quantize { color: var(--quantize); } .leave { color: var(--leave); }
svg .tt { fill: var(--tt); } svg .svd { fill: var(--svd); } svg .quantize { fill: var(--quantize); }
svg .leave { fill: var(--leave); } svg .line { stroke: var(--line); } svg .even { stroke: var(--pale); }
"""
SCRIPT = """
const table = document.querySelector("table.rows"), body = table.tBodies[0];
table.tHead.querySelectorAll("button").forEach((button, k) => button.addEventListener("click", () => {
  const head = button.parentElement, was = head.getAttribute("aria-sort");
  const numeric = body.rows.length && body.rows[0].cells[k].dataset.value !== undefined;
  const up = was ? was === "descending" : !numeric;
  table.tHead.querySelectorAll("th").forEach(one => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const of = row => row.cells[k].dataset.value ?? row.cells[k].textContent;
  const less = (a, b) => numeric ? Number(of(a)) - Number(of(b)) : of(a).localeCompare(of(b));
  [...body.rows].sort((a, b) => up ? less(a, b) : less(b, a)).forEach(row => body.append(row));
}));
"""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 320, 56, 44
WORDS = {
    "tt": "a tensor train pays",
    "svd": "two factors pay",
    "quantize": "integers are smaller",
    "leave": "leave it as it is",
}


def page(found: Mapping[str, Any]) -> str:
    """The page of :meth:`Audit.as_dict`."""
    title = html.escape(f"Audit of {found['checkpoint']}")
    middle = len(found["eps"]) // 2
    looked = [row for row in found["rows"] if row["looked"]]
    plots = f"{_gains(looked, middle, found['eps'][middle])}\n{_sizes(found)}" if looked else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p><strong>{html.escape(found["summary"])}</strong></p>
<p>{found["numbers"]:,} numbers in {found["nbytes"]:,} bytes ({html.escape(found["format"])}).</p>
{plots}
<h2>Every matrix</h2>
{_table(found, middle)}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _gains(rows: Sequence[Mapping[str, Any]], k: int, eps: float) -> str:
    """Each matrix as a point: what noise reaches across, what the best train reaches up, both as logarithms."""
    points = [(row["noise"][k], row["train"][k], row) for row in rows]
    low = min(0.5, *(min(x, y) for x, y, _ in points))
    high = max(2.0, *(max(x, y) for x, y, _ in points)) * 1.2
    span = math.log(high / low)

    def x_of(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * math.log(value / low) / span

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 12) * math.log(value / low) / span

    ticks = [one for one in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000) if low <= one <= high]
    lines = [
        f'<line class="line" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y_of(one):.1f}" y2="{y_of(one):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(one) + 4:.1f}" text-anchor="end">{one:g}</text>'
        f'<text x="{x_of(one):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{one:g}</text>'
        for one in ticks
    ]
    lines.append(
        f'<line class="even" x1="{x_of(low):.1f}" y1="{y_of(low):.1f}" x2="{x_of(high):.1f}" y2="{y_of(high):.1f}"/>'
    )
    dots = [
        f'<circle class="{row["verdict"]}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4"><title>'
        f"{html.escape(row['name'])}: train {number(y)}, noise {number(x)}</title></circle>"
        for x, y, row in points
    ]
    return _figure(
        "Gain of the best train beside that of noise",
        [*lines, *dots, _axis("noise: numbers of the matrix for each number of its train"), _up("the matrix itself")],
        f"Each point is a matrix at an error of {eps:.0%}; on the line, it compresses as noise does. Blue: a tensor "
        "train pays. Purple: two factors pay.",
    )


def _sizes(found: Mapping[str, Any]) -> str:
    """Bars: how many times smaller the whole could be, at each error."""
    sums = found["totals"]
    bars = [("int8", sums["int8"], "quantize")]
    for k, eps in enumerate(found["eps"]):
        bars += [
            (f"trains at most, {eps:.0%}", sums["trains"][k], "tt"),
            (f"SVD at most, {eps:.0%}", sums["svd"][k], "svd"),
        ]
        bars += [(f"all verdicts, {eps:.0%}", sums["followed"][k], "leave")]
    most, step = max(value for _, value, _ in bars), 24
    height, start = step * len(bars) + 8, 170
    drawn = []
    for k, (name, value, kind) in enumerate(bars):
        wide = (WIDTH - start - 60) * value / most
        drawn.append(
            f'<text x="{start - 8}" y="{k * step + 20}" text-anchor="end">{name}</text>'
            f'<rect class="{kind}" x="{start}" y="{k * step + 8}" width="{wide:.1f}" height="16"/>'
            f'<text x="{start + wide + 6:.1f}" y="{k * step + 20}">{number(value)}</text>'
        )
    return _figure(
        "How many times smaller the whole could be",
        drawn,
        f"int8 errs by {sums['int8_error']:.1%} at most. Trains and SVD keep numbers as wide as those in the file and "
        "are taken wherever they are smaller; all verdicts followed, their numbers are int8 too.",
        height,
    )


def _figure(title: str, drawn: Sequence[str], caption: str, height: int = HEIGHT) -> str:
    return (
        f'<h2>{title}</h2>\n<figure>\n<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{html.escape(title)}">\n'
        + "\n".join(drawn)
        + f"\n</svg>\n<figcaption>{caption}</figcaption>\n</figure>"
    )


def _axis(words: str) -> str:
    return f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{words}</text>'


def _up(words: str) -> str:
    return f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{words}</text>'


def _table(found: Mapping[str, Any], k: int) -> str:
    """A row for each tensor; a button in each head sorts."""
    heads = ["name", "verdict", "part", "numbers", "bytes", "train", "SVD", "noise", "int8 error", "int4 error"]
    heads += ["entropy", "reason"]
    left = {"name", "verdict", "part", "reason"}
    head = "".join(
        f'<th scope="col"{" class=left" if one in left else ""}><button type="button">{one}</button></th>'
        for one in heads
    )
    body = "\n".join(_line(row, k) for row in found["rows"])
    caption = (
        f"At an error of {found['eps'][k]:.0%}. Train, SVD and noise: numbers of the matrix for each number stored. "
        "Entropy: of the train's bonds, in bits, and what noise has there. A head sorts when it is pressed."
    )
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="Table: every matrix">\n<table class="rows">\n'
        f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _line(row: Mapping[str, Any], k: int) -> str:
    word = row["verdict"]
    gains = (
        [(row[key][k], number(row[key][k])) for key in ("train", "svd", "noise")] if row["looked"] else [(0, "")] * 3
    )
    for key in ("int8", "int4"):
        gains.append((row[key], f"{row[key]:.2%}") if row["looked"] else (0, ""))
    gains.append(_entropy(row) if row["looked"] else (0, ""))
    sizes = [(row["numbers"], f"{row['numbers']:,}"), (row["nbytes"], f"{row['nbytes']:,}")]
    cells = "".join(f'<td data-value="{value!r}">{shown}</td>' for value, shown in [*sizes, *gains])
    return (
        f'<tr><th scope="row" class="name">{html.escape(row["name"])}</th>'
        f'<td class="left {word}" title="{WORDS[word]}">{word}</td>'
        f'<td class="left">{html.escape(row["part"])}</td>{cells}'
        f'<td class="why">{html.escape(_why(row))}</td></tr>'
    )


def _entropy(row: Mapping[str, Any]) -> tuple[float, str]:
    """The entropies of the bonds as text; to sort by, their share of those of noise."""
    of, noise = (", ".join(f"{value:.1f}" for value in row[key]) for key in ("entropy", "entropy_noise"))
    return sum(row["entropy"]) / max(sum(row["entropy_noise"]), 1e-9), f"{of} ({noise})"


def _why(row: Mapping[str, Any]) -> str:
    seen = row.get("seen")
    return row["reason"] + (f". By the outputs, {seen['verdict']}: {seen['reason']}" if seen else "")
