"""The ledger in a browser: filters by group, verdict and word, with the keyboard, and plain tables without scripts.

The page is made of the ledger's own HTML and the two static files, so that no book has to be built for it.
"""

import barriers
import pytest
from small_pages import opening, page_of

from book.tools.notebooks import ROOT
from book.workbook import claims, ledger

STATIC = ROOT / "book" / "_static"
COLORS = ":root { --pst-color-text-base: #222; --pst-color-text-muted: #48566b; --pst-color-background: #fff;"
COLORS += " --pst-color-surface: #f3f4f5; --pst-color-border: #d1d5da; --pst-color-link: #0a7d91; }"
SOURCES, ROWS = claims.load()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    body = ledger.Ledger(SOURCES, ROWS)._repr_html_()
    style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("custom.css", "claims.js"))
    return page_of(tmp_path_factory.mktemp("ledger"), "Ledger", COLORS + style, [script], body)


@pytest.fixture
def opened(browser, page_file):
    with opening(browser, page_file) as open_page:
        yield open_page


def seen(page):
    return page.locator("details.tt-claims tbody tr:visible").count()


def test_filters_narrow_and_say_how_many(opened):
    page = opened()
    status = page.get_by_role("status")
    assert status.inner_text() == f"{len(ROWS)} of {len(ROWS)} claims" and seen(page) == 0  # all folded
    for verdict in ("refuted", "unverified"):
        page.get_by_label("Verdict").select_option(verdict)
        wanted = sum(claim.verdict == verdict for claim in ROWS)
        assert status.inner_text() == f"{wanted} of {len(ROWS)} claims" and seen(page) == wanted
    page.get_by_label("Verdict").select_option("refuted")
    page.get_by_label("Group").select_option("TT-LoRA")
    wanted = [c for c in ROWS if c.verdict == "refuted" and SOURCES[c.source].group == "TT-LoRA"]
    assert seen(page) == len(wanted) > 3
    page.get_by_label("Word").fill("kaiming seed")
    assert page.locator("tbody tr:visible").get_attribute("id") == "claim-x25"
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(f"document.querySelector('[role=status]').textContent.startsWith('{len(ROWS)} of')")
    assert seen(page) == 0


def test_the_keyboard_alone_is_enough(opened):
    page = opened()
    stops = []
    for _ in range(6):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName"))
    assert stops == ["SELECT", "SELECT", "INPUT", "BUTTON", "SUMMARY", "SUMMARY"]
    page.get_by_label("Verdict").focus()
    page.keyboard.type("conf")
    assert page.get_by_label("Verdict").input_value() == "confirmed"
    assert seen(page) == sum(claim.verdict == "confirmed" for claim in ROWS)


def test_a_link_to_a_row_opens_its_fold(opened):
    page = opened("#claim-v5")
    assert page.locator("#claim-v5").is_visible()
    assert page.locator("details.tt-claims[open]").count() == 1


def test_without_scripts_there_are_plain_tables(opened):
    page = opened(scripts=False)
    assert page.locator("form").count() == 0
    page.locator("summary").nth(0).click()
    assert page.locator("#claim-c1").is_visible() and page.locator("details[open] table").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_hidden_and_nothing_bars_the_way(opened, width):
    page = opened(width=width)
    page.get_by_label("Verdict").select_option("partly")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.tt-table')]"
    assert page.evaluate(f"{boxes}.every(e => e.scrollWidth <= e.clientWidth + 1)")
    assert barriers.of_small_page(page) == []
