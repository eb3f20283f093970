"""The directive `used-in`: links to the chapters whose code uses what a page of the API reference shows.

The links are computed at each build, so they cannot name a chapter that is gone or miss a new one.
"""

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class UsedIn(SphinxDirective):
    """A line "Used in: ..." for the page it stands on; nothing for a page that no chapter uses."""

    def run(self) -> list[nodes.Node]:
        """The paragraph."""
        from book.tools import links, used  # the checkout is on the path by now: `this_checkout` puts it there

        chapters = used.chapters_of(self.env.docname.rpartition("/")[2])
        for chapter in chapters:
            self.env.note_dependency(str(chapter))
        if not chapters:
            return []
        line = nodes.paragraph("", "", nodes.strong("", "Used in:"), nodes.Text(" "), classes=["used-in"])
        for k, chapter in enumerate(chapters):
            line += nodes.Text(" · ") if k else nodes.Text("")
            line += links.to_chapter(chapter, self.env.docname)
        return [line]


def setup(app) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("used-in", UsedIn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
