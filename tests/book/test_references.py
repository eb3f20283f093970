"""What a chapter refers to stands in the bibliography, and the page of references shows it."""

import re

import pytest
from pybtex.database import parse_file

from book.tools import used
from book.tools.notebooks import ROOT, chapters, read

BIBLIOGRAPHY = parse_file(str(ROOT / "book" / "references.bib"), bib_format="bibtex").entries
ADDRESS = re.compile(r"https?://(?:arxiv\.org/abs/|doi\.org/)([^)\s]+?)(?:v\d+)?(?=[)\s]|$)")


def referred(chapter):
    """arXiv numbers and DOIs of a chapter, in lower case."""
    text = "\n".join(cell.source for cell in read(chapter).cells if cell.cell_type == "markdown")
    return {found.lower() for found in ADDRESS.findall(text)}


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.stem)
def test_what_a_chapter_refers_to_is_in_the_bibliography(chapter):
    known = {entry.fields.get(key, "").lower() for entry in BIBLIOGRAPHY.values() for key in ("eprint", "doi")}
    assert not referred(chapter) - known, "add it to book/references.bib"


@pytest.mark.parametrize("chapter", chapters(), ids=lambda chapter: chapter.stem)
def test_a_chapter_cites_through_the_page_of_references(chapter):
    keys = {
        entry.fields[name].lower(): key
        for key, entry in BIBLIOGRAPHY.items()
        for name in ("eprint", "doi")
        if name in entry.fields
    }
    text = "\n".join(cell.source for cell in read(chapter).cells if cell.cell_type == "markdown")
    for item in re.split(r"\n(?=- )", text.partition("\n## References\n")[2]):
        if found := [keys[name.lower()] for name in ADDRESS.findall(item) if name.lower() in keys]:
            assert any(f"](../book/references.md#{key})" in item for key in found), item


def test_titles_are_plain_text():
    for key, entry in BIBLIOGRAPHY.items():
        assert "$" not in entry.fields["title"], f"{key}: formulas in titles are not set; write them in Unicode"
        assert entry.fields.get("year"), key


def test_the_glossary_is_alphabetical():
    terms = re.findall(r"^## (.+)$", (ROOT / "book" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) > 80 and len(set(terms)) == len(terms)
    assert terms == sorted(terms, key=str.lower)


@pytest.mark.parametrize("chapter", used.in_order(), ids=lambda path: path.stem)
def test_a_chapter_links_to_the_pages_of_what_it_uses(chapter):
    needed, linked = used.needed(chapter), used.linked(chapter)
    assert needed
    assert not set(needed) - linked, "link to them under What next: python -m book.tools.used"
