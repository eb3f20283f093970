"""The links to the previous and the next page say how many minutes it takes to read.

The minutes are those of the table "Which chapter for whom" in the introduction; a page that is not in it has none.
"""

import re
from functools import cache
from pathlib import Path

INTRO = Path(__file__).resolve().parents[1] / "intro.md"
ROW = re.compile(r"^\| \[[^\]]+\]\(\.\./(notebooks/\w+)\.ipynb\) \|[^|]+\| (\d+) \|$", re.MULTILINE)


@cache
def minutes() -> dict[str, int]:
    """For each chapter, by its name in the table of contents, the minutes."""
    return {name: int(found) for name, found in ROW.findall(INTRO.read_text(encoding="utf-8"))}


def titled(title: str, name: str | None) -> str:
    """The title of a link to a page, with its minutes where they are known."""
    return f"{title}, {minutes()[name]} min" if name in minutes() else title


def _page(app, pagename, templatename, context, doctree) -> None:
    _, *names = getattr(app.builder, "relations", {}).get(pagename, (None, None, None))
    for side, name in zip(("prev", "next"), names, strict=True):
        if context.get(side):  # the theme's template takes these in place of the page's own title
            context[f"{side}_title"] = titled(context[side]["title"], name)


def setup(app) -> dict[str, bool]:
    """Give the theme's links their titles."""
    app.connect("env-before-read-docs", lambda app, env, names: minutes.cache_clear())
    app.connect("html-page-context", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
