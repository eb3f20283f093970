"""Which chapter uses which page of the API reference, read from the chapters' code.

The book's extension `used_in` shows it on each page. `python -m book.tools.used` lists, for each chapter, the pages
whose names its code uses, and marks those that its text does not link to.
"""

import ast
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from book.tools.notebooks import ROOT, read

API = ROOT / "book" / "api"
SHOWN = re.compile(r"^\.\. auto(?:module|class|function):: (\S+)$", re.MULTILINE)
PACKAGES = "ttref", "book.workbook"


def in_order() -> list[Path]:
    """The chapters that exist, in the order of the table of contents."""
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [ROOT / f"{file}.ipynb" for file in files if file.startswith("notebooks/")]


def title(chapter: Path) -> str:
    """The chapter's first heading, without marks of code."""
    return re.search(r"^# (.+)$", read(chapter).cells[0].source, re.MULTILINE)[1].replace("`", "")


def pages() -> dict[str, set[str]]:
    """For each page of the reference, by its stem, the modules and classes whose docstrings it shows."""
    return {path.stem: set(SHOWN.findall(path.read_text(encoding="utf-8"))) for path in sorted(API.glob("*.md"))}


def home(dotted: str) -> str | None:
    """Where a name of the packages is defined, such as `ttref.trains.tt_svd` for `ttref.tt_svd`; None for a module."""
    found = pkgutil.resolve_name(dotted)
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else None


def mentioned(code: str) -> Iterator[str]:
    """Dotted names of the packages that a piece of code imports, and those that it reads from an imported package."""
    tree = ast.parse(code)
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in PACKAGES}
    yield from known.values()
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *parts[: 2 if known[node.id] == "ttref" else 1]])


@cache
def used(chapter: Path) -> frozenset[str]:
    """Where the names are defined that a chapter's code takes from `ttref` and from the book's own helpers."""
    cells = (cell.source for cell in read(chapter).cells if cell.cell_type == "code")
    code = "\n".join(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE) for source in cells)
    found = set()
    for dotted in mentioned(code):
        try:
            found |= {dotted, home(dotted)}
        except (ImportError, AttributeError):  # an attribute of a function or a class, such as `from_linear`
            continue
    return frozenset(found - {None})


def chapters_of(page: str) -> list[Path]:
    """The chapters whose code uses a name that the page shows."""
    shown = pages()[page]

    def on_page(name: str) -> bool:
        return name in shown or name.rpartition(".")[0] in shown

    return [chapter for chapter in in_order() if any(map(on_page, used(chapter)))]


def linked(chapter: Path) -> set[str]:
    """The pages of the reference that a chapter's text links to."""
    text = "\n".join(cell.source for cell in read(chapter).cells if cell.cell_type == "markdown")
    return set(re.findall(r"\]\(\.\./book/api/(\w+)\.md", text))


def needed(chapter: Path) -> list[str]:
    """The pages that a chapter should link to: those whose names its code uses, but for the book's own helpers."""
    return [page for page in pages() if page not in ("workbook", "pictures") and chapter in chapters_of(page)]


def main() -> None:
    """Print each chapter's pages; a page that is used and not linked has a star."""
    for chapter in in_order():
        print(chapter.stem, *(page if page in linked(chapter) else f"{page}*" for page in needed(chapter)))


if __name__ == "__main__":
    main()
