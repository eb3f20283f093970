"""Printed claims, row by row: read from `book/claims.toml` and checked against what bears them out.

A row quotes a sentence, says what was done and found, and gives a verdict with its evidence. A piece of evidence is one
line of text, in one of three forms:

- `EXPRESSION = 38.40`, or with `>` or `<`: arithmetic, the functions of `KNOWN`, and `rec("NAME/key/0/size=2/ratio")`,
  a path into `book/results/NAME.json`. Its parts are keys, positions, `key=value; key=value` for the one entry of a
  list that has these values, and `*` for all entries.
- `PAGE#ANCHOR shows 0.89`: a printed output of that section has the number.
- `SOURCE says "words"`: another source of the file contradicts or supports the sentence.
"""

from __future__ import annotations

import ast
import importlib
import math
import operator
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ttref import tt_params

from ..tools import numbers
from . import audited
from .sources import recorded

__all__ = ["VERDICTS", "Claim", "Source", "evaluate", "load", "problems", "rec", "score", "section"]

VERDICTS = {  # and the sign that stands beside the word
    "confirmed": "✓",
    "partly": "◐",
    "refuted": "✗",
    "not reproducible": "≠",
    "not testable here": "∅",
    "unverified": "?",
}
OPEN = {"not testable here", "unverified"}  # these say what would be needed instead
FILE = Path(__file__).resolve().parents[1] / "claims.toml"
ROOT = FILE.parents[1]


class Source(NamedTuple):
    """A text that makes claims: its name, its group in the ledger, what of it was read, an address if there is one."""

    name: str
    group: str
    read: str
    address: str = ""


class Claim(NamedTuple):
    """A row: id, key of its source, the words, what we did, what we found, verdict, where to look, and why."""

    id: str
    source: str
    quote: str
    did: str
    ours: str
    verdict: str
    where: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    needs: str = ""


def load(path: Path = FILE) -> tuple[dict[str, Source], list[Claim]]:
    """Read the sources and the rows of a ledger.

    Raises:
        TypeError: a row or a source lacks a field, or has one that is not known.

    Example:
        >>> sources, claims = load()
        >>> claims[0].id, sources[claims[0].source].group
        ('C1', 'TensorGPT')
    """
    text = tomllib.loads(path.read_text(encoding="utf-8"))
    lists = {"where", "evidence"}
    rows = [{key: tuple(value) if key in lists else value for key, value in row.items()} for row in text["claim"]]
    return {key: Source(**source) for key, source in text["sources"].items()}, [Claim(**row) for row in rows]


def rec(path: str) -> Any:
    """Follow a path into a recorded result; `*` gives a list.

    Raises:
        KeyError: the path leads nowhere, or to more than one entry.

    Example:
        >>> rec("tt_lora/glue/cola/train")
        960
    """
    name, *parts = path.split("/")
    return _follow(_results(name), parts, path)


@cache
def _results(name: str) -> Any:
    """A recorded result, read once."""
    return recorded(name)


def _follow(found: Any, parts: list[str], path: str) -> Any:
    """What the parts of a path lead to."""
    if not parts:
        return found
    part, *rest = parts
    if part == "*":
        return [_follow(entry, rest, path) for entry in (found.values() if isinstance(found, dict) else found)]
    if isinstance(found, dict):
        if part not in found:
            raise KeyError(f"{path}: no key {part!r}; there are {', '.join(map(str, found))}")
        return _follow(found[part], rest, path)
    if "=" in part:
        wanted = dict(condition.strip().split("=", 1) for condition in part.split(";"))
        fitting = [entry for entry in found if all(str(entry.get(key)) == value for key, value in wanted.items())]
        if len(fitting) != 1:
            raise KeyError(f"{path}: {len(fitting)} entries with {part}, there must be one")
        return _follow(fitting[0], rest, path)
    if not part.isdigit() or int(part) >= len(found):
        raise KeyError(f"{path}: {part!r} is no position in a list of {len(found)}")
    return _follow(found[int(part)], rest, path)


def lacks(module: str, name: str) -> bool:
    """Whether an installed module has nothing of this name."""
    return not hasattr(importlib.import_module(module), name)


PLAIN = (abs, len, max, min, round, sum)
KNOWN: dict[str, Callable[..., Any]] = {function.__name__: function for function in (*PLAIN, rec, lacks, math.prod)}
KNOWN |= {"log2": math.log2, "sqrt": math.sqrt, "train": tt_params}
KNOWN |= {name: getattr(audited, name) for name in audited.__all__}
BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
BINARY |= {ast.Pow: operator.pow, ast.Mod: operator.mod}


def evaluate(expression: str) -> Any:
    """Compute arithmetic and calls of `KNOWN`, and nothing else.

    Raises:
        ValueError: the expression holds anything else; the message names it.

    Example:
        >>> evaluate("768 / train((2,) * 10, 1)")
        38.4
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body):
                return value(body)
            case ast.Constant(constant):
                return constant
            case ast.Tuple(items) | ast.List(items):
                return tuple(map(value, items))
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.BinOp(left, sign, right) if type(sign) in BINARY:
                return BINARY[type(sign)](value(left), value(right))
            case ast.Call(ast.Name(name), arguments, []) if name in KNOWN:
                return KNOWN[name](*map(value, arguments))
        raise ValueError(f"{expression!r} holds {ast.unparse(node)!r}; known are {', '.join(sorted(KNOWN))}")

    return value(ast.parse(expression, mode="eval"))


@cache
def _page(stem: str) -> tuple[str, dict[str, numbers.Section]]:
    """The title of a chapter, or of a page such as book/performance, and its sections by anchor."""
    path = ROOT / f"{stem}.md" if "/" in stem else ROOT / "notebooks" / f"{stem}.ipynb"
    if not path.is_file():
        raise KeyError(f"there is no {path.name}")
    parts = numbers.read(path)[0]
    title = re.search(r"(?m)^# (.+)$", "\n".join(text for _, text in parts[0].passages))
    return title[1], {re.sub(r"[^\w\- ]", "", part.title.lower()).replace(" ", "-"): part for part in parts[1:]}


def section(link: str) -> tuple[str, numbers.Section]:
    """The title of the chapter that a link names, and the section.

    Raises:
        KeyError: there is no such chapter or section.
    """
    stem, _, anchor = link.partition("#")
    title, sections = _page(stem)
    if anchor not in sections:
        raise KeyError(f"{stem} has no section {anchor!r}; there are {', '.join(sections)}")
    return title, sections[anchor]


def _values(line: str, sources: dict[str, Source]) -> list[float]:
    """The numbers that a piece of evidence yields; ValueError if it does not hold."""
    if said := re.fullmatch(r'([\w-]+) says "(.+)"', line):
        if said[1] not in sources:
            raise ValueError(f"no source {said[1]!r}")
        return numbers.shown(said[2])
    if seen := re.fullmatch(r"(\S+#\S+) shows (\S+)", line):
        if not numbers.borne_out(seen[2], "", "", numbers.Section("", [], section(seen[1])[1].outputs)):
            raise ValueError(f"{seen[1]} does not show {seen[2]}")
        return [float(seen[2].replace(",", ""))]
    stated = re.fullmatch(r"(.+) ([=<>]) (-?[\d,.]+)", line)
    if not stated:
        raise ValueError(
            f"{line!r} is not of the form 'expression = number', 'page#anchor shows ...' or 'source says ...'"
        )
    found = float(evaluate(stated[1]))
    right = float(stated[3].replace(",", ""))
    digits = len(stated[3].partition(".")[2])
    fits = {"=": abs(found - right) <= 0.5001 * 10**-digits, "<": found < right, ">": found > right}[stated[2]]
    if not fits:
        raise ValueError(f"{stated[1]} is {found:.6g}, not {stated[2]} {stated[3]}")
    return [found]


def problems(claim: Claim, sources: dict[str, Source]) -> list[str]:
    """Say what is wrong with a row: verdict, evidence, numbers, links.

    Example:
        >>> sources, claims = load()
        >>> problems(claims[0]._replace(verdict=""), sources)
        ["C1: the verdict '' is none of confirmed, partly, refuted, not reproducible, not testable here, unverified"]
    """
    wrong, found = [], numbers.shown(claim.quote)
    if claim.verdict not in VERDICTS:
        wrong.append(f"the verdict {claim.verdict!r} is none of {', '.join(VERDICTS)}")
    elif claim.verdict in OPEN and not claim.needs:
        wrong.append(f"{claim.verdict}, but it does not say what would be needed")
    elif claim.verdict not in OPEN and not claim.evidence:
        wrong.append(f"{claim.verdict}, but without evidence")
    if claim.source not in sources:
        wrong.append(f"no source {claim.source!r}")
    if not (claim.quote and claim.did and claim.ours and claim.where):
        wrong.append("the sentence, what was done, what was found or the link is empty")
    for line in claim.evidence:
        try:
            found += _values(line, sources)
        except (KeyError, ValueError, TypeError, SyntaxError, FileNotFoundError, ImportError) as error:
            wrong.append(f"{line}: {error.args[0]}")
    for link in claim.where:
        try:
            section(link)
        except KeyError as error:
            wrong.append(f"the link {link} does not land: {error.args[0]}")
    there = numbers.Section("", [], found, numbers.shown(" ".join(claim.evidence)))
    for written, unit, bound, _ in numbers.written_numbers(f"{claim.ours} {claim.needs}"):
        if not numbers.borne_out(written, unit, bound, there):
            wrong.append(f"nothing bears out the number {written} {unit}".rstrip())
    return [f"{claim.id}: {problem}" for problem in wrong]


def score(sources: dict[str, Source], claims: Iterable[Claim]) -> dict[str, Counter]:
    """Count the verdicts of each group of sources, and of all.

    Example:
        >>> counts = score(*load())
        >>> counts["all"].total() == sum(counts[group].total() for group in counts if group != "all")
        True
    """
    counts: dict[str, Counter] = {}
    for claim in claims:
        counts.setdefault(sources[claim.source].group, Counter())[claim.verdict] += 1
    return counts | {"all": sum(counts.values(), Counter())}
