"""Minutes to read: every chapter has them, two pages agree on them, and the links to neighbors say them."""

import importlib.util
import re
from pathlib import Path

import pydata_sphinx_theme
import pytest
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader

from book.tools import notebooks
from book.tools.used import in_order

COMPONENTS = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/components"


@pytest.fixture
def extension():
    spec = importlib.util.spec_from_file_location("minutes", notebooks.ROOT / "book/_ext/minutes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_chapter_has_minutes_and_the_first_page_agrees(extension):
    found = extension.minutes()
    assert set(found) == {"notebooks/00_decide", *(f"notebooks/{path.stem}" for path in in_order())}
    cells = "\n".join(cell.source for cell in notebooks.read(notebooks.ROOT / "notebooks/00_decide.ipynb").cells)
    there = dict(re.findall(r"\]\((\w+)\.ipynb\), (\d+) minutes", cells))
    assert len(there) == 4
    assert {f"notebooks/{name}": int(minutes) for name, minutes in there.items()}.items() <= found.items()


def test_links_to_neighbors_say_the_minutes(extension):
    class App:
        class builder:
            relations = {"book/intro": ["notebooks/00_decide", "notebooks/00_decide", "notebooks/01_mps_math"]}

    context = {"prev": {"title": "Decide", "link": "a.html"}, "next": {"title": "The <em>train</em>", "link": "b.html"}}
    extension._page(App, "book/intro", "page.html", context, None)
    drawn = Environment(loader=FileSystemLoader(COMPONENTS)).get_template("prev-next.html")
    page = BeautifulSoup(drawn.render(_=lambda text: text, **context), "html.parser")
    minutes = extension.minutes()
    titles = [tag.text for tag in page.find_all(class_="prev-next-title")]
    wanted = f"Decide, {minutes['notebooks/00_decide']} min", f"The train, {minutes['notebooks/01_mps_math']} min"
    assert tuple(titles) == wanted


def test_a_page_without_minutes_or_neighbors_stays_as_it_is(extension):
    class App:
        class builder:
            relations = {"book/a": ["book/b", None, "book/glossary"]}

    context = {"next": {"title": "Glossary", "link": "b.html"}}
    extension._page(App, "book/a", "page.html", context, None)
    assert context["next_title"] == "Glossary" and "prev_title" not in context
    extension._page(App, "genindex", "page.html", {"prev": None}, None)
