"""The page of references: a plain list by author, with an anchor for each entry that pages and chapters can link to.

An entry's anchor is its key in `references.bib`: `[Oseledets (2011)](../book/references.md#oseledets2011)`.
"""

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.alpha import Style
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "book/references"


class ShortNames(Style):
    """Sorted by author and year; first names as initials, so that the last names are found at a glance."""

    def __init__(self, **options: object) -> None:
        """Take the options of a style."""
        super().__init__(**options | {"abbreviate_names": True})


class PlainList(SphinxPostTransform):
    """Entries become items of a list, without labels such as [Ose11], which nobody cites by."""

    default_priority = 6  # right after sphinxcontrib-bibtex has written them

    def run(self, **_: object) -> None:
        """Replace the box of entries."""
        for box in list(self.document.findall(nodes.container)):
            if box.children and all(isinstance(entry, nodes.citation) for entry in box):
                items = [nodes.list_item("", *entry[1:], ids=entry["ids"]) for entry in box]
                box.replace_self(nodes.bullet_list("", *items))


def _anchors(app, env) -> None:
    """Make the keys known to Markdown links, as if they were headings of the page."""
    slugs = env.metadata[PAGE].setdefault("myst_slugs", {})
    slugs.update({cited.key: (None, cited.citation_id, cited.key) for cited in env.get_domain("cite").citations})


def setup(app) -> dict[str, bool]:
    """Register the style and the list, and add the anchors when all pages are read."""
    register_plugin("pybtex.style.formatting", "shortnames", ShortNames)
    app.add_post_transform(PlainList)
    app.connect("env-updated", _anchors, priority=900)  # after sphinxcontrib-bibtex has numbered its citations
    return {"parallel_read_safe": True, "parallel_write_safe": True}
