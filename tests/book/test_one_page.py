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


def test_each_verdict_that_advise_gives_has_its_line():
    words = {"train": ": a train.", "SVD": ": SVD.", "integers": ": integers.", "none": ": leave the matrix as it is."}
    text, ends, open_ends = " ".join(PAGE.split()), set(), [TREE]
    while open_ends:
        node = open_ends.pop()
        ends |= set() if isinstance(node, Node) else {node}
        open_ends += [node.yes, node.no] if isinstance(node, Node) else []
    assert ends == set(words)
    assert all(text.count(line) == 1 for line in words.values())


def test_there_are_ten_numbers_and_each_leads_to_its_chapter():
    rows = re.findall(r"^\| [^|]*\d[^|]*\|.*$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    for row in rows:
        (name,) = re.findall(r"\]\(\.\./notebooks/(\w+)\.ipynb\)", row)
        assert (ROOT / f"notebooks/{name}.ipynb").is_file()
