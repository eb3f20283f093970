"""A speed is a claim about one processor: every table names it, and `make bench` shows it beside the reader's own."""

import re
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.__main__ import PARTS, described
from book.tools.results import processor, read

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
    assert "threads" in line and "Gflop/s" in line and "\n" not in line
