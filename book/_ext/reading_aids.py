"""What the theme leaves out: names for toggles, figures that open at full size, a description of each page.

Folded code is announced by the words that stand on it. (MyST-NB calls every toggle "Toggle hidden content".)
"""

import html
import re
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode, depart_HideCellInput

PICTURE = re.compile(r'<img (?=[^>]*?src="([^"]*_images/[^"]+)")[^>]*>')
# In the order of the theme's templates: a label hides the words below it from a screen reader, a summary without words
# has no name, and the deprecated roles of a bibliography are a list without items.
THEME = [
    (r'(<button class="btn search-button-field [^>]*?) aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*?) title="[^"]*"', r'\1 aria-hidden="true"'),
    (r"(>([^<>]+)</a><details[^>]*>)<summary>", r'\1<summary aria-label="Pages below \2">'),
    (r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)',
     r'<div class="sidebar-primary-item" role="navigation" aria-label="Start page">'),
    (r'<div role="list" class="citation-list">', r'<div class="citation-list">'),
    (r' role="doc-biblioentry"', r""),
]  # fmt: skip
SENTENCES = re.compile(r".{1,200}[.!?](?= |$)")


def _visit(self, node) -> None:
    shown = node["prompt_show"]
    hidden = f"Hide{shown[4:]}" if shown.startswith("Show ") else node["prompt_hide"]
    self.body.append(f'<details class="admonition hide {" ".join(node["classes"])}">\n<summary>\n')
    for state, label in (("collapsed", shown), ("expanded", hidden)):
        self.body.append(f'<p class="{state} admonition-title">{html.escape(label)}</p>\n')
    self.body.append("</summary>\n")


def description(doctree: nodes.document) -> str:
    """Return the first sentence or two of a page, for search engines and for people who are sent a link to it."""
    for paragraph in doctree.findall(nodes.paragraph):
        if "used-in" in paragraph["classes"] or not isinstance(paragraph.parent, (nodes.section, nodes.list_item)):
            continue
        text = re.sub(r"\\\w+|[\\${}]", "", " ".join(paragraph.astext().split()))
        first = SENTENCES.match(text)
        return first[0] if first else text[:240]
    return ""


def larger(body: str) -> str:
    """Return the HTML of a page with each picture in a link to its file."""
    return PICTURE.sub(r'<a class="enlarge" href="\1" title="Open at full size">\g<0></a>', body)


def landing(body: str) -> str:
    """Return the HTML of a page with links of class landing, written for a notebook's folder, leading to pages."""
    return re.sub(r'(<a class="landing" href="[^"#]+)\.(?:ipynb|md)(?=[#"])', r"\1.html", body)


def _page(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = landing(larger(context["body"]))
    if doctree is None:
        return
    said = html.escape(description(doctree))
    title = html.escape(re.sub(r"<[^>]+>", "", context.get("title", "")))
    site = html.escape(app.config.html_title)
    named = {"og:title": title, "og:description": said, "og:type": "article", "og:site_name": site}
    context["metatags"] = context.get("metatags", "") + "".join(
        [f'\n<meta name="description" content="{said}" />']
        + [f'\n<meta property="{name}" content="{content}" />' for name, content in named.items()]
    )


def mended(page: str) -> str:
    """Return a finished page with the names and roles that the theme's templates lack."""
    for old, new in THEME:
        page = re.sub(old, new, page)
    return page


def _finish(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            text = path.read_text(encoding="utf-8")
            path.write_text(mended(text), encoding="utf-8")


def setup(app) -> dict[str, bool]:
    """Take the place of MyST-NB's toggle, and mend pages as they are written and after."""
    app.setup_extension("myst_nb")
    app.add_node(HideCodeCellNode, override=True, html=(_visit, depart_HideCellInput))
    app.connect("html-page-context", _page, priority=800)
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
