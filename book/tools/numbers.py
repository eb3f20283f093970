r"""Numbers in prose that nothing on the page bears out: `python -m book.tools.numbers FILE ...` lists them.

A **section** starts at a heading of level two or three. A number in its prose must occur in what the section's cells
printed or showed as a table, in their code (a parameter such as `rank=4`), in a fenced block, or, on a page of `book/`,
in a file that it includes. What stands before the first section, "Key takeaways", "Exercises" and "What next" speak of
the whole chapter and may use all of it; so may whole numbers from 100 on that have no unit (512 rows). A table typed by
hand is prose.

**Match.** A number agrees with one of the section if that rounds to it at the digits that are written: 0.4 beside
0.43, 3.3× beside 3.31, 48,000 beside 48,213 (zeros at the end count only up to two digits in front). A sign is not
compared. `%` and "points" also agree with a fraction (38 % beside 0.382); k, M, million, kB, MB, µs, ms and the like
also with the number that they stand for. "More than", "over", "at least" allow up to a quarter more, "less than",
"under", "almost", "at most" up to a quarter less, "about" and "roughly" a twentieth both ways. What carries `×`,
`x`, "times", "dB", "nats" is measured: code does not bear it out, and a percentage only as a fraction (`eps=0.1`).

**Not read.** Code, formulas (but `$58\times$` is a number), addresses, headings, "References", text in "double quotes"
(a quotation), whole numbers up to twelve without a unit, years, sizes (384 × 384, 784-512-10, (4, 16)), versions, arXiv
numbers, names such as GPT-2, and "Figure 12". In words are read: one to twelve before a unit ("three points") and
fractions ("an eighth more", "a twelfth of"); not "half", "twice", "thirty". What an accident makes equal is not found.

**Marks** say where a number comes from otherwise, in the cell's metadata, `"numbers": {"69": SOURCE}`, or on a page
in the same section, `<!-- number 69 = SOURCE -->`. The number is written as in the list, without its unit. SOURCE is

- `in: HEADING` or `in 02_toy_classifier: HEADING`: that section shows it (`*` for any of that notebook's);
- `quoted: WHO`: somebody else's number, which the text ascribes to them;
- `given: WHAT`: chosen, not found: an example, a setting of a study, the size of a part;
- else an expression, which is computed: `1024 * 768 / 1e6`, or from files in `book/results` by their names,
  `1 / adapters.cases[2].rows[1].ratio`.

A mark whose number is not in the text, or whose source does not give it, is listed too.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat

from book.tools.notebooks import ROOT

WHOLE_CHAPTER = {"", "Key takeaways", "Exercises", "What next"}
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
PARTS = "third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth".split()
TIMES = {"s": 1, "seconds": 1, "second": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
SCALES = {"k": 1e3, "thousand": 1e3, "kB": 1e3, "kbit": 1e3, "M": 1e6, "million": 1e6, "G": 1e9, "billion": 1e9}
SCALES |= {"KB": 1024, "KiB": 1024, "MB": 1e6, "MiB": 2**20, "MHz": 1e6, "GB": 1e9, "GiB": 2**30, "GHz": 1e9} | TIMES
MEASURED = ("×", "x", "times", "nats", "nat", "dB", "standard errors", "standard error")
SHARES = ("%", "per cent", "percent", "points", "point", "percentage points")
UNITS = (*SCALES, *SHARES, *MEASURED)
UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
ABOVE = ("more than", "over", "above", "at least")
BELOW = ("less than", "fewer than", "under", "below", "almost", "nearly", "at most")
BOUND = "|".join((*ABOVE, *BELOW, "about", "roughly", "around", "some")).replace(" ", r"\s")
PART = re.compile(rf"\ban?\s+({'|'.join(PARTS)})\s+(more|less|fewer|longer|shorter|slower|faster|larger|smaller|of)\b")
NUMBER = re.compile(
    rf"(?P<bound>\b(?i:{BOUND})\s+)?(?<![\w.,/])(?<!\w-)[-−+±~]?"
    rf"(?:(?P<number>{DIGITS}|\b(?i:{'|'.join(WORDS)})(?=[\s-](?:{UNIT}|to|or)\b))(?:[\s-]?(?P<unit>{UNIT})(?!\w))?"
    rf"(?!\w|\.\d|,\d)|(?P<part>{PART.pattern}))"
)
LINKING = re.compile(r"\s*(?:to|or|and|–|±|,)\s*(?:about\s+)?[-−]?$")
COUNT = re.compile(r"[\d,]{3,}")
FENCED = re.compile(r"(?ms)^```(\{(?:figure|note|tip|warning|admonition).*?\n)?(.*?)^```")  # with what is prose inside
MARK = re.compile(r"<!--\s*number\s+(.+?)\s*=\s*(.+?)\s*-->", re.S)
SOURCE = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)|(?<=[A-Za-z_=])\d+\b")
SKIPPED = [
    re.compile(pattern, re.M | re.S)
    for pattern in (
        r"<!--.*?-->", r"`[^`\n]+`", r"^#.*?$", r"\$\$.*?\$\$", r"^\*\*Run time\.\*\*.*?$", r"^:(?:alt|name):.*?$",
        r"\]\([^)]*\)", r"https?://\S+", r"\\\w+", r'"(?:[^"\n]|\n(?!\n))*?"', r"“[^”]*”", r"arXiv:?\s?[\d.]+(?:v\d)?",
        r"(?<![\d.,])\d[\d,]*(?:(?:[×x]|\s[×x]\s)\d[\d,]*)+(?!\.?\d)", r"\d+(?:-\d+){2,}", r"v?\d+\.\d+\.\d+\S*",
        r"(?![(\[]\d{1,3}(?:,\d{3})+[)\]])[(\[]\d+(?:,\s?\d+)+[)\]]",  # (4, 16), but not (48,213)
        r"(?:Figures?|Fig\.|Tables?|Exercise|Python|Section|line) \d+(?:\.\d+)?",
        rf"(?<![\d.,])\b(?:19\d\d|20[0-3]\d)\b(?!,\d{{3}}|\.\d|[\s-]?(?:{UNIT})(?!\w))",
        r"(?:\d[\d.]*\s?×\s?)?\d+[-−]?[⁰-⁹¹²³⁻]+",
    )
]  # fmt: skip
FORMULA = re.compile(r"\$([^$\n]+)\$")
TEX = re.compile(r"\\times|\\%|\\pm|\{,\}")
PLAIN = re.compile(rf"(?:[\d.,%\s−+-]|{TEX.pattern})+")


@dataclass
class Section:
    """What is said in a section, and the numbers that it shows."""

    title: str
    passages: list[tuple[str, str]] = field(default_factory=list)  # place and text
    outputs: list[float] = field(default_factory=list)
    code: list[float] = field(default_factory=list)

    def __add__(self, other: "Section") -> "Section":
        return Section(self.title, [], self.outputs + other.outputs, self.code + other.code)


class Record(dict):
    """A part of a recorded result; its keys can be written as attributes."""

    __getattr__ = dict.__getitem__


@cache
def known() -> dict:
    """Return what an expression may use: arithmetic, and the recorded results by the names of their files."""
    files = (ROOT / "book" / "results").glob("*.json")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8"), object_hook=Record) for path in files}
    return results | vars(math) | {"__builtins__": {f.__name__: f for f in (abs, len, max, min, next, round, sum)}}


def shown(text: str) -> list[float]:
    """Return the numbers of a text that proves something: an output, a table, code."""
    return [float(found.replace(",", "")) for found in SOURCE.findall(text)]


def read(path: Path) -> tuple[list[Section], dict[str, dict[str, str]]]:
    """Read a notebook or a page: its sections, and its marks at each place (a cell, or the line of a heading)."""
    found, marks = [Section("")], {}

    def add(place: str, text: str) -> None:
        line, text = 1, FENCED.sub(lambda block: block[0].replace("\n#", "\n "), text)  # a comment there is no heading
        for piece in re.split(r"(?m)^(?=###? )", text):
            if heading := re.match(r"###? +(.+)", piece):
                found.append(Section(heading[1].strip()))
            for directive, block in FENCED.findall(piece):
                found[-1].outputs += shown("" if directive else block)
                for name in re.findall(r"\A\{include\} (\S+)", block):
                    found[-1].outputs += shown((path.parent / name).read_text(encoding="utf-8"))
            here = place or f"line {line}"
            marks.setdefault(here, {}).update(MARK.findall(piece))
            found[-1].passages.append((here, FENCED.sub(lambda m: m[2] if m[1] else "", piece)))
            line += piece.count("\n")

    if path.suffix != ".ipynb":
        add("", path.read_text(encoding="utf-8"))
        return found, marks
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            marks[cell.id] = dict(cell.metadata.get("numbers", {}))
            add(cell.id, cell.source)
            continue
        found[-1].code += shown(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            tags_away = re.sub(r"<[^>]+>|&\w+;", " ", data.get("text/html", ""))
            text = output.get("text") or data.get("text/plain") or tags_away
            found[-1].outputs += [] if "image/png" in data else shown(text)
    return found, marks


def agrees(written: str, unit: str, bound: str, value: float) -> bool:
    """Return whether a value rounds to the written number, in one of the ways that its unit allows."""
    number, value = float(written.replace(",", "")), abs(value)
    zeros = len(written) - len(written.rstrip("0")) if re.fullmatch(r"[\d,]+", written) else 0
    digits = len(re.sub(r"\D", "", written))
    last = 10.0 ** -len(written.partition(".")[2]) if "." in written else 10.0 ** max(0, min(zeros, digits - 2))
    slack = max(last / 2, 0.05 * number * bool(bound))
    low = number if bound in ABOVE else 0.75 * number if bound in BELOW else number - slack
    high = number if bound in BELOW else 1.25 * number if bound in ABOVE else number + slack
    factors = [1.0, 100.0] if unit in SHARES else [1.0]
    if unit in SCALES:
        factors += [other / SCALES[unit] for other in (TIMES.values() if unit in TIMES else [1])]
    return any(low * (1 - 1e-9) <= value * factor <= high * (1 + 1e-9) for factor in factors)


def blank(match: re.Match) -> str:
    """Return what stands in the place of text that is not read: its line ends."""
    return "\n" * match[0].count("\n") + " "


def written_numbers(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (number as written, unit, bound, sentence) of a text."""
    tex = {r"\times": "×", r"\%": "%", r"\pm": "±", "{,}": ","}
    for pattern in SKIPPED[:4]:  # before formulas: a dollar in code opens none
        text = pattern.sub(blank, text)
    text = FORMULA.sub(lambda m: TEX.sub(lambda sign: tex[sign[0]], m[1]) if PLAIN.fullmatch(m[1]) else " ", text)
    for pattern in SKIPPED[4:]:
        text = pattern.sub(blank, text)
    found = list(NUMBER.finditer(text))
    units = [m["unit"] or "" for m in found]
    for k in range(len(found) - 2, -1, -1):  # in "21 to 22 dB" both have the unit
        if not units[k] and LINKING.fullmatch(text[found[k].end() : found[k + 1].start()].rstrip("±-−")):
            units[k] = units[k + 1]
    for match, unit in zip(found, units, strict=True):
        number = match["part"] or match["number"]
        small = not number[0].isdigit() or (number.isdigit() and int(number) <= 12)
        if match["part"] or not small or (unit and number.lower() != "one"):
            start = max(text.rfind(end, 0, match.start()) for end in (". ", ".\n", "\n\n", "\n- ", "? ", "! "))
            end = re.compile(r"[.?!]\s|\n\n|\n- |\Z").search(text, match.end()).end()
            words = (number, unit, (match["bound"] or "").lower(), text[start + 1 : end])
            yield tuple(" ".join(part.split()) for part in words)


def borne_out(written: str, unit: str, bound: str, there: Section) -> bool:
    """Return whether a number that is shown there gives the one that is written."""
    if part := PART.fullmatch(written):  # of a whole, shown as a share or as so many times; or more or less than 1
        values = [abs(value) for value in there.outputs]
        shares = [v if v < 1 else 1 / v for v in values if v % 1] if part[2] == "of" else [abs(v - 1) for v in values]
        return any(0 < share < 1 and round(1 / share) == PARTS.index(part[1]) + 3 for share in shares)
    digits = str(WORDS.index(written.lower()) + 1) if written.lower() in WORDS else written
    given = [] if unit in MEASURED else [v for v in there.code if unit not in SHARES or v < 1]
    return any(agrees(digits, unit, bound, value) for value in there.outputs + given)


def unmatched(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place, number or mark, sentence or what is wrong) of all that nothing bears out."""
    parts, marks = read(path)
    chapter = sum(parts, Section("*"))
    unused = {(place, written) for place in marks for written in marks[place]}
    for section in parts:
        whole = path.suffix == ".ipynb" and (section.title in WHOLE_CHAPTER or section.title.startswith("Exercise "))
        for place, text in section.passages if section.title != "References" else []:
            for written, unit, bound, sentence in written_numbers(text):
                if written in marks[place]:
                    unused.discard((place, written))
                    if problem := wrong_mark(path, marks[place][written], written, unit, bound):
                        yield place, written, f"mark '{marks[place][written]}': {problem}"
                    continue
                there = chapter if whole or (COUNT.fullmatch(written) and not unit) else section
                if not borne_out(written, unit, bound, there):
                    yield place, f"{written} {unit}".strip(), sentence
    for place, written in sorted(unused):
        yield place, written, "a mark for a number that is not in the text"


def wrong_mark(path: Path, source: str, written: str, unit: str, bound: str) -> str:
    """Return what is wrong with a mark; empty if it gives the number."""
    if source.startswith(("quoted:", "given:")):
        return "" if source.partition(":")[2].strip() else "it says nothing after the colon"
    if named := re.fullmatch(r"in(?: (\w+))?: (.+)", source):
        other = ROOT / "notebooks" / f"{named[1]}.ipynb" if named[1] else path
        if not other.is_file():
            return f"there is no {other.name}"
        there = [section for section in read(other)[0] if named[2] in ("*", section.title)]
        if not there:
            return f"{other.name} has no section of that name"
        return "" if borne_out(written, unit, bound, sum(there, Section(""))) else "it is not there"
    try:
        value = float(eval(source, known()))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if borne_out(written, unit, bound, Section("", [], [value])) else f"that is {value:.6g}"


def main() -> None:
    """List what nothing bears out in the files named; exit 1 if there is any."""
    if not sys.argv[1:]:
        sys.exit("name the files: python -m book.tools.numbers notebooks/*.ipynb book/*.md")
    lines = [f"{name}: {' · '.join(found)}" for name in sys.argv[1:] for found in unmatched(Path(name))]
    print("\n".join(lines) or "every number is borne out")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
