"""The page to print asks what `ttref.advise` asks, in the same order, and leads to chapters."""

import re

from book.tools.notebooks import ROOT
from ttref.advice.tree import TREE, Node

PAGE = (ROOT / "book/one_page.md").read_text(encoding="utf-8")


def test_the_questions_are_those_that_advise_asks():
    text, question, places = " ".join(PAGE.split()), TREE, []
    while isinstance(question, Node):
        places.append(text.find(question.ask))
        question = question.yes
    assert len(places) == 3 and min(places) > 0 and places == sorted(places)


def test_there_are_ten_numbers_and_each_leads_to_its_chapter():
    rows = re.findall(r"^\| [^|]*\d[^|]*\|.*$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    for row in rows:
        (name,) = re.findall(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", row)
        assert (ROOT / f"notebooks/{name}.ipynb").is_file()
