"""Pages of one part of the book, made without building it, and opened in the browser as files."""

from contextlib import contextmanager


def page_of(folder, title, style, scripts, body):
    """Write a page and return its address."""
    file = folder / "page.html"
    file.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style>'
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</head>"
        f'<body><main class="bd-content"><h1>{title}</h1>{body}</main></body></html>',
        encoding="utf-8",
    )
    return file.as_uri()


@contextmanager
def opening(browser, address):
    """Open a page at a width, in a scheme, with scripts or not; no script may fail, nothing else may be asked for."""
    contexts, errors, asked = [], [], []

    def open_page(more="", width=1280, scheme="light", scripts=True):
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=scripts))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + more)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert {url.split("#")[0] for url in asked} <= {address}
