"""The directive `rank-explorer`: the records as JSON in the page, and scripts and styles on that page alone.

The records are read at each build. They stand in the page itself because a page opened as a file may not fetch another.
"""

import json

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

PAGE = "book/rank_explorer"
SCRIPTS = "train_costs.js", "row_costs.js", "rank_state.js", "rank_drawing.js", "rank_results.js", "rank_explorer.js"
WITHOUT = "This page computes in your browser, and scripts are switched off. The chapters show the same records."


def embedded() -> str:
    """The HTML that `rank_explorer.js` fills: an element for it, and the records."""
    from book.tools import rank_records  # the checkout is on the path by now: `this_checkout` puts it there

    data = json.dumps(rank_records.objects(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="tt-ranks" id="tt-ranks"><noscript><p>{WITHOUT}</p></noscript></div>\n'
        f'<script type="application/json" id="tt-ranks-records">{data}</script>'
    )


class RankExplorer(SphinxDirective):
    """The place of the explorer."""

    def run(self) -> list[nodes.Node]:
        """The raw HTML; the page is read again when a record has changed."""
        from book.tools import results

        for path in sorted(results.RESULTS.glob("*.json")):
            self.env.note_dependency(str(path))
        return [nodes.raw("", embedded(), format="html")]


def _scripts(app, pagename, templatename, context, doctree) -> None:
    if pagename == PAGE:
        app.add_css_file("rank_explorer.css")
        for name in SCRIPTS:
            app.add_js_file(name)


def setup(app) -> dict[str, bool]:
    """Register the directive, and the scripts of its page."""
    app.add_directive("rank-explorer", RankExplorer)
    app.connect("html-page-context", _scripts, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
