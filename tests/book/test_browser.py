"""Each page in a real browser with the network blocked, as a reader with a laptop, a dark room or a phone sees it."""

import functools
import http.server
import os
import shutil
import threading

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium on this machine; install it with: apt-get install chromium", allow_module_level=True)

UNTYPESET = "[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
WRONG = "document.querySelectorAll('mjx-merror, [data-mjx-error]').length"
BROKEN = "[...document.images].filter(i => !i.naturalWidth).length"
FILTERS = "[...document.querySelectorAll('.bd-content img')].map(i => getComputedStyle(i).filter)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(html):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, site):
    """Open pages at a width and in a colour scheme; afterwards nothing may have failed or left the machine."""
    errors, outside, contexts = [], [], []

    def visit(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
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


def test_every_page_in_the_light(visit, names):
    go = visit()
    formulas = 0
    for name in names:
        page = go(name)
        assert page.evaluate(UNTYPESET) == 0, name
        assert page.evaluate(WRONG) == 0, name
        assert page.evaluate(BROKEN) == 0, name
        formulas += page.locator("mjx-container").count()
    assert formulas > 10


def test_figures_keep_their_colours_in_the_dark(visit, names):
    go = visit(scheme="dark")
    seen = set()
    for name in names:
        page = go(name)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark", name
        seen.update(page.evaluate(FILTERS))
    assert seen == {"none"}


def test_no_page_moves_sideways_on_a_phone(visit, names):
    go = visit(width=390)
    for name in names:
        page = go(name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate(BROKEN) == 0, name


def test_search_finds_schmidt(visit):
    page = visit()("search.html?q=Schmidt")
    page.wait_for_selector("ul.search li a")
    hits = page.locator("ul.search li a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert any("01_mps_math" in hit for hit in hits)
