"""The audit as text, and as a page in a real browser: sorted by a press, light and dark, nothing fetched."""

import html.parser

import barriers
import pytest
from small_checkpoints import noise, saved, small_model

from ttref.audit import audit


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return audit(saved(small_model() | {"<b>x</b>.weight": noise(16, 16)}, tmp_path_factory.mktemp("model")))


def test_the_text_fits_and_answers_first(found):
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 88
    assert str(found).startswith("A tensor train pays for wpe.weight at an error of 30%. Two factors (SVD) pay for")
    row = next(line for line in lines if line.startswith("position table"))
    assert row.split()[2:5] == ["tt", "72.4%", "1"] or row.split()[2] == "tt"
    assert "wpe.weight (tt): rows in blocks" in " ".join(lines) or "wpe.weight (tt): TT-matrix" in " ".join(lines)


def test_a_name_cannot_give_a_terminal_orders(tmp_path):
    name = "evil\x1b[2J\n\u202e.wpe.weight"
    found = audit(saved({name: small_model()["wpe.weight"]}, tmp_path))
    assert found.rows[0]["name"] == name and "tt" in str(found)
    assert all(one.isprintable() for one in str(found).replace("\n", "")) and str(found).count("evil") == 2


def test_a_checkpoint_without_matrices_has_nothing_to_compare(tmp_path):
    import torch

    found = audit(saved({"norm.weight": torch.ones(8)}, tmp_path))
    assert found.summary.startswith("Nothing to compare") and found.rows == [] and str(found)
    found.page(tmp_path / "audit.html")


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_names_are_escaped(found, tmp_path):
    found.page(tmp_path / "audit.html")
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and "<b>x" not in text and "&lt;b&gt;x" in text
    assert not any(attrs.keys() & {"src", "href"} for _, attrs in tags.seen) and "url(" not in text
    assert sum(tag == "circle" for tag, _ in tags.seen) == sum(row["looked"] for row in found.rows)
    assert sum(tag == "tr" for tag, _ in tags.seen) == 1 + len(found.rows)
    assert "<script" not in found._repr_html_() and "<b>x" not in found._repr_html_()


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (390, "light")])
def test_the_page_in_a_browser(found, tmp_path, browser, width, scheme):
    found.page(tmp_path / "audit.html")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong, page = [], context.new_page()
    page.on("request", lambda asked: asked.url.startswith("file:") or wrong.append(asked.url))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "audit.html").as_uri())
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert barriers.of_small_page(page) == []
    names = "[...document.querySelectorAll('tbody th')].map(cell => cell.textContent)"
    before = page.evaluate(names)
    for head, key in (("numbers", "numbers"), ("train", None)):
        button = page.get_by_role("button", name=head, exact=True)
        button.press("Enter")
        assert button.locator("..").get_attribute("aria-sort") == "descending"
        value = {row["name"]: row[key] if key else row["train"][1] if row["looked"] else 0 for row in found.rows}
        falling = [value[name] for name in page.evaluate(names)]
        assert falling == sorted(falling, reverse=True)
        button.press("Enter")
        assert button.locator("..").get_attribute("aria-sort") == "ascending"
        assert [value[name] for name in page.evaluate(names)] == sorted(falling)
    page.get_by_role("button", name="name", exact=True).press("Enter")
    assert page.evaluate(names) == page.evaluate(f"{names}.sort((a, b) => a.localeCompare(b))")
    assert sorted(page.evaluate(names)) == sorted(before) and not wrong
    context.close()
