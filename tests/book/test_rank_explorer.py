"""The rank explorer in a browser: choices, the address and the way back, the keyboard, words for all that is drawn.

The page is made of the extension's HTML and the static files, so that no book has to be built for it.
"""

import re

import barriers
import pytest
from rank_objects import OBJECTS, extension
from small_pages import opening, page_of

from book.tools.notebooks import ROOT

STATIC = ROOT / "book" / "_static"
THEME = """:root { --pst-color-text-base: #222; --pst-color-text-muted: #48566b; --pst-color-background: #fff;
--pst-color-surface: #f3f4f5; --pst-color-border: #d1d5da; --pst-color-link: #0a7d91; }
@media (prefers-color-scheme: dark) { :root { --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af;
--pst-color-background: #14181e; --pst-color-surface: #29313d; --pst-color-border: #48566b;
--pst-color-link: #3fb1c5; } }
body { background: var(--pst-color-background); color: var(--pst-color-text-base); }
a { color: var(--pst-color-link) }"""
STATUS = "document.querySelector('[role=status]').textContent"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    style = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("custom.css", "rank_explorer.css"))
    scripts = [(STATIC / name).read_text(encoding="utf-8") for name in extension().SCRIPTS]
    body = f'<h2 id="how-to-read-it">Choose</h2>{extension().embedded()}'
    return page_of(tmp_path_factory.mktemp("explorer"), "Rank explorer", THEME + style, scripts, body)


@pytest.fixture
def opened(browser, page_file):
    with opening(browser, page_file) as open_page:
        yield open_page


def said(page, words):
    page.wait_for_function(f"words => {STATUS}.includes(words)", arg=words)
    return page.get_by_role("status").inner_text()


def choose(page, name, option):
    page.get_by_label(name, exact=True).select_option(option)


def cell(page, row, column):
    return page.locator(f"tr:has(th:text-is('{row}')) td").nth(column).inner_text().replace("\u00a0", " ")


def test_each_object_is_shown_with_sizes_cores_and_rivals(opened):
    page = opened()
    for thing in OBJECTS:
        choose(page, "Object", thing["id"])
        for form in thing["forms"]:
            choose(page, "Written as", form["id"])
            words = said(page, f"{thing['name']}, rank")
            assert "numbers" in words and "not measured" not in words, words
            assert page.locator(".tt-ranks-cores li").count() >= 1
            link = page.locator(f"a[href='../notebooks/{thing['chapter']}.html']")
            assert link.inner_text() == thing["title"]
            assert page.locator("section[aria-label^='All records'] tbody tr").count() == len(form["records"])


def test_a_recorded_rank_shows_the_record_and_another_says_not_measured(opened):
    page = opened("#object=digits&modes=source&rank=8")
    assert cell(page, "error of the weights", 0) == "0.665" and cell(page, "error of the weights", 1) == "0.821"
    assert cell(page, "test accuracy (dense: 97.1 %)", 0) == "85.6 %"
    assert cell(page, "test accuracy (dense: 97.1 %)", 2) == "96.9 %: int4 per row, 2.18 kB"
    assert page.locator("[aria-current]").inner_text() == "8"
    page.get_by_label("Rank, typed").fill("20")
    assert said(page, "not measured")
    assert cell(page, "error of the weights", 0) == "not measured"
    assert page.locator("[aria-current]").count() == 0
    assert "nothing was measured" in page.locator("section[aria-label='Measured'] p").inner_text()


def test_each_score_has_a_rival_of_its_own(opened):
    page = opened("#object=pictures&modes=picture&rank=1")
    rows = page.locator("section[aria-label='Measured'] tbody tr").all_inner_texts()
    assert "at most 5.91 kB" in rows[0].replace("\u00a0", " ")
    assert "random and frozen" in rows[1] and "from the start" in rows[1]
    assert "SVD, rank 1" in rows[2] and "cut and trained on" in rows[2]
    page.evaluate("location.hash = '#object=adapters&modes=automatic&rank=4'")
    page.wait_for_function("document.querySelector('[aria-label=Measured]').innerText.includes('LoRA')")
    rival = cell(page, "test accuracy (all weights trained: 76.5 %)", 2)
    # LoRA of rank 1 in all blocks is half as large again.
    assert rival == "72.2 %: LoRA, rank 1 in four of six blocks, 24.6 kB"
    assert [cell(page, "bytes", column) for column in range(3)] == ["24.6 kB", "0 bytes", "at most 27 kB"]
    page.evaluate("location.hash = '#object=query&modes=plain&rank=1'")
    page.wait_for_function("document.querySelector('[aria-label=Measured]').innerText.includes('none of this size')")


def test_inner_ranks_that_a_bound_chose_are_a_setting(opened):
    page = opened()
    choose(page, "Written as", "two")
    page.get_by_role("link", name="12, 11").click()
    assert "ranks 12, 11" in said(page, "69.4×")
    assert "error 0.0965" in said(page, "error")
    sizes = page.locator(".tt-ranks-cores li").all_inner_texts()
    assert [re.sub(r"Core . of .:\s*", "", size.replace("\n", "")) for size in sizes] == [
        "1 × 64 × 12, 768 numbers, 7 %", "12 × 16 × 11, 2,112 numbers, 19 %", "11 × 768 × 1, 8,448 numbers, 75 %",
    ]  # fmt: skip
    page.wait_for_function("document.activeElement.textContent === '12, 11'")  # the focus is not lost


def test_the_address_holds_the_state_and_back_brings_it_back(opened, page_file):
    page = opened()
    choose(page, "Object", "digits")
    choose(page, "Written as", "pairs-8")
    page.get_by_label("Rank, typed").fill("9")
    page.get_by_label("Vectors at once").fill("32")
    page.get_by_label("Vectors at once").press("Tab")
    address = page.url
    assert address == f"{page_file}#object=digits&modes=pairs-8&rank=9&vectors=32"
    again = opened(address.removeprefix(page_file))
    assert again.get_by_label("Object").input_value() == "digits"
    assert again.get_by_label("Rank", exact=True).input_value() == "9"
    assert again.locator("th:text-is('multiply-adds, 32 vectors')").count() == 1
    page.go_back()
    page.go_back()
    assert page.url.endswith("rank=17") and page.get_by_label("Rank", exact=True).input_value() == "17"
    page.go_back()
    page.go_back()
    assert page.get_by_label("Object").input_value() == OBJECTS[0]["id"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("#object=nothing", 'no object "nothing"'),
        ("#rank=4", 'no object ""'),
        ("#object=digits&modes=7x9_8x8&rank=4", "The row modes multiply to 63, and must give 64"),
        ("#object=digits&modes=8x8_64&rank=4", "2 row modes and 1 column modes"),
        ("#object=digits&modes=whatever", "not known here"),
        ("#object=own&modes=0x8_8x8", "A mode of zero"),
        (f"#object=smollm2-tokens&modes=_{'x'.join(['2'] * 25)}", "at most 24 modes"),
        ("#object=own&modes=99999x99999_99999x99999", "larger than this page computes"),
        ("#object=digits&modes=pairs-8&rank=-3", 'rank "-3"'),
        ("#object=digits&modes=source&rank=2-3", 'rank "2-3"'),
        ("#object=digits&rank=1e9", 'rank "1e9"'),
        ("#object=digits&vectors=0", 'vectors "0"'),
        ("#object=<b>x</b>", "no object"),
    ],
)
def test_an_address_that_asks_for_what_is_not_there_says_so(opened, address, words):
    page = opened(address)
    alert = page.get_by_role("alert")
    assert words in alert.inner_text() and "Shown instead:" in alert.inner_text()
    assert page.locator(".tt-ranks-cores li").count() >= 1
    choose(page, "Object", "pictures")
    assert alert.count() == 0 or not alert.is_visible()


def test_the_name_of_a_section_in_the_address_changes_nothing(opened):
    page = opened("#object=digits&modes=pairs-8&rank=9")
    page.evaluate("location.hash = '#how-to-read-it'")
    assert page.get_by_label("Object").input_value() == "digits"
    assert not page.get_by_role("alert").is_visible()


def test_modes_of_your_own(opened):
    page = opened()
    choose(page, "Object", "own")
    page.get_by_label("Row modes").fill("8 8 12")
    page.get_by_label("Column modes").fill("8, 8")
    assert "3 row modes and 2 column modes" in page.get_by_role("alert").inner_text()
    page.get_by_label("Column modes").fill("8, 8, 12")
    page.get_by_label("Column modes").press("Tab")
    assert not page.get_by_role("alert").is_visible()
    assert page.url.endswith("modes=8x8x12_8x8x12&rank=8")
    assert cell(page, "numbers", 0) == "5,760" and cell(page, "numbers", 1) == "589,824"
    page.reload()
    assert page.get_by_label("Row modes").input_value() == "8 8 12"
    choose(page, "Object", "smollm2-tokens")
    choose(page, "Written as", "")
    page.get_by_label("Row modes").fill("")
    page.get_by_label("Column modes").fill("2 2 2 2 2 2 3 3")
    page.get_by_label("Rank, typed").fill("4")
    assert "not measured" in said(page, "not measured")
    assert cell(page, "bytes, float32", 0) == "32,243,712"  # as recorded for the rows that are not padded


@pytest.mark.parametrize(
    ("rows", "cols", "words"),
    [
        ("0 8", "8 8", "A mode of zero"),
        ("8 8", "8 0", "A mode of zero"),
        ("8 8 8", "8 8", "3 row modes and 2 column modes"),
        ("1 " * 30 + "8", "1 " * 30 + "8", "at most 24 modes"),
        ("", "", "Type modes"),
    ],
)
def test_modes_that_are_wrong_are_kept_and_named_until_others_are_chosen(opened, rows, cols, words):
    page = opened("#object=own&modes=8x8_8x8&rank=4")
    fields = [page.get_by_label(name) for name in ("Row modes", "Column modes")]
    for field, text in zip(fields, (rows, cols), strict=True):
        field.fill(text)
    fields[1].press("Tab")
    assert page.url.endswith("modes=8x8_8x8&rank=4")
    alert = page.get_by_role("alert")
    page.get_by_label("Rank, typed").fill("7")
    page.get_by_label("Vectors at once").fill("3")
    page.get_by_label("Vectors at once").press("Tab")
    assert words in alert.inner_text() and page.url.endswith("modes=8x8_8x8&rank=7&vectors=3")
    for field, text in zip(fields, (rows, cols), strict=True):
        assert field.input_value() == text and field.get_attribute("aria-invalid") == "true"
        assert field.get_attribute("aria-describedby") == alert.get_attribute("id")
    assert cell(page, "numbers", 0) == "896"  # of the modes that fitted last
    for field in fields:
        field.fill("8 8 2")
    assert not alert.is_visible() and page.locator("[aria-invalid], [aria-describedby]").count() == 0


def test_another_object_or_another_address_takes_wrong_modes_away(opened):
    page = opened("#object=digits&modes=8x8_8x8&rank=4")
    page.get_by_label("Row modes").fill("7 9")
    assert "must give 64" in page.get_by_role("alert").inner_text()
    choose(page, "Written as", "source")
    assert not page.get_by_role("alert").is_visible()
    page.go_back()
    page.wait_for_function("document.querySelectorAll('.tt-ranks-cores li').length === 2")
    page.get_by_label("Row modes").fill("7 9")
    page.evaluate("location.hash = '#object=digits&modes=8x8_8x8&rank=2'")
    said(page, "rank 2")
    assert page.get_by_label("Row modes").input_value() == "8 8" and not page.get_by_role("alert").is_visible()


@pytest.mark.parametrize(
    ("label", "typed", "kept"),
    [
        ("Rank, typed", "9999", "64"),
        ("Rank, typed", "", "1"),
        ("Rank, typed", "-3", "1"),
        ("Vectors at once", "999999", "65536"),
        ("Vectors at once", "2.6", "3"),
        ("Column modes", "8, 8", "8 8"),
    ],
)
def test_a_field_that_is_left_shows_what_is_computed_with(opened, label, typed, kept):
    page = opened("#object=own&modes=8x8_8x8&rank=4")
    field = page.get_by_label(label, exact=True)
    field.fill(typed)
    assert field.input_value() == typed  # nothing is rewritten under the hands
    field.press("Tab")
    assert field.input_value() == kept
    if label.startswith("Rank"):
        assert page.get_by_label("Rank", exact=True).input_value() == kept and page.url.endswith(f"rank={kept}")
    elif label.startswith("Vectors"):
        assert page.url.endswith(f"vectors={kept}")


def test_the_way_back_rewrites_the_field_in_use(opened):
    page = opened("#object=own&modes=8x8_8x8&rank=4")
    field = page.get_by_label("Rank, typed")
    field.fill("5")
    field.press("Enter")
    assert page.url.endswith("rank=5")
    page.go_back()
    said(page, "rank 4")
    assert field.input_value() == "4"


def test_the_keyboard_alone_is_enough(opened):
    page = opened()
    stops = []
    for _ in range(4):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.type || document.activeElement.tagName"))
    assert stops == ["select-one", "select-one", "range", "number"]
    page.keyboard.press("Shift+Tab")
    before = int(page.get_by_label("Rank", exact=True).input_value())
    page.keyboard.press("ArrowRight")
    assert int(page.get_by_label("Rank", exact=True).input_value()) == before + 1
    assert f"rank={before + 1}" in page.url
    page.get_by_role("link", name="18").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.getAttribute('aria-current') === 'true'")


def test_every_control_and_picture_has_a_name(opened):
    page = opened()
    for control in page.locator("form :is(select, input)").all():
        assert control.evaluate("e => e.labels[0].textContent.trim().length") > 2
    assert page.locator("svg[role=img]").get_attribute("aria-label").startswith("error of the weights against bytes")
    assert page.locator("svg:not([role=img]):not([aria-hidden=true])").count() == 0
    words = page.locator(".tt-ranks-cores li").first.inner_text()
    assert words.startswith("Core 1 of 3:")


def test_boxes_grow_with_what_they_stand_for(opened):
    page = opened("#object=own&modes=64x16_64x16&rank=4")
    small, large = (
        box.bounding_box()
        for box in (page.locator(".tt-ranks-cores svg").nth(1), page.locator(".tt-ranks-cores svg").nth(0))
    )
    assert large["width"] > small["width"]
    page.get_by_label("Rank, typed").fill("64")
    assert page.locator(".tt-ranks-cores svg").nth(1).bounding_box()["height"] > small["height"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_hidden_and_nothing_bars_the_way(opened, width, scheme):
    page = opened(width=width, scheme=scheme)
    for thing in [*OBJECTS, {"id": "own"}]:
        choose(page, "Object", thing["id"])
        assert page.evaluate("document.documentElement.scrollWidth") <= width, thing["id"]
        boxes = "[...document.querySelectorAll('.tt-ranks-table, .tt-ranks section > svg')]"
        assert page.evaluate(f"{boxes}.every(e => e.scrollWidth <= e.clientWidth + 1)"), thing["id"]
    for address in ("#object=smollm2-tokens&modes=rows&rank=8", "#object=nothing"):
        page.evaluate("address => { location.hash = address }", address)
        page.wait_for_function("document.querySelectorAll('.tt-ranks-cores li').length > 0")
        said(page, "numbers")
        page.evaluate(barriers.AXE)
        assert page.evaluate(barriers.RUN, {}) == []
    choose(page, "Object", "own")
    page.get_by_label("Row modes").fill("0")
    assert page.evaluate(barriers.RUN, {}) == []


def test_without_scripts_the_page_says_so(opened):
    page = opened(scripts=False)
    assert "scripts are switched off" in page.locator("#tt-ranks").inner_text()
