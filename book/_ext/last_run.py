"""The directive `last-run`: what the last `make test` in this checkout took, part by part, or that there was none.

The record is `_build/last_run.json`, or the file that TTREF_LAST_RUN names. It never belongs to the repository: the
committed page is the same on every machine, and only a built book shows a run.
"""

import os
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("passed", "failed", "skipped")
COLUMNS = ("Time, s", "Peak, MiB", "Tests")  # no more: a phone would break their names


class LastRun(SphinxDirective):
    """A summary, a table of the notebooks, one of the tests, and the versions."""

    def run(self) -> list[nodes.Node]:
        """The summary and the tables, or one sentence."""
        # The checkout is on the path by now: `this_checkout` puts it there.
        from book.tools import last_run, links, notebooks

        path = Path(os.environ.get("TTREF_LAST_RUN") or ROOT / "_build" / "last_run.json")
        self.env.note_dependency(str(path))  # also while there is none: the page is read again when there is
        found = last_run.read(path)
        if found is None:
            return [nodes.paragraph("", "Not run yet where these pages were built: no run of the tests is recorded.")]
        of = {f"notebooks/{chapter.name}": chapter for chapter in notebooks.chapters()}
        chapters = [part for part in found["parts"] if part["name"] in of]
        tests = [part for part in found["parts"] if part["name"] not in of]
        versions = "; ".join(f"{name} {version}" for name, version in found["versions"].items())
        tables = [
            ("Notebook", [(links.to_chapter(of[part["name"]], self.env.docname), part) for part in chapters]),
            ("Folder", [(nodes.literal("", part["name"]), part) for part in tests]),
        ]
        return [
            nodes.paragraph("", summary(found)),
            nodes.paragraph("", f"{versions}."),
            *(table(first, rows) for first, rows in tables if rows),
        ]


def summary(found: dict) -> str:
    """The run in two sentences."""
    counted = ends({mark: sum(part[mark] for part in found["parts"]) for mark in MARKS})
    minutes, seconds = divmod(round(found["seconds"]), 60)
    commit = f", commit {found['commit']}" if found["commit"] else ""
    return (
        f"{counted}, in {minutes} min {seconds} s on {found['date']}{commit}. "
        f"{found['workers']} processes, {found['cores']} cores, {found['processor']}, {found['system']}."
    )


def ends(part: dict) -> str:
    """How many tests passed, and how many did not."""
    return ", ".join(f"{part[mark]:,} {mark}" for mark in MARKS if part[mark] or mark == "passed")


def table(first: str, rows: list[tuple[nodes.Node, dict]]) -> nodes.Node:
    """A table of parts of the run: the name, then what it took and how its tests ended."""
    group = nodes.tgroup("", cols=1 + len(COLUMNS))
    group += [nodes.colspec(colwidth=width) for width in (36, 15, 15, 34)]
    group += nodes.thead("", line([nodes.Text(name) for name in (first, *COLUMNS)]))
    body = nodes.tbody()
    for name, part in rows:
        peak = "" if part["peak_mib"] is None else f"{part['peak_mib']:,}"
        cells = [f"{part['seconds']:.1f}", peak, ends(part)]
        body += line([name, *map(nodes.Text, cells)])
    group += body
    return nodes.table("", group, classes=["colwidths-given"])


def line(cells: list[nodes.Node]) -> nodes.row:
    """One line of a table; the second and the third cell hold numbers, set to the right."""
    row = nodes.row()
    for k, cell in enumerate(cells):
        row += nodes.entry("", nodes.paragraph("", "", cell), classes=["text-right"] if k in (1, 2) else [])
    return row


def setup(app) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("last-run", LastRun)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
