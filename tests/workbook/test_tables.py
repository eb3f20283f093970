"""Tables: the same cells as text and as HTML, the result beside the name, long ones folded."""

import pytest
from bs4 import BeautifulSoup

from book.workbook.tables import MISSING, WIDTH, Table, show

COLUMNS = {"method": "", "loss": ".2f", "bytes": ",d"}
ROWS = [("train & SVD <1>", 0.12345, 4096), {"method": "`TTLinear`", "loss": None, "bytes": 7}]


def cells(markup):
    soup = BeautifulSoup(markup, "html.parser")
    return [[c.get_text() for c in tr.find_all(["th", "td"])] for tr in soup.find("table").find_all("tr")]


def test_text_and_html_hold_the_same_cells():
    table = Table(ROWS, COLUMNS)
    assert cells(table._repr_html_()) == [
        ["method", "loss", "bytes"],
        ["train & SVD <1>", "0.12", "4,096"],
        ["TTLinear", MISSING, "7"],
    ]
    assert repr(table).splitlines() == [
        "method           loss  bytes",
        "train & SVD <1>  0.12  4,096",
        f"`TTLinear`          {MISSING}      7",
    ]


def test_markup_is_escaped_and_code_is_code():
    soup = BeautifulSoup(Table([("a <b> `x<y`", "1")], ["name", "value"])._repr_html_(), "html.parser")
    assert soup.find("b") is None and soup.find("code").get_text() == "x<y"


def test_the_box_has_a_name_and_rows_have_headings():
    soup = BeautifulSoup(Table(ROWS, COLUMNS, caption='Loss "in nats"')._repr_html_(), "html.parser")
    box = soup.find(class_="tt-table")
    assert box["tabindex"] == "0" and box["aria-label"] == 'Table: Loss "in nats"'
    assert soup.find("caption").get_text() == 'Loss "in nats"'
    assert [th["scope"] for th in soup.find_all("th")] == ["col"] * 3 + ["row"] * 2


def test_long_tables_fold_all_their_rows():
    table = Table([(f"row {k}", k) for k in range(31)], ["name", "value"], shown=5)
    soup = BeautifulSoup(table._repr_html_(), "html.parser")
    first, every = soup.find_all("table")
    assert len(first.find_all("tr")) == 6 and len(every.find_all("tr")) == 32
    assert every.find_parent("details").find("summary").get_text() == "Show all 31 rows"
    assert len(repr(table).splitlines()) == 32  # nbval compares every row
    assert "<details" not in Table([(f"row {k}", k) for k in range(5)], ["name", "value"], shown=5)._repr_html_()


def test_wide_text_is_wrapped_in_its_column():
    long = "a sentence that goes on and on, about what was found and under which conditions it holds, " * 2
    text = repr(Table([("claim", "wrong", long), ("other", "right", long)], ["claim", "verdict", "what we find"]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(line[14:] for line in lines[1:5]).split()[:5] == long.split()[:5]


def test_two_wide_columns_share_the_width():
    text = repr(Table([("word " * 20, "other " * 20)], ["a", "b"]))
    assert max(map(len, text.splitlines())) <= WIDTH
    unbreakable = repr(Table([("x" * 100, 1)], ["a", "b"]))  # nothing to break at: it stays whole
    assert "x" * 100 in unbreakable


def test_numbers_stand_at_the_right():
    rows = [("a", "1.2x", "±3 points", "1 2 4 2 1"), ("b", "–", "text", "1 1 1 1 1")]
    table = Table(rows, ["name", "gain", "note", "ranks"])
    head = BeautifulSoup(table._repr_html_(), "html.parser").find_all("th", scope="col")
    assert ["left" in th.get("style", "") for th in head] == [True, False, True, True]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], ["a"], "needs rows and columns, got 0 and 1"),
        ([("x", 1)], ["a"], "one value for each of 1 columns"),
        (["xy"], ["a", "b"], "one value for each of 2 columns"),
        ([{"c": 1}], ["a"], "c is no column; they are a"),
    ],
)
def test_a_wrong_row_is_refused(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        Table(rows, columns)


def test_show_displays_without_returning(capsys):
    assert show([("a", 1)], ["name", "value"]) is None
    assert "name" in capsys.readouterr().out
