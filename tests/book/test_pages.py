"""The built pages, read as files and in a real browser: links lead somewhere, pictures have words, nothing is fetched.

One file, because both need the built book: tests are shared out between processes file by file.
"""

import functools
import http.server
import os
import re
import threading
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import barriers
import pytest
from bs4 import BeautifulSoup

import ttref
from book.tools import used
from book.tools.notebooks import address, chapters
from ttref import fixedpoint
from ttref.lora import peft

SOURCES = {"script": "src", "link": "href", "img": "src", "iframe": "src", "video": "src"}
FETCHED = {"stylesheet", "preload", "icon", "preconnect"}  # the kinds of <link> that a browser acts on

UNTYPESET = "[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
WRONG = "document.querySelectorAll('mjx-merror, [data-mjx-error]').length"
BROKEN = "[...document.images].filter(i => !i.naturalWidth).length"
OPEN = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
FILTERS = "[...document.querySelectorAll('.bd-content img')].map(i => getComputedStyle(i).filter)"


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


class Tags(HTMLParser):
    """The opening tags of a page with their attributes, and its inline styles: faster by far than a tree."""

    def __init__(self, path: Path):
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.styles: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem == "style":
            self.styles.append(data)


tags = cache(Tags)


@cache
def anchors(path: Path) -> set[str]:
    """Return what a link into this page may name."""
    opened = tags(path).opened
    return {attrs["id"] for _, attrs in opened if "id" in attrs} | {
        attrs["name"] for tag, attrs in opened if tag == "a" and "name" in attrs
    }


@pytest.fixture(scope="module")
def pages(html) -> list[Path]:
    """Return the pages that people wrote: those of the table of contents."""
    found = [p for p in sorted(html.rglob("*.html")) if p.relative_to(html).parts[0] in {"book", "notebooks"}]
    assert html / "book/intro.html" in found
    return found


def test_the_start_page_leads_to_the_verdict(html):
    refresh = soup(html / "index.html").find("meta", attrs={"http-equiv": "Refresh"})["content"]
    assert refresh.split("url=")[1] == "notebooks/00_decide.html"


def test_every_internal_link_and_anchor_exists(html):
    dead = []
    checked = 0
    files = {str(file) for file in html.rglob("*") if file.is_file()}
    for page in (p for p in html.rglob("*.html") if "_static" not in p.parts):
        for href in (attrs["href"] for tag, attrs in tags(page).opened if tag == "a" and "href" in attrs):
            target = urlsplit(href)
            if target.scheme or target.netloc or href in {"", "#"}:
                continue
            checked += 1
            file = Path(os.path.normpath(page.parent / unquote(target.path))) if target.path else page
            if str(file) not in files:
                dead.append(f"{page.name}: {href}")
            elif target.fragment and file.suffix == ".html" and unquote(target.fragment) not in anchors(file):
                dead.append(f"{page.name}: {href}")
    assert checked > 100
    assert not dead


def test_pages_describe_themselves(pages):
    said = {}
    for page in pages:
        metas = soup(page).find_all("meta", content=True)
        head = {tag.get("name") or tag.get("property"): tag["content"] for tag in metas}
        assert 20 < len(head["description"]) <= 240, page.name
        assert head["og:description"] == head["description"] and head["og:title"], page.name
        assert "Version" in soup(page).find(class_="extra_footer").text
        said[page] = head["description"]
    assert len(set(said.values())) > 0.9 * len(said)


def test_a_figure_opens_at_full_size(html, pages):
    links = [(page, link) for page in pages for link in soup(page).find_all("a", class_="enlarge")]
    assert links
    for page, link in links:
        assert (page.parent / link["href"]).is_file() and link.img["alt"]


def test_headings_start_with_one_title_and_skip_no_level(pages):
    for page in pages:
        levels = [int(tag.name[1]) for tag in soup(page).find("article").find_all(re.compile("^h[1-6]$"))]
        assert levels.count(1) == 1 and levels[0] == 1, page.name
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False)), f"{page.name}: {levels}"


def test_every_picture_has_words(pages):
    seen = 0
    for page in pages:
        for image in soup(page).find("article").find_all("img"):
            seen += 1
            assert len(image.get("alt", "")) >= 20 and "_images/" not in image["alt"], f"{page.name}: {image['src']}"
    assert seen


def test_nothing_is_asked_from_outside(html):
    outside = []
    for page in html.rglob("*.html"):
        for tag, attrs in tags(page).opened:
            if re.match("(https?:)?//", attrs.get(SOURCES.get(tag)) or ""):
                if tag != "link" or set(attrs.get("rel", "").split()) & FETCHED:
                    outside.append(f"{page.name}: {attrs[SOURCES[tag]]}")
        outside += [f"{page.name}: inline style" for text in tags(page).styles if re.search(r"url\(.?http", text)]
    for style in html.rglob("*.css"):
        if re.search(r"url\(\s*['\"]?(https?:)?//|@import\s+['\"](https?:)?//", style.read_text(encoding="utf-8")):
            outside.append(style.name)
    assert not outside


def test_formulas_come_from_the_book_itself(html, pages):
    scripts = {s["src"].split("?")[0] for p in pages for s in soup(p).find_all("script", src=re.compile("mathjax"))}
    assert scripts == {"../_static/mathjax/tex-chtml.js"}
    assert (html / "_static/mathjax/tex-chtml.js").is_file()


def test_no_markup_is_left_unread(pages):
    for page in pages:
        words = [text for text in soup(page).find("article").strings if not text.find_parent(["code", "pre", "script"])]
        left = re.search(r"\{[a-z:-]+\}`|\[\]\(|\*\*[A-Z]|:(math|func|class|meth|mod|ref):`", "".join(words))
        assert not left, f"{page.name}: {left[0]}"


def test_buttons_appear_with_an_address_and_only_then(pages):
    expected = {"dropdown-source-buttons", "dropdown-launch-buttons"} if address() else set()
    for page in (page for page in pages if page.parent.name == "notebooks"):
        shown = {name for tag in soup(page).find_all(class_="dropdown") for name in tag["class"]}
        assert shown & {"dropdown-source-buttons", "dropdown-launch-buttons"} == expected, page.name


def test_one_api_page_shows_each_public_name(html):
    shown = {name: page.stem for page in sorted((html / "book/api").glob("*.html")) for name in anchors(page)}
    assert ttref.__all__
    public = [(ttref, ttref.__all__), (fixedpoint, [*fixedpoint.__all__, "TTMatvec", "simulate"]), (peft, peft.__all__)]
    for name, home in [(name, getattr(package, name).__module__) for package, names in public for name in names]:
        assert f"{home}.{name}" in shown, f"{home}.{name} is on no API page"
    for page in set(shown.values()):
        assert soup(html / "book/api.html").find("a", href=f"api/{page}.html"), f"the API reference lists no {page}"


def test_an_api_page_names_the_chapters_that_use_it(html):
    for page in used.pages():
        line = soup(html / f"book/api/{page}.html").find(class_="used-in")
        links = [Path(a["href"]).stem for a in line.find_all("a")] if line else []
        assert links == [chapter.stem for chapter in used.chapters_of(page)], page
    assert "01_mps_math" in [chapter.stem for chapter in used.chapters_of("trains")]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(html):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def visit(browser, site):
    """Open pages at a width and in a color scheme; afterwards nothing may have failed or left the machine."""
    errors, outside, contexts = [], [], []

    def visit(width=1280, scheme="light"):
        # A fold fades in; axe would measure colors half way.
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)

        def gate(route):
            if route.request.url.startswith((site, "data:", "blob:")):
                route.continue_()
            else:
                outside.append(route.request.url)
                route.abort()

        context.route("**/*", gate)
        page = context.new_page()
        page.on("console", lambda said: errors.append(f"{page.url}: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(f"{page.url}: {error}"))

        def go(name):
            page.goto(site + name, wait_until="load")
            page.wait_for_function("!window.MathJax || MathJax.startup && MathJax.startup.promise")
            page.evaluate("window.MathJax ? MathJax.startup.promise.then(() => true) : true")
            return page

        return go

    yield visit
    for context in contexts:
        context.close()
    assert not errors
    assert not outside


@pytest.fixture(scope="module")
def names(html):
    found = sorted(p.relative_to(html).as_posix() for d in ("book", "notebooks") for p in (html / d).rglob("*.html"))
    assert len(found) > 5
    return found


WIDE, DARK, NARROW = (1280, "light"), (1280, "dark"), (390, "light")


def layout(page, width) -> dict:
    """What is wrong with a page of this width as it is now."""
    return {
        "untypeset formulas": page.evaluate(UNTYPESET),
        "formulas with errors": page.evaluate(WRONG),
        "broken pictures": page.evaluate(BROKEN),
        "pictures with a filter": set(page.evaluate(FILTERS)) - {"none"},
        "sideways": page.evaluate("document.documentElement.scrollWidth") > width,
        "hidden behind a scroll bar": page.evaluate(barriers.CLIPPED),
    }


def setting(page, width, scheme) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)


def barred(page, known) -> list[tuple]:
    """What keeps readers out of a page, wide, dark and narrow: where, of which kind, and what."""
    barriers.prepare(page)
    found = []
    for at in (WIDE, DARK, NARROW):
        setting(page, *at)
        found += [(at, "barriers", barriers.found(page)), (at, "pale", barriers.pale(page, known[at]))]
    return [one for one in found if one[2]]


def test_every_page(visit, names):
    """Wide, narrow and dark. A page is loaded once, and then turned: loading all of them takes most of the time."""
    go, wrong, formulas = visit(), [], 0
    known = {at: set() for at in (WIDE, DARK, NARROW)}  # what the contrasts were seen of, on pages before
    for name in [*names, "search.html"]:
        page, found = go(name), []
        formulas += page.locator("mjx-container").count()
        for at in (WIDE, DARK, NARROW):
            setting(page, *at)
            found += [(at, what, seen) for what, seen in layout(page, at[0]).items()]
        page.evaluate(OPEN)
        found.append((NARROW, "hidden in a fold", page.evaluate(barriers.CLIPPED)))
        setting(page, *WIDE)
        found.append((WIDE, "hidden in a fold", page.evaluate(barriers.CLIPPED)))
        wrong += [f"{name} {at}: {what}: {seen}" for at, what, seen in [*found, *barred(page, known)] if seen]
    assert not wrong, "\n".join(wrong)
    assert formulas > 10


@pytest.mark.parametrize("width, scheme", [DARK, NARROW])
def test_a_page_that_is_loaded_dark_or_narrow(visit, width, scheme):
    go = visit(width=width, scheme=scheme)
    for name in ("notebooks/00_decide.html", "book/api/trains.html", "search.html"):
        page = go(name)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme, name
        assert not [what for what, seen in layout(page, width).items() if seen], name
        page.evaluate(OPEN)
        assert not page.evaluate(barriers.CLIPPED), name
        barriers.prepare(page)
        assert not barriers.found(page) and not barriers.pale(page, set()), name


def test_a_pale_word_is_found_once_among_all_that_look_alike(visit):
    page, known = visit()("notebooks/00_decide.html"), set()
    page.evaluate(OPEN)
    barriers.prepare(page)
    assert not barriers.pale(page, known)
    page.evaluate("document.querySelectorAll('article p')[9].innerHTML = 'plain <b style=\"color: #ccc\">pale</b>'")
    (found,) = barriers.pale(page, known)
    assert found.startswith("color-contrast: <b") and found.endswith("(1)")
    assert not barriers.pale(page, known)


def test_a_barrier_that_is_there_in_the_dark_only(visit):
    page = visit()("notebooks/00_decide.html")
    page.add_style_tag(content="#new { display: none } [data-theme='dark'] #new { display: block }")
    page.evaluate("document.querySelector('article').innerHTML += '<div id=new><button></button></div>'")
    ((at, what, (found,)),) = barred(page, {at: set() for at in (WIDE, DARK, NARROW)})
    assert at == DARK and what == "barriers" and found.startswith("button-name")


def test_a_tab_stop_is_something_to_act_on(visit):
    page = visit()("notebooks/01_mps_math.html")
    assert page.locator("mjx-container").count()
    assert page.locator("mjx-container[tabindex='0']").count() == 0


def test_a_fold_is_announced_by_the_words_on_it(visit):
    page = visit()("notebooks/01_mps_math.html")
    fold = page.get_by_role("group").filter(has_text="Show the solution").first
    summary = fold.locator("summary")
    assert summary.get_attribute("aria-label") is None and summary.inner_text().strip() == "Show the solution"
    summary.press("Enter")
    assert summary.inner_text().strip() == "Hide the solution"


def search(visit, query):
    page = visit()(f"search.html?q={query}")
    page.wait_for_selector("ul.search li a")
    page.wait_for_function("document.querySelector('.search-summary').textContent.includes('finished')")
    links = page.locator("ul.search > li > a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    return page, links


def test_search_finds_schmidt_and_leads_to_sections(visit, html):
    page, hits = search(visit, "Schmidt")
    assert any("01_mps_math" in hit for hit in hits)
    page.wait_for_selector(".search-sections a[href*='#']")
    for link in page.locator(".search-sections a").evaluate_all("links => links.map(a => a.getAttribute('href'))"):
        target = urlsplit(link)
        assert unquote(target.fragment) in anchors(html / unquote(target.path).lstrip("/")), link


@pytest.mark.parametrize(
    "british, american",
    [("quantisation", "quantization"), ("nearest neighbours", "nearest neighbors"), ("normalise", "normalize"),
     ("colour", "color"), ("grey", "gray")],
)  # fmt: skip
def test_search_finds_both_spellings(visit, british, american):
    (_, theirs), (_, ours) = search(visit, british), search(visit, american)
    assert ours and theirs == ours


def test_search_leaves_words_of_both_spellings_alone(visit):
    page = visit()("search.html")
    words = ["filled", "installed", "filling", "modelling"]
    assert page.evaluate("words => words.map(w => american(w, () => true))", words) == [*words[:3], "modeling"]


def test_the_book_on_one_page_prints_on_one_sheet(visit):
    """With the margins that browsers leave, and a twentieth to spare for wider letters than those of this machine."""
    page = visit()("book/one_page.html")
    margin = dict.fromkeys(("top", "right", "bottom", "left"), "10mm")
    for sheet, width, height in (("A4", 210, 297), ("Letter", 215.9, 279.4)):
        shorter = 20 + 0.95 * (height - 20)
        printed = page.pdf(width=f"{width}mm", height=f"{shorter}mm", margin=margin)
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1, sheet


def test_links_to_the_chapters_around_say_the_minutes(html):
    assert soup(html / "book/intro.html").find(class_="left-prev").text.strip().endswith(" min")


def test_the_book_shows_the_run_of_the_record(html):
    page = BeautifulSoup((html / "book/last_run.html").read_text(encoding="utf-8"), "html.parser").find("article")
    assert "1,331 passed" in page.text and "commit abc1234" in page.text
    first = chapters()[0]
    link = page.find("a", string=used.title(first))
    assert link["href"] == f"../notebooks/{first.stem}.html"
