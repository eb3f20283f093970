"""Links to chapters, as the extensions of the book write them."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref

from .used import title


def to_chapter(chapter: Path, page: str) -> pending_xref:
    """A link from a page to a chapter, with its title; Sphinx warns if there is none."""
    return pending_xref(
        "",
        nodes.inline("", title(chapter)),
        refdomain="std",
        reftype="doc",
        refdoc=page,
        reftarget=f"/notebooks/{chapter.stem}",
        refexplicit=True,
        refwarn=True,
    )
