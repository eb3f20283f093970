"""Pale words are found whatever makes them pale, also where all else on the page has been seen before."""

import barriers
import pytest

ROWS = "".join(f'<li data-n="{n}"><span>row {n}</span> of words</li>' for n in range(1, 9))
PAGE = f"""<!doctype html><html lang="en"><title>Lists</title><style>li {{ color: #777; font-size: 32px }}</style>
<article><h2>One</h2><ul>{ROWS}</ul></article><article><h3>Two</h3><ul id="two">{ROWS}</ul></article>"""
RULES = {
    "a number among others": "li:nth-child(5) span { color: #ccc }",
    "a number from the end": "article:last-child li:nth-last-child(3) { color: #ccc }",
    "an id": "#two span { color: #ccc }",
    "the value of an attribute": "[data-n='7'] { color: #ccc }",
    "what stands before": "[data-n='3'] ~ [data-n='6'] { color: #ccc }",
    "what stands before one above": "h3 + ul > li { color: #ccc }",
    "what is inside one above": "article:has(h3) span { color: #ccc }",
    "a ground": "#two li:nth-child(6) { background: #555 }",
    "a ground above": "h3 + ul { background: #555 }",
    "opacity above": "h3 + ul { opacity: 0.3 }",
    "small letters": "#two li { font-size: 12px }",
}


@pytest.fixture
def page(browser):
    """A page with two lists, all of whose looks are known, and the looks."""
    page, known = browser.new_page(), set()
    page.set_content(PAGE)
    barriers.prepare(page)
    assert not barriers.pale(page, known) and known
    yield page, known
    page.close()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_that_makes_words_pale(rule, page):
    page, known = page
    page.add_style_tag(content=rule)
    (found,) = barriers.pale(page, known)
    assert found.startswith("color-contrast: <")
    assert not barriers.pale(page, known)


def test_what_looks_alike_is_looked_at_once(page):
    page, known = page
    page.evaluate("document.querySelector('#two').innerHTML += document.querySelector('ul').innerHTML")
    assert page.evaluate(barriers.ALIKE, sorted(known)) == []
    assert page.locator("li").count() == 24 and page.locator("li:visible").count() == 0
