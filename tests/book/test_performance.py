"""A speed is a claim about one processor: every table names it, and `make bench` shows it beside the reader's own."""

import re
from pathlib import Path

import pytest

from benchmarks import page, summary
from benchmarks.__main__ import PARTS, described
from book.tools.results import RESULTS, processor, read

by_part = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)


def test_the_processor_is_told_from_others_of_its_name():
    assert re.search(r"torch: [A-Z0-9]+.*mkl\)$", processor())
    told = Path("/proc/cpuinfo")
    if told.exists() and "vendor_id" in told.read_text(encoding="utf-8"):
        assert re.search(r"\(\w+ family \d+ model \d+ stepping \d+; torch", processor())


def test_a_system_that_tells_nothing_still_has_a_name(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert re.fullmatch(r"\S.* \(torch: [A-Z0-9]+, .*mkl\)", processor())


@by_part
def test_a_table_names_the_processor_and_says_that_ratios_move_with_it(part):
    recorded = read(part.RESULT)
    shown = page.table(part.RESULT).read_text(encoding="utf-8")
    assert shown == part.markdown(recorded)
    assert f" on {recorded['machine']['processor']}, " in shown and page.OTHERS in shown


@by_part
def test_the_recorded_machine_fits_one_line(part):
    line = described(read(part.RESULT)["machine"])
    assert " thread" in line and "Gflop/s" in line and "\n" not in line


def test_the_summary_is_what_the_records_give():
    records = {part.RESULT: read(part.RESULT) for part in PARTS.values()}
    assert page.table("summary").read_text(encoding="utf-8") == summary.markdown(records)
    shown = (RESULTS.parent / "performance.md").read_text(encoding="utf-8")
    for what, *_ in summary.lines(records):
        heading = what.partition("(#")[2].rstrip(")")
        assert heading in {slug(line) for line in shown.splitlines()}, what


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("microseconds", "written"),
    [(0.0638, "0.0638 µs"), (22.7033, "22.7 µs"), (1_161_000, "1.16 s"), (538_000, "538 ms"), (1000, "1 ms")],
)
def test_a_time_is_written_in_the_unit_that_suits_it(microseconds, written):
    assert page.duration(microseconds) == written


def test_titles_are_written_for_people():
    assert page.readable("768 -> 3,072, rank 8, 1 vectors, NumPy") == "768 to 3,072, rank 8, 1 vector, NumPy"
    assert page.readable("one train a row, 2^10, 11 ids, 32 x 64 tokens") == (
        "one train a row, 2¹⁰, 11 ids, 32 × 64 tokens"
    )
    assert page.short(2_470_000) == "2,470,000"


@by_part
def test_no_table_has_an_exponent_or_one_of_many(part):
    shown = page.table(part.RESULT).read_text(encoding="utf-8")
    assert not re.search(r"\de[+-]\d|\b1 (vector|id|row|thread|table)s\b", shown)
    assert shown.count(":::{dropdown}") == 1
